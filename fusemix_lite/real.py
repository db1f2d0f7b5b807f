"""Real latents: photos with human captions, and recorded notes with the captions that a template makes of their labels.

Neither comes with the package: the photos may not be redistributed. Who has them (the file format is below) sets
``FUSEMIX_LITE_REAL`` to their folder, or calls :func:`use_latents`; everybody else sees the committed records.

    flickr8k.safetensors        the arrays that `REAL` names: x (N, dx), y (M, dy), owner (M,)
    flickr8k.json               {"items": N names, "split": N times "train", "val", "test" or another part, ...}
    philharmonia.safetensors, philharmonia.json   likewise

Any latents in this form take part in the experiments; a record says by a hash which ones it was made with.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .errors import FuseMixLiteError
from .pairs import LatentPairs

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
    if name not in REAL:
        raise FuseMixLiteError(f"no real latents called {name!r}; there are {', '.join(REAL)}")
    folder = os.environ.get("FUSEMIX_LITE_REAL")
    file = Path(folder) / f"{name}.safetensors" if folder else None
    return file if file and file.is_file() else None


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


def data_digest(name: str) -> str | None:
    """The first 16 hexadecimal digits of the SHA-256 over both files of a set; None where they are absent."""
    file = find_latents(name)
    return file and _digest_of(file, file.stat().st_size, file.stat().st_mtime_ns)


@lru_cache
def _digest_of(file: Path, size: int, changed: int) -> str:
    digest = hashlib.sha256(file.read_bytes())
    digest.update(file.with_suffix(".json").read_bytes())
    return digest.hexdigest()[:16]
