"""Unpack zip, tar and 7z archives into a folder, and nowhere else.

Only files and folders come out: no link, no device, no path that is absolute or climbs. Names are checked before the first
byte is written, and so is the size of everything, since a small archive may unpack to more than the disk holds. Every file
is written aside and renamed; what is there already in full length is kept, so that unpacking goes on where it was stopped
(not so 7z, which has to be unpacked from its beginning).
"""

import gzip
import lzma
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from .errors import FuseMixLiteError

_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError, zlib.error, lzma.LZMAError)
RATIO, AT_LEAST = 30, 2_000_000_000  # an archive may unpack to this many times its size, or to this many bytes


class Member(NamedTuple):
    """A file in an archive: its name, size, and how to open it."""

    name: str
    size: int
    open: Callable[[], BinaryIO]


def unpack(archive: str | Path, folder: str | Path, progress: bool = True) -> list[str]:
    """Unpack an archive (.zip, .tar, .tar.gz, .7z). Returns the names of its files.

    Raises FuseMixLiteError: for a damaged archive and, before anything is written, for a name that leaves the folder, a link
    or device, two files of one name, a file where a folder has to be, a password, a size out of proportion.
    """
    archive, folder = Path(archive), Path(folder)
    if archive.name.endswith(".7z"):
        return _unpack_seven_zip(archive, folder)
    try:
        with _opened(archive) as members:
            _check(archive, members, folder)
            from tqdm import tqdm

            for member in tqdm(members, desc=f"unpacking {archive.name}", unit=" files", disable=not progress):
                _write(member, folder / member.name, archive)
    except (*_DAMAGED, gzip.BadGzipFile) as error:
        raise FuseMixLiteError(f"{archive} is damaged ({_line(error)}): delete it and fetch it again") from error
    return [member.name for member in members]


def safe_name(name: str) -> str | None:
    """The name of a member as a path below a folder; None if it leaves it or is none."""
    plain = name.replace("\\", "/")
    parts = PurePosixPath(plain).parts
    if not parts or plain.startswith("/") or re.match(r"[A-Za-z]:", plain) or ".." in parts or "\0" in plain:
        return None
    return "/".join(parts)


def _check(archive: Path, members: list[Member], folder: Path) -> None:
    names = [member.name for member in members]
    if not names:
        raise FuseMixLiteError(f"{archive} holds no file: delete it and fetch it again")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise FuseMixLiteError(f"{archive} holds {twice} twice: fetch it again")
    folders = {parent.as_posix() for name in names for parent in PurePosixPath(name).parents}
    both = folders.intersection(names)
    if both:
        raise FuseMixLiteError(f"{archive} holds {min(both)} as a file and as a folder: fetch it again")
    total, limit = sum(member.size for member in members), max(AT_LEAST, RATIO * archive.stat().st_size)
    if total > limit:
        raise FuseMixLiteError(f"{archive} would unpack to {total:,} bytes, which is out of proportion: nothing was written")
    free = shutil.disk_usage(folder).free
    if total > free:
        raise FuseMixLiteError(f"{archive} unpacks to {total:,} bytes, {free:,} are free in {folder}: make room")


def _write(member: Member, file: Path, archive: Path) -> None:
    if file.is_file() and file.stat().st_size == member.size:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(file.name + ".tmp")
    with member.open() as source, aside.open("wb") as target:
        written = 0
        while chunk := source.read(1 << 20):
            written += len(chunk)
            if written > member.size:
                break
            target.write(chunk)
    if written != member.size:
        aside.unlink()
        raise FuseMixLiteError(f"{archive}: {member.name} has another length than it says: delete it and fetch it again")
    aside.replace(file)


@contextmanager
def _opened(archive: Path) -> Iterator[list[Member]]:
    """The files of an archive, names checked."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            files = [info for info in opened.infolist() if not info.is_dir()]
            links = [info.filename for info in files if stat.S_ISLNK(info.external_attr >> 16)]
            locked = [info.filename for info in files if info.flag_bits & 1]
            if locked:
                raise FuseMixLiteError(f"{archive}: {locked[0]} needs a password: unpack it yourself")
            yield _members(archive, links, [(i.filename, i.file_size, lambda i=i: opened.open(i)) for i in files])
    elif archive.name.endswith(".zip"):
        raise zipfile.BadZipFile("no zip file, or its end is missing")
    else:
        with tarfile.open(archive, "r:*") as opened:
            infos = [info for info in opened if not info.isdir()]
            links = [info.name for info in infos if not info.isreg()]
            yield _members(archive, links, [(i.name, i.size, lambda i=i: opened.extractfile(i)) for i in infos])


def _members(archive: Path, links: list[str], files: list[tuple[str, int, Callable[[], Any]]]) -> list[Member]:
    if links:
        raise FuseMixLiteError(f"{archive} holds {links[0]}, which is a link or no file: nothing was written")
    names = [safe_name(name) for name, _, _ in files]
    if None in names:
        raise FuseMixLiteError(f"{archive} holds {files[names.index(None)][0]!r}, which leaves the folder: nothing was written")
    return [Member(name, size, opener) for name, (_, size, opener) in zip(names, files, strict=True)]


def _unpack_seven_zip(archive: Path, folder: Path) -> list[str]:
    """7z files need py7zr, which writes to the disk itself: into a folder aside, from which plain files are then moved."""
    try:
        import py7zr
    except ImportError as error:
        line = f'unpack it yourself (7z x "{archive}"), or pip install "fusemix-lite[data]"'
        raise FuseMixLiteError(f"{archive} is a 7z file, for which py7zr is not installed: {line}") from error
    try:
        with py7zr.SevenZipFile(archive) as opened:
            infos = [info for info in opened.list() if not info.is_directory]
            odd = [info.filename for info in infos if not info.is_file]
            members = _members(archive, odd, [(info.filename, info.uncompressed, lambda: None) for info in infos])
            _check(archive, members, folder)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as aside:
                opened.extractall(aside)
                for member in members:
                    source, target = Path(aside) / member.name, folder / member.name
                    if source.is_symlink() or not source.is_file():
                        raise FuseMixLiteError(f"{archive}: {member.name} is no plain file: fetch it again")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    source.replace(target)
    except (py7zr.exceptions.ArchiveError, py7zr.Bad7zFile, lzma.LZMAError) as error:
        raise FuseMixLiteError(f"{archive} is damaged ({_line(error)}): delete it and fetch it again") from error
    return [member.name for member in members]


def _line(error: Exception) -> str:
    """The first line of a message that may have many."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
