"""Which device "auto" stands for, and what is random there."""

import torch

from .errors import FuseMixLiteError


def pick_device(device: str | torch.device) -> torch.device:
    """The device that is named; of "auto" CUDA where there is one, else the CPU.

    Raises FuseMixLiteError for a device that is unknown or not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(1, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:  # unknown, not there, a build without it, or no device at all
        reason = str(error).splitlines()[0]
        raise FuseMixLiteError(f"device {device} cannot be used ({reason}): try cpu, or auto") from error


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed those of torch's own generators that what is computed on a device draws from; no other GPU's."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[index_of(device)].manual_seed(seed)


def index_of(device: torch.device) -> int:
    """The number of a GPU; of "cuda" alone the current one's."""
    return torch.cuda.current_device() if device.index is None else device.index
