"""The generator and the reader of the audio-to-image chapter: ``python -m fusemix_lite.pretrain_generator lite-generator``.

The generator first learns, from pictures alone, to compress them to codes and back. Then it learns flow matching over codes,
told the frozen unit-norm latent of one caption of the picture at a time. It meets "image-text" scenes and no sound. Its sampler
is chosen on validation scenes that are told by captions, by what the reader sees. The reader learns from drawn "unimodal"
scenes and their factors. The generator takes about an hour and a quarter of one CPU thread; stopped, it goes on from its last
checkpoint where ``--work`` says where that is.
"""

import argparse
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from .checkpoints import Checkpoints, State, check_layout
from .datasets import SoundingScenes
from .disk import write_aside
from .encoders import WEIGHTS, load_encoder
from .generation import CODE, SIDE, LatentToImage, ResidualConvolutions, picture_decoder, save_module
from .scene_image import PIXELS
from .scene_viewing import SceneReader, agreement, as_input, as_pictures, load_reader, truth

# untold: share of pictures for which the latent is kept back; decay: share of the steps in which the learning rate falls.
RECIPES = {
    "lite-generator": {
        "coder": {"items": 24_000, "batch": 48, "steps": 3_000, "lr": 2e-3, "warmup": 100, "decay": 0.5, "noise": 0.15},
        "text": "lite-text-a", "items": 60_000, "captions": 5, "batch": 64, "steps": 30_000, "lr": 1e-3, "warmup": 300,
        "decay": 0.5, "untold": 0.12, "ema": 0.999, "val_items": 256,
    },
    "lite-reader": {"items": 16_000, "batch": 96, "steps": 2_000, "lr": 2e-3},
}  # fmt: skip
#: What the sampler is chosen from, on validation scenes that are told by captions.
SAMPLERS = {"steps": (8, 16, 32), "guidance": (1.0, 2.0, 3.0, 4.0, 6.0)}
LOOK_EVERY, SAVE_EVERY = 500, 30.0  # steps, seconds


