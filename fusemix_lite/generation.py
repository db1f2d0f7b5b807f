"""Audio to image: a generator that is told a text latent, and sounds fused into the space of those latents.

The generator learnt from pictures and their captions alone and is frozen. It takes the *unit-norm* latent of a caption; an
audio adapter brings sounds into the same space, so it can be told a sound instead. What comes out is read by `scene_viewing`.

    generator = load_generator()
    pictures = generator.generate(latents, torch.Generator().manual_seed(0))
"""

import inspect
import json
import math
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from .datasets import SoundingScenes
from .device import pick_device
from .disk import as_json, read_json, write_aside
from .encoders import WEIGHTS, load_encoder
from .errors import FuseMixLiteError
from .pairs import LatentPairs
from .profiles import Profile
from .scene_viewing import agreement, as_pictures, load_reader
from .scenes import Scene
from .untrusted import LARGEST, entries, load_fitting

PACKAGED = "lite-generator"
SIDE = 32  # pixels of a generated picture
CODE = (16, 4, 4)  # what a picture is compressed to, and what is generated: one position for each 8 x 8 pixels
STEPS, GUIDANCE = 32, 6.0  # of the sampler: chosen on validation scenes that are told by captions (see the card)

#: Of the packaged U-Net, over the 4 x 4 positions of a code.
UNET = {
    "sample_size": CODE[1], "in_channels": CODE[0], "out_channels": CODE[0], "block_out_channels": [128], "layers_per_block": 1,
    "down_block_types": ["AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D"], "mid_block_type": "UNetMidBlock2D",
    "resnet_time_scale_shift": "scale_shift", "norm_num_groups": 8, "attention_head_dim": 32, "time_embedding_dim": 256,
    "class_embed_type": "projection",
}  # fmt: skip


class Generator(Protocol):
    """What a chapter asks of any generator, packaged or public."""

    dim: int

    def generate(
        self, latents: Tensor, generator: torch.Generator | None = None, steps: int = STEPS, guidance: float = GUIDANCE
    ) -> Tensor:
        """Pictures (B, 3, H, W) uint8 from latents (B, dim); `generator` draws the noise."""


