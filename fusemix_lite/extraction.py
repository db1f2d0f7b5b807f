"""One pass of a frozen encoder over a dataset: latents on disk, after which neither items nor encoder are needed."""

import hashlib
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tqdm import tqdm

from .encoders import Encoder, load_encoder, resolve_encoder
from .errors import FuseMixLiteError
from .store import ROWS_PER_SHARD, LatentOrigin, LatentStore, LatentWriter


def extract(
    dataset: Any,
    encoder: Encoder | str | Path,
    out: str | Path,
    batch_size: int = 64,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> LatentStore:
    """Encode the field of a dataset that fits the encoder's modality, and store the latents as float16.

    `dataset` has an `id` and `fields(modality) -> (item ids, values)`, both of one length; values are read one at a
    time. `encoder` is a loaded one (which `device` "auto" leaves where it is) or a name, which is loaded only if there
    is something to encode.

    Shards that are whole are kept, so a pass that died goes on where it stood and ends with the same bytes. A complete
    store of the same dataset and encoder is returned as it is. Two processes with one `out` wait for each other. Items
    that cannot be read or encoded are left out and listed in the store's quarantine; a warning says how many.

    Raises FuseMixLiteError if `out` holds something else, or nothing could be encoded.
    """
    out, source = Path(out), resolve_encoder(encoder) if isinstance(encoder, str | Path) else encoder
    item_ids, values = dataset.fields(source.modality)
    total = len(item_ids)
    if total == 0 or total != len(values):
        raise FuseMixLiteError(f"dataset {dataset.id} has {total} ids and {len(values)} values of {source.modality}")
    origin = LatentOrigin(dataset.id, total, source.modality, source.id, source.revision, source.preprocessing_hash)
    if (out / "manifest.json").exists():  # looked up before the lock: a finished cache may be read-only
        return _open_same(out, origin)
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(out.name + ".lock")):
        if (out / "manifest.json").exists():
            return _open_same(out, origin)
        writer = LatentWriter(out, origin)
        if source is not encoder:
            encoder = load_encoder(encoder, device)
        elif device != "auto":
            encoder.model.to(device)
        ranges = [range(start, min(start + ROWS_PER_SHARD, total)) for start in range(0, total, ROWS_PER_SHARD)]
        todo = [number for number in range(len(ranges)) if not writer.has(number)]
        done = total - sum(len(ranges[number]) for number in todo)
        label = f"{source.id} on {dataset.id}"
        with tqdm(total=total, initial=done, desc=label, unit=" items", disable=not progress) as bar:
            for number in todo:
                kept, latents, quarantine = _encode_range(encoder, item_ids, values, ranges[number], batch_size, bar)
                writer.write(number, latents.numpy(), [item_ids[index] for index in kept], quarantine)
        store = writer.finish(len(ranges))
    if store.quarantine:
        first = store.quarantine[0]
        warnings.warn(
            f"{len(store.quarantine)} of {total} items left out (first: {first['item_id']}, {first['reason']}); "
            f"see {out / 'quarantine.json'}",
            stacklevel=2,
        )
    return store


def cached_latents(
    dataset: Any,
    encoder: str | Path,
    batch_size: int = 64,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> LatentStore:
    """The latents of a dataset by an encoder, extracted on first use into `cache_dir()` and shared from then on.

    The encoder is loaded only if the latents are not there. A dataset or encoder that changes gets a new folder.
    """
    source = resolve_encoder(encoder)
    key = "\n".join((dataset.id, source.id, source.revision, source.preprocessing_hash))
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{dataset.id}--{source.id}")[:100]
    out = cache_dir() / f"{readable}--{digest}"
    return extract(dataset, encoder, out, batch_size, device, progress)


def cache_dir() -> Path:
    """Where extracted latents are kept: `FUSEMIX_LITE_CACHE` if set, else the user's cache folder."""
    own = os.environ.get("FUSEMIX_LITE_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusemix-lite"


def use_cache(folder: str | Path | None) -> None:
    """Keep latents in `folder` from now on, in this process and its children; None changes nothing."""
    if folder is not None:
        os.environ["FUSEMIX_LITE_CACHE"] = str(Path(folder).resolve())


def _encode_range(
    encoder: Encoder, item_ids: Sequence[str], values: Sequence[Any], indices: range, batch_size: int, bar: tqdm
) -> tuple[list[int], torch.Tensor, list[dict]]:
    """Indices that could be encoded, their latents (n, D), and what is wrong with the others."""
    kept, latents, quarantine = [], [torch.empty(0, encoder.dim)], []

    def leave_out(index: int, value: Any, reason: str) -> None:
        path = str(value) if encoder.modality != "text" and isinstance(value, str | Path) else None
        quarantine.append({"index": index, "item_id": item_ids[index], "path": path, "reason": reason})

    for start in range(indices.start, indices.stop, batch_size):
        batch, prepared = range(start, min(start + batch_size, indices.stop)), {}
        for index in batch:
            value = None
            try:
                value = values[index]
                prepared[index] = encoder.prepare(value)
            except (FuseMixLiteError, OSError) as error:
                leave_out(index, value, str(error))
        bar.update(len(batch))
        if not prepared:
            continue
        z = encoder.encode_prepared(list(prepared.values()))  # (B, D)
        finite = z.isfinite().all(1).tolist()
        for index, good in zip(prepared, finite, strict=True):
            if good:
                kept.append(index)
            else:
                leave_out(index, values[index], "its latent is not finite")
        latents.append(z[finite])
    return kept, torch.cat(latents), sorted(quarantine, key=lambda entry: entry["index"])


def _open_same(out: Path, origin: LatentOrigin) -> LatentStore:
    store = LatentStore.open(out)
    if store.origin != origin:
        raise FuseMixLiteError(f"{out} holds {store.origin}, not {origin}: choose another folder, or delete this one")
    return store
