"""Checkpoints of a training run: all it takes to go on, bit for bit, in a safetensors file whose metadata holds JSON.

    folder/
      checkpoint-00000400-5c106cde81f0a7b2.safetensors   step, first digits of the file's SHA-256
      checkpoint-00000800-91ab3c66d02e4f18.safetensors   the newest two are kept, in case one is damaged later
      lock                                               one process at a time

Every file is written aside and renamed, so that a kill at any moment leaves the ones before it. A file says whose it is: one of
another run is refused, and so is one whose bytes do not fit its name. Nothing but safetensors and JSON is read.
"""

import hashlib
import json
import math
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from .disk import ASIDE, as_json, sha256, write_aside
from .errors import FuseMixLiteError

FORMAT = "fusemix-lite checkpoint"
FAILED = "not-finite.json"  # what a run that broke down leaves beside them
SHARE = 0.01  # of the time that checkpoints may take, at most
_NAME = re.compile(r"checkpoint-(\d{8,})-([0-9a-f]{16})\.safetensors")

State = tuple[dict[str, Tensor], dict]  # tensors, and facts that JSON can hold


class Checkpoints:
    """Where a run keeps its checkpoints, and how often it writes one. `fit` takes a folder or one of these.

    While a run is in ``with`` its checkpoints, nobody else can use them, and Ctrl-C or SIGTERM waits for the end of the step,
    writes a checkpoint, and only then does what it would have done; a second one does it at once.

    Args:
        folder: for the files. It is made where it is not there. None: no checkpoints.
        every: seconds from one to the next, at least; where writing takes long, they become rarer.
        replace: drop the checkpoints of another run, or broken ones, and begin again, instead of refusing.

    Attributes:
        last: the file of the newest good one; None where there is none.
    """

    def __init__(self, folder: str | Path | None, every: float = 30.0, replace: bool = False):
        if not isinstance(every, int | float) or not 0 <= every < math.inf:
            raise FuseMixLiteError(f"checkpoints every {every!r} seconds: give a number, 0 or more")
        self.folder, self.every, self.replace = None if folder is None else Path(folder), every, replace
        self.last: Path | None = None
        self._due, self._run, self._lock, self._handlers, self._signal, self._warned = 0.0, {}, None, {}, None, False
        self._elsewhere = False

    def of_another(self) -> "Checkpoints":
        """The same for a process that shares a run with the one that has the files: it hears signals, and writes nothing."""
        other = Checkpoints(None)
        other._elsewhere = self.folder is not None
        return other

    @classmethod
    def of(cls, checkpoint: "str | Path | Checkpoints | None") -> "Checkpoints":
        """Checkpoints as they are, or those of a folder."""
        if not isinstance(checkpoint, str | Path | Checkpoints | None):
            what = type(checkpoint).__name__
            raise FuseMixLiteError(f"checkpoint is a {what}: give a folder, Checkpoints(folder, every=…) or None")
        return checkpoint if isinstance(checkpoint, Checkpoints) else cls(checkpoint)

    def __enter__(self) -> "Checkpoints":
        if self.folder is not None:
            self._take()
        if (self.folder is not None or self._elsewhere) and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):  # in other threads Python lets nobody handle signals
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._handlers[number] = signal.signal(number, self._asked_to_stop)
        return self

    def _take(self) -> None:
        lock = self.folder / "lock"
        if lock.is_symlink():  # older versions of filelock empty what it leads to
            raise FuseMixLiteError(f"{lock} is a link: delete it")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(lock)
            self._lock.acquire(timeout=0)
        except NotImplementedError:  # of older versions of filelock; newer ones make do without the system
            raise FuseMixLiteError(f"{lock} cannot be locked: choose a folder on a file system that has locks") from None
        except (Timeout, RuntimeError):  # of this very thread
            raise FuseMixLiteError(f"another process is training with {self.folder}: wait for it, or stop it") from None
        except OSError as error:
            why = f"{self.folder} cannot hold checkpoints ({error.strerror})"
            raise FuseMixLiteError(f"{why}: choose another folder") from error

    def __exit__(self, *error) -> None:
        self._give_signals_back()
        if self._lock is not None:
            self._lock.release()
        self._raise_signal()

    def resume(self, run: dict, restore: Callable[[dict[str, Tensor], dict], None]) -> int:
        """Give the newest good checkpoint to `restore`. Returns how many steps are done: 0 where there is none.

        Args:
            run: everything that determines the run, as JSON can hold it. A checkpoint with anything else is refused.
            restore: takes the tensors and facts of a `State`; raises whatever it likes for those that do not fit.

        Raises:
            FuseMixLiteError: checkpoints of another run, or none that can be used.
        """
        if self.folder is None:
            return 0
        self._due, self._run = time.monotonic() + self.every, json.loads(json.dumps(run, default=float))
        self.last, self._warned, refused = None, False, []
        for file in sorted(self.folder.glob("checkpoint-*.safetensors"), key=_step, reverse=True):
            try:
                facts = _facts(file)
                other = differences(facts["run"], self._run)
                if not other:
                    restore(load_file(file), facts)
            except Exception as error:  # noqa: BLE001 — a broken or hostile file makes safetensors, json and torch raise anything
                refused.append(f"{file} ({' '.join(str(error).split())[:200] or type(error).__name__})")
                continue
            if other and self.replace:
                continue
            if other:
                anew = "to begin anew, delete it (or replace=True; on the command line --overwrite)"
                raise FuseMixLiteError(f"{self.folder} is of another run ({other}): go on with its options; {anew}")
            self.last = file
            if refused:
                warnings.warn(f"{refused[0]} cannot be used: an older checkpoint is taken", stacklevel=3)
            warnings.warn(f"goes on after step {facts['step']:,}, as {self.folder} says", stacklevel=3)
            return facts["step"]
        if refused and not self.replace:
            anew = f"delete {self.folder} to begin anew (or replace=True; on the command line --overwrite)"
            raise FuseMixLiteError(f"no checkpoint can be used: {'; '.join(refused[:2])}: {anew}")
        return 0

    @property
    def stopping(self) -> bool:
        """Whether a signal has asked to stop after this step."""
        return self._signal is not None

    def keep(self, step: int, state: Callable[[], State], last: bool = False, stop: bool | None = None) -> None:
        """Write a checkpoint after a step, if it is time for one, if it is the last step, or if a signal asks to stop.

        `stop`: whether to, where processes share a run and stop together; one that was not asked does what SIGTERM does.

        A disk without room costs checkpoints and not the run: there is a warning, and the older ones stay.

        Raises:
            FuseMixLiteError: the state holds numbers that are not finite; no checkpoint ever does.
        """
        stop = self.stopping if stop is None else stop
        if self.folder is not None:
            started = time.monotonic()
            if last or stop or started >= self._due:
                self._write(step, *state())
                ended = time.monotonic()
                self._due = ended + max(self.every, (ended - started) * (1 / SHARE - 1))
            if stop:
                then = ", and the same call goes on from there" if self.last else ""
                warnings.warn(f"stopped after step {step:,}; {self.told}{then}", stacklevel=3)
        if stop:
            self._signal = self._signal or signal.SIGTERM
            self._raise_signal()

    def fail(self, facts: dict) -> str:
        """Note why the run broke down. Returns where to look: that file, if there is one, and the last good checkpoint."""
        if self.folder is None:
            return self.told
        try:
            write_aside(self.folder / FAILED, as_json(facts))
        except OSError:  # a full disk: the message has the first of it
            return self.told
        return f"all of it in {self.folder / FAILED}; {self.told}"

    def remove(self) -> None:
        """Delete the checkpoints, and the folder if it holds nothing else: once what came of the run is safe."""
        if self.folder is not None and self.folder.is_dir():
            self._delete([*self._files(), self.folder / "lock", self.folder / FAILED])
            with suppress(OSError):  # it holds something else
                self.folder.rmdir()

    @property
    def told(self) -> str:
        """Which checkpoint is the last good one, in words."""
        if self._elsewhere:
            return "the first process says which checkpoint is the last good one"
        return f"the last good checkpoint is {self.last} (step {_step(self.last):,})" if self.last else "there is no checkpoint"

    def _write(self, step: int, tensors: dict[str, Tensor], facts: dict) -> None:
        broken = next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
        if broken:
            raise FuseMixLiteError(f"after step {step} {broken} is not finite: lower lr, or set standardize=True; {self.told}")
        facts = {"format": FORMAT, "version": 1, "run": self._run, "step": step, **facts}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        content = save(tensors, {"facts": json.dumps(facts, allow_nan=False)})
        file = self.folder / f"checkpoint-{step:08d}-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
        try:
            write_aside(file, content)
        except OSError as error:
            if not self._warned:
                lost = f"checkpoint of step {step:,} not written ({error.strerror}): make room; the run goes on, {self.told}"
                warnings.warn(lost, stacklevel=4)
            self._warned = True
            return
        self._delete(set(self._files()) - {self.last, file})
        self.last = file

    def _delete(self, files: Iterable[Path]) -> None:
        for file in files:
            with suppress(OSError):  # it may be a folder, or in a folder that has become read-only
                file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """Checkpoints, and what a process left that died while it wrote one."""
        left = [file for name in ("checkpoint-", FAILED) for file in self.folder.glob(f"{name}*{ASIDE}")]
        return [*left, *(file for file in self.folder.iterdir() if _NAME.fullmatch(file.name))]

    def _asked_to_stop(self, number: int, frame) -> None:
        if self._signal is None:
            self._signal = number
        else:  # a step may take long, and somebody does not want to wait
            self._raise_signal()

    def _raise_signal(self) -> None:
        """Let the signal that came do what it would have done."""
        self._give_signals_back()
        if self._signal is not None:
            number, self._signal = self._signal, None
            signal.raise_signal(number)

    def _give_signals_back(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())