class ResidualConvolutions(nn.Module):
    """Two convolutions beside an identity, before each a normalisation: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, 1, 1))
        self.second = nn.Sequential(nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, 1, 1))
        nn.init.zeros_(self.second[2].weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


def picture_decoder(width: int = 32) -> nn.Sequential:
    """From codes (B, 16, 4, 4) to pictures (B, 3, 32, 32) in about [-1, 1], three times twice as large."""
    w, res = width, ResidualConvolutions
    return nn.Sequential(
        nn.Conv2d(CODE[0], 4 * w, 3, 1, 1), res(4 * w), res(4 * w),
        nn.Conv2d(4 * w, 8 * w, 3, 1, 1), nn.PixelShuffle(2), res(2 * w), res(2 * w),
        nn.Conv2d(2 * w, 4 * w, 3, 1, 1), nn.PixelShuffle(2), res(w), res(w),
        nn.GroupNorm(8, w), nn.SiLU(), nn.Conv2d(w, 12, 3, 1, 1), nn.PixelShuffle(2),
    )  # fmt: skip


class LatentToImage(nn.Module):
    """A small latent diffusion model that is told a latent where others are told a class, trained with flow matching.

    Like the public models it does not make pixels but a *code* (16, 4, 4), which a decoder turns into a picture
    (Rombach et al., 2022). That is what makes it small enough for a CPU.

    Args:
        dim: of the latents that it is told.
        unet: options of `diffusers.UNet2DConditionModel`.
        width: channels of the decoder, at the picture's end.

    Attributes:
        mean: (dim,) of the unit latents of the captions that it was trained with.
        std: (dim,) of the same.
        nothing: (dim,) learnt; stands for "told nothing", for classifier-free guidance (Ho and Salimans, 2022).

    Raises:
        FuseMixLiteError: diffusers is not installed, or does not know an option.
    """

    def __init__(self, dim: int, unet: dict | None = None, width: int = 32):
        super().__init__()
        self.dim, self.config = dim, {"dim": dim, "unet": unet or UNET, "width": width}
        try:
            self.unet = _diffusers().UNet2DConditionModel(**self.config["unet"], projection_class_embeddings_input_dim=dim)
        except (TypeError, ValueError) as error:
            raise FuseMixLiteError(f"no U-Net with these options ({error}): see UNET for some that work") from error
        self.decoder = picture_decoder(width)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.nothing = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, t: Tensor, z: Tensor, told: Tensor) -> Tensor:
        """The velocity (B, 16, 4, 4) at x (B, 16, 4, 4), on the straight line from a code (t = 0) to noise (t = 1).

        t (B,) float; z (B, dim) unit latents; told (B,) bool: where False, z is kept from the model.
        """
        condition = torch.where(told[:, None], (z - self.mean) / self.std, self.nothing)
        return self.unet(x.contiguous(memory_format=torch.channels_last), 1000 * t, None, class_labels=condition).sample

    @torch.inference_mode()
    def generate(
        self, latents: Tensor, generator: torch.Generator | None = None, steps: int = STEPS, guidance: float = GUIDANCE
    ) -> Tensor:
        """Pictures (B, 3, 32, 32) uint8 from latents (B, dim), which are scaled to norm 1.

        Each picture has its own noise, drawn from `generator` before anything else: one seed gives one noise, whatever is
        told. `steps` of Euler's method go from noise to code. guidance 1 is the model as it is; above, what it says when
        told is pushed away from what it says when told nothing, at twice the time.
        """
        check_latents(latents, self.dim)
        if steps < 1 or not math.isfinite(guidance) or guidance < 0:
            raise FuseMixLiteError(f"generate: steps = {steps}, guidance = {guidance}: steps start at 1, guidance at 0")
        noise = torch.randn(len(latents), *CODE, generator=generator)
        parts = zip(F.normalize(latents, dim=1).split(64), noise.split(64), strict=True)
        made = torch.cat([self.decoder(self._sample(z, x, steps, guidance)) for z, x in parts])
        return as_pictures(made)

    def _sample(self, z: Tensor, x: Tensor, steps: int, guidance: float) -> Tensor:
        scheduler = _diffusers().FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(steps)
        guided = guidance != 1
        told = torch.arange(len(z) * (1 + guided)) < len(z)
        if guided:
            z = torch.cat([z, z])
        for t in scheduler.timesteps:
            inputs = torch.cat([x, x]) if guided else x
            velocity = self(inputs, (t / 1000).expand(len(z)), z, told)
            if guided:
                yes, no = velocity.chunk(2)
                velocity = no + guidance * (yes - no)
            x = scheduler.step(velocity, t, x).prev_sample
        return x


def enlarged(pictures: Tensor, side: int = 128) -> list:
    """Pictures (N, 3, H, W) uint8 as N arrays (H', W', 3) for `report.gallery`: of small ones every pixel becomes a square, so
    that they are about `side` high and stay sharp."""
    times = max(1, side // pictures.shape[2])
    large = pictures.repeat_interleave(times, 2).repeat_interleave(times, 3)
    return list(large.permute(0, 2, 3, 1).numpy())


def check_latents(latents: Tensor, dim: int) -> None:
    """Raise FuseMixLiteError unless latents are (B, dim), finite and not empty."""
    if latents.ndim != 2 or latents.shape[1] != dim or not len(latents):
        raise FuseMixLiteError(f"generate: latents of shape {tuple(latents.shape)}: this generator takes (B, {dim})")
    if not latents.isfinite().all():
        raise FuseMixLiteError("generate: latents hold values that are not finite: look for a diverged adapter")


def save_module(module: nn.Module, folder: Path, facts: dict) -> Path:
    """Write a module of this chapter as `load_module` reads it: its `config`, how it came about, weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    write_aside(folder / "config.json", as_json(module.config))
    write_aside(folder / "fusemix_lite.json", as_json(facts))
    weights = {key: value.half() if value.is_floating_point() else value for key, value in module.state_dict().items()}
    write_aside(folder / "model.safetensors", save({key: value.contiguous() for key, value in weights.items()}))
    return folder


