"""Files that are whole or not there: written aside and renamed. JSON, read with an error that says what to do. Hashes."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .errors import FuseMixLiteError


def write_aside(file: Path, content: bytes, sync: bool = True) -> None:
    """Write under another name, then rename: a file with its final name is whole, whatever dies in between.

    sync: on the disk before it gets its name, so that a power cut cannot leave an empty one; for thousands of small files
    that can be made again this costs more than it saves.
    """
    aside = file.with_name(file.name + ".tmp")
    with aside.open("wb") as opened:
        opened.write(content)
        if sync:
            opened.flush()
            os.fsync(opened.fileno())
    aside.replace(file)


def as_json(content: Any) -> bytes:
    """Content as the JSON of this package's files: UTF-8, an indented line an entry, no NaN."""
    return (json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode()


def read_json(file: Path, remedy: str) -> Any:
    """The content of a JSON file. Raises FuseMixLiteError naming the file, what is wrong, and the remedy."""
    try:
        return json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise FuseMixLiteError(f"{file} is missing: {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FuseMixLiteError(f"{file} cannot be read ({error}): {remedy}") from error


def sha256(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
