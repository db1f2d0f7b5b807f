"""What became of a store: every fault of its files, and a repair that encodes again only what is damaged.

A store can judge itself. The manifest has the sha256 of every shard, every shard says whose latents it holds, and manifest
and quarantine.json follow from the shards to the last byte (`store.describe`). What the files cannot settle, such as whether
a shard or its sha256 was changed, is settled by encoding that shard again.

A repair works in a folder of its own beside the store, and moves a shard over when it is what was written once. So a store
never gets worse by it, wherever it is stopped, and the next one goes on.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .disk import ASIDE, LARGEST_JSON, as_json, not_written, plain_bytes, sha256, sync_folder
from .errors import FuseMixLiteError
from .store import (
    MANIFEST,
    QUARANTINE,
    LatentOrigin,
    LatentWriter,
    describe,
    hold_lock,
    holds,
    open_shard,
    origin_of,
    read_manifest,
    read_quarantine,
    remedy,
    shard_name,
    shard_number,
    write_description,
)

if TYPE_CHECKING:
    from .extraction import AnyEncoder

SIDE = ".repair"  # how the name of a repair's own folder ends


class Fault(NamedTuple):
    """Something wrong with a store: the file, and one line that says what, where, and the remedy."""

    file: Path
    line: str

    def __str__(self) -> str:
        return self.line


def verify(path: str | Path) -> list[Fault]:
    """All faults of a store, or of the stores in a folder that `extract` wrote; none if every byte is as it was written.

    Each is a tuple of the `file` and a `line` that says what is wrong with it and what helps. Everything is read, nothing is
    changed. Found are shards, manifest and quarantine.json that are missing, cut, changed in a bit, exchanged, or a link, and
    files that do not belong there.

    Raises FuseMixLiteError if there is no store at all.
    """
    return [fault for _, faults, _ in look_through(path) for fault in faults]


def repair(
    path: str | Path,
    dataset: Any = None,
    encoder: Any = None,
    *,
    batch_size: int = 64,
    device: str = "auto",
    progress: bool = True,
    workers: int | None = None,
) -> list[Fault]:
    """Make a store, or the stores in a folder that `extract` wrote, what they were. Returns the faults that were mended.

    Only damaged shards are encoded again, each with the sha256 that the manifest has for it, or it is not taken. Whole ones
    stay as they are. The manifest and quarantine.json are written again from the shards, left-overs are deleted. A repair that
    was stopped has lost nothing, and goes on when it is called again.

    `dataset` and `encoder` are those that the store was extracted with, and `batch_size` and `device` should be, as they can
    change the last digits. Without them the records are asked: the pairs.json beside the store, or its own name in the cache.

    Raises FuseMixLiteError if something could not be mended, saying what helps. What could be is mended by then.
    """
    folders = stores_in(path)
    if len(folders) > 1 and (dataset is not None or encoder is not None):
        raise FuseMixLiteError(f"{path} holds several stores: repair each with its own data set and encoder")
    how = {"batch_size": batch_size, "device": device, "progress": progress, "workers": workers}
    found = list(look_through(path, True, how, dataset, encoder))
    if errors := [error for _, _, error in found if error]:
        raise FuseMixLiteError(errors[0] + (f" ({len(errors) - 1} more errors)" if errors[1:] else ""))
    return [fault for _, faults, _ in found for fault in faults]


def look_through(
    path: str | Path, mend: bool = False, how: dict | None = None, dataset: Any = None, encoder: Any = None
) -> Iterator[tuple[Path, list[Fault], str | None]]:
    """Verify, or repair, one store after another: its folder, its faults, and the error that kept them from being mended."""
    path = Path(path)
    for folder in stores_in(path):
        try:
            found = examine(folder)
            if mend and (found.faults or _side(folder).exists()):
                with hold_lock(folder):
                    found = examine(folder)  # as it is now that nobody writes
                    _mend(found, dataset, encoder, how or {})
            error = None
        except FuseMixLiteError as caught:
            error = str(caught) if mend else None
            if not folder.is_dir():
                found = Examined(folder, [Fault(folder, str(caught))])
        yield folder, found.faults, error
    if faults := _faults_of_pairs(path):
        yield path, faults, faults[0].line if mend else None


def stores_in(path: str | Path) -> list[Path]:
    """A folder that is a store, or the stores in it, those included that its pairs.json names.

    Raises FuseMixLiteError if there is none.
    """
    path = Path(path)
    if not path.is_dir():
        raise FuseMixLiteError(f"{path} is no folder: give a latent store, or a folder that extract wrote")
    if _is_store(path):
        return [path]
    found = {child for child in path.iterdir() if child.is_dir() and child.suffix != SIDE and _is_store(child)}
    with contextlib.suppress(FuseMixLiteError):
        found |= {path / key for key in _encoders_of(_pairs_of(path))}
    if not found:
        raise FuseMixLiteError(f"{path} holds no latents: give a latent store, or a folder that extract wrote")
    return sorted(found)


@dataclass
class Examined:
    """What a look at every byte of a store has found."""

    folder: Path
    faults: list[Fault] = field(default_factory=list)
    manifest: dict | None = None  # if it can be believed
    known: set[str] = field(default_factory=set)  # sha256 that a manifest which cannot be read still shows
    doubted: LatentOrigin | None = None  # of a manifest and shards that contradict each other; that of the manifest
    hashes: dict[int, str] = field(default_factory=dict)  # of the shards that can be opened
    origins: dict[int, LatentOrigin] = field(default_factory=dict)
    damaged: set[int] = field(default_factory=set)  # numbers of shards
    count: int = 0  # shards
    complete: bool = True  # none missing at the end
    left: list[Path] = field(default_factory=list)  # by a process that died
    foreign: list[Fault] = field(default_factory=list)  # not to be touched

    def fault(self, file: Path, what: str) -> None:
        self.faults.append(Fault(file, " ".join(what.splitlines())))  # a damaged file may say anything

    def written(self, number: int) -> set[str]:
        """The sha256 that a shard may have; none if nobody knows."""
        return {self.manifest["shards"][number]["sha256"]} if self.manifest else self.known

    @property
    def origin(self) -> LatentOrigin | None:
        """Whose latents they are: as most of the shards say that are as they were written, else the manifest."""
        told = Counter(origin for number, origin in self.origins.items() if number not in self.damaged)
        if told:
            return told.most_common(1)[0][0]
        return origin_of(self.manifest) if self.manifest else None


def examine(folder: Path) -> Examined:
    """Read every byte of a store, and judge."""
    found = Examined(folder)
    if not folder.is_dir():
        raise FuseMixLiteError(f"{folder} is missing: extract again, which keeps what is there")
    try:
        found.manifest = read_manifest(folder / MANIFEST)
    except FuseMixLiteError as error:
        lost = "" if (folder / MANIFEST).exists() else f"; if it was, {remedy(folder)}"
        found.fault(folder / MANIFEST, f"{error}{lost}")
    broken, extent = _look_at_files(found)
    _judge_manifest(found)
    numbers = sorted({*found.hashes, *broken})
    if found.manifest:
        found.count = len(found.manifest["shards"])
    else:  # as their names say; a file may be called anything
        found.count = max((number for number in numbers if number < 2 * len(numbers) + 100), default=-1) + 1
    for number in range(found.count):
        file = folder / shard_name(number)
        told = found.written(number)
        if number not in found.hashes:
            line = broken.get(number, f"{file} is missing: {remedy(folder)}")
        elif told and found.hashes[number] not in told:
            line = f"{file} is not what was written (its sha256 is not the one in {MANIFEST}): {remedy(folder)}"
        elif not found.manifest and not found.doubted and found.origins[number] != found.origin:
            line = f"{file} holds {found.origins[number]}, other shards {found.origin}: {remedy(folder)}"
        else:
            continue
        found.damaged.add(number)
        found.fault(file, line)
    others = [folder / shard_name(number) for number in numbers if number >= found.count]
    found.foreign += [Fault(file, _foreign(file)) for file in others]
    found.faults += found.foreign
    if not found.manifest and not found.damaged and not found.doubted:
        there, items = sum(extent.get(number, 0) for number in range(found.count)), found.origin.items if found.origin else 0
        if there < items:
            found.complete = False
            last = folder / shard_name(found.count)
            found.fault(last, f"{last} is missing ({there} of {items} items are there): extract again, or {remedy(folder)}")
    _judge_descriptions(found)
    return found


def _look_at_files(found: Examined) -> tuple[dict[int, str], dict[int, int]]:
    """Open every shard; returns what is wrong with those that cannot be, and how many items the others are about."""
    broken, extent = {}, {}
    for file in sorted(found.folder.iterdir()):
        number = shard_number(file.name)
        if number is not None:
            try:
                _, metadata = open_shard(file)
                found.hashes[number] = sha256(file)
                found.origins[number] = origin_of(metadata)
                extent[number] = len(metadata["item_ids"]) + len(metadata["quarantine"])
            except FuseMixLiteError as error:
                broken[number] = str(error)
            except OSError as error:
                why = f"{file} cannot be read ({error.strerror or error})"
                broken[number] = f"{why}: see to its disk, or {remedy(found.folder)}"
        elif file.suffix == ASIDE and not file.is_dir():
            found.left.append(file)
            found.fault(file, f"{file} was left by a process that died, or is being written: {remedy(found.folder)}")
        elif file.name not in (MANIFEST, QUARANTINE):
            found.foreign.append(Fault(file, _foreign(file)))
    return broken, extent


def _foreign(file: Path) -> str:
    return f"{file} does not belong to the latents: move it away"


def _judge_manifest(found: Examined) -> None:
    """Whether the manifest is that of these shards; of one that cannot be read, which sha256 it still shows."""
    file, there = found.folder / MANIFEST, set(found.hashes.values())
    if found.manifest is None:
        with contextlib.suppress(OSError, ValueError):
            shown = {match.decode() for match in re.findall(rb"[0-9a-f]{64}", plain_bytes(file, LARGEST_JSON))}
            found.known = shown if shown & there else set()  # of another store they say nothing
        return
    told = origin_of(found.manifest)
    as_written = there & {shard["sha256"] for shard in found.manifest["shards"]}
    if not as_written and len(set(found.origins.values())) == 1 and told not in found.origins.values():
        first, *more = sorted(found.origins)
        own, other = vars(told), vars(found.origins[first])
        key = next(key for key in own if own[key] != other[key])
        who = shard_name(first) + (" and the others" if more else "")
        what = f"{file} and {who} contradict each other ({key}: {own[key]!r:.80} and {other[key]!r:.80})"
        found.fault(file, f"{what}: {remedy(found.folder)}")
        found.manifest, found.doubted = None, told


def _judge_descriptions(found: Examined) -> None:
    """Whether manifest and quarantine.json say what the shards hold, as far as these can tell."""
    files = found.folder / MANIFEST, found.folder / QUARANTINE
    if found.damaged or not found.count:
        told = {found.origins[number] for number in found.hashes if number not in found.damaged}
        if found.manifest and told and told != {origin_of(found.manifest)}:
            found.fault(files[0], f"{files[0]} is about other latents than its shards: {remedy(found.folder)}")
        with _fault_if_it_fails(found, files[1]):
            read_quarantine(found.folder)
        return
    manifest, quarantine = _description(found)
    if found.manifest and not _says(files[0], manifest):
        found.fault(files[0], f"{files[0]} does not say what the shards hold: {remedy(found.folder)}")
    with _fault_if_it_fails(found, files[1]):
        read_quarantine(found.folder)
        if not _says(files[1], quarantine):
            raise FuseMixLiteError(f"{files[1]} does not list what the shards left out: {remedy(found.folder)}")


def _says(file: Path, content: Any) -> bool:
    return file.is_file() and not file.is_symlink() and file.read_bytes() == as_json(content)


@contextlib.contextmanager
def _fault_if_it_fails(found: Examined, file: Path):
    try:
        yield
    except FuseMixLiteError as error:
        found.fault(file, str(error))


def _description(found: Examined) -> tuple[dict, list[dict]]:
    """The manifest and the quarantine that follow from the shards, all of which are there."""
    dtype = open_shard(found.folder / shard_name(0))[0].dtype.name
    version = found.manifest["version"] if found.manifest else 2
    return describe(found.folder, found.count, found.origin, dtype, found.hashes, version)


def _mend(found: Examined, dataset: Any, encoder: Any, how: dict) -> None:
    """Repair a store whose lock is held. Raises FuseMixLiteError if something is left that cannot be mended here."""
    folder = found.folder
    try:
        for file in found.left:
            file.unlink(missing_ok=True)
        if found.damaged or found.doubted or not found.complete or not found.count:
            _encode_again(found, dataset, encoder, how)
        manifest, quarantine = _description(found)
        if not (_says(folder / MANIFEST, manifest) and _says(folder / QUARANTINE, quarantine)):
            write_description(folder, manifest, quarantine)
        _clear(folder)
    except OSError as error:
        raise not_written(folder, error) from error
    if found.foreign:
        others = f" (and {len(found.foreign) - 1} files more)" if found.foreign[1:] else ""
        raise FuseMixLiteError(f"{found.foreign[0]}{others}; the latents themselves are as they were written")


def _encode_again(found: Examined, dataset: Any, encoder: Any, how: dict) -> None:
    """Encode damaged shards in a folder beside the store, and take over those that are what was written."""
    from .extraction import encode_shards, plan

    folder, told = found.folder, found.doubted or found.origin
    if told is None:
        raise FuseMixLiteError(f"{folder}: nothing there says whose latents they were: delete the folder and extract again")
    if dataset is None or encoder is None:
        dataset, encoder = made_by(folder, told)
    origin, data = plan(dataset, encoder, told.precision)
    if origin == found.doubted:  # so the shards are not those of this store
        found.manifest, found.damaged = read_manifest(folder / MANIFEST), set(found.hashes)
    elif origin != found.origin:
        remedies = "give the data set and the encoder that they were extracted with"
        raise FuseMixLiteError(f"{folder} holds {told}, not {origin}: {remedies}")
    if found.manifest and len(found.manifest["shards"]) != len(data.shards):
        raise FuseMixLiteError(f"{folder} is not cut into shards as extract does it: write it again as it was written")
    found.count = len(data.shards)
    for number in range(found.count):
        if number not in found.hashes:
            found.damaged.add(number)
        elif not found.written(number) and not _fits(folder, number, data):  # whole, for all one can know: not to be replaced
            what = f"{folder / shard_name(number)} holds other items than extract would put there"
            raise FuseMixLiteError(f"{what}, and {MANIFEST} is lost: extract into a new folder")
    side = _side(folder)
    try:
        writer = LatentWriter(side, origin, locked=True)
    except FuseMixLiteError as error:
        raise FuseMixLiteError(f"{side} is in the way of a repair: move it away ({error})") from error
    numbers = sorted(found.damaged)
    todo = [n for n in numbers if not writer.has(n) or not _as_written(found, n, sha256(side / shard_name(n)))]
    encode_shards(data, encoder, writer, todo, **how)
    refused = [number for number in numbers if not _take_over(found, writer, number)]
    if refused:
        _clear(folder)
        names = ", ".join(shard_name(number) for number in refused)
        why = "on another machine, with other versions, another --batch-size or --device, or items that have changed"
        remedies = f"repair where they were extracted; or delete {MANIFEST} and them, and extract again, to take what is new"
        raise FuseMixLiteError(f"{folder}: {names} would not be what was written ({why}): {remedies}")


def _as_written(found: Examined, number: int, digest: str) -> bool:
    """Whether a shard that was encoded again may be taken."""
    told = found.written(number)
    return not told or digest in told or digest == found.hashes.get(number)


def _take_over(found: Examined, writer: LatentWriter, number: int) -> bool:
    """Move a shard from the repair's folder to the store, if it is what was written."""
    new, file = writer.path / shard_name(number), found.folder / shard_name(number)
    if not _as_written(found, number, sha256(new)):
        _say_as_before(found, writer, number)
    digest = sha256(new)
    if not _as_written(found, number, digest):
        return False
    if digest != found.hashes.get(number):  # else the manifest was wrong about it
        new.replace(file)
        sync_folder(found.folder)
    found.hashes[number], found.origins[number] = digest, writer.origin
    found.damaged.discard(number)
    return True


