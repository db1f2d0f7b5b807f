"""Items opened and made into an encoder's input, batch by batch: here, or in worker processes while the device computes.

Whoever does it, the batches are the same and come in the same order, so latents do not depend on the number of workers.
Workers are started fresh ("spawn"), as a process that uses a GPU or threads must not be forked. What travels to them: the
encoders without their weights, once; the values of a batch where they are a list (paths, captions), and else, once, the object
that makes them. They only read, so that they may be killed at any moment; each has a pipe of its own, so that one that dies
takes nothing with it, not even half a batch that another one waits for.
"""

import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .blame import of_the_machine, reason
from .decoding import decode
from .encoders import BaseEncoder
from .errors import FuseMixLiteError
from .torchvision_fix import import_torchvision_safely

AHEAD = 2  # batches that wait for the device, a worker
LOOK = 5.0  # seconds after which it is seen to that a worker is still alive
GRACE = 0.5  # seconds in which a signal that has ended the workers reaches this process as well


class Task(NamedTuple):
    """A batch of items and the encoders (their places in a list) that want it."""

    indices: range
    encoders: tuple[int, ...]


class Batch(NamedTuple):
    """A batch for one encoder."""

    indices: list[int]  # of the items in it
    inputs: Any  # what `encode_inputs` of the encoder takes; None where no item is left
    left_out: list[dict]  # the other items: index, path (or None), reason


def feed(
    values: Sequence, encoders: Sequence[BaseEncoder], tasks: Iterable[Task], workers: int | None = 0
) -> Iterator[tuple[Task, list[Batch]]]:
    """Each task with a batch for each of its encoders, in order. An item is opened once, however many encoders there are.

    All encoders are of one modality. `workers` processes work ahead; with 0 it is done here, when a batch is asked for. None:
    as many as `default_workers` says, or 0 where they cannot start.

    Raises FuseMixLiteError where `values` or encoders cannot be sent to the workers that were asked for, or a worker dies.
    """
    must, tasks = workers is not None, iter(tasks)
    workers = workers if must else max(map(default_workers, encoders))
    listed = isinstance(values, list | tuple)
    try:
        job = pickle.dumps(([encoder.without_model() for encoder in encoders], None if listed else values)) if workers else b""
    except Exception as error:  # what cannot be pickled raises several kinds
        if must:
            why = f"items or encoders cannot be sent to worker processes ({error})"
            raise FuseMixLiteError(f"{why}: use workers=0") from error
        workers = 0
    waiting: deque = deque()  # of (task, the worker that has it)
    if workers:
        pool: list[_Worker] = []
        try:
            for turn in cycle(range(workers)):
                task = next(tasks, None)
                if task is not None:
                    waiting.append((task, turn))  # before it is sent: it must not be lost if the workers have just died
                    if turn == len(pool):
                        pool.append(_Worker(job))
                        pool[turn].start()
                    pool[turn].send((task, [values[index] for index in task.indices] if listed else None))
                    if len(waiting) <= AHEAD * workers:
                        continue
                if not waiting:
                    break
                task, turn = waiting[0]
                batches = pool[turn].receive()
                waiting.popleft()
                yield task, batches
        except _WorkerError as error:
            if must or any(worker.started for worker in pool):
                time.sleep(GRACE)
                hand = waiting[0][0].indices
                said = f"{error} (items {hand.start} to {hand.stop - 1} were in hand)"
                raise FuseMixLiteError(f"{said}; what was written is kept, and workers=0 works in this process") from error
            warnings.warn("worker processes cannot start here: items are opened in this one", stacklevel=6)
        finally:
            for worker in pool:
                worker.kill()
            for worker in pool:
                worker.end()
    for task in chain([task for task, _ in waiting], tasks):
        yield task, batches_of([encoders[place] for place in task.encoders], task.indices, values.__getitem__)