def pictures(dataset: SoundingScenes, progress: bool = True) -> Tensor:
    """(N, 3, 32, 32) uint8: the drawn scenes, reduced."""
    bar = tqdm(range(len(dataset)), desc="drawing", mininterval=5, disable=not progress)
    reduced = (dataset.image(i).reduce(PIXELS // SIDE) for i in bar)
    return torch.from_numpy(np.stack([np.asarray(image) for image in reduced])).permute(0, 3, 1, 2).contiguous()


def told_pictures(recipe: dict, split: str, items: int) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, 32, 32) uint8 of image-text scenes, and the unit latents (N, captions, D) of their captions."""
    world = SoundingScenes("image-text", split, items, recipe["captions"])
    latents = load_encoder(recipe["text"], "cpu").encode(list(world.fields("text")[1]), 512)
    return pictures(world), F.normalize(latents, dim=1).unflatten(0, (items, -1))


def picture_encoder(width: int = 32) -> nn.Sequential:
    """From pictures (B, 3, 32, 32) in [-1, 1] to codes (B, 16, 4, 4), whose channels have mean 0 and variance 1."""
    w, res = width, ResidualConvolutions
    return nn.Sequential(
        nn.PixelUnshuffle(2), nn.Conv2d(12, w, 3, 1, 1), res(w),
        nn.Conv2d(w, 2 * w, 4, 2, 1), res(2 * w),
        nn.Conv2d(2 * w, 4 * w, 4, 2, 1), res(4 * w),
        nn.GroupNorm(8, 4 * w), nn.SiLU(), nn.Conv2d(4 * w, CODE[0], 1), nn.BatchNorm2d(CODE[0], affine=False, momentum=0.05),
    )  # fmt: skip


def salience(x: Tensor) -> Tensor:
    """How much each pixel of pictures (B, 3, H, W) counts, (B, 1, H, W): 1 in the sky, up to 9 where there is contrast. Things
    cover few pixels, and a plain mean would care for skies."""
    near = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, 1)
    contrast = (x - near).square().mean(1, keepdim=True)
    contrast = F.avg_pool2d(F.pad(contrast, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return 1 + 8 * contrast / (contrast + 0.02)


def train_coder(recipe: dict, drawn: Tensor, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """An autoencoder of pictures (N, 3, 32, 32) uint8: encoder and decoder. Codes get some noise, so that the decoder forgives
    a generator's small errors."""
    torch.manual_seed(seed)
    encoder, decoder = (make().to(memory_format=torch.channels_last) for make in (picture_encoder, picture_decoder))
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=recipe["lr"], weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    g = torch.Generator().manual_seed(seed)
    for step in tqdm(range(recipe["steps"]), "coder", mininterval=10):
        for group in optimiser.param_groups:
            group["lr"] = recipe["lr"] * _rate(step, recipe)
        x = as_input(drawn[torch.randint(len(drawn), (recipe["batch"],), generator=g)])
        codes = encoder(x.contiguous(memory_format=torch.channels_last))
        again = decoder(codes + recipe["noise"] * torch.randn(codes.shape, generator=g))
        loss = (salience(x) * (again - x).square()).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
    return encoder.eval(), decoder.eval()


@torch.inference_mode()
def encode(encoder: nn.Module, drawn: Tensor) -> Tensor:
    """Codes (N, 16, 4, 4) of pictures (N, 3, 32, 32) uint8."""
    return torch.cat([encoder(as_input(part)) for part in drawn.split(256)]).contiguous()


def velocity_loss(model: Callable, x: Tensor, z: Tensor, t: Tensor, noise: Tensor, told: Tensor) -> Tensor:
    """Flow matching: on the straight line from code to noise, which way and how fast (mean squared error).

    x, noise (B, C, H, W); z (B, D); t (B,) in [0, 1]; told (B,) bool. Source: Lipman et al. (2023), Liu et al. (2023).
    """
    at = t[:, None, None, None]
    return F.mse_loss(model((1 - at) * x + at * noise, t, z, told), noise - x)


class _Progress:
    """Weights, their moving average, the optimiser's state and what was seen on the way: what a checkpoint holds."""

    def __init__(self, model: nn.Module, recipe: dict, started: float):
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        every = self.parameters.values()
        self.optimiser = torch.optim.AdamW(every, lr=recipe["lr"], weight_decay=0.01, betas=(0.9, 0.99), fused=True)
        self.started, self.looks = started, {}

    @property
    def cpu_seconds(self) -> float:
        """Of this training, in the lives of earlier processes too."""
        return time.process_time() - self.started

    def state(self) -> State:
        tensors = {}
        for name, p in self.parameters.items():
            own = {"model": p, "average": self.average[name], **self.optimiser.state[p]}
            tensors |= {f"{what}/{name}": tensor for what, tensor in own.items()}
        return tensors, {"cpu_seconds": self.cpu_seconds, "looks": self.looks}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], facts: dict) -> None:
        looks, moments = {int(step): dict(look) for step, look in facts["looks"].items()}, ("exp_avg", "exp_avg_sq")
        like = {f"{what}/{name}": p for name, p in self.parameters.items() for what in ("model", "average", *moments)}
        check_layout(tensors, like | {f"step/{name}": torch.zeros(()) for name in self.parameters})
        self.started -= float(facts["cpu_seconds"])
        self.looks = looks
        for name, p in self.parameters.items():
            p.copy_(tensors[f"model/{name}"])
            self.average[name].copy_(tensors[f"average/{name}"])
            own = {what: torch.empty_like(p).copy_(tensors[f"{what}/{name}"]) for what in moments}
            self.optimiser.state[p] = {"step": tensors[f"step/{name}"].clone(), **own}  # laid out in memory as the weights are

    @torch.no_grad()
    def follow(self, step: int, ema: float) -> None:
        """Move the average towards the weights, fast at first."""
        keep = min(ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.parameters.values()], 1 - keep)


