"""Files that are whole or not there: written aside and renamed. JSON, read with an error that says what to do. Hashes."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any

from .errors import FuseMixLiteError

LARGEST_JSON = 2**30  # bytes: what a folder from a stranger may make this process read into memory
ASIDE = ".tmp"  # how the names of files end that are being written, or that a process left when it was killed
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_aside(file: Path, content: bytes, sync: bool = True) -> None:
    """Write under another name, then rename: a file with its final name is whole, whatever dies in between.

    The other name is this call's own, so that two writers of one file never interleave: the last one wins. It is removed if
    the disk is full. sync: on the disk before it gets its name, and its name too before this returns, so that a power cut
    cannot leave an empty file, or a later one without this; for thousands of small files that can be made again this costs
    more than it saves.

    Raises OSError if it cannot be written; `not_written` says it in our words.
    """
    aside = file.with_name(f"{file.name}.{os.getpid()}-{secrets.token_hex(4)}{ASIDE}")
    try:
        with aside.open("xb") as opened:
            opened.write(content)
            if sync:
                opened.flush()
                os.fsync(opened.fileno())
        aside.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    if sync:
        sync_folder(file.parent)


def not_written(file: Path, error: OSError) -> FuseMixLiteError:
    """What to say where a file could not be written: a full disk, no permission, a folder that is gone."""
    advice = "make room there" if error.errno in _FULL else "see to the folder, or choose another"
    return FuseMixLiteError(
        f"{file} cannot be written ({error.strerror or error}): {advice}, and run the same again; what was written is kept"
    )


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, as far as its file system knows how."""
    with contextlib.suppress(OSError, AttributeError):  # some cannot, Windows has no such flag
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def as_json(content: Any) -> bytes:
    """Content as the JSON of this package's files: UTF-8, an indented line an entry, no NaN. Half a surrogate pair, as names of
    files may hold, becomes an escape of JSON, which looks like one of Python."""
    return (json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode("utf-8", "backslashreplace")


def read_json(file: Path, remedy: str, encoding: str = "utf-8", at_most: int = LARGEST_JSON) -> Any:
    """The content of a JSON file of `at_most` so many bytes.

    Raises FuseMixLiteError naming the file, what is wrong, and the remedy.
    """
    try:
        return json.loads(plain_bytes(file, at_most).decode(encoding))
    except FileNotFoundError:
        raise FuseMixLiteError(f"{file} is missing: {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FuseMixLiteError(f"{file} cannot be read ({error}): {remedy}") from error


def plain_size(file: Path) -> int:
    """The size in bytes of a file. Raises ValueError for a folder, a device or a pipe, which might be read for ever, and
    OSError where nothing is there."""
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("no plain file")
    return found.st_size


def plain_bytes(file: Path, at_most: int) -> bytes:
    """The bytes of a file. Raises ValueError for what is none, and for a larger one, and OSError as reading does."""
    if (size := plain_size(file)) > at_most:
        raise ValueError(f"{size:,} bytes, more than {at_most:,}")
    return file.read_bytes()


def sha256(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
