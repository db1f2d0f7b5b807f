"""Data sets: what :func:`fusemix_lite.extract` reads. One item type for all: ids and lazily made values of a field.

Sounding Scenes is the embedded one. A data set has an ``id`` that names its content, ``len`` (items) and
``fields(modality) -> (ids, values)``; an id stands once a caption in the field "text".
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .errors import FuseMixLiteError
from .scenes import SPLITS, Scene, item_rng, scene_at

if TYPE_CHECKING:
    from .pairs import LatentPairs

MODALITIES = ("image", "audio", "text")
WORDINGS = ("natural", "template")
WORLD_VERSION = 1  # part of the data set's id: raise it whenever the world changes, so that no old latents are used


class Lazy(Sequence):
    """A sequence whose i-th value is made when it is asked for."""

    def __init__(self, length: int, make: Callable[[int], object]):
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self._make(i) for i in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(index)
        return self._make(index % self._length)


@dataclass(frozen=True)
class SoundingScenes:
    """A split of Sounding Scenes.

    ``pair`` is "image-text" or "audio-text" (their scenes are disjoint) or "unimodal", for pre-training one modality;
    ``split`` is "train", "val" or "test". Knobs: ``size`` (quantity, in scenes), ``noise`` (quality: the share of captions
    degraded as on the web), ``skew`` (diversity: 0 is uniform, 1 is Zipf) and ``wording``: "natural", as people write, or
    "template", one fixed form that names every attribute exactly. The first n scenes of a larger set are the set of size n.
    """

    pair: str = "image-text"
    split: str = "train"
    size: int = 1000
    captions: int = 5
    noise: float = 0.0
    skew: float = 0.0
    seed: int = 0
    wording: str = "natural"

    def __post_init__(self):
        if (self.pair, self.split) not in SPLITS:
            have = ", ".join("/".join(key) for key in SPLITS)
            raise FuseMixLiteError(f"no split {self.pair!r}/{self.split!r} in Sounding Scenes; there are {have}")
        if self.size < 1 or self.captions < 1 or not 0 <= self.noise <= 1 or self.skew < 0:
            raise FuseMixLiteError(f"size and captions start at 1, noise is in [0, 1], skew not negative; got {self}")
        if self.wording not in WORDINGS:
            raise FuseMixLiteError(f"wording = {self.wording!r}: choose one of {', '.join(WORDINGS)}")

    @property
    def id(self) -> str:
        knobs = f"-noise{self.noise:g}-skew{self.skew:g}" if self.noise or self.skew else ""
        knobs += "" if self.wording == "natural" else f"-{self.wording}"
        return f"sounding-scenes-v{WORLD_VERSION}-{self.pair}-{self.split}-{self.size}x{self.captions}{knobs}-seed{self.seed}"

    @classmethod
    def of_id(cls, dataset_id: str) -> "SoundingScenes":
        """The split that an `id` names. Raises FuseMixLiteError for the id of anything else."""
        number = r"(\d[\d.e+-]*?)"
        knobs = rf"-(\d+)x(\d+)(?:-noise{number}-skew{number})?(?:-({'|'.join(WORDINGS)}))?-seed(\d+)"
        found = re.fullmatch(rf"sounding-scenes-v{WORLD_VERSION}-(.+)-(train|val|test){knobs}", dataset_id)
        if found is None:
            raise FuseMixLiteError(f"{dataset_id} is no split of Sounding Scenes as this version makes them")
        pair, split, size, captions, noise, skew, wording, seed = found.groups()
        own = (float(noise or 0), float(skew or 0), int(seed), wording or "natural")
        return cls(pair, split, int(size), int(captions), *own)

    def __len__(self) -> int:
        return self.size

    def scene(self, index: int) -> Scene:
        """The factors of an item: for probes and galleries; no encoder and no adapter sees them."""
        return scene_at(self.pair, self.split, index, self.skew, self.seed)

    def image(self, index: int):
        from .scene_image import draw

        return draw(self.scene(index), self._rng(index, "image"))

    def audio(self, index: int):
        from .scene_audio import synthesise

        return synthesise(self.scene(index), self._rng(index, "audio"))

    def caption(self, index: int, which: int = 0) -> str:
        """The ``which``-th caption of an item; a good image caption of "unimodal" scenes is an audio caption half the time."""
        from .scene_text import audio_caption, audio_template, degrade, image_caption, image_template

        rng = self._rng(index, f"caption {which}")
        heard = self.pair == "audio-text" or (self.pair == "unimodal" and rng.random() < 0.5)
        if self.wording == "template":
            text = (audio_template if heard else image_template)(self.scene(index))
        else:
            text = (audio_caption if heard else image_caption)(self.scene(index), rng)
        return degrade(text, rng) if rng.random() < self.noise else text

    def fields(self, modality: str) -> tuple[list[str], Sequence]:
        """Item ids and lazily made values (PIL image, (T,) float32 at 16 kHz, or str) of one modality."""
        if modality not in MODALITIES:
            raise FuseMixLiteError(f"no field {modality!r} in {self.id}; there are {', '.join(MODALITIES)}")
        names = [f"{self.pair}-{self.split}-{i:06d}" for i in range(self.size)]
        if modality == "text":
            return [name for name in names for _ in range(self.captions)], Lazy(self.size * self.captions, self._row)
        return names, Lazy(self.size, self.image if modality == "image" else self.audio)

    def _row(self, index: int) -> str:
        """The caption of a row of text; a method, so that worker processes can be sent it."""
        return self.caption(index // self.captions, index % self.captions)

    def _rng(self, index: int, stream: str):
        return item_rng(self.pair, self.split, index, stream, self.seed)


def scene_pairs(dataset: SoundingScenes, x_encoder: str, y_encoder: str, progress: bool = True) -> "LatentPairs":
    """Latent pairs of a split of Sounding Scenes, extracted once into the cache (``FUSEMIX_LITE_CACHE``).

    "lite-audio-a+lite-audio-b" stands for the latents of both encoders, concatenated.
    """
    from .extraction import cached_latents
    from .pairs import LatentPairs

    unworded = replace(dataset, captions=5, noise=0.0, wording="natural")  # what is written changes no picture, no sound

    def stores(names: str, of: SoundingScenes) -> list:
        return [cached_latents(of, name, progress=progress) for name in names.split("+")]

    return LatentPairs.from_stores(stores(x_encoder, unworded), stores(y_encoder, dataset))
