"""From a reader's own files to a number, in three steps that the command line also takes: extract, train, evaluate.

    from fusemix_lite import workflow

    workflow.extract_pairs("my-pairs", "my-latents")                       # frozen encoders, once
    workflow.train(workflow.open_latents("my-latents"), "my-model")        # adapters, selected on validation items
    workflow.evaluate("my-model", workflow.open_latents("my-latents"))     # recall on items held out from both

A folder of latents is one `LatentStore` a modality and ``pairs.json``. A folder of a model is what `save_pretrained` writes
and beside it ``encoders.json`` (which encoder every latent came from), ``parts.json`` (which item was in which part),
``fit.json`` and ``history.json``. All of it is safetensors and JSON.
"""

import hashlib
import os
import platform
import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .device import pick_device
from .disk import ASIDE, as_json, not_written, read_json, write_aside
from .errors import FuseMixLiteError

if TYPE_CHECKING:
    from .pairs import LatentPairs
    from .store import LatentStore
    from .training import FitResult

FORMAT = "fusemix-lite pairs"
PAIRS, ENCODERS, PARTS, FIT, HISTORY = "pairs.json", "encoders.json", "parts.json", "fit.json", "history.json"
CHECKPOINT = "checkpoint"  # a folder in that of the model, while it is trained
LITE = {"image": "lite-image-a", "audio": "lite-audio-a", "text": "lite-text-a"}  # the encoders that ship
SHIPPED = ("adapters-image-text", "adapters-audio-text")
FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
KS = (1, 5, 10)
SURPLUS = 100  # so many times the items may be in the folder that they came from
IN_MEMORY = 4 * 2**30  # bytes in float32 of latents that `open_latents` holds in memory
_ALIASES = {"valid": "val", "validation": "val", "dev": "val", "training": "train", "testing": "test"}


@dataclass(frozen=True, eq=False)
class Latents:
    """Paired latents by part, and where they come from.

    Attributes:
        parts: "train", "val", "test" and whatever else a split names; {"all": pairs} where nothing says.
        encoders: by modality what is known of its encoder: ``name``, ``id``, ``revision``, ``preprocessing_hash``, ``dim``;
            None for what nobody knows, as of latents that somebody else made.
        source: what they were opened from, for messages.
        dataset: the files behind them, where they still are as they were.
        dataset_id: names the files that the latents were made from ("" for arrays).
    """

    parts: dict[str, "LatentPairs"]
    encoders: dict[str, dict]
    source: str
    dataset: Any = None
    dataset_id: str = ""

    @property
    def names(self) -> tuple[str, str]:
        return next(iter(self.parts.values())).names


def encoder_identity(source, name: str | Path | None = None, dim: int | None = None) -> dict:
    """What is kept of an encoder (an `EncoderSource`, or the `origin` of a store) beside latents and adapters."""
    from .encoders import lasting_name

    where = lasting_name(name) if name else None
    get = source if isinstance(source, dict) else vars(source)
    return {
        "name": where,  # what `load_encoder` takes, wherever it is called
        "id": get.get("id") or get.get("encoder_id") or None,
        "revision": get.get("revision") or get.get("encoder_revision") or None,
        "preprocessing_hash": get.get("preprocessing_hash") or None,
        "dim": dim,
    }


