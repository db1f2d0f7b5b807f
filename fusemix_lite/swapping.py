"""Replace one tower of a trained fusion and keep the other, whose embeddings (an index of a million pictures, say) stay valid.

The kept tower's embeddings *are* the shared space: the new tower alone is trained into them. Neither the old encoder of the
replaced side nor anything but embeddings of the kept side is needed.
"""

import time

import torch

from . import experiments
from .adapters import IDENTITY, FusionModel
from .errors import FuseMixLiteError
from .metrics import embed_rows
from .pairs import LatentPairs
from .profiles import Profile
from .training import FitResult, fit, seeded

OWN = ("swap", "before", "kept")  # what only arms of this module say


def swap_tower(
    model: FusionModel, train: LatentPairs, val: LatentPairs | None = None, *, keep: str, depth: int = 1, **options
) -> FitResult:
    """Train a new tower for one modality of `model` into the frozen space of the other's.

    The kept side is embedded once and then stands still; what FuseMix mixes on that side are embeddings, not latents, as
    nothing else need be at hand. `model` is left as it is.

    Args:
        model: trained; its `shared_dim`, `expansion` and `standardize` are the new model's.
        train, val: pairs as `fit` takes them: on the kept side latents that `model` takes, on the other those of the new
            encoder, of whatever dimension.
        keep: the modality whose tower stays.
        depth: residual blocks of the new tower.
        options: for `fit`: augment, steps, dropout (a number), seed, ...

    Returns:
        What `fit` returns; its `model` takes latents on both sides and embeds the kept one exactly as before.

    Raises:
        FuseMixLiteError: `keep` is none of the modalities, or the kept side has latents that `model` does not take.
    """
    if set(train.names) != set(model.in_dims) or keep not in train.names:
        known, names = " and ".join(model.in_dims), " and ".join(train.names)
        raise FuseMixLiteError(f"swap_tower: keep = {keep!r}; the model aligns {known}, the pairs are of {names}")
    new = next(name for name in train.names if name != keep)
    config = model.config
    result = fit(
        _embedded(model, train, keep),
        None if val is None else _embedded(model, val, keep),
        depth={new: depth, keep: IDENTITY},
        shared_dim=config["shared_dim"],
        expansion=config["expansion"],
        standardize=config["standardize"],
        **options,
    )
    depths, dropouts = (
        value if isinstance(value, dict) else dict.fromkeys(model.in_dims, value)
        for value in (config["depth"], config["dropout"])
    )
    with torch.random.fork_rng([]):  # weights are drawn and then replaced: no reason to move the caller's random state
        whole = FusionModel(
            train.dims,
            config["shared_dim"],
            {**depths, new: depth},
            config["expansion"],
            {**dropouts, new: options.get("dropout", 0.3)},
            config["standardize"],
        )
    old, trained = model.state_dict(), result.model.state_dict()
    whole.load_state_dict({name: (old if f".{keep}." in name else trained)[name] for name in whole.state_dict()})
    result.model = whole.to(result.model.temperature.device).eval()
    return result


def _embedded(model: FusionModel, pairs: LatentPairs, keep: str) -> LatentPairs:
    """The pairs with the kept side's embeddings in the place of its latents."""
    a, _ = pairs.names
    x, y = (embed_rows(model, a, pairs.x), pairs.y) if keep == a else (pairs.x, embed_rows(model, keep, pairs.y))
    return LatentPairs(x, y, pairs.owner, pairs.names, pairs.item_ids)


def run(p: Profile, arm: dict, dropout: float, steps: int, seed: int, test: bool) -> dict:
    """One run of an arm of the record "swap": ``swap`` is the modality whose tower is replaced, ``before`` the encoder that
    the kept tower was trained with, and ``kept: untrained`` leaves that tower as it was initialised. Both trainings see the
    same scenes. An arm without ``swap`` trains both towers, as in any other record."""
    if "swap" not in arm:
        return experiments.run(p, arm, dropout, steps, seed, test)
    started, new = time.perf_counter(), arm["swap"]
    arm_before = {key: value for key, value in arm.items() if key not in OWN} | {new: arm["before"]}
    options = {
        "augment": arm["scheme"], "batch_size": p.batch_size, "steps": steps, "lr": p.lr, "dropout": dropout, "seed": seed,
        "device": p.device, "progress": False,
    }  # fmt: skip
    shape = {"shared_dim": p.shared_dim, "depth": p.depth, "standardize": arm.get("standardize", False)}
    first = experiments.training_pairs(p, arm_before, seed)
    if arm.get("kept") == "untrained":
        with seeded(seed, torch.device("cpu")):
            model = FusionModel(first.dims, dropout=dropout, **shape).eval()
        model.fit_standardizers(dict(zip(first.names, (first.x, first.y), strict=True)))
    else:
        model = fit(first, _part(p, arm_before, "val"), **options, **shape).model
    keep = next(name for name in first.names if name != new)
    second = experiments.training_pairs(p, arm, seed)
    result = swap_tower(model, second, _part(p, arm, "val"), keep=keep, depth=p.depth, **options)
    numbers = experiments.of_training(seed, result, result.model)
    numbers["seconds"] = round(time.perf_counter() - started, 1)  # of both trainings
    return numbers | experiments.of_test(result.model, _part(p, arm, "test")) if test else numbers


def _part(p: Profile, arm: dict, split: str) -> LatentPairs:
    return experiments.pairs_of(p, split, experiments.source_of(arm, p, split))