def _step(file: Path) -> int:
    found = _NAME.fullmatch(file.name)
    return int(found[1]) if found else -1


def _facts(file: Path) -> dict:
    """What a checkpoint says of itself. Raises anything for a file that is not as it was written."""
    found = _NAME.fullmatch(file.name)
    if not found or file.is_symlink() or not file.is_file():
        raise ValueError("not a file that was written here")
    if sha256(file)[:16] != found[2]:
        raise ValueError("its bytes have changed since it was written")
    with safe_open(file, "pt") as opened:
        facts = json.loads((opened.metadata() or {})["facts"])
    if (facts["format"], facts["version"], facts["step"]) != (FORMAT, 1, int(found[1])) or not isinstance(facts["run"], dict):
        raise ValueError("no checkpoint of this version")
    return facts


def differences(theirs: dict, ours: dict) -> str:
    """What two runs differ in, in words; "" where it is nothing."""
    names = [name for name in theirs | ours if theirs.get(name) != ours.get(name) or (name in theirs) != (name in ours)]
    return ", ".join(f"{name} {theirs.get(name)!r}, not {ours.get(name)!r}" for name in names)[:500]


def check_layout(tensors: dict[str, Tensor], like: dict[str, Tensor]) -> None:
    """Raise ValueError unless tensors have the names, shapes and dtypes of others, and finite numbers."""
    if tensors.keys() != like.keys():
        raise ValueError(f"{sorted(tensors.keys() ^ like.keys())[0]} is missing, or of no use")
    for name, tensor in tensors.items():
        if tensor.shape != like[name].shape or tensor.dtype != like[name].dtype:
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} is not finite")