def train_generator(recipe: dict, seed: int = 0, work: Path | None = None) -> tuple[LatentToImage, dict]:
    """Train the generator; returns the averaged model, and facts: "looks" (validation loss at each look) and "read".

    work: a folder for checkpoints. A run that is stopped and resumed gives the same weights as one that is not.
    """
    started = time.process_time()
    drawn, latents = told_pictures(recipe, "train", recipe["items"])
    val, val_latents = told_pictures(recipe, "val", recipe["val_items"])
    encoder, decoder = _coder(recipe["coder"], drawn, seed, work)
    codes, val_codes = encode(encoder, drawn), encode(encoder, val)
    torch.manual_seed(seed)
    model = LatentToImage(latents.shape[-1])
    model.decoder.load_state_dict(decoder.state_dict())
    model.decoder.requires_grad_(False)
    std, mean = torch.std_mean(latents.flatten(0, 1), 0)
    model.mean.copy_(mean)
    model.std.copy_(std)
    model = model.to(memory_format=torch.channels_last)
    progress, losses = _Progress(model, recipe, started), []
    with Checkpoints(work, SAVE_EVERY) as checkpoints:
        start = checkpoints.resume({"recipe": recipe | {"steps": None}, "seed": seed}, progress.restore)
        for step in tqdm(range(start, recipe["steps"]), "lite-generator", recipe["steps"], initial=start, mininterval=10):
            g = torch.Generator().manual_seed(seed * 1_000_003 + step)  # a step's own: a resumed run draws what it would have
            for group in progress.optimiser.param_groups:
                group["lr"] = recipe["lr"] * _rate(step, recipe)
            loss = _loss(model, recipe, codes, latents, g)
            progress.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(progress.parameters.values(), 1.0)
            progress.optimiser.step()
            progress.follow(step, recipe["ema"])
            losses.append(loss.item())
            done = step + 1
            if done % LOOK_EVERY == 0 or done == recipe["steps"]:
                mean = {"loss": round(float(np.mean(losses[-200:])), 5)}
                progress.looks[done] = mean | look(model, progress.average, val_codes, val_latents)
            checkpoints.keep(done, progress.state, last=done == recipe["steps"])
    model.load_state_dict(progress.average, strict=False)
    facts = {"looks": progress.looks, "read": readings(encoder, decoder, recipe["val_items"])}
    return model.eval(), facts | {"cpu_minutes": round(progress.cpu_seconds / 60, 1)}


@torch.inference_mode()
def readings(encoder: nn.Module, decoder: nn.Module, items: int) -> dict[str, dict[str, float]]:
    """What the reader sees in validation scenes, agreement in %: "drawn", and "decoded", when they have been a code in between.
    No generator can do better than that."""
    world, reader = SoundingScenes("image-text", "val", items), load_reader()
    drawn, scenes = pictures(world), [world.scene(i) for i in range(items)]
    shown = {"drawn": drawn, "decoded": as_pictures(decoder(encode(encoder, drawn)))}
    return {
        name: {factor: round(value, 1) for factor, value in agreement(reader.read(seen), scenes).items()}
        for name, seen in shown.items()
    }


def _coder(recipe: dict, drawn: Tensor, seed: int, work: Path | None) -> tuple[nn.Module, nn.Module]:
    """The trained coder, from `work` where it is there."""
    file = work / "coder.safetensors" if work else None
    if file is None or not file.exists():
        coder = nn.ModuleList(train_coder(recipe, drawn[: recipe["items"]], seed))
        if file is None:
            return tuple(coder)
        work.mkdir(parents=True, exist_ok=True)
        write_aside(file, save({key: value.contiguous() for key, value in coder.state_dict().items()}))
    coder = nn.ModuleList([picture_encoder(), picture_decoder()]).to(memory_format=torch.channels_last)
    coder.load_state_dict(load_file(file))
    return tuple(coder.eval())


def _rate(step: int, recipe: dict) -> float:
    """The learning rate of a step as a share of its peak: up, level, and straight down to 0."""
    left = (recipe["steps"] - step) / (recipe["decay"] * recipe["steps"])
    return min(1.0, (step + 1) / recipe["warmup"], left)


def _loss(model: nn.Module, recipe: dict, codes: Tensor, latents: Tensor, g: torch.Generator) -> Tensor:
    """One batch: codes, one caption of each, a time, noise, and who is told nothing."""
    batch = recipe["batch"]
    pick = torch.randint(len(codes), (batch,), generator=g)
    which = torch.randint(recipe["captions"], (batch,), generator=g)
    t, noise = torch.rand(batch, generator=g), torch.randn(batch, *codes.shape[1:], generator=g)
    told = torch.rand(batch, generator=g) >= recipe["untold"]
    return velocity_loss(model, codes[pick], latents[pick, which], t, noise, told)


@torch.no_grad()
def look(model: nn.Module, average: dict[str, Tensor], x: Tensor, latents: Tensor) -> dict[str, float]:
    """Loss of the averaged weights on validation codes at fixed times and noise, told their own caption or another's."""
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    g, n = torch.Generator().manual_seed(1), len(x)
    z, noise = latents[:, 0], torch.randn(x.shape, generator=g)
    t = ((torch.arange(n) + 0.5) / n)[torch.randperm(n, generator=g)]
    values = {}
    model.load_state_dict(average, strict=False)
    for name, told in (("val", z), ("val_other", z.roll(1, 0))):
        parts = zip(x.split(64), told.split(64), t.split(64), noise.split(64), strict=True)
        losses = [velocity_loss(model, *part, torch.ones(len(part[0]), dtype=torch.bool)) * len(part[0]) for part in parts]
        values[name] = round(sum(losses).item() / n, 5)
    model.load_state_dict(own, strict=False)
    return values


