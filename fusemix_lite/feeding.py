"""Items opened and made into an encoder's input, batch by batch: here, or in worker processes while the device computes.

Whoever does it, the batches are the same and come in the same order, so latents do not depend on the number of workers.
Workers are started fresh ("spawn"), as a process that uses a GPU or threads must not be forked. What travels to them: the
encoders without their weights, once; the values of a batch where they are a list (paths, captions), and else, once, the object
that makes them.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .decoding import decode
from .encoders import BaseEncoder
from .errors import FuseMixLiteError
from .torchvision_fix import import_torchvision_safely

AHEAD = 2  # batches that wait for the device, a worker


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
    waiting: deque = deque()
    if workers:
        pool, first = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (job,)), True
        try:
            for task in tasks:
                given = [values[index] for index in task.indices] if listed else None
                waiting.append([task, None])  # before it is sent: it must not be lost if the workers have just died
                waiting[-1][1] = pool.submit(_work, task, given)
                if len(waiting) > AHEAD * workers:
                    yield _done(waiting)
                    first = False
            while waiting:
                yield _done(waiting)
                first = False
        except BrokenProcessPool as error:
            if must or not first:
                raise FuseMixLiteError(
                    "a worker process died: of too little memory (use fewer workers or smaller batches), or because the script "
                    'has no `if __name__ == "__main__":`; what was written is kept, and workers=0 works in this process'
                ) from error
            warnings.warn("worker processes cannot start here: items are opened in this one", stacklevel=6)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    for task in chain([task for task, _ in waiting], tasks):
        yield task, _batches([encoders[place] for place in task.encoders], task.indices, values.__getitem__)


def _done(waiting: deque) -> tuple[Task, list[Batch]]:
    """The first of the tasks that wait, when it is done."""
    task, future = waiting[0]
    batches = [_as_tensors(batch) for batch in future.result()]
    waiting.popleft()
    return task, batches


def default_workers(encoder: BaseEncoder) -> int:
    """0 on the CPU, where opening items and encoding them share the cores; beside a GPU one a core, 8 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if encoder.device.type == "cpu" else min(8, cores)


def path_of(value: Any, modality: str) -> str | None:
    """Where an item lies, for the quarantine; None for a caption, and for what does not say."""
    says = isinstance(value, str | Path) or (callable(value) and type(value).__str__ is not object.__str__)
    return str(value) if says and modality != "text" else None


def _batches(encoders: Sequence[BaseEncoder], indices: Sequence[int], value_of: Callable[[int], Any]) -> list[Batch]:
    modality = encoders[0].modality
    opened, broken, paths = {}, [], {}
    for index in indices:
        value = None
        try:
            value = value_of(index)
            opened[index], paths[index] = decode(value, modality), path_of(value, modality)
        except (FuseMixLiteError, OSError) as error:
            broken.append({"index": index, "path": path_of(value, modality), "reason": str(error)})
    batches = []
    for encoder in encoders:
        prepared, left_out = {}, list(broken)
        for index, item in opened.items():
            try:
                prepared[index] = encoder.prepare(item)
            except (FuseMixLiteError, OSError) as error:
                left_out.append({"index": index, "path": paths[index], "reason": str(error)})
        inputs = encoder.to_inputs(list(prepared.values())) if prepared else None
        batches.append(Batch(list(prepared), inputs, left_out))
    return batches


_job: tuple[list[BaseEncoder], Sequence | None]  # of a worker process


def _start(job: bytes) -> None:
    global _job
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one ends the others
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a worker
    torch.set_num_threads(1)
    import_torchvision_safely()
    _job = pickle.loads(job)


def _end_with_parent() -> None:
    """A process that was killed cannot end its workers, and they would wait for it for ever, with all their memory."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(task: Task, given: list | None) -> list[Batch]:
    encoders, values = _job
    value_of = values.__getitem__ if given is None else lambda index: given[index - task.indices.start]
    return [_as_arrays(batch) for batch in _batches([encoders[place] for place in task.encoders], task.indices, value_of)]


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
