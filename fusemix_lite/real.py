"""Real latents: photos with human captions, and recorded notes with the captions that a template makes of their labels.

Neither comes with the package: the photos may not be redistributed. Who has them (the file format is below) sets
``FUSEMIX_LITE_REAL`` to their folder, or calls :func:`use_latents`; everybody else sees the committed records.

    flickr8k.safetensors        the arrays that `REAL` names: x (N, dx), y (M, dy), owner (M,)
    flickr8k.json               {"items": N names, "split": N times "train", "val", "test" or another part, ...}
    philharmonia.safetensors, philharmonia.json   likewise

Any latents in this form take part in the experiments; a record says by a hash which ones it was made with. `write_real`
brings a reader's own latents into it. ``python -m fusemix_lite.real`` keeps what `describe` says of both sets, and how
Sounding Scenes compare, for those who do not have them (some minutes).
"""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .bundled import bundled
from .disk import as_json, write_aside
from .errors import FuseMixLiteError
from .pairs import LatentPairs

#: What `describe` said where the latents were there, and of Sounding Scenes as the record "wording" tells them.
FACTS = bundled("results") / "real-latents.json"

#: Who tells Sounding Scenes: captions a scene, and their wording.
TELLERS = {"five people": (5, "natural"), "one person": (1, "natural"), "a template": (1, "template")}

#: A run costs seconds on latents of this size, a minute on the raw 1,280 numbers; see `reduced`.
COMPONENTS = 256


@dataclass(frozen=True)
class RealLatents:
    """What is known of a set: its arrays' names, its encoders, and where it comes from."""

    title: str
    names: tuple[str, str]  # modalities, x first
    keys: tuple[str, str, str]  # of x, y and owner in the .safetensors file
    encoders: tuple[str, str]
    captions: int  # an item
    items: str
    text: str
    splits: str
    licence: str
    source: str


REAL = {
    "flickr8k": RealLatents(
        title="Flickr8K",
        names=("image", "text"),
        keys=("image_mobilenetv2", "text_minilm", "caption_to_item"),
        encoders=("MobileNetV2 1.0, supervised on ImageNet", "all-MiniLM-L6-v2"),
        captions=5,
        items="8,091 photographs, most of people and dogs",
        text="five captions each, written by five people",
        splits="official: 6,000 / 1,000 / 1,000 (91 photos unused)",
        licence="non-commercial research and education; not to be redistributed",
        source="Hodosh, Young and Hockenmaier (2013)",
    ),
    "philharmonia": RealLatents(
        title="Philharmonia notes",
        names=("audio", "text"),
        keys=("audio_yamnet", "text_minilm", "caption_to_item"),
        encoders=("YAMNet, supervised on AudioSet", "all-MiniLM-L6-v2"),
        captions=1,
        items="9,746 recordings, nearly all of single notes, by 54 instruments, 12 of which play most of them",
        text="one caption each, filled by a template from the labels: instrument, pitch, length, loudness, articulation",
        splits="random: 8,246 / 500 / 1,000",
        licence="free to use; the samples as they are not to be redistributed",
        source="Philharmonia Orchestra sound samples, labels in the file names",
    ),
}


def use_latents(folder: str | Path | None) -> None:
    """Take real latents from `folder` from now on, in this process and its children; None changes nothing."""
    if folder is not None:
        os.environ["FUSEMIX_LITE_REAL"] = str(Path(folder).resolve())


def find_latents(name: str) -> Path | None:
    """The .safetensors file of a set, or None where no folder was named or the folder lacks it."""
    _known(name)
    folder = os.environ.get("FUSEMIX_LITE_REAL")
    file = Path(folder) / f"{name}.safetensors" if folder else None
    return file if file and file.is_file() else None


def _known(name: str) -> RealLatents:
    if name not in REAL:
        raise FuseMixLiteError(f"no real latents called {name!r}; there are {', '.join(REAL)}")
    return REAL[name]


def load_real(name: str, components: int | None = COMPONENTS) -> dict[str, LatentPairs]:
    """The parts of a set, ``{"train": pairs, "val": pairs, "test": pairs, ...}``.

    components: `reduced` to so many dimensions; None leaves the latents as the encoders gave them.

    Raises:
        FuseMixLiteError: the latents are not there (the message says how to name their folder) or do not fit.
    """
    from .arrays import load_latent_pairs

    file = find_latents(name)
    if file is None:
        raise FuseMixLiteError(
            f"{name}.safetensors is not here: set FUSEMIX_LITE_REAL to the folder that holds it and {name}.json"
        )
    known = REAL[name]
    x, y, owner = (f"{file}:{key}" for key in known.keys)
    parts = load_latent_pairs(x, y, owner, file.with_suffix(".json"), known.names)
    missing = [part for part in ("train", "val", "test") if part not in parts]
    if missing:
        raise FuseMixLiteError(f"{file.with_suffix('.json')} names no part {missing[0]!r}: split the items first")
    return parts if components is None else reduced(parts, components)


def reduced(parts: dict[str, LatentPairs], components: int) -> dict[str, LatentPairs]:
    """Both modalities on the first principal components of their own *training* latents; no pair is looked at.

    The directions are orthonormal and nothing is rescaled, so distances shrink by no more than what is cut off. A
    modality with no more dimensions than `components`, or fewer training rows, keeps what it has.
    """
    from sklearn.decomposition import PCA

    train, projected = parts["train"], []
    for side in ("x", "y"):
        z = getattr(train, side)
        pca = PCA(min(components, *z.shape), svd_solver="covariance_eigh").fit(z.double())
        projected.append({part: pca.transform(getattr(pairs, side).double()) for part, pairs in parts.items()})
    x, y = projected
    return {part: LatentPairs(x[part], y[part], p.owner, p.names, p.item_ids) for part, p in parts.items()}