def extract_pairs(
    source: str | Path,
    out: str | Path,
    encoders: dict[str, str | Path | Sequence[str | Path]] | None = None,
    device: str = "auto",
    batch_size: int = 64,
    progress: bool = True,
    *,
    precision: str = "fp32",
    workers: int | None = None,
    append: bool = False,
    overwrite: bool = False,
    split: str | None = None,
    folder: str | Path | None = None,
) -> dict:
    """Encode both modalities of `source` into the folder `out`, with all encoders of a modality in one pass.

    `source` is a table or a folder (see `read_pairs`), or the name of a public data set, of which `split` ("train" unless
    given) lies in `folder` (see `open_dataset`). `encoders` names one a modality, or a list; the lite ones are used otherwise.
    The first one's latents are what `open_latents` opens; those of another one lie beside them, in a folder of its name. A pass
    that was stopped goes on where it stood. The other options are those of `extract`.

    Returns what pairs.json holds, with ``rows`` and ``left_out`` (the count, and the list's path) by folder.

    Raises FuseMixLiteError for a source or encoder that cannot be used, for an encoder that is named twice, and if `out` holds
    anything else or cannot be written.
    """
    from .encoders import resolve_encoder
    from .extraction import extract, folder_name
    from .launched import Share

    out, encoders = Path(out), {modality: _listed(names) for modality, names in (encoders or {}).items()}
    asked = [modality for modality in encoders if modality != "text"]
    dataset, where = _open_source(source, asked, split, folder)
    media = dataset.media
    if asked and asked != [media]:
        raise FuseMixLiteError(f"{source} holds {media} files, not {asked[0]}: name an encoder with --{media}")
    known = _read_object(out / PAIRS) if (out / PAIRS).exists() else {"media": media}
    if known.get("media") != media:
        raise FuseMixLiteError(f"{out} holds latents of {known.get('media')} pairs: choose another folder")
    if "folder" in where:
        split = split or "train"  # of all items; else each says its own
    else:
        split = dict(zip(dataset.items, dataset.splits, strict=True)) if dataset.splits else None
    captions = len(dataset.fields("text")[0])
    chosen, found = {}, {}  # by folder
    for modality in [media, "text"] if captions else [media]:
        for place, name in enumerate(encoders.get(modality, [LITE[modality]])):
            encoder = resolve_encoder(name)
            if encoder.modality != modality:
                raise FuseMixLiteError(f"encoder {encoder.id} takes {encoder.modality}, not {modality}: name another one")
            if any(encoder_identity(encoder) == encoder_identity(other) for other in found.values()):
                raise FuseMixLiteError(f"encoder {encoder.id} is named twice: name it once")
            key = modality if place == 0 else f"{modality}-{folder_name(encoder.id)}"
            if key in chosen:
                raise FuseMixLiteError(f"two encoders would have the folder {out / key}: give one of them another --out")
            chosen[key], found[key] = name, encoder
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\d+ of \d+ items left out")  # said below, of all at once
        how = {"precision": precision, "workers": workers, "append": append, "overwrite": overwrite}
        stores = extract(dataset, chosen, out, batch_size, device, progress, **how)
    identities = {key: encoder_identity(found[key], chosen[key], stores[key].dim) for key in stores}
    more = {key: identity for key, identity in identities.items() if key not in (media, "text")}
    content = {
        "format": FORMAT,
        "version": 1,
        **where,
        "dataset": dataset.id,
        "media": media,
        "items": len(dataset.items),
        "captions": captions,
        "encoders": {key: identity for key, identity in identities.items() if key not in more},
        **({"more": more} if more else {}),
        "split": split,
    }
    if Share.of_this_process().rank == 0:
        try:
            write_aside(out / PAIRS, as_json(content))
        except OSError as error:
            raise not_written(out / PAIRS, error) from error
    left_out = {key: {"count": len(s.quarantine), "list": str(s.path / "quarantine.json")} for key, s in stores.items()}
    return {**content, "rows": {key: len(store) for key, store in stores.items()}, "left_out": left_out}


def merge_latents(
    sources: Sequence[str | Path], out: str | Path, prefixes: Sequence[str] | None = None
) -> dict[str, "LatentStore"]:
    """Join folders that `extract_pairs` wrote, or stores, into one of their kind: see `LatentStore.merge`.

    Returns the stores by folder ("" where stores were given).

    Raises FuseMixLiteError as that does, and for sources of different kinds.
    """
    from .store import LatentStore

    sources, out = list(map(Path, sources)), Path(out)
    with_pairs = [(source / PAIRS).is_file() for source in sources]
    if not any(with_pairs):
        return {"": LatentStore.merge(sources, out, prefixes)}
    if not all(with_pairs):
        odd = sources[with_pairs.index(False)]
        raise FuseMixLiteError(f"{odd} holds no {PAIRS}, others do: merge folders that extract wrote, or single stores")
    contents = [read_pairs_json(source) for source in sources]
    folders = [list(content["encoders"] | content.get("more", {})) for content in contents]
    if any(other != folders[0] for other in folders):
        told = ", ".join(f"{source} holds {' and '.join(own)}" for source, own in zip(sources, folders, strict=True))
        raise FuseMixLiteError(f"merge: {told}: extract all of them with encoders for the same")
    stores = {key: LatentStore.merge([source / key for source in sources], out / key, prefixes) for key in folders[0]}
    splits = []
    for source, content, prefix in zip(sources, contents, prefixes or [""] * len(sources), strict=True):
        split = content["split"]
        if isinstance(split, str):
            split = dict.fromkeys(LatentStore.open(source / content["media"]).item_ids, split)
        splits.append(split and {prefix + item: part for item, part in split.items()})
    content = contents[0] | {
        "source": " + ".join(content["source"] for content in contents),
        "dataset": stores[contents[0]["media"]].origin.dataset_id,
        "items": sum(content["items"] for content in contents),
        "captions": sum(content["captions"] for content in contents),
        "split": {item: part for split in splits for item, part in split.items()} if all(splits) else None,
    }
    content.pop("folder", None)
    write_aside(out / PAIRS, as_json(content))
    return stores