def load_module(kind: type[nn.Module], source: str | Path) -> nn.Module:
    """A module of this chapter on the CPU, ready to evaluate: one of the packaged ones by name, or from a folder.

    Raises:
        FuseMixLiteError: no such folder, or its files are missing, broken, or of something else.
    """
    folder = WEIGHTS / source if (WEIGHTS / str(source)).is_dir() else Path(source)
    if not folder.is_dir():
        raise FuseMixLiteError(f"{source}: no such folder; make it with `python -m fusemix_lite.pretrain_generator`")
    config = read_json(folder / "config.json", "train it again with `python -m fusemix_lite.pretrain_generator`")
    if kind is LatentToImage:
        _diffusers()
    try:
        numbers = [(key, value) for key, value in entries(config) if isinstance(value, int)]
        absurd = [f"{key} = {value}"[:80] for key, value in numbers if abs(value) > LARGEST]
        if absurd:
            raise FuseMixLiteError(f"{absurd[0]} is absurd")
        blocks = max((value for key, value in numbers if "layers" in key), default=0)
        module = load_fitting(lambda: kind(**config), folder / "model.safetensors", blocks)
    except Exception as error:  # safetensors, torch and diffusers each raise their own kinds
        reason = " ".join(str(error).split())[:200]
        raise FuseMixLiteError(f"{folder}: broken, or no {kind.__name__}: {reason}") from error
    return module.float().to(memory_format=torch.channels_last).eval()


#: Public pipelines that take one pooled CLIP embedding, and which of their parts says of what dimension.
PIPELINES = {
    "KandinskyV22Pipeline": lambda pipeline: pipeline.unet.config.encoder_hid_dim,
    "StableUnCLIPImg2ImgPipeline": lambda pipeline: pipeline.image_normalizer.mean.shape[-1],
}
SUGGESTED = "kandinsky-community/kandinsky-2-2-decoder"


class PipelineGenerator:
    """A public diffusers pipeline behind the interface of the packaged generator.

    Args:
        pipeline: one of the classes in PIPELINES, on its device.
        norm: latents are scaled to norm 1 and then to this one: that of the CLIP embeddings that the pipeline learnt with.
            InfoNCE compares directions, so a fused latent has none of its own.
        nothing: (dim,) what the pipeline is told for "nothing" in guidance, where it wants to be told; None: zeros.

    Attributes:
        dim: of the embeddings it takes.

    Raises:
        FuseMixLiteError: a pipeline that takes no pooled embedding.
    """

    def __init__(self, pipeline, norm: float = 1.0, nothing: Tensor | None = None):
        name = type(pipeline).__name__
        if name not in PIPELINES:
            raise FuseMixLiteError(f"{name} takes no pooled CLIP embedding: give one of {', '.join(PIPELINES)}")
        self.pipeline, self.norm, self.dim = pipeline, norm, int(PIPELINES[name](pipeline))
        self.nothing = torch.zeros(self.dim) if nothing is None else nothing
        self.pipeline.set_progress_bar_config(disable=True)

    @torch.inference_mode()
    def generate(
        self,
        latents: Tensor,
        generator: torch.Generator | None = None,
        steps: int = 50,
        guidance: float = 4.0,
        side: int = 512,
    ) -> Tensor:
        """Pictures (B, 3, side, side) uint8 from latents (B, dim), one after the other: the large models fill a GPU alone."""
        check_latents(latents, self.dim)
        takes = inspect.signature(self.pipeline.__call__).parameters
        pictures = []
        for z in self.norm * F.normalize(latents, dim=1):
            z = z[None].to(self.pipeline.device, self.pipeline.unet.dtype)
            options = {"image_embeds": z, "num_inference_steps": steps, "guidance_scale": guidance}
            if "negative_image_embeds" in takes:
                options["negative_image_embeds"] = self.nothing[None].to(z)
            if "prompt" in takes:
                options["prompt"] = ""
            made = self.pipeline(**options, generator=generator, height=side, width=side, output_type="np").images
            pictures.append((torch.from_numpy(made).permute(0, 3, 1, 2) * 255).round().to(torch.uint8))
        return torch.cat(pictures)


