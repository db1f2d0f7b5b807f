"""What a launcher has set for this process: its share of common work, and its device."""

import os
from dataclasses import dataclass

import torch
from torch import distributed as dist

from .errors import FuseMixLiteError


@dataclass(frozen=True)
class Share:
    """Which part of common work is this process's: number `rank` of `world`."""

    rank: int = 0
    world: int = 1

    @classmethod
    def of_this_process(cls) -> "Share":
        """That of torch.distributed, where the caller has set it up; else what a launcher (torchrun, accelerate) has set;
        everything where there is none."""
        if in_a_group():
            return cls(dist.get_rank(), dist.get_world_size())
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


def in_a_group() -> bool:
    """Whether the caller has set up torch.distributed."""
    return dist.is_available() and dist.is_initialized()


def own_device(device: str | torch.device) -> str | torch.device:
    """What "auto", or "cuda", is for this process: a launcher starts one a GPU and says which; `accelerate launch --cpu` wants
    none.

    Raises FuseMixLiteError for a LOCAL_RANK that is no number.
    """
    if str(device) not in ("auto", "cuda"):
        return device
    if device == "auto" and os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return "cpu"
    local = os.environ.get("LOCAL_RANK")
    if local is not None and torch.cuda.is_available():
        if not local.isdecimal():
            raise FuseMixLiteError(f"LOCAL_RANK={local} names no GPU: unset it, or give a whole number")
        return f"cuda:{int(local) % torch.cuda.device_count()}"
    return device