def open_latents(folder: str | Path) -> Latents:
    """Open what `extract_pairs` wrote. Items that were left out are in no part. Latents of more than `IN_MEMORY` bytes stay
    on disk (see `LatentPairs.from_stores`).

    Raises FuseMixLiteError for a folder that is not, or not all, there, and for one without captions.
    """
    from .files import split_items
    from .pairs import LatentPairs
    from .store import LatentStore

    folder = Path(folder)
    content = read_pairs_json(folder)
    media, encoders = content["media"], content["encoders"]
    if "text" not in encoders:
        raise FuseMixLiteError(f"{folder} holds {media} latents without captions: a gallery to search in, no pairs")
    stores = {modality: LatentStore.open(folder / modality) for modality in (media, "text")}
    for modality, store in stores.items():
        expected = {key: encoders[modality][key] for key in ("id", "revision", "preprocessing_hash")}
        own = encoder_identity(store.origin)
        if expected != {key: own[key] for key in expected} or store.origin.dataset_id != content["dataset"]:
            raise FuseMixLiteError(f"{store.path} is not of the same pass as {folder / PAIRS}: run extract again")
    size = sum(4 * len(store) * store.dim for store in stores.values())
    pairs = LatentPairs.from_stores(stores[media], stores["text"], in_memory=size <= IN_MEMORY)
    dataset = None
    try:
        found = reopen(content)
        dataset = found if found.id == content["dataset"] else None
    except FuseMixLiteError:
        pass  # the files are gone or have changed; their latents have not
    split = content["split"]
    if split is None or isinstance(split, str):
        return Latents({split or "all": pairs}, encoders, str(folder), dataset, content["dataset"])
    parts = split_items(pairs, _Split(list(split), list(split.values()), folder / PAIRS))
    return Latents(parts, encoders, str(folder), dataset, content["dataset"])


def reopen(content: dict) -> Any:
    """The data set that a pairs.json is about. Raises FuseMixLiteError where it is not there any more.

    The file may come from a stranger, and its source may be any place on this machine. It is only read, as far as it could be
    what was extracted, and whoever calls this compares its id, which nobody knows who has not read the same files.
    """
    from .files import read_pairs
    from .public_data import open_dataset

    try:
        if "folder" in content:
            return open_dataset(content["source"], content["split"], content["folder"])
        _check_extent(Path(content["source"]), content["items"])
        return read_pairs(content["source"], content["media"])
    except (OSError, ValueError) as error:
        if isinstance(error, FuseMixLiteError):
            raise
        raise FuseMixLiteError(f"{content['source']!r:.200} cannot be read again ({error})") from error


def _check_extent(folder: Path, items: int) -> None:
    """Raise FuseMixLiteError if a folder without a table, all of which would be read, holds far more than was extracted of it:
    it is another one, perhaps a whole disk."""
    from .files import _IN_FOLDER

    most = SURPLUS * (items + 1000)
    if any((folder / name).is_file() for name in _IN_FOLDER):
        return
    for _, folders, names in os.walk(folder):
        most -= len(folders) + len(names)
        if most < 0:
            raise FuseMixLiteError(f"{folder} holds far more than the {items} items that were extracted: it is another folder")


