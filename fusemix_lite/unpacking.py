"""Unpack zip, tar and 7z archives into a folder, and nowhere else.

Only files and folders come out: no link, no device, no path that is absolute or climbs. Names are checked before the first
byte is written, and so is the size of everything, since a small archive may unpack to more than the disk holds. Every file
is written aside and renamed; what is there already in full length is kept, so that unpacking goes on where it was stopped
(not so 7z, which has to be unpacked from its beginning).
"""

import bz2
import gzip
import lzma
import re
import secrets
import shutil
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from .errors import FuseMixLiteError

RATIO, AT_LEAST = 30, 2_000_000_000  # an archive may unpack to this many times its size, or to this many bytes
MEMBERS = 300_000  # files that an archive may hold: each takes a kilobyte or two of memory, and COCO has 82,783 in its largest
LONGEST_NAME, LONGEST_PART = 1000, 255  # bytes: what common disks take
HEADERS, HEADER = 1 << 24, 1 << 12  # bytes that tar may spend on headers: in all, and besides for each file

_OPENERS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open), (b"", open))


class Member(NamedTuple):
    """A file in an archive: its name, size, and how to open it."""

    name: str
    size: int
    open: Callable[[], BinaryIO]


def unpack(archive: str | Path, folder: str | Path, progress: bool = True, reserved: Collection[str] = ()) -> list[str]:
    """Unpack an archive (.zip, .tar, .tar.gz, .7z). Returns the names of its files.

    `reserved`: names in the folder that no file may have, as the archive's own.

    Raises FuseMixLiteError: for a damaged archive and, before anything is written, for a name that leaves the folder or does
    not fit a disk, a link or device, two files of one name, a file where a folder has to be, a password, a size out of
    proportion. OSError from the disk passes as it is.
    """
    archive, folder = Path(archive), Path(folder)
    reserved = {archive.name, *reserved} if archive.resolve().parent == folder.resolve() else set(reserved)
    try:
        if archive.name.endswith(".7z"):
            return _unpack_seven_zip(archive, folder, reserved)
        with _opened(archive) as members:
            _check(archive, members, folder, reserved)
            from tqdm import tqdm

            for member in tqdm(members, desc=f"unpacking {archive.name}", unit=" files", disable=not progress):
                _write(member, folder / member.name, archive)
    except FuseMixLiteError:
        raise
    except Exception as error:  # the readers of archives raise many kinds, OSError without a number among them
        if isinstance(error, FileExistsError | IsADirectoryError | NotADirectoryError):
            raise FuseMixLiteError(f"{archive}: {error.filename} is in the way ({error.strerror}): move it away") from error
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise FuseMixLiteError(f"{archive} is damaged ({_line(error)}): delete it and fetch it again") from error
    return [member.name for member in members]


def safe_name(name: str) -> str | None:
    """The name of a member as a path below a folder; None if it leaves it or is none."""
    plain = name.replace("\\", "/")
    parts = PurePosixPath(plain).parts
    if not parts or plain.startswith("/") or re.match(r"[A-Za-z]:", plain) or ".." in parts or "\0" in plain:
        return None
    if any("\ud800" <= character <= "\udfff" for character in plain):
        return None  # bytes that are no text: a name that cannot be noted down
    return "/".join(parts)