def _say_as_before(found: Examined, writer: LatentWriter, number: int) -> None:
    """Write a new shard once more, with the items that it leaves out in the words of quarantine.json: the same files may have
    been named otherwise, relative to another folder for instance."""
    array, metadata = open_shard(writer.path / shard_name(number))
    with contextlib.suppress(FuseMixLiteError, KeyError):
        words = {(entry["index"], entry["item_id"]): entry for entry in read_quarantine(found.folder)}
        as_before = [words[entry["index"], entry["item_id"]] for entry in metadata["quarantine"]]
        writer.write(number, array, metadata["item_ids"], as_before)


def _fits(folder: Path, number: int, data: Any) -> bool:
    return holds(open_shard(folder / shard_name(number))[1], data.shards[number], data.item_ids)


def _side(folder: Path) -> Path:
    real = folder.resolve()  # "." has no name; and what a link leads to may be on another disk, where nothing can be moved
    side = real.with_name(real.name + SIDE)
    if side.is_symlink():  # files in it are deleted in the end
        raise FuseMixLiteError(f"{side} is a link: delete it")
    return side


def _clear(folder: Path) -> None:
    """Delete what a repair has made beside the store."""
    side = _side(folder)
    if side.is_dir():
        for file in side.iterdir():
            if shard_number(file.name) is not None or file.suffix == ASIDE:
                file.unlink()
        with contextlib.suppress(OSError):
            side.rmdir()


