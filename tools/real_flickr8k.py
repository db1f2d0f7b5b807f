"""Fit on real latents: 8,091 photos with five human captions each; FuseMix against no mixing and separate lambdas.

    python tools/real_flickr8k.py FOLDER --seeds 10 --out flickr8k_fit.json

FOLDER holds flickr8k.safetensors (image_mobilenetv2 (8091, 1280), text_minilm (40455, 384), caption_to_item) and
flickr8k.json (the official split). Trains on the 6,000 photos of train, selects on the 1,000 of val, reports test.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from fusemix_lite import LatentPairs, fit, retrieval
from fusemix_lite.stats import interval, paired_interval

ARMS = ("none", "separate", "fusemix")


def load_flickr8k(folder: Path) -> dict[str, LatentPairs]:
    """The official train, val and test parts."""
    arrays = load_file(folder / "flickr8k.safetensors")
    described = json.loads((folder / "flickr8k.json").read_text(encoding="utf-8"))
    pairs = LatentPairs(
        arrays["image_mobilenetv2"], arrays["text_minilm"], arrays["caption_to_item"], item_ids=described["items"]
    )
    parts = ("train", "val", "test")
    return {part: pairs.take([i for i, p in enumerate(described["split"]) if p == part]) for part in parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each arm (default %(default)s)")
    parser.add_argument("--items", type=int, help="training photos, drawn by the seed (default: all)")
    parser.add_argument("--steps", type=int, default=400, help="optimiser steps (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=512, help="pairs in the loss (default %(default)s)")
    parser.add_argument("--dropout", type=float, default=0.4, help="in both adapters (default %(default)s)")
    parser.add_argument("--expansion", type=int, default=1, help="hidden width over latent width (default %(default)s)")
    parser.add_argument("--depth", type=int, default=1, help="residual blocks a modality (default %(default)s)")
    parser.add_argument("--shared-dim", type=int, default=256, help="of the shared space (default %(default)s)")
    parser.add_argument("--raw", action="store_true", help="do not standardise the latents")
    parser.add_argument("--shuffled", action="store_true", help="null control: training captions of other photos")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default %(default)s)")
    parser.add_argument("--out", type=Path, help="write options and the values of every run as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    parts = load_flickr8k(options.folder)

    runs = []
    for seed in range(options.seeds):
        train = parts["train"].subset(options.items, seed) if options.items else parts["train"]
        train = train.shuffled(seed) if options.shuffled else train
        for arm in ARMS:
            result = fit(
                train,
                parts["val"],
                augment=arm,
                steps=options.steps,
                batch_size=options.batch_size,
                dropout=options.dropout,
                expansion=options.expansion,
                depth=options.depth,
                shared_dim=options.shared_dim,
                standardize=not options.raw,
                seed=seed,
            )
            test = retrieval(result.model, parts["test"])
            runs.append(
                {"arm": arm, "seed": seed, "test": test, "best_step": result.best_step, "seconds": result.seconds}
            )
            print(f"{arm:8} seed {seed}  {result.seconds:5.0f} s  best step {result.best_step}  {test}", flush=True)
            if options.out:  # after every run, so that an interrupted one keeps what it has
                described = {
                    name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()
                }
                options.out.write_text(json.dumps({"options": described, "runs": runs}, indent=1), encoding="utf-8")
    report(runs)


def report(runs: list[dict]) -> None:
    """Print, for each direction and k, every arm's mean and what FuseMix is ahead, with Student-t intervals over seeds."""
    few = len(runs) < 2 * len(ARMS)
    for direction, recalls in runs[0]["test"].items():
        for k in recalls:
            values = {arm: [run["test"][direction][k] for run in runs if run["arm"] == arm] for arm in ARMS}
            print(f"{direction} R@{k}")
            for arm, own in values.items():
                if few:
                    print(f"  {arm:8} {own[0]:.1f}  (one seed: no interval)")
                    continue
                mean, gain = interval(own), paired_interval(values["fusemix"], own)
                ahead = "" if arm == "fusemix" else f"  fusemix {gain.mean:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}]"
                print(f"  {arm:8} {mean.mean:.1f} [{mean.low:.1f}, {mean.high:.1f}]{ahead}")


if __name__ == "__main__":
    main()
