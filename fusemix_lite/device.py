"""Which device "auto" stands for."""

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
