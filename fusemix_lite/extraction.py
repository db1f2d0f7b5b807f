"""One pass of frozen encoders over a dataset: latents on disk, after which neither items nor encoders are needed.

Several processes, on one machine or on many that see one folder, divide a pass by shards (`Share`): each writes every n-th
shard, the first one the manifest. Nothing but files passes between them, so any launcher will do that sets RANK and WORLD_SIZE:

    torchrun --nproc-per-node 8 -m fusemix_lite extract …
    accelerate launch --multi_gpu --num_processes 8 -m fusemix_lite extract …
"""

import hashlib
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .blame import faults_of_the_machine
from .disk import ASIDE, not_written
from .encoders import PRECISIONS, BaseEncoder, EncoderSource, load_encoders, passes_of, resolve_encoder
from .errors import FuseMixLiteError
from .feeding import Batch, Task, batches_of, feed, path_of
from .launched import Share, own_device
from .narrowing import KEPT, check_with_a_blank, encode_batch
from .store import (
    MANIFEST,
    QUARANTINE,
    ROWS_PER_SHARD,
    LatentOrigin,
    LatentStore,
    LatentWriter,
    hold_lock,
    open_same,
    open_shard,
    origin_of,
    shard_name,
    shard_number,
)

AnyEncoder = BaseEncoder | str | Path

PATIENCE = 1800.0  # seconds without a new shard after which the other processes of a pass count as dead
IN_A_ROW = 64  # items that fail, after which it is asked whether it is the items that do
NOT_FINITE = "its latent is not finite"
PROBES = 16  # items all over a data set that are tried where none has worked yet
_POLL = 0.2


def extract(
    dataset: Any,
    encoders: AnyEncoder | Sequence[AnyEncoder] | Mapping[str, AnyEncoder],
    out: str | Path,
    batch_size: int = 64,
    device: str | torch.device = "auto",
    progress: bool = True,
    *,
    precision: str = "fp32",
    workers: int | None = None,
    append: bool = False,
    overwrite: bool = False,
) -> LatentStore | dict[str, LatentStore]:
    """Encode the items of a dataset that fit an encoder's modality, and store the latents as float16.

    `dataset` has an `id` and `fields(modality) -> (item ids, values)`, both of one length; values are read one at a
    time. An encoder is a loaded one (which `device` "auto" leaves where it is) or a name, which is loaded only if there
    is something to encode.

    One encoder fills the folder `out` and gives its store. Several, of any modalities, give a dict of stores: a list by the
    encoders' ids, each in the folder of its id below `out` ("BAAI_bge-small-en-v1.5"); a mapping by the names that it gives
    them, in the folders of these names. The items of a modality are then opened once for all of its encoders, which have to
    fit the device together; names that differ in a layer alone ("x@6", "x@12") share weights and a forward pass.

    Shards that are whole are kept, so a pass that died goes on where it stood and ends with the same bytes. A complete
    store of the same dataset and encoder is returned as it is. Two processes with one `out` wait for each other; those that
    were launched together (RANK, WORLD_SIZE) divide the shards. Items that cannot be read or encoded, whatever is raised, are
    left out and listed in the store's quarantine; a warning says how many. But where items fail in a row, one that worked
    is tried again: if it fails as well, their disk has gone or the encoder has broken, and the pass stops.

    Args:
        precision: "fp32"; "bf16" or "fp16" for mixed precision, which is faster on a GPU. Part of the store's origin.
        workers: processes that open items while the device computes; they change no byte. None: 0 on a CPU, else one a core,
            8 at most, as far as they can start: a script needs ``if __name__ == "__main__":`` for any.
        append: `out` may hold the store of a smaller version of the dataset, with the same items (unchanged, which only their
            ids can show) at its beginning: only new shards are encoded, and the bytes are those of a store made at once.
        overwrite: what `out` holds of other latents is deleted; what belongs to these is kept.

    Raises FuseMixLiteError if `out` holds something else or cannot be written, nothing could be encoded, memory is too small,
    or a worker or another process died.
    """
    out, how = Path(out), _How(batch_size, device, progress, precision, workers, append, overwrite)
    if not isinstance(encoders, Mapping | list | tuple):
        return _extract(dataset, [(encoders, out)], how)[0]
    named = encoders.items() if isinstance(encoders, Mapping) else [(_source(encoder).id, encoder) for encoder in encoders]
    wanted = [(encoder, out / folder_name(name)) for name, encoder in named]
    if not wanted or len({folder for _, folder in wanted}) < len(wanted):
        names = ", ".join(folder.name for _, folder in wanted) or "none"
        raise FuseMixLiteError(f"extract: encoders for the folders {names}: give one or more, in a mapping if ids are alike")
    stores = _extract(dataset, wanted, how)
    return {name: store for (name, _), store in zip(named, stores, strict=True)}


