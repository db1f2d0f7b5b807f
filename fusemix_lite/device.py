"""Which device "auto" stands for."""

import torch


def pick_device(device: str | torch.device) -> torch.device:
    """The device that is named; of "auto" CUDA where there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)
