"""A second opinion on pictures: an independent reader that names what it sees, and how far that agrees with a scene.

The reader has never met a caption, a sound or a generated picture: it learnt from drawn scenes of a split of its own. How
well it reads drawn pictures is measured first; only then is what it says about generated ones worth anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import FuseMixLiteError
from .scenes import BACKGROUNDS, COLOURS, KINDS, MAX_COUNT, POSITIONS, SIZES, Scene

SIDE = 32  # pixels of the pictures that are read
NOTHING = len(KINDS)  # the answer where nothing stands
HEADS = {"kind": len(KINDS) + 1, "size": len(SIZES), "count": MAX_COUNT, "colour": len(COLOURS)}
#: What blind guessing gives of each factor, in %: all its values are equally frequent, and none tells of another factor.
GUESSING = {
    "size": 100 / len(SIZES), "count": 100 / MAX_COUNT, "colour": 100 / len(COLOURS), "position": 100 / len(POSITIONS),
    "background": 100 / len(BACKGROUNDS),
}  # fmt: skip


class SceneReader(nn.Module):
    """A small ConvNet that says what stands where: pictures (B, 3, 32, 32) in [-1, 1] -> logits by factor.

    kind (B, 3, 13), size (B, 3, 3), count (B, 3, 3) and colour (B, 3, 8) of the three places left, middle and right, and
    background (B, 6). Two things never stand at the same place, so a place holds one kind of thing, or nothing.
    """

    def __init__(self, width: int = 32):
        super().__init__()
        self.config = {"width": width}

        def conv(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU())

        w = width
        self.look = nn.Sequential(conv(3, w), conv(w, 2 * w, 2), conv(2 * w, 2 * w), conv(2 * w, 3 * w, 2), conv(3 * w, 3 * w))
        self.place = nn.Sequential(nn.Linear(12 * w, 4 * w), nn.ReLU(), nn.Linear(4 * w, sum(HEADS.values())))
        self.scenery = nn.Linear(12 * w, len(BACKGROUNDS))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.look(x)  # (B, C, 8, 8)
        columns = F.adaptive_avg_pool2d(maps, (4, 3)).permute(0, 3, 1, 2).flatten(2)  # (B, 3, 4 C): one row a place
        by_factor = self.place(columns).split(list(HEADS.values()), dim=-1)
        rows = F.adaptive_avg_pool2d(maps, (4, 1)).flatten(1)  # (B, 4 C)
        return dict(zip(HEADS, by_factor, strict=True)) | {"background": self.scenery(rows)}

    @torch.inference_mode()
    def read(self, pictures: Tensor, batch_size: int = 256) -> "Seen":
        """What stands in pictures (N, 3, S, S) uint8. S is a multiple of 32; larger pictures are reduced first."""
        if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] != 3 or not _readable(*pictures.shape[2:]):
            raise FuseMixLiteError(
                f"pictures of shape {tuple(pictures.shape)} and {pictures.dtype}: the reader takes (N, 3, S, S) uint8, where S "
                f"is a multiple of {SIDE}"
            )
        parts = [self(F.adaptive_avg_pool2d(as_input(part), SIDE)) for part in pictures.split(batch_size)]
        logits = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        sure = logits["kind"].softmax(-1)[..., :NOTHING].amax(-1)
        return Seen(**{name: value.argmax(-1) for name, value in logits.items()}, sure=sure)


def _readable(height: int, width: int) -> bool:
    return height == width >= SIDE and height % SIDE == 0


def as_input(pictures: Tensor) -> Tensor:
    """uint8 pictures as float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def as_pictures(x: Tensor) -> Tensor:
    """Pictures in [-1, 1], a little outside perhaps, as uint8."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


@dataclass(frozen=True)
class Seen:
    """What the reader sees in N pictures, or what truly is there (`truth`), as numbers of the options in `scenes`.

    kind, size, count and colour are (N, 3) int64, a column a place; kind is 12 where nothing stands. background is (N,).
    sure (N, 3) in [0, 1]: how sure it is of a thing at each place; of two things of one kind the surer counts.
    """

    kind: Tensor
    size: Tensor
    count: Tensor
    colour: Tensor
    background: Tensor
    sure: Tensor

    def describe(self, i: int) -> str:
        """The i-th picture in words, as `report.describe` has them: for alt texts."""
        things = []
        for at, position in enumerate(POSITIONS):
            if self.kind[i, at] == NOTHING:
                continue
            kind, count = KINDS[self.kind[i, at]], int(self.count[i, at]) + 1
            name = kind + " cloud" * (kind == "rain") + "s" * (count > 1)
            things.append(f"{count} {SIZES[self.size[i, at]]} {COLOURS[self.colour[i, at]]} {name} ({position})")
        return f"{' and '.join(things) or 'no thing'}, background: {BACKGROUNDS[self.background[i]]}"


def truth(scenes: Sequence[Scene]) -> Seen:
    """What stands in the scenes, in the reader's words; -1 where there is nothing to have a size, count or colour."""
    n = len(scenes)
    table = {name: torch.full((n, len(POSITIONS)), -1) for name in HEADS}
    table["kind"].fill_(NOTHING)
    for i, scene in enumerate(scenes):
        for thing in scene.things:
            at = POSITIONS.index(thing.position)
            table["kind"][i, at] = KINDS.index(thing.kind)
            table["size"][i, at] = SIZES.index(thing.size)
            table["count"][i, at] = thing.count - 1
            table["colour"][i, at] = COLOURS.index(thing.colour)
    background = torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes])
    return Seen(**table, background=background, sure=(table["kind"] != NOTHING).float())