def cached_latents(
    dataset: Any,
    encoder: str | Path,
    batch_size: int = 64,
    device: str | torch.device = "auto",
    progress: bool = True,
    *,
    precision: str = "fp32",
    workers: int | None = None,
) -> LatentStore:
    """The latents of a dataset by an encoder, extracted on first use into `cache_dir()` and shared from then on.

    The encoder is loaded only if the latents are not there. A dataset, encoder or precision that changes gets a new folder.
    A list of encoders gives a list of stores, extracted in one pass.
    """
    several = isinstance(encoder, list | tuple)
    folders = []
    for name in encoder if several else [encoder]:
        source = resolve_encoder(name)
        key = [dataset.id, source.id, source.revision, source.preprocessing_hash]
        key += [] if precision == "fp32" else [precision]
        digest = hashlib.sha256("\n".join(key).encode()).hexdigest()[:16]
        folders.append((name, cache_dir() / f"{cache_name(dataset.id, source.id)}--{digest}"))
    stores = _extract(dataset, folders, _How(batch_size, device, progress, precision, workers))
    return stores if several else stores[0]


def cache_dir() -> Path:
    """Where extracted latents are kept: `FUSEMIX_LITE_CACHE` if set, else the user's cache folder."""
    own = os.environ.get("FUSEMIX_LITE_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusemix-lite"


def cache_name(dataset_id: str, encoder_id: str) -> str:
    """The readable part of the name of a folder in the cache; a digest of what the latents depend on follows it."""
    return folder_name(f"{dataset_id}--{encoder_id}")[:100]


def use_cache(folder: str | Path | None) -> None:
    """Keep latents in `folder` from now on, in this process and its children; None changes nothing."""
    if folder is not None:
        os.environ["FUSEMIX_LITE_CACHE"] = str(Path(folder).resolve())


@dataclass(frozen=True)
class _How:
    """The arguments of `extract` that are not about what goes where."""

    batch_size: int
    device: str | torch.device
    progress: bool
    precision: str
    workers: int | None
    append: bool = False
    overwrite: bool = False

    def __post_init__(self):
        if self.precision not in PRECISIONS or self.batch_size < 1 or (self.workers or 0) < 0:
            found = f"precision = {self.precision!r}, batch_size = {self.batch_size}, workers = {self.workers}"
            raise FuseMixLiteError(f"extract: {found}: give one of {', '.join(PRECISIONS)}, at least 1, at least 0")
        if self.overwrite and (self.append or Share.of_this_process().world > 1):
            raise FuseMixLiteError("extract: no overwrite with append or in several processes: delete the folder by hand")


@dataclass
class _Pass:
    """One encoder on its way through a dataset, into its store."""

    given: AnyEncoder
    source: EncoderSource
    out: Path
    origin: LatentOrigin | None = None
    store: LatentStore | None = None
    encoder: BaseEncoder | None = None
    writer: LatentWriter | None = None
    todo: set[int] = field(default_factory=set)  # numbers of shards
    # of the shard in hand:
    kept: list[int] = field(default_factory=list)
    latents: list[torch.Tensor] = field(default_factory=list)
    left_out: list[dict] = field(default_factory=list)
    # of this process:
    good: int | None = None  # index of an item that could be encoded
    row: int = 0  # items that have failed since
    first: int | None = None  # index of the first of them
    why: str = ""  # it failed

    def open_finished(self, how: "_How") -> bool:
        """Open the store if it is complete. One of another origin is refused, or taken for unfinished if it may be replaced."""
        manifest, other = self.out / MANIFEST, how.append or how.overwrite
        try:
            if manifest.exists() and not (other and LatentStore.open(self.out).origin != self.origin):
                self.store = open_same(self.out, self.origin, may_append=True)
        except FuseMixLiteError:
            if manifest.exists() and not how.overwrite:
                raise  # else the first process has just begun to append
        return self.store is not None

    def begin(self, data: "_Field", share: "Share", how: "_How") -> None:
        """Find out which shards are to be done; of a smaller version of the dataset, take over those that fit."""
        if how.overwrite:
            self._make_way()
        try:
            self.writer = LatentWriter(self.out, self.origin, append=how.append, locked=True)
        except FuseMixLiteError:
            if share.rank and self.open_finished(how):
                return  # all shards were there, and the first process was faster
            raise
        whole = self.writer.check_older(data.shards, data.item_ids)
        if how.append and share.rank == 0:
            (self.out / MANIFEST).unlink(missing_ok=True)  # of the smaller version
        for number in share.of(len(data.shards)):
            if number in whole:
                self.writer.adopt(number)
            elif not self.writer.has(number):
                self.todo.add(number)

    def _make_way(self) -> None:
        """Delete what a store of other latents consists of, the manifest first, and nothing where there is anything else."""
        files = sorted(self.out.iterdir()) if self.out.is_dir() else []
        for file in files:
            if file.name not in (MANIFEST, QUARANTINE) and file.suffix != ASIDE and shard_number(file.name) is None:
                raise FuseMixLiteError(f"{self.out} holds {file.name}, which is no part of a store: choose another folder")
        try:
            (self.out / MANIFEST).unlink(missing_ok=True)
            for file in files:
                if shard_number(file.name) is not None and not self._is_ours(file):
                    file.unlink()
        except OSError as error:
            raise not_written(self.out, error) from error

    def _is_ours(self, shard: Path) -> bool:
        try:
            return origin_of(open_shard(shard)[1]) == self.origin
        except FuseMixLiteError:
            return False

    def take(self, batch: Batch, z: torch.Tensor, values: Sequence[Any]) -> None:
        """Latents (B, D) of a batch of the shard in hand."""
        if z.ndim != 2 or len(z) != len(batch.indices):
            found = f"{tuple(z.shape)} for {len(batch.indices)} items"
            raise FuseMixLiteError(f"encoder {self.source.id} gave {found}: (B, D) is needed")
        finite = z.isfinite().all(1)
        self.latents.append(z[finite])
        for index, good in zip(batch.indices, finite.tolist(), strict=True):
            if good:
                self.kept.append(index)
            else:
                path = path_of(values[index], self.source.modality)
                self.left_out.append({"index": index, "path": path, "reason": NOT_FINITE})

    def judge(self, indices: range, data: "_Field", precision: str) -> None:
        """Of a batch that is done: if items fail in a row, or the last of a shard, is it they that fail?

        Raises FuseMixLiteError if not: what is left out stays out, and a disk that has gone would take all the rest with it.
        """
        failed, before = {entry["index"]: entry["reason"] for entry in self.left_out}, self.row
        for index in indices:
            if index not in failed:
                self.row, self.good = 0, index
                continue
            self.row += 1
            if self.row == 1:
                self.first, self.why = index, failed[index]
        many = self.row // IN_A_ROW > min(before, self.row) // IN_A_ROW
        if not many and not (self.row and indices.stop == data.shards[indices.start // ROWS_PER_SHARD].stop):
            return
        if self.good is None and many:
            self.good = self._known_good(data)
            if self.good is None:
                probes = range(0, len(data.item_ids), -(-len(data.item_ids) // PROBES))
                self.good = next((index for index in probes if not self._failure(index, data, precision)), None)
        if self.good is not None:
            why = self._failure(self.good, data, precision)
            if why:
                item = data.item_ids[self.good]
                remedy = "their disk may be gone, or the encoder broken: see to it"
                raise FuseMixLiteError(f"items fail, and so does {item} now, which worked before ({why}): {remedy}; {KEPT}")
        elif many:
            why = f"first of all {data.item_ids[self.first]} ({self.why})"
            remedy = "see to the data or the encoder, or leave these items out of the data"
            tried = f"none of {self.row} items in a row can be used, nor of {PROBES} from all over the data"
            raise FuseMixLiteError(f"{tried}, {why}: {remedy}; {KEPT}")

    def _failure(self, index: int, data: "_Field", precision: str) -> str:
        """Why an item cannot be encoded now; "" if it can."""
        (batch,) = batches_of([self.encoder], [index], data.values.__getitem__)
        batch, latents = encode_batch([self.encoder], batch, data.values, precision)
        if batch.left_out:
            return batch.left_out[0]["reason"]
        return "" if latents[0].isfinite().all() else NOT_FINITE

    def _known_good(self, data: "_Field") -> int | None:
        """The index of an item in a shard that was written earlier."""
        for number, indices in enumerate(data.shards):
            if self.writer.has(number):
                gone = {entry["index"] for entry in open_shard(self.out / shard_name(number))[1]["quarantine"]}
                if len(gone) < len(indices):
                    return next(index for index in indices if index not in gone)
        return None

    def flush(self, number: int, data: "_Field") -> None:
        """Write the shard in hand."""
        item_ids = data.item_ids
        if odd := [
            item for item in item_ids[data.shards[number].start : data.shards[number].stop] if not isinstance(item, str)
        ]:
            raise FuseMixLiteError(f"dataset {data.dataset_id} has an item id that is no string: {odd[0]!r}")
        assert len(self.kept) + len(self.left_out) == len(data.shards[number]), "every item is stored or left out"
        if not self.latents:
            check_with_a_blank([self.encoder], self.origin.precision, self.left_out[0]["reason"])  # which tells the dimension
            self.latents = [torch.empty(0, self.encoder.dim)]
        latents = torch.cat(self.latents)
        quarantine = [
            {"index": entry["index"], "item_id": item_ids[entry["index"]], "path": entry["path"], "reason": entry["reason"]}
            for entry in sorted(self.left_out, key=lambda entry: entry["index"])
        ]
        self.writer.write(number, latents.numpy(), [item_ids[index] for index in self.kept], quarantine)
        self.kept, self.latents, self.left_out = [], [], []


@dataclass(frozen=True)
class _Field:
    """One modality of a dataset, cut into shards."""

    dataset_id: str
    item_ids: Sequence[str]
    values: Sequence[Any]
    shards: list[range]  # indices of the items of each


def _extract(dataset: Any, wanted: Sequence[tuple[AnyEncoder, Path]], how: _How) -> list[LatentStore]:
    """One store for each encoder and folder, in one pass over each modality."""
    by_folder = {out: _Pass(encoder, _source(encoder), out) for encoder, out in wanted}
    passes = list(by_folder.values())
    for modality in dict.fromkeys(one.source.modality for one in passes):
        ours = [one for one in passes if one.source.modality == modality]
        _pass_over(_field_of(dataset, modality), ours, how, Share.of_this_process())
    return [by_folder[out].store for _, out in wanted]


def plan(dataset: Any, encoder: AnyEncoder, precision: str = "fp32") -> tuple[LatentOrigin, "_Field"]:
    """What `extract` would make of them: the origin of the store, and its shards' items."""
    source = _source(encoder)
    data = _field_of(dataset, source.modality)
    return _origin_of(data, source, precision), data


def encode_shards(
    data: "_Field",
    encoder: AnyEncoder,
    writer: LatentWriter,
    numbers: Sequence[int],
    batch_size: int = 64,
    device: str | torch.device = "auto",
    progress: bool = True,
    workers: int | None = None,
) -> None:
    """Write some shards of a store that was planned, as `extract` would."""
    one = _Pass(encoder, _source(encoder), writer.path, writer.origin, writer=writer, todo=set(numbers))
    how = _How(batch_size, device, progress, writer.origin.precision, workers)
    _encode(data, [one] if numbers else [], how, range(len(data.shards)))


def _field_of(dataset: Any, modality: str) -> "_Field":
    item_ids, values = dataset.fields(modality)
    total = len(item_ids)
    if total == 0 or total != len(values):
        raise FuseMixLiteError(f"dataset {dataset.id} has {total} ids and {len(values)} values of {modality}")
    shards = [range(start, min(start + ROWS_PER_SHARD, total)) for start in range(0, total, ROWS_PER_SHARD)]
    return _Field(dataset.id, item_ids, values, shards)


def _origin_of(data: "_Field", source: EncoderSource, precision: str) -> LatentOrigin:
    who = (source.modality, source.id, source.revision, source.preprocessing_hash, precision)
    return LatentOrigin(data.dataset_id, len(data.item_ids), *who)


def _pass_over(data: _Field, passes: list[_Pass], how: _How, share: Share) -> None:
    """Fill the stores of encoders of one modality; those that are complete already are opened."""
    total, count = len(data.item_ids), len(data.shards)
    for one in passes:
        one.origin = _origin_of(data, one.source, how.precision)
    with _folders_that_fail(passes):
        passes = [one for one in passes if not one.open_finished(how)]  # before the lock: a cache may be read-only
    mine = share.of(count)
    others = [number for number in range(count) if number not in mine]
    with ExitStack() as locks:
        for one in sorted(passes, key=lambda one: one.out.resolve()):  # in one order, or two may wait for each other for ever
            locks.enter_context(hold_lock(one.out, share.rank))
        with _folders_that_fail(passes):
            passes = [one for one in passes if not one.open_finished(how)]
            for one in passes:
                one.begin(data, share, how)
        _encode(data, [one for one in passes if one.todo], how, mine)
        for one in passes:
            if share.rank == 0:
                _wait_for(lambda one=one: sum(map(one.writer.look, others)), len(others), f"shards of {one.out}")
                one.store = one.writer.finish(count)
                _warn_of_left_out(one.store, total)
            else:
                _wait_for(lambda one=one: one.open_finished(replace(how, append=True)), 1, f"the manifest of {one.out}")


@contextmanager
def _folders_that_fail(passes: list[_Pass]) -> Iterator[None]:
    """Say it in a line where a folder cannot be looked into."""
    try:
        yield
    except OSError as error:
        where = error.filename or " or ".join(str(one.out) for one in passes)
        raise FuseMixLiteError(
            f"{where} cannot be read ({error.strerror or error}): see to it, and run the same again"
        ) from error


def _encode(data: _Field, passes: list[_Pass], how: _How, mine: range) -> None:
    """Encode and write the shards that passes have to do."""
    if not passes:
        return
    _load(passes, how.device)
    groups = [[passes[place] for place in places] for places in passes_of([one.encoder for one in passes])]
    numbers = sorted(set().union(*(one.todo for one in passes)))

    def tasks() -> Iterator[Task]:
        for number in numbers:
            indices, places = data.shards[number], tuple(i for i, group in enumerate(groups) if _with(group, number))
            for start in range(indices.start, indices.stop, how.batch_size):
                yield Task(range(start, min(start + how.batch_size, indices.stop)), places)

    encoders = [group[0].encoder for group in groups]
    total, left = (sum(len(data.shards[number]) for number in some) for some in (mine, numbers))
    who = passes[0].source.id if len(passes) == 1 else f"{len(passes)} {passes[0].source.modality} encoders"
    silent = not how.progress or mine.start > 0  # one bar, however many processes
    bar = tqdm(total=total, initial=total - left, desc=f"{who} on {data.dataset_id}", unit=" items", disable=silent)
    stream = closing(feed(data.values, encoders, tasks(), how.workers))  # workers end with it, whatever happens
    with faults_of_the_machine(KEPT), bar, stream as batches_by_task:
        for task, batches in batches_by_task:
            number = task.indices.start // ROWS_PER_SHARD
            for place, batch in zip(task.encoders, batches, strict=True):
                wanted = _with(groups[place], number)
                _take(wanted, batch, data.values, how.precision)
                for one in wanted:
                    one.judge(task.indices, data, how.precision)
                if task.indices.stop == data.shards[number].stop:
                    for one in wanted:
                        one.flush(number, data)
            bar.update(len(task.indices))


def _load(passes: list[_Pass], device: str | torch.device) -> None:
    """Encoders for passes that have a name; those that differ in their layers alone share weights."""
    named = [one for one in passes if one.source is not one.given]
    for one, encoder in zip(named, load_encoders([one.given for one in named], own_device(device)), strict=True):
        one.encoder = encoder
    for one in passes:
        if one.source is one.given:
            one.encoder = one.given if device == "auto" else one.given.to(device)


def _with(group: list[_Pass], number: int) -> list[_Pass]:
    """Those passes that have a shard to do."""
    return [one for one in group if number in one.todo]


def _take(group: list[_Pass], batch: Batch, values: Sequence[Any], precision: str) -> None:
    """Encode a batch of the shard in hand, once for all passes whose encoders share weights."""
    batch, latents = encode_batch([one.encoder for one in group], batch, values, precision)
    for one, z in zip(group, latents or [None] * len(group), strict=True):
        one.left_out += batch.left_out
        if z is not None:
            one.take(batch, z, values)


def _wait_for(count: Callable[[], int], wanted: int, what: str) -> None:
    """Until the other processes of this pass have written what they have to."""
    found, since = -1, time.monotonic()
    while (now := count()) < wanted:
        if now > found:
            found, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            raise FuseMixLiteError(
                f"{what} do not come from the other processes ({now} of {wanted} are there, nothing new for {PATIENCE:.0f} s): "
                "one of them has died, or does not see this folder; run the same again, what is there is kept"
            )
        time.sleep(_POLL)


def _warn_of_left_out(store: LatentStore, total: int) -> None:
    if store.quarantine:
        first = store.quarantine[0]
        said = f"{len(store.quarantine)} of {total} items left out (first: {first['item_id']}, {first['reason']})"
        warnings.warn(
            str(FuseMixLiteError(f"{said}; see {store.path / QUARANTINE}")),  # one line, whatever the item is called
            stacklevel=5,  # the caller of `extract`
        )


def _source(encoder: AnyEncoder) -> EncoderSource:
    return resolve_encoder(encoder) if isinstance(encoder, str | Path) else encoder


def folder_name(name: str) -> str:
    """The name of a folder for an encoder's id, or any other name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", str(name))