def choose_sampler(model: LatentToImage, reader: SceneReader, text_encoder: str, items: int, seed: int = 0) -> dict:
    """Steps and guidance whose pictures of validation scenes, told by a caption of each, agree most in kinds with the scenes.

    Returns the choice as "steps" and "guidance", and "tried": one row a setting of `SAMPLERS`. No sound takes part in it.
    """
    world = SoundingScenes("image-text", "val", items, captions=1)
    told = load_encoder(text_encoder, "cpu").encode(list(world.fields("text")[1]), 512)
    scenes, tried = [world.scene(i) for i in range(items)], []
    for steps, guidance in tqdm(list(product(*SAMPLERS.values())), "sampler", mininterval=10):
        made = model.generate(told, torch.Generator().manual_seed(seed), steps, guidance)
        seen = agreement(reader.read(made), scenes)
        tried.append({"steps": steps, "guidance": guidance} | {name: round(value, 1) for name, value in seen.items()})
    best = max(tried, key=lambda row: row["kinds"])  # of equals the first, which takes fewer steps
    return {"steps": best["steps"], "guidance": best["guidance"], "items": items, "tried": tried}


def blemish(x: Tensor, g: torch.Generator) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1], softer, brighter, darker and grainier: what a generator may get wrong without changing
    what stands there."""
    B = len(x)

    def lot(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g)

    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = x + 0.6 * lot(B, 1, 1, 1) * (soft - x)
    x = x * (1 + 0.1 * (2 * lot(B, 1, 1, 1) - 1)) + 0.05 * torch.randn(B, 3, 1, 1, generator=g)
    return x + 0.1 * lot(B, 1, 1, 1) * torch.randn(x.shape, generator=g)


def train_reader(recipe: dict, seed: int = 0) -> SceneReader:
    """Train the reader on drawn scenes of its own split, told their factors."""
    world = SoundingScenes("unimodal", "train", recipe["items"])
    drawn, there = pictures(world), truth([world.scene(i) for i in range(len(world))])
    torch.manual_seed(seed)
    model = SceneReader().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe["lr"], weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe["lr"], total_steps=recipe["steps"], pct_start=0.1)
    g = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(recipe["steps"]), "lite-reader", mininterval=10):
        pick = torch.randint(len(drawn), (recipe["batch"],), generator=g)
        logits = model(blemish(as_input(drawn[pick]), g).contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits["background"], there.background[pick])
        for name, weight in (("kind", 1.0), ("size", 0.5), ("count", 0.5), ("colour", 0.5)):
            answers = getattr(there, name)[pick].flatten()
            loss = loss + weight * F.cross_entropy(logits[name].flatten(0, 1), answers, ignore_index=-1)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def pretrain(name: str, out: Path, seed: int = 0, work: Path | None = None, **overrides) -> Path:
    """Train one of RECIPES and save it under ``out`` (fp16 safetensors and JSON)."""
    recipe = {**RECIPES[name], **{key: value for key, value in overrides.items() if value}}
    if name == "lite-reader":
        started = time.process_time()
        model = train_reader(recipe, seed)
        facts = {"cpu_minutes": round((time.process_time() - started) / 60, 1)}
    else:
        model, facts = train_generator(recipe, seed, work)
        facts["sampler"] = choose_sampler(model, load_reader(), recipe["text"], recipe["val_items"], seed)
    return save_module(
        model, out / name, {"pretraining": {**recipe, "seed": seed, "cpu_minutes": facts.pop("cpu_minutes")}, **facts}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", choices=RECIPES, metavar="NAME", help=f"which to train: {', '.join(RECIPES)}")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the folders go (default: into the package)")
    parser.add_argument("--work", type=Path, help="folder for the generator's checkpoints (default: none are kept)")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: the recipe's)")
    parser.add_argument("--items", type=int, help="items to learn from (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.names:
        print(pretrain(name, args.out, args.seed, args.work, steps=args.steps, items=args.items))


if __name__ == "__main__":
    main()
