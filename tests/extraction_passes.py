"""Passes over small data by fast encoders, for test_extraction_survives: run here, or in a process that may die at any moment.

Such a process is a fork of one that has imported everything (`begin`), so that fifty of them take a minute.
"""

import contextlib
import hashlib
import multiprocessing
import os
import resource
import signal
import sys
import time
import types
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from fusemix_lite import cli, extraction, workflow
from fusemix_lite.composed import callable_encoder
from fusemix_lite.encoders import BaseEncoder

ROWS, BATCH, ITEMS = 8, 3, 60
BAD = (5, 21, 22, 40, 59)  # empty captions; the last is the last of its shard


class Words:
    """A data set of captions, some of them empty; item ids that are hard to write down. With `seconds`, opening takes time."""

    def __init__(self, items: int = ITEMS, seconds: float = 0.0, name: str = "words"):
        self.id, self.items, self.seconds = f"{name}/{items}", items, seconds

    def __len__(self):
        return self.items

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return "" if index in BAD else f"caption {index} of {self.id}"

    def fields(self, modality):
        return [f"item\n{index} \u2028 \udc80" for index in range(self.items)], self


def digits(text: str, dim: int) -> np.ndarray:
    """A latent (D,) that nobody would get by accident."""
    return np.frombuffer(hashlib.shake_256(text.encode()).digest(dim), np.uint8) / np.float32(64) - 2


def embed(captions: list[str]) -> np.ndarray:
    return np.stack([digits(caption, 8) for caption in captions])


def embed_backwards(captions: list[str]) -> np.ndarray:
    return np.stack([digits(caption[::-1], 6) for caption in captions])


ENCODERS = {
    "a": callable_encoder(embed, id="fast/a", modality="text", revision="1"),
    "b": callable_encoder(embed_backwards, id="fast/b", modality="text", revision="1"),
}


class Fragile(BaseEncoder):
    """Breaks where a caption says so, and gives latents that tell how many items shared their batch."""

    id, modality, revision, preprocessing_hash = "fragile", "text", "1", "1"

    def __init__(self, **breaks):
        self.model, self.breaks = torch.nn.Linear(1, 1), breaks

    def without_model(self):
        return Fragile(**self.breaks)

    def prepare(self, item):
        self._break("prepare", [item])
        return item

    def to_inputs(self, batch):
        self._break("inputs", batch)
        return {"captions": batch}

    def encode_inputs(self, inputs, precision="fp32"):
        self._break("forward", inputs["captions"])
        return torch.from_numpy(embed(inputs["captions"])) + len(inputs["captions"]) / 8

    def _break(self, where, captions):
        for caption in captions:
            if caption.startswith(where):
                raise self.breaks[where]


def one_pass(out, several: bool = False, workers: int = 0, seconds: float = 0.0, **options) -> None:
    """Extract Words into a folder."""
    given = (Words(seconds=seconds), ENCODERS, out) if several else (Words(seconds=seconds), ENCODERS["a"], Path(out) / "a")
    with warnings.catch_warnings(), mock.patch.object(extraction, "ROWS_PER_SHARD", ROWS):
        warnings.simplefilter("ignore")
        extraction.extract(*given, batch_size=BATCH, progress=False, workers=workers, **options)


def contents(folder) -> dict[str, bytes]:
    """All files below a folder but those of locks."""
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(files)}


# --- processes that may die ---------------------------------------------------------------------------------------------------


def begin(what, *given, **options) -> multiprocessing.Process:
    """Run one of the functions of this module in a process of its own, the first of its session."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_alone, args=(what, given, options))
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])  # the server looks there for it
    main = types.ModuleType("__main__")  # or each would import pytest
    with mock.patch.dict(os.environ, PYTHONPATH=paths), mock.patch.dict(sys.modules, __main__=main):
        process.start()
    return process


def _alone(what, given, options):
    os.setsid()
    sys.modules["__main__"] = types.ModuleType("__main__")
    what(*given, **options)


def end(process: multiprocessing.Process, number: int, group: bool = False) -> None:
    """Send a signal, to the process or to all that it has started as well."""
    with contextlib.suppress(ProcessLookupError):
        if group:
            with contextlib.suppress(ProcessLookupError):  # it may not lead its session yet
                return os.killpg(process.pid, number)
        os.kill(process.pid, number)


def left_of(session: int) -> list[str]:
    """Command lines of the processes of a session that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, own = stat.read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append((stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def without_orphans(session: int, seconds: float = 60.0) -> None:
    """Wait until nothing is left of a session."""
    until = time.monotonic() + seconds
    while left := left_of(session):
        assert time.monotonic() < until, f"orphans: {left}"
        time.sleep(0.02)


def until_step(step: int | None, out, **how) -> None:
    """A pass that dies right before it changes the disk for the n-th time; None: says how often it does, in a file `steps`."""
    taken = 0

    def count():
        nonlocal taken
        if taken == step:
            os._exit(9)
        taken += 1

    def hook(event, args):
        if event == "open" and isinstance(args[0], str | Path) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            if str(args[0]).startswith(str(out)):
                count()
        elif event in ("os.rename", "os.remove", "os.mkdir") and str(args[0]).startswith(str(out)):
            count()

    sync = os.fsync
    os.fsync = lambda descriptor: (count(), sync(descriptor))
    sys.addaudithook(hook)
    one_pass(out, **how)
    Path(out, "steps").write_text(str(taken)) if step is None else None


def until_size(limit: int, out, **how) -> None:
    """A pass that is killed by the system in the middle of the first file that grows larger."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    one_pass(out, **how)


def command(out, seconds: float, **how) -> None:
    """`fusemix-lite extract`, with this module's data and encoders; says on stderr, a file, what it says."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has background processes ignore it
    said = os.open(f"{out}.stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)

    def extract_pairs(*given, **options):
        Path(f"{out}.ready").touch()
        one_pass(out, seconds=seconds, **how)
        return {"encoders": {"a": {"id": "a", "dim": 8}}, "rows": {"a": 0}, "left_out": {}, "split": None, "items": 0}

    workflow.extract_pairs = extract_pairs
    sys.argv = ["fusemix-lite", "extract", "somewhere", "--out", str(out)]
    sys.exit(cli.main())
