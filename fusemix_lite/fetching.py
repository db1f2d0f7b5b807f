"""Fetch files, never in silence: resumed where they were cut, checked against what a public source states, unpacked safely.

    fetch(remote, folder)      one file: NAME.part while it grows, NAME when it is whole and right
    fetch_set("coco", folder)  all of a data set that may be fetched, unpacked

What was fetched is noted in `fetched.json` with the size and sha256 found, which are held against the file the next time,
where nobody else states them. An archive is removed once it is unpacked; the note stays, so that it is not fetched again.
`pooch` and `urlretrieve` do not resume, which 13 GB need; the hub's client knows the hub only. So this stands on `urllib`.
"""

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from . import __version__
from .disk import as_json, sha256, write_aside
from .errors import FuseMixLiteError
from .public_data import lacks, open_dataset
from .public_sets import Remote, public_set
from .unpacking import safe_name, unpack

NOTE = "fetched.json"
ASK_ABOVE = 1_000_000_000  # bytes, from which on one is asked
TRIES, TIMEOUT = 5, 60  # cuts in a row without a byte gained; seconds without a byte
SPARE = 500_000_000  # bytes that have to stay free

_CHUNK = 1 << 20
_HEADERS = {"User-Agent": f"fusemix-lite/{__version__}", "Accept-Encoding": "identity"}
_HOPELESS = (socket.gaierror, ssl.SSLError)  # no such host or no network, no trust: another try brings the same


def fetch_set(
    name: str,
    out: str | Path,
    split: str | None = None,
    confirm: Callable[[str, bool], bool] | None = None,
    progress: bool = True,
) -> dict:
    """Fetch what may be fetched of a data set, for one split or all, and unpack it.

    `confirm` gets one line (what, from where, how big, which licence) and whether it is large: more than `ASK_ABOVE` bytes,
    or archives of a size that nobody states. Unless it says yes, nothing is fetched. Without it nothing large is.

    Returns {"name", "folder", "fetched": files fetched now, "kept": files there before, "by_hand": what is still to be got
    by oneself}.

    Raises FuseMixLiteError: nothing of it can be fetched, no consent, too little room, an answer other than the file, a
    wrong size or checksum, an archive that would write outside of the folder. OSError from the disk passes as it is.
    """
    record, out = public_set(name), Path(out).expanduser()
    needed = record.needed(split)
    if not needed:
        what = f'"{split}" of {name}' if record.remotes else name
        raise FuseMixLiteError(f"{what} cannot be fetched automatically. {by_hand_line(name)}")
    if out.exists() and not out.is_dir():
        raise FuseMixLiteError(f"{out} is a file: choose a folder")
    todo = [remote for remote in needed if not _is_done(name, remote, out, split)]
    if todo:
        line, known = size_line(name, todo), sum(remote.bytes or 0 for remote in todo)
        large = known > ASK_ABOVE or any(remote.bytes is None and remote.unpack for remote in todo)
        if not (confirm(line, large) if confirm else not large):
            raise FuseMixLiteError(f"{line}: nothing was fetched; say yes, or add --yes")
        out.mkdir(parents=True, exist_ok=True)
        check_room(out, known + sum(remote.bytes or 0 for remote in todo if remote.unpack))
        with _alone(out):
            for remote in todo:
                fetch(remote, out, progress)
                if remote.unpack:
                    _unpack_fetched(remote, out, progress)
    names = [remote.name for remote in todo]
    kept = [remote.name for remote in needed if remote.name not in names]
    return {"name": name, "folder": str(out), "fetched": names, "kept": kept, "by_hand": record.by_hand}