def made_by(folder: Path, origin: LatentOrigin) -> tuple[Any, "AnyEncoder"]:
    """The data set and the encoder that a store was made by, as far as records beside it tell.

    Raises FuseMixLiteError saying why they cannot be found, and what to do then.
    """
    from .datasets import SoundingScenes
    from .encoders import resolve_encoder
    from .extraction import cache_dir
    from .workflow import PAIRS, reopen

    folder = folder.absolute()  # "." has neither a name nor a parent
    dataset, remedies = None, "repair it in Python: fusemix_lite.repair(folder, dataset, encoder)"
    if folder.resolve().parent == cache_dir().resolve():
        remedies = "delete the folder: a cache is filled again when it is asked"
    elif "+" in origin.dataset_id:
        remedies = f"if it was merged, repair its parts, delete {MANIFEST} and the damaged shards here, and merge again"
    try:
        content = _pairs_of(folder.parent) if (folder.parent / PAIRS).is_file() else {}
        if content and content["dataset"] == origin.dataset_id:
            encoder = _encoders_of(content).get(folder.name, {}).get("name")
            dataset = reopen(content)
            if dataset.id != origin.dataset_id:
                remedies = "put back what was there, or extract into a new folder"
                raise FuseMixLiteError(f"{content['source']} has changed since it was extracted")
        else:
            with contextlib.suppress(FuseMixLiteError):
                dataset = SoundingScenes.of_id(origin.dataset_id)
            if dataset is None:
                raise FuseMixLiteError(f"no {PAIRS} beside it, and its data set is none of Sounding Scenes")
            encoder = origin.encoder_id
        if not encoder:
            raise FuseMixLiteError(f"no record names the encoder {origin.encoder_id}")
        resolve_encoder(encoder)
    except FuseMixLiteError as error:
        raise FuseMixLiteError(f"{folder} cannot be repaired from its records ({error}): {remedies}") from error
    return dataset, encoder