def _open_source(source: str | Path, media: list[str], split: str | None, folder: str | Path | None) -> tuple[Any, dict]:
    """The data set of a name, a table or a folder, and what pairs.json keeps of where it is."""
    from .files import read_pairs
    from .public_data import open_dataset
    from .public_sets import DATASETS

    public = all(name in DATASETS for name in str(source).split("+"))
    if folder is None and (not public or Path(source).exists()):
        if split is not None:
            raise FuseMixLiteError(f"--split is for public data sets; {source} says itself which item is in which part")
        return read_pairs(source, *media), {"source": str(Path(source).resolve())}
    if not public:
        raise FuseMixLiteError(f"{source} is no public data set: there are {', '.join(DATASETS)}, and several joined by +")
    place = None if folder is None else str(Path(folder).expanduser().resolve())
    return open_dataset(str(source), split or "train", place), {"source": str(source), "folder": place}


def _listed(names: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return list(names) if isinstance(names, list | tuple) else [names]


def open_arrays(
    x: str | Path,
    y: str | Path,
    owner: str | Path | None = None,
    split: str | Path | None = None,
    names: Sequence[str] | None = None,
) -> Latents:
    """Latents that somebody else made: FILE.safetensors:KEY, FILE.npy or stores; see `load_latent_pairs`.

    Items that nobody named are named by their row and a digest of the files, so that those held out are known again.
    """
    from .arrays import load_latent_pairs
    from .store import LatentStore

    parts = load_latent_pairs(x, y, owner, split, names)
    dataset_id = _digest_of(x, y)
    if next(iter(parts.values())).item_ids is None:
        rows_of = {"all": range(parts["all"].n_items)} if split is None else _rows_by_part(Path(split))
        for name, pairs in parts.items():
            pairs.item_ids = tuple(f"{dataset_id}/{row}" for row in rows_of[name])
    dims, encoders = next(iter(parts.values())).dims, {}
    for name, spec in zip(dims, (x, y), strict=True):
        origin = vars(LatentStore.open(spec).origin) if Path(spec).is_dir() else {}
        encoders[name] = {**encoder_identity(origin, origin.get("encoder_id"), dims[name]), "array": str(spec)}
    return Latents(parts, encoders, f"{x} and {y}", dataset_id=dataset_id)


def parts_to_train(latents: Latents, fractions: dict[str, float] = FRACTIONS, seed: int = 0) -> dict[str, "LatentPairs"]:
    """Parts "train" and "val", and "test" where there is one: as the data say, else drawn by item.

    Where the data name parts but none to select on, a share of "train" as large as `fractions` says becomes "val".
    """
    from .files import split_items

    parts = {_ALIASES.get(name, name): pairs for name, pairs in latents.parts.items()}
    if set(parts) == {"all"}:
        _enough(parts["all"].n_items, fractions, latents.source)
        return split_items(parts["all"], None, fractions, seed)
    if "train" not in parts:
        raise FuseMixLiteError(f'{latents.source}: no part "train" to learn from; there are {", ".join(parts)}')
    if "val" not in parts:
        share = fractions.get("val", 0.1) / (fractions.get("train", 0.8) + fractions.get("val", 0.1))
        shares = {"train": 1 - share, "val": share}
        _enough(parts["train"].n_items, shares, latents.source)
        warnings.warn(f'no part "val": {share:.0%} of the training items are held out to select on', stacklevel=2)
        parts |= parts["train"].split(shares, seed)
    return parts


def train(
    latents: Latents,
    out: str | Path,
    fractions: dict[str, float] = FRACTIONS,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    **options,
) -> dict:
    """Fit adapters on the training items, select on the validation items, save everything to the folder `out`.

    `options` are those of `fusemix_lite.fit`. Returns what fit.json holds. Until all is saved checkpoints are kept in
    `out`, and the same call goes on from them, whatever stopped the one before. Of processes that were launched together the
    first one saves; the others return an empty dict.

    Raises FuseMixLiteError as `fit` does, and if `out` is in use (a model, or the checkpoints of another run, are replaced with
    `overwrite` only).
    """
    from .checkpoints import Checkpoints
    from .launched import Share
    from .training import fit

    out = Path(out)
    check_model_folder(out, overwrite)
    parts = parts_to_train(latents, fractions, seed)
    checkpoints = Checkpoints(out / CHECKPOINT, replace=overwrite)
    result = fit(parts["train"], parts["val"], seed=seed, progress=progress, checkpoint=checkpoints, **options)
    if Share.of_this_process().rank > 0:
        return {}
    facts = {
        "source": latents.source,
        "dataset": latents.dataset_id,
        "items": {name: pairs.n_items for name, pairs in parts.items()},
        "pairs": {name: len(pairs) for name, pairs in parts.items()},
        "fractions": fractions if set(latents.parts) == {"all"} else None,
        "options": options,
        "seed": seed,
    }
    found = save_model(out, result, latents.encoders, facts, parts)
    for name in _model_files():
        for left in out.glob(f"{name}.*{ASIDE}"):  # by a process that was killed while it wrote this model
            left.unlink(missing_ok=True)
    checkpoints.remove()
    return found


def save_model(out: Path, result: "FitResult", encoders: dict[str, dict], facts: dict, parts: dict) -> dict:
    """Write a fitted model and all that has to be known to use and to judge it. Returns what fit.json holds.

    That file is written last, and first removed: where it is, everything is of one model.
    """
    best = next((entry for entry in result.history if entry["step"] == result.best_step and "val" in entry), {})
    content = {
        **facts,
        "best_step": result.best_step,
        "val_mean": best.get("val_mean"),
        "val": best.get("val"),
        "seconds": round(result.seconds, 1),
        "made": time.strftime("%Y-%m-%d"),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("fusemix-lite", "torch", "numpy")},
        },
    }
    (out / FIT).unlink(missing_ok=True)
    result.model.cpu().save_pretrained(out)
    write_aside(out / ENCODERS, as_json({"names": list(encoders), "encoders": encoders}))
    ids = {name: list(pairs.item_ids) for name, pairs in parts.items() if pairs.item_ids is not None}
    write_aside(out / PARTS, as_json({"dataset": facts.get("dataset", ""), "parts": ids}))
    write_aside(out / HISTORY, as_json(result.history))
    write_aside(out / FIT, as_json(content))
    return content