def write_real(parts: dict[str, LatentPairs], folder: str | Path, name: str) -> None:
    """Keep latents under the name of a set in `REAL`, in the form that `load_real` reads: NAME.safetensors and NAME.json.

    parts: such as ``{"train": pairs, "val": pairs, "test": pairs}``, with the modalities that the set has.

    Raises:
        FuseMixLiteError: a part to train, choose or test on is missing, or the modalities are others.
    """
    import torch
    from safetensors.torch import save

    known = _known(name)
    missing = [part for part in ("train", "val", "test") if part not in parts]
    if missing:
        raise FuseMixLiteError(f"{name}: no part {missing[0]!r} among {', '.join(parts)}: split the pairs by item first")
    found = {pairs.names for pairs in parts.values()}
    if found != {known.names}:
        raise FuseMixLiteError(f"{name} pairs {' with '.join(known.names)}, not {' with '.join(min(found))}")
    starts, items, split = [], [], []
    for part, pairs in parts.items():
        starts.append(len(items))
        items += pairs.item_ids or [f"{part}-{row}" for row in range(pairs.n_items)]
        split += [part] * pairs.n_items
    x, y, owner = known.keys
    arrays = {
        x: torch.cat([pairs.x for pairs in parts.values()]),
        y: torch.cat([pairs.y for pairs in parts.values()]),
        owner: torch.cat([start + pairs.owner for start, pairs in zip(starts, parts.values(), strict=True)]),
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_aside(Path(folder) / f"{name}.safetensors", save(arrays))
    write_aside(Path(folder) / f"{name}.json", as_json({"items": items, "split": split}))


def live_rows(record, p, arms: list[dict], metrics: tuple[str, ...]) -> list[dict]:
    """What `experiments.live_slice` gives where the record's latents are here; else one row that says they are not."""
    from .experiments import live_slice

    name = record.content["name"]
    if find_latents(name) is None:
        return [{"data": REAL[name].title, "state": f"latents not here, nothing was run: all numbers {record.stamp}"}]
    return live_slice(record, p, arms, metrics)


def share_kept(pairs: LatentPairs, components: int = COMPONENTS) -> dict[str, float]:
    """By modality the share (0 to 1) of the variance that lies in the first principal components, as `reduced` keeps it."""
    import torch

    shares = {}
    for modality, z in zip(pairs.names, (pairs.x, pairs.y), strict=True):
        variances = torch.linalg.eigvalsh(z.double().T.cov()).flip(0)  # along the principal axes, largest first
        shares[modality] = (variances[:components].sum() / variances.sum()).item()
    return shares


def describe(name: str) -> dict:
    """What can be said of a set without showing any of it: sizes, dimensions, variance kept, and how linearly its two
    sides are related (`metrics.linearity`, from training to validation items; no test item is looked at)."""
    parts = load_real(name, components=None)
    return {
        "digest": data_digest(name),
        "items": {part: pairs.n_items for part, pairs in parts.items()},
        "captions": {part: len(pairs) for part, pairs in parts.items()},
        "dims": parts["train"].dims,
        "kept": {modality: round(share, 4) for modality, share in share_kept(parts["train"]).items()},
        "linearity": _linearity(reduced(parts, COMPONENTS)),
    }


def _linearity(parts: dict[str, LatentPairs]) -> dict:
    from .metrics import linearity

    found = linearity(parts["train"], parts["val"], items=2000)
    return {way: {kind: round(share, 4) for kind, share in shares._asdict().items()} for way, shares in found.items()}


def facts(name: str) -> dict:
    """What `describe` said of the latents that the book's records were made with. Of Sounding Scenes told by "five people",
    by "one person" and by "a template" it is the linearity alone."""
    try:
        return json.loads(FACTS.read_text(encoding="utf-8"))[name]
    except (OSError, ValueError, KeyError) as error:
        raise FuseMixLiteError(f"no facts about {name} in {FACTS}: run `python -m fusemix_lite.real`") from error


def data_digest(name: str) -> str | None:
    """The first 16 hexadecimal digits of the SHA-256 over both files of a set; None where they are absent."""
    file = find_latents(name)
    if file is None:
        return None
    files = (file, file.with_suffix(".json"))
    try:
        return _digest_of(files, tuple((f.stat().st_size, f.stat().st_mtime_ns) for f in files))
    except FileNotFoundError as error:
        raise FuseMixLiteError(f"{error.filename} is not beside {file.name}: a set has both files") from None


@lru_cache
def _digest_of(files: tuple[Path, ...], seen: tuple) -> str:
    """`seen`, sizes and times, makes a file that has changed a question of its own."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def main() -> None:
    from .datasets import SoundingScenes, scene_pairs
    from .profiles import profile
    from .records import weights_digest

    missing = [name for name in REAL if not find_latents(name)]
    if missing:
        raise SystemExit(f"{missing[0]}.safetensors is not here: set FUSEMIX_LITE_REAL to the folder that holds all sets")
    told, p = {name: describe(name) for name in REAL}, profile("lite")
    encoders = p.audio_encoders[0], p.text_encoders[0]
    for teller, (captions, wording) in TELLERS.items():
        sizes = {"train": p.train_items, "val": p.val_items}
        scenes = {part: SoundingScenes("audio-text", part, n, captions, wording=wording) for part, n in sizes.items()}
        told[teller] = {
            "weights": {name: weights_digest(name) for name in encoders},
            "linearity": _linearity({part: scene_pairs(of, *encoders) for part, of in scenes.items()}),
        }
    write_aside(FACTS, as_json(told))
    print(FACTS)


if __name__ == "__main__":
    main()
