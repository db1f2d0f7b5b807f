"""What a launcher has set for this process: its share of common work, and its device."""

import os
from dataclasses import dataclass

import torch

from .errors import FuseMixLiteError


@dataclass(frozen=True)
class Share:
    """Which part of common work is this process's: number `rank` of `world`."""

    rank: int = 0
    world: int = 1

    @classmethod
    def of_this_process(cls) -> "Share":
        """What a launcher (torchrun, accelerate) has set; everything where there is none."""
        rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
        if rank is None or world is None:
            return cls()
        if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
            why = f"RANK={rank}, WORLD_SIZE={world} name no share of common work"
            raise FuseMixLiteError(f"{why}: unset them, or set 0 <= RANK < WORLD_SIZE")
        return cls(int(rank), int(world))

    def of(self, shards: int) -> range:
        """The numbers of its shards: every `world`-th."""
        return range(self.rank, shards, self.world)

    def rows(self, total: int) -> slice:
        """Its rows of a batch, side by side; shares differ by one row at most."""
        return slice(total * self.rank // self.world, total * (self.rank + 1) // self.world)


def own_device(device: str | torch.device) -> str | torch.device:
    """What "auto" is for this process: a launcher starts one a GPU and says which; `accelerate launch --cpu` wants none."""
    if device != "auto":
        return device
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return "cpu"
    local = os.environ.get("LOCAL_RANK")
    if local is not None and torch.cuda.is_available():
        if not local.isdecimal():
            raise FuseMixLiteError(f"LOCAL_RANK={local} names no GPU: unset it, or give a whole number")
        return f"cuda:{int(local) % torch.cuda.device_count()}"
    return "auto"