def _model_files() -> tuple[str, ...]:
    from .adapters import CONFIG, WEIGHTS

    return CONFIG, WEIGHTS, "README.md", ENCODERS, PARTS, HISTORY, FIT


def check_model_folder(out: str | Path, overwrite: bool = False) -> None:
    """Raise FuseMixLiteError where a model cannot go: before minutes of training, not after them."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise FuseMixLiteError(f"{out} is a file: choose a new folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / FIT).is_file():
        found = {entry.name for entry in out.iterdir() if entry.suffix != ASIDE}
        if (out / CHECKPOINT).is_dir() and found <= {CHECKPOINT, *_model_files()}:
            return  # stopped on its way to a model: whose way, the checkpoint says
        raise FuseMixLiteError(f"{out} is in use (it holds {sorted(out.iterdir())[0].name}): choose a new folder")
    if not overwrite:
        raise FuseMixLiteError(f"{out} holds a model already: choose a new folder, or give --overwrite")


def model_folder(folder: str | Path) -> Path:
    """Where a model is: the folder itself, or the package's own adapters by name ("adapters-image-text")."""
    from .encoders import WEIGHTS

    if str(folder) in SHIPPED and not Path(folder).is_dir():
        return WEIGHTS / str(folder)
    return Path(folder)


def load_model(folder: str | Path):
    """The `FusionModel` of a folder and what encoders.json says of its encoders, by modality."""
    from .adapters import FusionModel

    folder = model_folder(folder)
    model = FusionModel.from_pretrained(folder)
    content = _read_object(folder / ENCODERS)
    encoders = content.get("encoders")
    if not isinstance(encoders, dict) or encoders.keys() != model.in_dims.keys() or not _say_who(encoders):
        raise FuseMixLiteError(f"{folder / ENCODERS} does not name an encoder for {', '.join(model.in_dims)}: fit again")
    return model, encoders