def _check(archive: Path, members: list[Member], folder: Path, reserved: set[str]) -> None:
    names = [member.name for member in members]
    if not names:
        raise FuseMixLiteError(f"{archive} holds no file: delete it and fetch it again")
    for name in names:
        size, longest = len(name.encode()), max(len(part.encode()) for part in name.split("/"))
        if size > LONGEST_NAME or longest > LONGEST_PART:
            much = f"a name of {size:,} bytes ({name[:40]}…)"
            raise FuseMixLiteError(f"{archive} holds {much}, too long for a disk: nothing was written")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise FuseMixLiteError(f"{archive} holds {twice} twice: fetch it again")
    split = sorted(name.split("/") for name in names)  # what lies in a folder comes right after a file of its name
    both = next((first for first, second in pairwise(split) if first == second[: len(first)]), None)
    if both:
        raise FuseMixLiteError(f"{archive} holds {'/'.join(both)} as a file and as a folder: fetch it again")
    counts = Counter(map(_on_any_disk, names))
    twice = _taken_for_another([name for name in names if counts[_on_any_disk(name)] > 1], folder)
    if twice is not None:
        raise FuseMixLiteError(f"{archive} holds {twice} twice, as the disk of {folder} sees it: unpack it on another disk")
    kept = {_on_any_disk(name) for name in reserved}
    taken = next((name for name in names if _on_any_disk(name.partition("/")[0]) in kept), None)
    if taken is not None:
        raise FuseMixLiteError(f"{archive} holds {taken}, a name that is needed here: unpack it elsewhere; nothing was written")
    total = _in_proportion(archive, (member.size for member in members))
    free = shutil.disk_usage(folder).free
    if total > free:
        raise FuseMixLiteError(f"{archive} unpacks to {total:,} bytes, {free:,} are free in {folder}: make room")


def _on_any_disk(name: str) -> str:
    """A name as the disks see it that do not tell a from A, or an accent from the letter that has it."""
    return unicodedata.normalize("NFC", name).casefold()


def _taken_for_another(names: list[str], folder: Path) -> str | None:
    """The first of some names that this disk takes for one before it; None if it tells them all apart, as Linux's do."""
    if not names:
        return None
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as aside:
        for name in names:
            file = Path(aside, name)
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.open("xb").close()
            except (FileExistsError, NotADirectoryError):
                return name
    return None


def _in_proportion(archive: Path, sizes: Iterable[int]) -> int:
    """The sum of sizes. Raises as soon as there are more bytes or files than belong into such an archive."""
    total, limit = 0, max(AT_LEAST, RATIO * archive.stat().st_size)
    for count, size in enumerate(sizes, 1):
        total += size
        if count > MEMBERS:
            raise FuseMixLiteError(f"{archive} holds more than {MEMBERS:,} files: nothing was written")
        if total > limit:
            much = f"at least {total:,} bytes"
            raise FuseMixLiteError(f"{archive} would unpack to {much}, which is out of proportion: nothing was written")
    return total


def _write(member: Member, file: Path, archive: Path) -> None:
    if file.is_file() and file.stat().st_size == member.size:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{secrets.token_hex(8)}.tmp")  # nobody else's name, neither a member's nor a link's
    try:
        with member.open() as source, aside.open("xb") as target:
            written = 0
            while chunk := source.read(1 << 20):
                written += len(chunk)
                if written > member.size:
                    break
                target.write(chunk)
        if written != member.size:
            wrong = f"{member.name} has another length than it says"
            raise FuseMixLiteError(f"{archive}: {wrong}: delete it and fetch it again")
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


class CarefulTar(tarfile.TarFile):
    """A tar file that was not written by a friend. To be opened by `CarefulTar.reading`.

    `tarfile` reads headers of any length that they state into memory, goes backwards where a size is negative, and takes what
    is no header for the end. Here all of these raise tarfile.ReadError.
    """

    @classmethod
    def reading(cls, file: BinaryIO) -> "CarefulTar":
        """The tar file in an opened file."""
        return cls(fileobj=_Headers(file))

    def next(self) -> tarfile.TarInfo | None:
        self.fileobj.counted = True
        self.fileobj.left = min(self.fileobj.left + HEADER, HEADERS)
        info = super().next()
        self.fileobj.counted = False  # contents are read piece by piece
        if info is None and any(self.fileobj.last):
            raise tarfile.ReadError("something that is no header")
        if info is not None and info.size < 0:
            raise tarfile.ReadError("a negative size")
        if len(self.pax_headers) > 1000:
            raise tarfile.ReadError("a header that does not end")
        if info is not None:
            info.pax_headers = {}  # what they say of name and size is in the info, and they may be large
        return info

    @property
    def has_end(self) -> bool:
        """Whether a block of zeros came after the last file, as it has to; only once all have been looked at."""
        return len(self.fileobj.last) > 0


