"""Broken input, made on purpose: mutations of good files, and a place to try them where neither a hang nor a blow-up hurts.

    def trial(rng):
        file.write_bytes(mutated_bytes(rng, good))
        read(file)

    assert not failures(trial, tries(50, 2000))

An input passes if the trial returns, or refuses by `FuseMixLiteError`. Anything else is a failure: another error, an allocation
beyond the limit (also where it was caught and refused: that is too late), a time limit passed, a process that dies.
Every input has a generator of its own, so that "input 17 of seed 0" can be made again alone: ``trial(generator(0, 17))``.
"""

import contextlib
import copy
import json
import os
import random
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from fusemix_lite import FuseMixLiteError

NUMBERS = (
    0, 1, -1, 2, 255, 65_536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400,
)  # fmt: skip
VALUES = (
    None, True, False, 0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf"), "", " ", "0", "-1", "nan", "None",
    "..", ".", "/", "../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "~", "C:\\x", "a\0b", "a\nb", "\ud800",
    "\U0001f600", "\u202e", "ß" * 9, "x" * 70_000, [], {}, [[]], [None], {"": None}, {"..": 1}, [0] * 2000,
)  # fmt: skip
_DEEP, _LONG = "\0deep\0", "\0long\0"  # stand for what json.dumps cannot write
_TOKENS = (
    b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"', b"'", b"\\", b"\n", b"\r", b"\r\n", b"\n\n", b",", b"\t", b";",
    b"{", b"}", b"[", b"]", b":", b"../", b"/etc/passwd", b"%00", b"null", b"NaN", b"-Infinity", b"1e999", b"[" * 100_000,
    b'{"a":' * 50_000, b" " * 70_000, b"\xe2\x80\xa8", b"<!--", b"&a;", b"=1+1", b"\x1a",
)  # fmt: skip


def generator(seed: int, number: int) -> random.Random:
    """The generator of one input."""
    return random.Random(f"{seed}/{number}")


def mutated_bytes(rng: random.Random, content: bytes, other: bytes = b"") -> bytes:
    """Content with one to four things wrong: bits flipped, bytes cut, inserted, repeated, numbers replaced by extreme ones (as
    text and as integers of 2, 4 and 8 bytes), `other` (another good file) spliced in."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        content = rng.choice(_BYTES)(rng, content, other or content)
    return content


def mutated_json(rng: random.Random, value: Any) -> Any:
    """A copy of a JSON value with one to three things wrong: values of other kinds and sizes, keys dropped or renamed, entries
    doubled, dropped, swapped, put in other places."""
    whole = [copy.deepcopy(value)]  # in a list, so that the value itself can be replaced
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _change(rng, *rng.choice(list(_places(whole)) or [(whole, 0)]))
        whole = whole or [None]
    return whole[0]


def mutated_json_bytes(rng: random.Random, value: Any) -> bytes:
    """A JSON file with something wrong: in its values, or in its text (doubled keys, broken UTF-8, nesting without an end)."""
    text = json.dumps(mutated_json(rng, value) if rng.random() < 0.8 else value, indent=rng.choice((None, 1)))
    text = text.replace(json.dumps(_DEEP), "[" * 60_000 + "]" * 60_000).replace(json.dumps(_LONG), "9" * 6_000)
    if rng.random() < 0.1:  # a key twice, with another value
        keys = list(re.finditer(r'"(?:[^"\\]|\\.)*": ', text))
        if keys:
            key = rng.choice(keys)
            other = json.dumps(rng.choice((*NUMBERS, "x", None, [], {})))
            text = f"{text[: key.start()]}{key[0]}{other}, {text[key.start() :]}"
    content = text.encode("utf-8", "surrogatepass")
    return mutated_bytes(rng, content) if rng.random() < 0.2 else content


def failures(
    trial: Callable[[random.Random], Any], count: int, seed: int = 0, seconds: int = 20, megabytes: int = 600, at_most: int = 5
) -> list[str]:
    """Try `count` inputs in processes of their own; what failed, a line an input, "" for none. Stops after `at_most` of them.

    trial: makes one input with the generator that it gets, and reads it.
    seconds, megabytes: what one input may take beyond what the process has.
    """
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    found, start = [], 0
    while start < count and len(found) < at_most:
        reached, told = _in_a_process(trial, range(start, count), seed, seconds, megabytes, at_most - len(found))
        found += [f"input {number} of seed {seed}: {text}" for number, text in told]
        start = reached + 1
    return found


def guarded(call: Callable[[], Any], seconds: int = 20, megabytes: int = 600) -> str | None:
    """Try one call under the same limits: what is wrong with it, or None. A refusal by FuseMixLiteError is right."""
    found = failures(lambda rng: call(), 1, seconds=seconds, megabytes=megabytes)
    return found[0] if found else None


def _in_a_process(trial, numbers: range, *limits: int) -> tuple[int, list[tuple[int, str]]]:
    """Try inputs in one process until it ends: the last number tried, and what failed."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads: the child starts none of its own
        child = os.fork()
    if child == 0:
        os.close(read)
        code = 1
        try:
            _child(trial, numbers, *limits, write)
            code = 0
        finally:
            os._exit(code)  # no clean-up of pytest's in here
    os.close(write)
    with open(read, encoding="utf-8", errors="replace") as pipe:
        lines = [json.loads(line) for line in pipe]
    status = os.waitpid(child, 0)[1]
    told = [(number, text) for number, text in lines if text]
    reached = lines[-1][0] if lines else numbers[0]
    if status != 0:
        died = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
        told.append((reached, "took too long" if died == "SIGALRM" else f"the process died ({died})"))
    return reached, told