def load_generator(
    name: str | Path = PACKAGED, norm: float = 1.0, device: str = "auto", download: bool = False
) -> LatentToImage | PipelineGenerator:
    """The packaged generator, one that `save_module` wrote, or a public pipeline that takes pooled CLIP embeddings.

    Args:
        name: "lite-generator", a folder, or a hub id such as SUGGESTED.
        norm: of the embeddings that a public pipeline learnt with (see `PipelineGenerator`).
        device: of a public pipeline; "auto" is CUDA where there is one. The packaged generator is at home on the CPU.
        download: fetch a public pipeline that is not here. It is several GB, so nothing is fetched unless asked for.

    Raises:
        FuseMixLiteError: diffusers or the weights are not here (it says how to get them), or a pipeline of another kind.
    """
    folder = Path(name)
    if name == PACKAGED or (folder / "fusemix_lite.json").is_file():
        return load_module(LatentToImage, name)
    diffusers = _diffusers()
    found = folder if folder.is_dir() else _from_hub(str(name), download)
    index = read_json(found / "model_index.json", "a pipeline's folder has one; give that, or a hub id")
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(kind, str) or kind not in PIPELINES:
        raise FuseMixLiteError(f"{name} is a {kind!s:.80}, which takes no pooled CLIP embedding: one of {', '.join(PIPELINES)}")
    for part, home in index.items():  # diffusers would import whatever module is named there
        library = home[0] if isinstance(home, list) and home else None
        own = library in (None, "diffusers", "transformers") or hasattr(diffusers.pipelines, str(library))
        if not own:
            raise FuseMixLiteError(f"{name} takes its {part:.80} from {home!r:.80}: only diffusers and transformers are used")
    device = pick_device(device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    try:
        pipeline = getattr(diffusers, kind).from_pretrained(found, dtype=dtype, use_safetensors=True, local_files_only=True)
    except Exception as error:  # every part has its own kinds
        reason = " ".join(str(error).split())[:200]
        raise FuseMixLiteError(f"{name} cannot be loaded ({reason}): fetch it again with `hf download {name}`") from error
    return PipelineGenerator(pipeline.to(device), norm)


def _from_hub(name: str, download: bool) -> Path:
    from huggingface_hub import snapshot_download

    remedy = f"`hf download {name}`, or load_generator(..., download=True)"
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FuseMixLiteError(f"generator {name!r}: give {PACKAGED!r}, a folder, or a hub id such as {SUGGESTED!r}")
    try:
        kinds = ["*.json", "*.txt", "*.safetensors", "*.model"]
        return Path(snapshot_download(name, allow_patterns=kinds, local_files_only=not download))
    except Exception as error:
        reason = " ".join(str(error).split())[:150] if download else "several GB, not on this machine"
        raise FuseMixLiteError(f"generator {name!r} is not here ({reason}): {remedy}; or take {PACKAGED!r}") from error


def _diffusers():
    from .torchvision_fix import import_torchvision_safely

    import_torchvision_safely()
    try:
        import diffusers
    except ImportError:
        raise FuseMixLiteError('generators need diffusers: pip install "fusemix-lite[generation]"') from None
    return diffusers


class Cloud(NamedTuple):
    """Where latents lie: mean and standard deviation of every dimension, (D,) each."""

    mean: Tensor
    std: Tensor


def cloud(z: Tensor) -> Cloud:
    """Where latents z (N, D) lie."""
    std, mean = torch.std_mean(z, dim=0, correction=0)
    return Cloud(mean, std)


def where_captions_lie(text_encoder: str, items: int) -> Cloud:
    """Where the unit latents of captions of pictures lie, by a text encoder: of `items` training scenes of "image-text"."""
    from .extraction import cached_latents

    latents = cached_latents(SoundingScenes("image-text", "train", items), text_encoder, progress=False).array
    return cloud(F.normalize(torch.from_numpy(np.array(latents, np.float32)), dim=1))


def move(z: Tensor, source: Cloud, target: Cloud, spread: bool = False) -> Tensor:
    """Bring unit latents (B, D) from where `source` lies to where `target` lies; unit rows again.

    InfoNCE between sounds and captions barely notices a vector that is added to all sounds (a softmax over sounds sees it,
    one over captions does not), so their embeddings may lie elsewhere than the captions': the modality gap. Adding the
    difference of the means closes it. With `spread` every dimension is given the target's standard deviation too.

    Source: mean correction as in Liang et al., "Mind the Gap" (2022).
    """
    deviation = z - source.mean
    if spread:
        deviation = deviation * (target.std / source.std.clamp_min(1e-6))
    return F.normalize(target.mean + deviation, dim=1)


def toward_text(pairs: LatentPairs) -> LatentPairs:
    """The same pairs with y of norm 1, as the generator knows captions; x stays as its encoder gives it."""
    return LatentPairs(pairs.x, F.normalize(pairs.y, dim=1), pairs.owner, pairs.names, pairs.item_ids)


class AudioAdapter(NamedTuple):
    """An audio tower that was trained into frozen text latents, with what a run wants to know of its training."""

    model: nn.Module
    heard: Cloud  # of the training sounds' embeddings
    written: Cloud  # of the training captions' unit latents
    val_mean: float
    best_step: int
    seconds: float


def fit_audio(train: LatentPairs, val: LatentPairs, scheme: str = "fusemix", **options) -> AudioAdapter:
    """Train an audio tower into the space of the text latents, which stays as it is: `fit` with an identity for text.

    train, val: audio-text pairs; their captions are scaled to norm 1. options: of `fit`.
    """
    from .training import best_mean, fit

    train, val = toward_text(train), toward_text(val)
    (audio, text), width = train.names, train.y.shape[1]
    depth = {audio: options.pop("depth", 1), text: "identity"}
    result = fit(train, val, augment=scheme, depth=depth, shared_dim=width, **options)
    with torch.inference_mode():
        heard = result.model.embed(audio, train.x.to(next(result.model.parameters()).device)).cpu()
    val_mean = best_mean(result.history)
    return AudioAdapter(result.model.cpu(), cloud(heard), cloud(train.y), val_mean, result.best_step, result.seconds)


TOLD = ("sound", "image-caption", "audio-caption")
CORRECTIONS = ("none", "mean", "spread")


def captions_of(scenes: Sequence[Scene], indices: Sequence[int], kind: str) -> list[str]:
    """One caption a test scene of "audio-text", as people who see it ("image") or hear it ("audio") would write."""
    from .scene_text import audio_caption, image_caption
    from .scenes import item_rng

    write = {"image": image_caption, "audio": audio_caption}[kind]
    return [write(s, item_rng("audio-text", "test", i, f"{kind} caption")) for s, i in zip(scenes, indices, strict=True)]


def run(p: Profile, arm: dict, dropout: float, steps: int, seed: int, test: bool) -> dict:
    """One run of the record "generation": pictures of test scenes, told as the arm says, and what the reader sees in them.

    An arm has ``told`` (one of TOLD), of sounds also ``scheme`` and ``items``, and perhaps ``correct`` (one of CORRECTIONS) and
    ``towards`` ("audio-captions": only the modality gap is closed; else what is told is moved to the image captions that the
    generator knows). ``null`` "shuffled": every picture is told another scene; "again": other seeds. A seed sets adapter,
    scenes and noise. Agreement in %, as `scene_viewing.agreement`; ``gap`` and ``gap_image``: how far the mean of what the
    generator is told lies from the mean of audio and of image captions.
    """
    from .experiments import seed_of

    started = time.perf_counter()
    if arm["told"] not in TOLD or arm.get("correct", "none") not in CORRECTIONS:
        raise FuseMixLiteError(f"arm {arm}: told is one of {', '.join(TOLD)}, correct of {', '.join(CORRECTIONS)}")
    seed = seed_of(arm, seed)
    numbers = {"seed": seed, "seconds": 0.0, "best_step": 0, "val_mean": 0.0}
    adapter = None
    if arm["told"] == "sound":
        adapter = adapter_of(p, arm, dropout, steps, seed)
        numbers |= {"best_step": adapter.best_step, "val_mean": round(adapter.val_mean, 4)}
    if test:
        numbers |= _pictures(p, arm, adapter, seed)
    return numbers | {"seconds": round(time.perf_counter() - started, 1)}


def adapter_of(p: Profile, arm: dict, dropout: float, steps: int, seed: int) -> AudioAdapter:
    """The audio adapter of an arm. Arms that differ only in how they use it share one."""
    own = {key: value for key, value in arm.items() if key not in ("told", "correct", "towards", "generator", "null")}
    return _adapter(p, json.dumps(own), dropout, steps, seed)


@lru_cache(maxsize=32)
def _adapter(p: Profile, arm: str, dropout: float, steps: int, seed: int) -> AudioAdapter:
    """The adapter of an arm (as JSON), shared by the arms that only use it otherwise."""
    from .experiments import pairs_of, source_of, training_pairs

    arm = json.loads(arm)
    options = {"batch_size": p.batch_size, "depth": p.depth, "lr": p.lr, "device": p.device, "progress": False}
    val = pairs_of(p, "val", source_of(arm, p, "val"))
    return fit_audio(training_pairs(p, arm, seed), val, arm["scheme"], steps=steps, dropout=dropout, seed=seed, **options)


def _pictures(p: Profile, arm: dict, adapter: AudioAdapter | None, seed: int) -> dict[str, float]:
    """What the reader makes of pictures of test scenes, told as the arm says, and how far what was told lies from captions."""
    from .metrics import modality_gap

    generator = _packaged(arm.get("generator", PACKAGED))
    chosen = torch.randperm(p.test_items, generator=torch.Generator().manual_seed(seed))[: max(p.test_items // 5, 2)].tolist()
    world = SoundingScenes("audio-text", "test", p.test_items)
    scenes = [world.scene(i) for i in chosen]
    z, lies, written = _told(p, arm, adapter, scenes, chosen)
    image_captions = where_captions_lie(p.text_encoders[0], p.train_items)
    target = written if arm.get("towards") == "audio-captions" else image_captions
    if arm.get("correct", "none") != "none":
        z = move(z, lies, target, spread=arm["correct"] == "spread")
    told = z.roll(1, 0) if arm.get("null") == "shuffled" else z
    pictures = generator.generate(told, torch.Generator().manual_seed(seed))
    seen = agreement(load_reader().read(pictures), scenes)
    gaps = {"gap": modality_gap(z, written.mean[None]), "gap_image": modality_gap(z, image_captions.mean[None])}
    return {name: round(value, 4) for name, value in (seen | gaps).items()}


def _told(
    p: Profile, arm: dict, adapter: AudioAdapter | None, scenes: list[Scene], chosen: list[int]
) -> tuple[Tensor, Cloud, Cloud]:
    """Unit latents (B, D) of test scenes, of their captions or of their sounds; where such latents lie, by what they were
    learnt from; and where captions of sounds lie."""
    from .experiments import pairs_of, source_of

    pairs = toward_text(pairs_of(p, "test", source_of(arm, p, "test")))
    if adapter is None:
        text = captions_of(scenes, chosen, arm["told"].split("-")[0])
        written = cloud(pairs.y)
        return F.normalize(load_encoder(p.text_encoders[0], "cpu").encode(text), dim=1), written, written
    with torch.inference_mode():
        return adapter.model.embed("audio", pairs.x[chosen]), adapter.heard, adapter.written


_packaged = lru_cache(maxsize=1)(load_generator)