class _Headers:
    """A file of which headers are read: no more than `left` bytes of them."""

    def __init__(self, file: BinaryIO):
        self.file, self.left, self.counted, self.last = file, HEADERS, True, b""
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if self.counted:
            self.left -= size
        if size < 0 or self.left < 0:
            raise tarfile.ReadError("a header that does not end")
        content = self.file.read(size)
        if self.counted:
            self.last = content
        return content


@contextmanager
def _opened(archive: Path) -> Iterator[list[Member]]:
    """The files of an archive, names checked."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            files = [info for info in opened.infolist() if not info.is_dir()]
            _in_proportion(archive, (info.file_size for info in files))
            links = [info.filename for info in files if stat.S_ISLNK(info.external_attr >> 16)]
            locked = [info.filename for info in files if info.flag_bits & 1]
            if locked:
                raise FuseMixLiteError(f"{archive}: {locked[0]} needs a password: unpack it yourself")
            end = 0
            for info in sorted(files, key=lambda info: info.header_offset):
                if info.header_offset < end:
                    raise zipfile.BadZipFile(f"{info.filename!r:.80} lies upon another file")
                end = info.header_offset + zipfile.sizeFileHeader + info.compress_size
            yield _members(archive, links, [(i.filename, i.file_size, lambda i=i: opened.open(i)) for i in files])
    elif archive.name.endswith(".zip"):
        raise zipfile.BadZipFile("no zip file, or its end is missing")
    else:
        with archive.open("rb") as file:
            begin = file.read(8)
        opener = next(opener for magic, opener in _OPENERS if begin.startswith(magic))
        with opener(archive, "rb") as file, CarefulTar.reading(file) as opened:
            infos = []

            def sizes() -> Iterator[int]:  # looked at before what is passed over has to be unpacked
                for info in opened:
                    if not info.isdir():
                        infos.append(info)
                        yield info.size
                    else:
                        yield 0

            _in_proportion(archive, sizes())
            links = [info.name for info in infos if not info.isreg() or info.issparse()]
            yield _members(archive, links, [(i.name, i.size, lambda i=i: opened.extractfile(i)) for i in infos])


def _members(archive: Path, links: list[str], files: list[tuple[str, int, Callable[[], Any]]]) -> list[Member]:
    if links:
        raise FuseMixLiteError(f"{archive} holds {links[0]}, which is a link or no file: nothing was written")
    names = [safe_name(name) for name, _, _ in files]
    if None in names:
        raise FuseMixLiteError(f"{archive} holds {files[names.index(None)][0]!r}, which leaves the folder: nothing was written")
    return [Member(name, size, opener) for name, (_, size, opener) in zip(names, files, strict=True)]


def _unpack_seven_zip(archive: Path, folder: Path, reserved: set[str]) -> list[str]:
    """7z files need py7zr, which writes to the disk itself: into a folder aside, from which plain files are then moved."""
    try:
        import py7zr
    except ImportError as error:
        line = f'unpack it yourself (7z x "{archive}"), or pip install "fusemix-lite[data]"'
        raise FuseMixLiteError(f"{archive} is a 7z file, for which py7zr is not installed: {line}") from error
    with py7zr.SevenZipFile(archive) as opened:
        if opened.needs_password():
            raise FuseMixLiteError(f"{archive} needs a password: unpack it yourself")
        infos = [info for info in opened.list() if not info.is_directory]
        odd = [info.filename for info in infos if not info.is_file]
        members = _members(archive, odd, [(info.filename, info.uncompressed, lambda: None) for info in infos])
        _check(archive, members, folder, reserved)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as aside:
            opened.extractall(aside)
            for member in members:
                source, target = Path(aside) / member.name, folder / member.name
                if source.is_symlink() or not source.is_file():
                    raise FuseMixLiteError(f"{archive}: {member.name} is no plain file: fetch it again")
                target.parent.mkdir(parents=True, exist_ok=True)
                source.replace(target)
    return [member.name for member in members]


def _line(error: Exception) -> str:
    """The first line of a message that may have many."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
