"""Whose fault an exception is: that of the item in hand, which is then left out, or that of the machine, which stops the pass.

An item that is left out stays out, so the machine has the blame for what it might have done: too little memory, too many open
files.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .decoding import first_line
from .errors import FuseMixLiteError

_LIMITS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT}
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "alloc_failed")


def of_the_machine(error: BaseException | None) -> Exception | None:
    """The error, or one that it comes from, that is no fault of an item; None if there is none."""
    while error is not None:
        if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
            return error
        if isinstance(error, OSError) and error.errno in _LIMITS:
            return error
        if isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _NO_MEMORY):  # as torch says it
            return error
        error = error.__cause__
    return None


def reason(error: Exception) -> str:
    """Why an item is left out: one line. Raises what stands behind the error if that is the machine's fault."""
    fault = of_the_machine(error)
    if fault is not None:
        raise fault
    return str(error) if isinstance(error, FuseMixLiteError | OSError) else f"{type(error).__name__}: {first_line(error)}"


@contextmanager
def faults_of_the_machine(kept: str) -> Iterator[None]:
    """What is its fault becomes FuseMixLiteError with a remedy; `kept` says what is not lost."""
    try:
        yield
    except FuseMixLiteError:
        raise
    except Exception as error:
        fault = of_the_machine(error)
        if fault is None:
            raise
        if isinstance(fault, OSError) and fault.errno != errno.ENOMEM:
            what = f"{fault}: a limit of this machine, no fault of an item: raise it, or use fewer workers"
        else:
            remedy = "use a smaller batch_size (--batch-size), fewer workers or, on a GPU, precision bf16 (--precision bf16)"
            what = f"out of memory ({first_line(fault)}): {remedy}"
        raise FuseMixLiteError(f"{what}; {kept}") from error