def _unpack_fetched(remote: Remote, out: Path, progress: bool) -> None:
    """Unpack an archive, note some of what came out, and remove it unless somebody brought it."""
    archive = out / remote.name
    if not archive.is_file():
        return  # another process has done it meanwhile
    names = unpack(archive, out, progress, (NOTE, f"{NOTE}.lock"))
    note(out, remote.name, {"unpacked": sorted({names[0], names[len(names) // 2], names[-1]})})
    if not read_note(out)[remote.name].get("brought"):
        archive.unlink()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time fetches into a folder."""
    _refuse_links(folder / f"{NOTE}.lock")
    try:
        with FileLock(folder / f"{NOTE}.lock", timeout=0):
            yield
    except Timeout:
        raise FuseMixLiteError(f"another process is fetching into {folder}: wait for it") from None


def _refuse_links(*files: Path) -> None:
    """Raise for a link where a file is written to: in a folder of somebody else, it might lead to any file of one's own."""
    for file in files:
        if file.is_symlink():
            raise FuseMixLiteError(f"{file} is a link, and would be written to: remove it")


def fetch(remote: Remote, folder: str | Path, progress: bool = True, pause: float = 1.0) -> Path:
    """Fetch one file into a folder, or go on where it was cut. Returns its path; what is there and right is kept.

    A cut connection and an overloaded server are tried again, `TRIES` times without progress, with pauses that grow from
    `pause` seconds. A file that turns out wrong is kept aside as NAME.wrong.
    """
    folder = Path(folder)
    file, part = folder / remote.name, folder / f"{remote.name}.part"
    _refuse_links(part, folder / f"{remote.name}.part.etag")
    if is_there(remote, folder):
        return file
    if file.is_file():  # brought by hand
        problem, facts = examine(remote, file)
        if problem:
            raise FuseMixLiteError(f"{file} is there, but is not the stated file ({problem}): move it away to fetch it")
        note(folder, remote.name, {**facts, "brought": True})
        return file
    failures = 0
    with bar(remote, part, progress) as shown:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                _receive(remote, part, shown)
                break
            except _Cut as error:
                grown = (part.stat().st_size if part.exists() else 0) > before
                failures = 1 if grown else failures + 1
                if failures >= TRIES:
                    raise FuseMixLiteError(
                        f"{remote.url} did not come in {TRIES} tries ({error}): the same command goes on from {before:,} bytes"
                    ) from error
                time.sleep(pause * 2 ** (failures - 1))
    _accept(remote, part, file, folder)
    return file


def _is_done(name: str, remote: Remote, out: Path, split: str | None) -> bool:
    """Whether a file was fetched (and unpacked), or brought by hand as what it unpacks to."""
    told = read_note(out).get(remote.name, {})
    if told or (out / f"{remote.name}.part").exists():
        return is_there(remote, out) and (not remote.unpack or "unpacked" in told)
    known = {known for layout in public_set(name).layouts for known in layout.captions}
    wanted = [one for one in remote.splits if one in known and split in (None, one)]
    return remote.unpack and all(lacks(name, one, out) is None and _nearly_all(name, one, out) for one in wanted)


def _nearly_all(name: str, split: str, folder: Path) -> bool:
    """Whether there are at least nine in ten of the media that a split lists: `lacks` looks for the first ones only, which are
    there, too, where an unpacking by hand was stopped."""
    sizes = list(open_dataset(name, split, folder).values.sizes())
    return sum(size is not None for size in sizes) >= 0.9 * len(sizes)


def is_there(remote: Remote, folder: str | Path) -> bool:
    """Whether a file was fetched before and is still there, or what was unpacked of it."""
    told = read_note(folder).get(remote.name)
    if told is None:
        return False
    if told.get("unpacked"):
        return all(os.path.isfile(Path(folder) / name) for name in told["unpacked"])  # names may be longer than a disk takes
    file = Path(folder) / remote.name
    return file.is_file() and file.stat().st_size == told["bytes"]


def size_line(name: str, remotes: list[Remote]) -> str:
    """What a fetch would bring, in one line."""
    known, unknown = sum(remote.bytes or 0 for remote in remotes), [r.name for r in remotes if r.bytes is None]
    files = len(remotes) - len(unknown)
    size = f"{readable(known)} in {files} file{'s' * (files > 1)}" if known else ""
    if unknown:
        size += f"{', and ' if size else ''}{len(unknown)} of a size that nobody states ({', '.join(unknown)})"
    record = public_set(name)
    hosts = ", ".join(dict.fromkeys(remote.url.split("/")[2] for remote in remotes))
    return f"{record.title}: {size} from {hosts}; in all {record.size}; licence: {record.licence}"


def by_hand_line(name: str) -> str:
    """What has to be got by oneself, and where."""
    record = public_set(name)
    return f"By hand: {record.by_hand} (page: {record.page}; licence: {record.licence})" if record.by_hand else ""


def check_room(folder: Path, needed: int) -> None:
    """Raise FuseMixLiteError unless `needed` bytes fit on the disk, with some room left."""
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        room = f"{readable(free)} free, {readable(needed)} needed for files and what is unpacked of them"
        raise FuseMixLiteError(f"too little room in {folder}: {room}; name a folder on a larger disk")


def readable(size: int) -> str:
    """Bytes for people: 13.5 GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def read_note(folder: str | Path) -> dict[str, dict]:
    """What `fetched.json` says: file name -> {"url", "bytes", "sha256", "checked": against what, "unpacked": some names}."""
    try:
        content = json.loads((Path(folder) / NOTE).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise FuseMixLiteError(f"{Path(folder) / NOTE} cannot be read ({error}): delete it to fetch again") from error
    if not isinstance(content, dict) or not all(map(_is_told, content.values())):
        raise FuseMixLiteError(f"{Path(folder) / NOTE} is no list of fetched files: delete it to fetch again")
    return content


def _is_told(told: Any) -> bool:
    """Whether this is what the note says of a file."""
    if not isinstance(told, dict) or type(told.get("bytes")) is not int or not isinstance(told.get("sha256", ""), str):
        return False
    unpacked = told.get("unpacked", [])
    return isinstance(unpacked, list) and all(isinstance(name, str) and safe_name(name) == name for name in unpacked)


def note(folder: Path, name: str, facts: dict) -> None:
    """Add facts about a file to `fetched.json`."""
    content = read_note(folder)
    content[name] = {**content.get(name, {}), **facts}
    write_aside(folder / NOTE, as_json(content))


class _Cut(Exception):
    """The connection broke; trying again may help."""


def _receive(remote: Remote, part: Path, shown: Any) -> None:
    """Append to `part` what is missing of the file. Raises _Cut where the connection breaks."""
    tag_file = part.with_name(part.name + ".etag")  # of the version that the part is of
    have = part.stat().st_size if part.exists() else 0
    tag = tag_file.read_text("utf-8", "replace")[:1000] if have and tag_file.is_file() else ""
    headers = dict(_HEADERS)
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag.isascii() and tag.isprintable() and tag:
            headers["If-Range"] = tag  # the whole file comes if it has changed since
    try:
        with urllib.request.urlopen(urllib.request.Request(remote.url, headers=headers), timeout=TIMEOUT) as answer:
            start, total = _start_and_total(answer, have)
            if total is not None and remote.bytes is not None and total != remote.bytes:
                raise FuseMixLiteError(
                    f"{remote.url} has {total:,} bytes, not the {remote.bytes:,} that are stated: the file has changed; "
                    "look at its page"
                )
            if total is not None:
                check_room(part.parent, total - start)
            if start != have:
                shown.reset()
            tag_file.write_text(_validator(answer), "utf-8")
            with part.open("ab" if start else "wb") as opened:
                while chunk := answer.read(_CHUNK):
                    if total is None:  # a server that says no length may send for ever
                        check_room(part.parent, 0)
                    opened.write(chunk)
                    shown.update(len(chunk))
            size = part.stat().st_size
            if total is not None and size < total:
                raise _Cut(f"{size:,} of {total:,} bytes")
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send: whole, or longer than the file is now
            error.close()
            if f"/{have}" in (error.headers.get("Content-Range") or f"/{remote.bytes}"):
                return
            part.unlink()
            raise _Cut("the part was longer than the file") from error
        error.close()
        if error.code in (408, 425, 429) or error.code >= 500:
            raise _Cut(f"{error.code} {error.reason}") from error
        remedy = "the address has changed or needs a login; look at the data set's page"
        raise FuseMixLiteError(f"{remote.url}: {error.code} {error.reason}: {remedy}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, _HOPELESS):
            raise FuseMixLiteError(f"{remote.url} cannot be reached ({reason}): is there a network?") from error
        raise _Cut(str(reason) or type(error).__name__) from error


def _start_and_total(answer: Any, have: int) -> tuple[int, int | None]:
    """Where an answer begins, and how long the whole file is, as far as the server says."""
    length = answer.headers.get("Content-Length")
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)", answer.headers.get("Content-Range") or "")
        if not found or int(found[1]) != have:
            raise FuseMixLiteError(f"{answer.url} answers with another range than was asked for: delete the .part, try again")
        return have, int(found[2]) if found[2] != "*" else None
    if "text/html" in (answer.headers.get("Content-Type") or ""):
        raise FuseMixLiteError(f"{answer.url} answers with a web page, not the file: open it in a browser")
    return 0, int(length) if re.fullmatch("[0-9]{1,18}", length or "") else None


def _validator(answer: Any) -> str:
    """What tells this version of the file from another: a strong ETag, else its date."""
    etag = answer.headers.get("ETag") or ""
    return etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified") or ""


def _accept(remote: Remote, part: Path, file: Path, folder: Path) -> None:
    """Check a whole part, and give it its name."""
    part.with_name(part.name + ".etag").unlink(missing_ok=True)
    problem, facts = examine(remote, part)
    if problem:
        wrong = file.with_name(f"{file.name}.wrong")
        part.replace(wrong)
        line = f"{remote.url} is not the stated file ({problem}); kept as {wrong}"
        raise FuseMixLiteError(f"{line}: fetch again, or look at its page whether it has changed")
    part.replace(file)
    note(folder, remote.name, facts)


def examine(remote: Remote, file: Path) -> tuple[str, dict]:
    """What is wrong with a file, if anything, and what `fetched.json` is to say of it.

    Held against what a public source states; where there is no checksum, against what was found at an earlier fetch.
    """
    size, found = file.stat().st_size, sha256(file)
    earlier = read_note(file.parent).get(remote.name, {})
    facts = {"url": remote.url, "bytes": size, "sha256": found}
    if remote.bytes is not None and size != remote.bytes:
        return f"{size:,} bytes, not {remote.bytes:,}", facts
    if remote.checksum:
        kind, _, digest = remote.checksum.partition(":")
        own = found if kind == "sha256" else digest_of(file, kind)
        return "" if own == digest else f"{kind} {own}, not {digest}", {**facts, "checked": kind}
    if "sha256" in earlier:
        problem = "" if found == earlier["sha256"] else f"sha256 {found}, not {earlier['sha256']} as at an earlier fetch"
        return problem, {**facts, "checked": "sha256 of an earlier fetch"}
    return "", {**facts, "checked": "size" if remote.bytes else "nothing: nobody states a size or a checksum"}


def digest_of(file: Path, kind: str) -> str:
    """A digest of a file's bytes, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, kind).hexdigest()


@contextlib.contextmanager
def bar(remote: Remote, part: Path, progress: bool) -> Iterator[Any]:
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    shown = {"unit": "B", "unit_scale": True, "unit_divisor": 1000}
    with tqdm(total=remote.bytes, initial=have, desc=f"fetching {remote.name}", disable=not progress, **shown) as opened:
        yield opened