def agreement(seen: Seen, scenes: Sequence[Scene]) -> dict[str, float]:
    """How far pictures agree with scenes, in %.

    kinds: mean over scenes of the Dice coefficient of two sets of kinds, those in the scene and those seen: twice the number in
    common over the sum of both numbers. Neither drawing little nor drawing everything pays. things: share of scenes with the
    right number of things. background: share that is right.
    size, count, colour, position: *of the things whose kind was drawn*, the share with that factor right; 0 where no kind
    was. found: the share of the scenes' things whose kind was drawn.
    """
    true = truth(scenes)
    if len(seen.kind) != len(scenes):
        raise FuseMixLiteError(f"{len(seen.kind)} pictures for {len(scenes)} scenes: give one a scene")
    dice, found, right = [], 0, dict.fromkeys(("size", "count", "colour", "position"), 0)
    for i in range(len(scenes)):
        told = {int(kind): at for at, kind in enumerate(true.kind[i]) if kind != NOTHING}
        drawn: dict[int, int] = {}
        for at in seen.sure[i].argsort().tolist():  # the surest last, so that it stays
            if seen.kind[i, at] != NOTHING:
                drawn[int(seen.kind[i, at])] = at
        both = told.keys() & drawn.keys()
        dice.append(2 * len(both) / (len(told) + len(drawn)))
        found += len(both)
        for kind in both:
            a, b = told[kind], drawn[kind]
            right["position"] += a == b
            for name in ("size", "count", "colour"):
                right[name] += bool(getattr(true, name)[i, a] == getattr(seen, name)[i, b])
    number = (true.kind != NOTHING).sum(1) == (seen.kind != NOTHING).sum(1)
    shares = {
        "kinds": sum(dice) / len(dice),
        "things": number.float().mean().item(),
        "background": (true.background == seen.background).float().mean().item(),
        "found": found / int((true.kind != NOTHING).sum()),
        **{name: value / max(found, 1) for name, value in right.items()},
    }
    return {name: 100 * float(value) for name, value in shares.items()}


def load_reader(folder: str | Path | None = None) -> SceneReader:
    """The packaged reader, or the one in a folder, ready to read on the CPU."""
    from .generation import load_module

    return load_module(SceneReader, "lite-reader" if folder is None else folder)