def default_workers(encoder: BaseEncoder) -> int:
    """0 on the CPU, where opening items and encoding them share the cores; beside a GPU one a core, 8 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if encoder.device.type == "cpu" else min(8, cores)


def path_of(value: Any, modality: str) -> str | None:
    """Where an item lies, for the quarantine; None for a caption, and for what does not say."""
    says = isinstance(value, str | Path) or (callable(value) and type(value).__str__ is not object.__str__)
    return str(value) if says and modality != "text" else None


def batches_of(encoders: Sequence[BaseEncoder], indices: Sequence[int], value_of: Callable[[int], Any]) -> list[Batch]:
    """A batch of these items for each encoder, all of one modality. What cannot be opened or prepared is left out.

    Raises what is the fault of the machine, not of an item, and FuseMixLiteError for an encoder that takes items one by one
    and not together.
    """
    modality = encoders[0].modality
    opened, broken, paths = {}, [], {}
    for index in indices:
        value = None
        try:
            value = value_of(index)
            opened[index], paths[index] = decode(value, modality), path_of(value, modality)
        except Exception as error:  # of a data set's own code, any kind
            broken.append({"index": index, "path": path_of(value, modality), "reason": reason(error)})
    batches = []
    for encoder in encoders:
        prepared, left_out = {}, list(broken)
        for index, item in opened.items():
            try:
                prepared[index] = encoder.prepare(item)
            except Exception as error:  # of a processor, any kind
                left_out.append({"index": index, "path": paths[index], "reason": reason(error)})
        batches.append(_together(encoder, prepared, left_out, paths))
    return batches


def _together(encoder: BaseEncoder, prepared: dict[int, Any], left_out: list[dict], paths: dict[int, str | None]) -> Batch:
    """Prepared items as one input. If that fails, those that fail alone are left out, as if they had not been there."""
    try:
        return Batch(list(prepared), encoder.to_inputs(list(prepared.values())) if prepared else None, left_out)
    except Exception as error:
        failed, why = [], reason(error)
    for index, item in prepared.items():
        try:
            encoder.to_inputs([item])
        except Exception as error:
            failed.append({"index": index, "path": paths[index], "reason": reason(error)})
    if not failed:
        raise FuseMixLiteError(
            f"encoder {encoder.id} fails on {len(prepared)} items together that it takes one by one ({why}): "
            "use a smaller batch_size (--batch-size); what was written is kept"
        )
    alone = {entry["index"] for entry in failed}
    rest = {index: item for index, item in prepared.items() if index not in alone}
    return _together(encoder, rest, left_out + failed, paths)


class _WorkerError(Exception):
    """A worker is gone, or never came."""


class _Worker:
    """A process that makes batches of tasks, in order, and the thread here that takes them as they come."""

    def __init__(self, job: bytes):
        self._mine, self._theirs = multiprocessing.Pipe()
        self._results: queue.SimpleQueue = queue.SimpleQueue()
        self._process = multiprocessing.get_context("spawn").Process(target=_run, args=(self._theirs, job), daemon=True)
        self.started = False  # it has read what it is for
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def start(self) -> None:
        try:
            with _no_ctrl_c():
                self._process.start()
        except OSError as error:  # or it died before it had read what it is for
            raise _WorkerError(f"a worker process cannot start ({error})") from error
        finally:
            self._theirs.close()
        self._listener.start()

    def send(self, job: tuple[Task, list | None]) -> None:
        try:
            self._mine.send(job)
        except OSError:
            pass  # it has died, which `receive` tells when the item in hand is due
        except Exception as error:  # what cannot be pickled raises several kinds
            raise _WorkerError(f"items cannot be sent to worker processes ({error})") from error

    def receive(self) -> list[Batch]:
        """The batches of the first task that was sent and not received. Raises what it raised."""
        found = None
        while self._process.is_alive() or not self._results.empty():
            try:
                found = self._results.get(timeout=LOOK)
                break
            except queue.Empty:
                pass  # its pipe does not end with it if this process was forked meanwhile
        if found is None:
            raise self._death()
        if isinstance(found, FuseMixLiteError) or (isinstance(found, Exception) and of_the_machine(found)):
            raise found
        if isinstance(found, Exception):
            raise _WorkerError(f"a worker process fails ({reason(found)})") from found
        return [_as_tensors(batch) for batch in found]

    def kill(self) -> None:
        if self._process.pid is not None:
            self._process.kill()

    def end(self) -> None:
        if self._process.pid is not None:
            self._process.join()
        if self._listener.is_alive():
            self._listener.join(GRACE)
        if not self._listener.is_alive():  # or it might read from whatever gets the number of the pipe next
            self._mine.close()

    def _listen(self) -> None:
        try:
            self.started = self._mine.recv()
            while True:
                self._results.put(self._mine.recv())
        except (EOFError, OSError):
            self._results.put(None)
        except Exception as error:
            self._results.put(_WorkerError(f"what a worker process has made cannot be read ({error})"))

    def _death(self) -> _WorkerError:
        self._process.join(GRACE)
        code = self._process.exitcode
        how = "" if code is None else f" by signal {-code}" if code < 0 else f" with exit code {code}"
        why = "of too little memory (use fewer workers or smaller batches), of an item that its decoder does not survive"
        guard = 'or because the script has no `if __name__ == "__main__":`'
        return _WorkerError(f"a worker process died{how}: {why}, {guard}")


@contextlib.contextmanager
def _no_ctrl_c() -> Iterator[None]:
    """A process that starts in here never hears of Ctrl-C, not even while it imports; this one does, right afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it would let the signal through while it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(pipe: Any, job: bytes) -> None:
    """What a worker process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one ends the others
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a worker
    torch.set_num_threads(1)
    tasks: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_hear, args=(pipe, tasks), daemon=True).start()
    import_torchvision_safely()
    encoders, values = pickle.loads(job)
    _reply(pipe, True)
    while True:
        try:
            sent = tasks.get()
            if isinstance(sent, Exception):
                raise FuseMixLiteError(f"items cannot be read in a worker process ({sent}): use workers=0") from sent
            task, given = sent
            value_of = _value_of(values, task, given)
            found = batches_of([encoders[place] for place in task.encoders], task.indices, value_of)
            _reply(pipe, [_as_arrays(batch) for batch in found])
        except Exception as error:
            _reply(pipe, error)


def _value_of(values: Sequence | None, task: Task, given: list | None) -> Callable[[int], Any]:
    return values.__getitem__ if given is None else lambda index: given[index - task.indices.start]


def _hear(pipe: Any, tasks: queue.SimpleQueue) -> None:
    """Take what is sent at once, so that neither side waits for the other to read. A process that was killed cannot end its
    workers, and they would wait for it for ever, with all their memory: they end when its side of the pipe is closed."""
    while True:
        try:
            sent = pipe.recv()
        except (EOFError, OSError):
            os._exit(1)
        except Exception as error:
            sent = error
        tasks.put(sent)


def _reply(pipe: Any, found: Any) -> None:
    """Send what can be sent, or else why it cannot."""
    try:
        pipe.send(found)
    except OSError:
        os._exit(1)  # nobody listens any more
    except Exception as error:
        pipe.send(FuseMixLiteError(f"a batch cannot be sent from a worker process ({error}): use workers=0"))


def _as_arrays(batch: Batch) -> Batch:
    """Tensors as arrays: these travel through a pipe, tensors through shared memory, of which containers have little."""
    return batch._replace(inputs=_mapped(batch.inputs, torch.Tensor, torch.Tensor.numpy))


def _as_tensors(batch: Batch) -> Batch:
    return batch._replace(inputs=_mapped(batch.inputs, np.ndarray, torch.from_numpy))


def _mapped(inputs: Any, kind: type, change: Callable) -> Any:
    if isinstance(inputs, dict):
        return {name: _mapped(value, kind, change) for name, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        return [_mapped(value, kind, change) for value in inputs]
    return change(inputs) if isinstance(inputs, kind) else inputs
