"""Encoders that are no single model: several joined, and whatever can be called.

`JoinedEncoder` is what "a+b" loads as. `callable_encoder` makes an encoder of a function: a model behind an API, or one whose
code and weights this package does not read.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from . import decoding
from .decoding import first_line
from .encoders import BaseEncoder, Encoder, encode_together, passes_of
from .errors import FuseMixLiteError
from .resolving import EncoderSource


@dataclass(frozen=True)
class JoinedSource:
    """Several encoders found but not loaded, whose latents are to be concatenated. Fields as in `EncoderSource`."""

    id: str
    modality: str
    revision: str
    preprocessing_hash: str
    name: str
    parts: tuple[EncoderSource, ...] = field(repr=False)

    @classmethod
    def of(cls, parts: Sequence[EncoderSource]) -> "JoinedSource":
        modalities = {part.modality for part in parts}
        if len(modalities) != 1:
            told = ", ".join(f"{part.id} {part.modality}" for part in parts)
            raise FuseMixLiteError(f"only encoders of one modality can be joined: {told}")
        return cls(
            id="+".join(part.id for part in parts),
            modality=modalities.pop(),
            revision="+".join(part.revision for part in parts),
            preprocessing_hash=_digest([part.preprocessing_hash for part in parts]),
            name="+".join(part.name for part in parts),
            parts=tuple(parts),
        )


class JoinedEncoder(BaseEncoder):
    """Several encoders of one modality as one, whose latents are theirs, concatenated (B, D1 + D2 + ...).

    Parts that differ in their layers alone share a forward pass.
    """

    def __init__(self, source: JoinedSource, parts: Sequence[Encoder]):
        vars(self).update(vars(source))
        self.parts = tuple(parts)
        self.model = torch.nn.ModuleList(part.model for part in parts)
        self._passes = passes_of(parts)

    @cached_property
    def dim(self) -> int:
        return sum(part.dim for part in self.parts)

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    def without_model(self) -> "JoinedEncoder":
        """What prepares items and makes inputs of them, for a worker process: all but the weights."""
        bare = copy.copy(self)
        bare.parts, bare.model = tuple(part.without_model() for part in self.parts), None
        return bare

    def prepare(self, item: Any) -> tuple:
        """One item as each part wants it; it is opened once."""
        item = decoding.decode(item, self.modality)
        return tuple(self.parts[first].prepare(item) for first, *_ in self._passes)

    def to_inputs(self, batch: list[tuple]) -> dict[str, torch.Tensor]:
        inputs = {}
        for number, (first, *_) in enumerate(self._passes):
            own = self.parts[first].to_inputs([prepared[number] for prepared in batch])
            inputs |= {f"{number}/{name}": tensor for name, tensor in own.items()}
        return inputs

    def encode_inputs(self, inputs: dict[str, torch.Tensor], precision: str = "fp32") -> torch.Tensor:
        """Latents (B, D), float32 on the CPU, of what `to_inputs` returns."""
        latents: dict[int, torch.Tensor] = {}
        for number, indices in enumerate(self._passes):
            start = f"{number}/"
            own = {name.removeprefix(start): tensor for name, tensor in inputs.items() if name.startswith(start)}
            found = encode_together([self.parts[index] for index in indices], own, precision)
            latents.update(zip(indices, found, strict=True))
        return torch.cat([latents[index] for index in range(len(self.parts))], 1)


@dataclass(frozen=True, eq=False)
class CallableEncoder(BaseEncoder):
    """An encoder behind a function. Made by `callable_encoder`."""

    fn: Callable[[list], Any] = field(repr=False)
    id: str
    modality: str
    revision: str
    preprocessing_hash: str
    rate: int
    clean: bool
    known_dim: int | None = field(default=None, repr=False)

    @cached_property
    def dim(self) -> int:
        """Latent dimension D: as it was told, else found by encoding one blank item, which is a call of the function."""
        return self.known_dim or super().dim

    @property
    def name(self) -> str:
        return self.id

    @property
    def device(self) -> torch.device:
        """Of what it gives; where the function computes is its own affair."""
        return torch.device("cpu")

    def to(self, device: str | torch.device) -> "CallableEncoder":
        """The same encoder: there is nothing to move."""
        return self

    def without_model(self) -> "CallableEncoder":
        """What prepares items, for a worker process: all but the function, which stays where it was given."""
        return replace(self, fn=None)

    def prepare(self, item: Any) -> Any:
        """RGB image, caption, or float32 mono waveform (T,) at `rate`: what the function is given."""
        item = decoding.decode(item, self.modality)
        if self.modality == "text":
            return decoding.as_caption(decoding.clean_caption(item)) if self.clean else item
        return decoding.resampled(*item, self.rate) if self.modality == "audio" else item

    def to_inputs(self, batch: list) -> dict[str, list]:
        return {"items": batch}

    def encode_inputs(self, inputs: dict[str, list], precision: str = "fp32") -> torch.Tensor:
        """Latents (B, D), float32 on the CPU. `precision` is the function's own affair."""
        items = [item.numpy() if isinstance(item, torch.Tensor) else item for item in inputs["items"]]  # as from a worker
        try:
            latents = torch.as_tensor(self.fn(items)).detach().float().cpu()
        except FuseMixLiteError:
            raise
        except Exception as error:  # whatever the function raises
            kind = type(error).__name__
            raise FuseMixLiteError(f"encoder {self.id} failed on {len(items)} items ({kind}: {first_line(error)})") from error
        if latents.ndim != 2 or len(latents) != len(items):
            raise FuseMixLiteError(f"encoder {self.id} gave {tuple(latents.shape)} for {len(items)} items: (B, D) is needed")
        dim = vars(self).get("dim", self.known_dim)  # not asked for where nobody has yet
        if dim and latents.shape[1] != dim:
            raise FuseMixLiteError(f"encoder {self.id} gave {latents.shape[1]} dimensions where it gave {dim} before")
        return latents


def callable_encoder(
    fn: Callable[[list], Any],
    *,
    id: str,
    modality: str,
    revision: str,
    dim: int | None = None,
    rate: int = decoding.ARRAY_RATE,
    clean: bool = False,
) -> CallableEncoder:
    """An encoder of a function that takes a list of B items and returns latents (B, D): an array, a tensor, or lists.

    The items are pictures (RGB, of Pillow), captions, or float32 mono arrays (T,) at `rate`, decoded and checked as for every
    other encoder; `clean` cleans captions as the official code does. `id` and `revision` say who made the latents, and are
    all that a cache knows of the function: change the revision when it starts to give others. `dim` saves the call with a
    blank item that finds it out. Batches are as large as `extract` is told; retries and limits of an API are the function's
    own affair: an exception stops the extraction, which goes on where it stood when it is called again. Its latents are taken
    as any other's::

        encoder = fl.callable_encoder(ask_the_api, id="some-api/text-v3", modality="text", revision="2026-11")
        fl.extract(dataset, encoder, "latents/text")

    Raises FuseMixLiteError for an identity that is empty and for an unknown modality.
    """
    if modality not in ("image", "text", "audio"):
        raise FuseMixLiteError(f'modality "{modality}": choose one of image, text, audio')
    if not callable(fn) or not id or not revision:
        raise FuseMixLiteError("callable_encoder needs a function, an id and a revision, so that its latents can be told apart")
    if clean and modality != "text":
        raise FuseMixLiteError(f"encoder {id} takes {modality}, and only captions can be cleaned")
    how = {"modality": modality, "rate": rate if modality == "audio" else None, "clean": clean}
    return CallableEncoder(fn, str(id), modality, str(revision), _digest(["callable", how]), rate, clean, dim)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