def _is_store(folder: Path) -> bool:
    return any(file.name == MANIFEST or shard_number(file.name) is not None for file in folder.iterdir())


def _pairs_of(folder: Path) -> dict:
    from .workflow import read_pairs_json

    return read_pairs_json(folder)


def _encoders_of(content: dict) -> dict[str, dict]:
    """What a pairs.json says of the encoder of each store, by the store's name."""
    return content["encoders"] | content.get("more", {})


def _faults_of_pairs(folder: Path) -> list[Fault]:
    """What is wrong with the pairs.json of a folder that `extract` wrote."""
    from .workflow import PAIRS

    file, again = folder / PAIRS, "run extract again, which keeps the latents and writes it anew"
    if _is_store(folder) or not (file.exists() or file.is_symlink()):
        return []
    try:
        if file.is_symlink():
            raise FuseMixLiteError(f"{file} is a link")
        content = _pairs_of(folder)
    except FuseMixLiteError as error:
        return [Fault(file, f"{error}; {again}")]
    for key, said in _encoders_of(content).items():
        with contextlib.suppress(FuseMixLiteError):  # which is said of the store
            manifest = read_manifest(folder / key / MANIFEST)
            own = (manifest["dataset_id"], manifest["encoder_revision"], manifest["preprocessing_hash"])
            if own != (content["dataset"], said.get("revision"), said.get("preprocessing_hash")):
                return [Fault(file, f"{file} is not of the same pass as {folder / key}: {again}")]
    return []