def evaluate(
    folder: str | Path, latents: Latents, part: str | None = None, seed: int = 0, resamples: int = 1000, device: str = "auto"
) -> dict:
    """Recall@1, 5 and 10 both ways with 95 % intervals over items, beside blind guessing, and the modality gap.

    `part` None is what was held out: of the data that the model was fitted to its recorded test items, of other data their
    own test items, or everything where they have none. "all" is refused where that would hold training items.

    Returns ``{"part", "items", "captions", "recall": {"image_to_text": {1: {"mean", "low", "high", "guessing"}}}, …}``.

    Raises FuseMixLiteError where latents come from another encoder than the model was fitted to, or a part is not there.
    """
    import torch

    from .metrics import cluster_bootstrap, embed_rows, guessing, modality_gap, ranks

    model, encoders = load_model(folder)
    check_encoders(folder, encoders, latents)
    part, pairs, known = held_out(folder, latents, part)
    a, b = pairs.names
    model = model.to(pick_device(device))
    u, v = embed_rows(model, a, pairs.x).cpu(), embed_rows(model, b, pairs.y).cpu()
    generator = torch.Generator().manual_seed(seed)
    recall = {}
    clusters = {"x_to_y": pairs.owner.unique(), "y_to_x": pairs.owner}
    for way, rank in ranks(u, v, pairs.owner).items():
        by_k = {}
        for k in KS:
            found = cluster_bootstrap(100.0 * (rank <= k), clusters[way], resamples=resamples, generator=generator)
            by_k[k] = {**found._asdict(), "guessing": guessing(pairs.owner, pairs.n_items, k)[way]}
        recall[f"{a}_to_{b}" if way == "x_to_y" else f"{b}_to_{a}"] = by_k
    return {
        "model": str(folder),
        "latents": latents.source,
        "part": part,
        "recorded": known,
        "items": pairs.n_items,
        "captions": len(pairs),
        "recall": recall,
        "modality_gap": modality_gap(u, v),
        "resamples": resamples,
        "seed": seed,
    }


def held_out(folder: str | Path, latents: Latents, part: str | None = None) -> tuple[str, "LatentPairs", bool | None]:
    """The pairs to judge a model on: their part's name, the pairs, and whether the model's own record tells it.

    None instead of True or False: the model keeps no record, so nothing says which items it has seen.
    """
    file = model_folder(folder) / PARTS
    record = _read_object(file) if file.exists() else {}
    parts = record.get("parts", {})
    if not isinstance(parts, dict) or not all(_texts(ids) for ids in parts.values()):
        raise FuseMixLiteError(f"{file} does not list the items of each part: fit again")
    recorded = {name: set(ids) for name, ids in parts.items()}
    ids = {item for pairs in latents.parts.values() for item in pairs.item_ids}
    shaped = ids & (recorded.get("train", set()) | recorded.get("val", set()))
    if recorded and record.get("dataset") == latents.dataset_id != "" and not ids & set().union(*recorded.values()):
        raise FuseMixLiteError(f"{latents.source} names its items otherwise than for {folder}: give the --split that fit had")
    if shaped and part == "all":
        if record.get("dataset") == latents.dataset_id:
            raise FuseMixLiteError(f"{latents.source}: {len(shaped)} of its items shaped the model; use --part test")
        warnings.warn(f"{len(shaped)} items carry the ids of items that shaped the model: are they other ones?", stacklevel=3)
    elif shaped:  # by item id: never by a split that is drawn again
        part = part or "test"
        wanted = recorded.get(part, set())
        if not wanted & ids:
            raise FuseMixLiteError(f"no item of part {part!r} in {latents.source}; {folder} knows {', '.join(recorded)}")
        return part, _gather(latents, wanted), True
    named = {_ALIASES.get(name, name): pairs for name, pairs in latents.parts.items()}
    part = part or ("test" if "test" in named else "all")
    known = False if record else None
    if part == "all":
        return part, _gather(latents, None), known
    if part not in named:
        raise FuseMixLiteError(f"{latents.source} has no part {part!r}; there are {', '.join(named)}")
    return part, named[part], known


def check_encoders(folder: str | Path, encoders: dict[str, dict], latents: Latents) -> None:
    """Raise FuseMixLiteError unless the latents are of the encoders that the model was fitted to, as far as is known."""
    if tuple(encoders) != latents.names:
        own, other = (" and ".join(names) for names in (encoders, latents.names))
        raise FuseMixLiteError(f"{folder} aligns {own}, {latents.source} holds {other}")
    for modality, known in encoders.items():
        own = latents.encoders[modality]
        for key in ("revision", "preprocessing_hash"):
            if known.get(key) and own.get(key) and known[key] != own[key]:
                what = f"{modality} latents of {latents.source} come from {own['id']} ({key} {own[key][:12]})"
                fitted = f"{folder} was fitted to {known['id']} ({known[key][:12]})"
                raise FuseMixLiteError(f"{what}, {fitted}: extract again with that one, or fit again")
        if known.get("dim") != own["dim"]:
            what = f"{modality} latents of {latents.source} have {own['dim']} dimensions"
            raise FuseMixLiteError(f"{what}, {folder} takes {known.get('dim')}: they come from another encoder")


