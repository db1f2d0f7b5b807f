"""Let a CUDA build of torchvision be imported beside a CPU build of torch."""

import importlib
import sys

import torch


def import_torchvision_safely() -> None:
    """Call this before anything imports transformers, timm or open_clip: they all import torchvision.

    The torchvision wheel on PyPI is a CUDA build. Beside a CPU torch its compiled part cannot be loaded, so the
    operators that torchvision goes on to describe do not exist, and its import stops with "operator torchvision::nms
    does not exist". Declaring the two operators is enough: transforms and models then work, and box operators raise
    torchvision's own clear error. Where torchvision imports as it is, or is not installed, nothing happens.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[module]  # half imported
        importlib.import_module("torchvision")
