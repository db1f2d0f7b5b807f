"""Models of timm and open_clip behind the interface that an encoder expects of a transformers model.

A tower takes the tensors of its processor and answers with `last_hidden_state`, `pooler_output` and, where asked,
`hidden_states`, so that pooling and layers need no second way of their own. What it computes is what the library's plain
call computes: `model(x)` of timm with no classifier, `encode_image` and `encode_text` of open_clip.
"""

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from .errors import FuseMixLiteError
from .registry import LIBRARIES

_FIRST = {  # what each library takes before any pickled file
    "timm": ("model.safetensors",),
    "open_clip": ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
}
_PICKLED = ("*.bin", "*.pth", "*.pth.tar")


def load_tower(library: str, folder: Path, modality: str) -> tuple[Any, nn.Module]:
    """Processor and model (on the CPU, for inference) of a folder that timm or open_clip wrote.

    Raises FuseMixLiteError where the library would take pickled weights that lie beside the safetensors.
    """
    pickled = sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern))
    if pickled and not any((folder / name).is_file() for name in _FIRST[library]):
        wanted = " or ".join(_FIRST[library])
        raise FuseMixLiteError(
            f"{library} would read {pickled[0]}, which is pickled: call the safetensors {wanted}, or move it away"
        )
    return {"timm": _timm, "open_clip": _open_clip}[library](_library(library), folder, modality)


def _timm(timm: Any, folder: Path, modality: str) -> tuple[Any, nn.Module]:
    if modality != "image":
        raise FuseMixLiteError(f"timm has models of pictures, none of {modality}")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    return ImageTransform(transform), TimmTower(model)


def _open_clip(open_clip: Any, folder: Path, modality: str) -> tuple[Any, nn.Module]:
    if modality == "audio":
        raise FuseMixLiteError("towers for audio of open_clip are not read: name #image or #text")
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tower = OpenClipTower(model.eval(), modality)
    return (ImageTransform(transform) if modality == "image" else Tokens(open_clip.get_tokenizer(f"local-dir:{folder}"))), tower


@dataclass(frozen=True)
class ImageTransform:
    """A transform of torchvision's kind, called as an image processor is."""

    transform: Any

    def __call__(self, images: Sequence[Image.Image], return_tensors: str = "pt") -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([self.transform(image) for image in images])}


@dataclass
class Tokens:
    """A tokenizer of open_clip, called as one of transformers is. It pads every text to the full length and needs no mask."""

    tokenizer: Any
    model_max_length: int | None = None  # open_clip cuts by itself

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, Tensor]:
        return {"text": self.tokenizer(list(texts))}


class _Tower(nn.Module):
    blocks: Sequence[nn.Module] | None  # of a transformer, in order

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def config(self) -> SimpleNamespace:
        """What is asked of the configuration of a transformers model."""
        return SimpleNamespace(model_type=self.library, num_hidden_layers=self.blocks and len(self.blocks))

    def forward(self, *, output_hidden_states: bool = False, **inputs: Tensor) -> SimpleNamespace:
        with _watched(self.blocks if output_hidden_states else None) as hidden_states:
            tokens, pooled = self.compute(**inputs)
        return SimpleNamespace(last_hidden_state=tokens, pooler_output=pooled, hidden_states=hidden_states)


class TimmTower(_Tower):
    library = "timm"

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.class_token = getattr(model, "num_prefix_tokens", 0) > 0
        blocks = getattr(model, "blocks", None)
        self.blocks = list(blocks) if blocks is not None and hasattr(model, "patch_embed") else None  # others are no layers

    def compute(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        features = self.model.forward_features(pixel_values)  # (B, T, D), or a map
        pooled = self.model.forward_head(features)  # with no classifier this is what the model returns
        if features.ndim == 4 and getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            features = features.permute(0, 3, 1, 2)
        return features, pooled


class OpenClipTower(_Tower):
    library = "open_clip"

    def __init__(self, model: nn.Module, modality: str):
        super().__init__()
        self.model, self.modality = model, modality
        visual = getattr(model, "visual", None)
        self.class_token = modality == "image" and hasattr(visual, "class_embedding")
        blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
        self.blocks = list(blocks) if blocks is not None and self.class_token else None  # a caption has no class token

    def compute(self, pixel_values: Tensor | None = None, text: Tensor | None = None) -> tuple[None, Tensor]:
        encode = self.model.encode_image if self.modality == "image" else self.model.encode_text
        return None, encode(pixel_values if text is None else text)


@contextlib.contextmanager
def _watched(blocks: Sequence[nn.Module] | None) -> Iterator[list[Tensor]]:
    """What goes into the first block and what each gives out, (B, T, D) each, while the context lasts."""
    seen: list[Tensor] = []
    hooks = []
    if blocks:
        hooks = [block.register_forward_hook(lambda *call: seen.append(call[-1])) for block in blocks]
        hooks.append(blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # installed, but something that it needs is not
            raise
        raise FuseMixLiteError(f'needs {name}: pip install "fusemix-lite[{LIBRARIES[name]}]"') from None