def read_pairs_json(folder: str | Path) -> dict:
    """What `extract_pairs` wrote about a folder of latents, checked."""
    file = Path(folder) / PAIRS
    if not file.is_file():
        raise FuseMixLiteError(f"{file} is missing: no latents, or not finished (run extract again to go on)")
    content = _read_object(file)
    keys = {"source": str, "dataset": str, "media": str, "encoders": dict, "items": int, "captions": int}
    if content.get("format") != FORMAT or content.get("version") != 1:
        raise FuseMixLiteError(f'{file} is not of format "{FORMAT}", version 1: extract again')
    if not all(isinstance(content.get(key), kind) for key, kind in keys.items()) or content["media"] not in content["encoders"]:
        raise FuseMixLiteError(f"{file} is broken: extract again")
    split, more = content.setdefault("split", None), content.get("more", {})
    kinds = str if "folder" in content else dict | str | None
    if not isinstance(split, kinds) or content["media"] not in ("image", "audio"):
        raise FuseMixLiteError(f"{file} is broken: extract again")
    if not isinstance(content.get("folder"), str | None) or not _texts(list(split.values() if isinstance(split, dict) else ())):
        raise FuseMixLiteError(f"{file} is broken: extract again")
    if not isinstance(more, dict) or not _say_who(content["encoders"] | more):
        raise FuseMixLiteError(f"{file} does not say which encoders its latents are by: extract again")
    for key in (*content["encoders"], *more):  # the folders of the stores
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", key):
            raise FuseMixLiteError(f"{file} names {key!r:.80}, which is no folder in {folder}: extract again")
    return content


def _say_who(encoders: dict) -> bool:
    """Whether this is what `encoder_identity` gives, by modality or folder."""
    texts = ("name", "id", "revision", "preprocessing_hash")
    return all(
        isinstance(said, dict)
        and all(key in said and isinstance(said[key], str | None) for key in texts)
        and type(said.get("dim")) in (int, type(None))
        for said in encoders.values()
    )


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


@dataclass(frozen=True)
class _Split:
    """The split column of files that may be gone, as `split_items` takes it."""

    items: list[str]
    splits: list[str]
    source: Path


def _gather(latents: Latents, wanted: set[str] | None) -> "LatentPairs":
    """The items of these ids (None: all) out of every part, as one set of pairs."""
    taken = []
    for pairs in latents.parts.values():
        rows = [row for row in range(pairs.n_items) if wanted is None or pairs.item_ids[row] in wanted]
        if rows:
            taken.append(pairs.take(rows) if len(rows) < pairs.n_items else pairs)
    return taken[0].joined(*taken[1:])


def _rows_by_part(split: Path) -> dict[str, list[int]]:
    """Which rows a split file gives to each part; `load_latent_pairs` has checked it."""
    from .arrays import read_split

    content = read_split(split)
    named = content["split"] if isinstance(content, dict) else content
    return {part: [row for row, name in enumerate(named) if name == part] for part in dict.fromkeys(named)}


def _digest_of(*specs: str | Path) -> str:
    """A short name for the content of arrays."""
    digest = hashlib.sha256()
    for spec in map(str, specs):
        path, _, key = (spec, "", "") if Path(spec).exists() else spec.rpartition(":")
        file = Path(path) / "manifest.json" if Path(path).is_dir() else Path(path)
        with file.open("rb") as opened:
            digest.update(f"{key} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return f"arrays-{digest.hexdigest()[:12]}"


def _enough(items: int, fractions: dict[str, float], source: str) -> None:
    if min(round(items * share) for share in fractions.values()) < 1:
        raise FuseMixLiteError(f"{source}: {items} items are too few for parts of {', '.join(map(str, fractions.values()))}")


def _read_object(file: Path) -> dict:
    content = read_json(file, "make the folder again with the command that wrote it")
    if not isinstance(content, dict):
        raise FuseMixLiteError(f"{file} holds no JSON object: make it again")
    return content