def _child(trial, numbers: range, seed: int, seconds: int, megabytes: int, at_most: int, write: int) -> None:
    """Try the inputs one after the other; say each number before it is tried, and what failed."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # a pool of threads does not survive a fork
    if "fusemix_lite.rows" in sys.modules:
        sys.modules["fusemix_lite.rows"]._pool.cache_clear()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever it is in

    def tell(number: int, text: str = "") -> None:
        os.write(write, json.dumps([number, text]).encode() + b"\n")

    for number in numbers:
        tell(number)
        signal.alarm(seconds)
        wrong = _tried(lambda number=number: trial(generator(seed, number)), megabytes)
        signal.alarm(0)
        if wrong:
            tell(number, wrong)
            at_most -= 1
        if at_most == 0:
            return


def _tried(call: Callable[[], Any], megabytes: int) -> str:
    try:
        with _memory_limit(megabytes), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except FuseMixLiteError as error:
        if "\n" in str(error) or not str(error).strip():
            return f"not one line: {error!r}"[:500]
        return f"took memory first, then refused: {error!r}"[:500] if _of_memory(error) else ""
    except BaseException as error:  # noqa: BLE001 — whatever it is, it is the finding
        where = [f"{os.path.basename(at.filename)}:{at.lineno}" for at in traceback.extract_tb(error.__traceback__)[-4:]]
        return f"{error!r} at {' '.join(where)}"[:800]
    return ""


@contextlib.contextmanager
def _memory_limit(megabytes: int):
    """No more address space than this beyond what is taken now (Linux; elsewhere there is no limit)."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + megabytes * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, is an allocation that failed."""
    while error is not None:
        if isinstance(error, MemoryError) or re.search(r"alloc|not enough memory", str(error), re.IGNORECASE):
            return True
        error = error.__cause__ or error.__context__
    return False


def _piece(rng: random.Random, content: bytes) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    return start, min(len(content), start + rng.choice((1, 2, 8, 64, 1024, len(content))))


def _flip(rng, content, other):
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 16)) if found else 0):
        found[rng.randrange(min(len(found), rng.choice((64, 1024, len(found)))))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _cut(rng, content, other):
    return content[: rng.randrange(len(content) + 1)]


def _leave_out(rng, content, other):
    start, end = _piece(rng, content)
    return content[:start] + content[end:]


def _insert(rng, content, other):
    start = rng.randrange(len(content) + 1)
    new = rng.choice(_TOKENS) if rng.random() < 0.7 else rng.randbytes(rng.choice((1, 8, 64)))
    return content[:start] + new + content[start:]


def _repeat(rng, content, other):
    start, end = _piece(rng, content)
    return content[:end] + content[start:end] * rng.choice((1, 1, 7)) + content[end:]


def _splice(rng, content, other):
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]


def _integer(rng, content, other):
    size = rng.choice((1, 2, 4, 8))
    start = rng.randrange(min(len(content), rng.choice((64, len(content)))) + 1)
    value = rng.choice(NUMBERS) % 2 ** (8 * size)
    return content[:start] + value.to_bytes(size, rng.choice(("little", "big"))) + content[start + size :]


def _number(rng, content, other):
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content[:200_000]))
    if not found:
        return _integer(rng, content, other)
    at = rng.choice(found)
    extreme = rng.choice(("NaN", "1e999", "-0", "0x10", "1_0", "1.5", "٣", "9" * 6_000, *map(str, NUMBERS)))
    return content[: at.start()] + extreme.encode() + content[at.end() :]


def _nothing(rng, content, other):
    return rng.choice((b"", b"\0" * len(content), other, content * 2))


_BYTES = (_flip, _flip, _cut, _leave_out, _insert, _insert, _repeat, _splice, _integer, _integer, _number, _number, _nothing)


def _places(value: Any):
    """(holder, key) of every value inside a list or an object."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _change(rng: random.Random, holder: Any, key: Any) -> None:
    value = holder[key]
    kind = rng.randrange(10)
    if kind < 4:
        holder[key] = rng.choice((*NUMBERS, *VALUES, _DEEP, _LONG))
    elif kind == 4 and isinstance(value, int | float):
        holder[key] = rng.choice((-value, value + 1, value - 1, value * 2**32, value / 2, str(value), bool(value), [value]))
    elif kind == 5:
        del holder[key]
        if not holder and rng.random() < 0.5:
            holder.update(x=value) if isinstance(holder, dict) else holder.append(value)
    elif kind == 6 and isinstance(key, str):
        holder[rng.choice((key.upper(), key + " ", "", "..", "__class__", "a/b", key[:-1]))] = holder.pop(key)
    elif kind == 7 and isinstance(holder, list):
        holder[key:key] = [copy.deepcopy(value)] * rng.choice((1, 1, 100))
    elif kind == 8:
        other = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[key], holder[other] = holder[other], value
    elif kind == 9 and isinstance(value, str):
        kinds = (value + "x", value[:-1], "../" + value, "/" + value, value * 1000, value + "\0", value.upper())
        holder[key] = rng.choice(kinds)
    else:
        holder[key] = rng.choice((None, [value], {"x": value}, str(value)[:50], [], {}, rng.choice(NUMBERS)))
