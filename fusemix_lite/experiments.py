"""The sweeps behind the book's records: ``python -m fusemix_lite.experiments fusemix``.

Every arm first runs over the same small grid (dropout x length) on tuning seeds, scored on validation pairs; its best
setting then runs on the record's seeds, and only there is the test set looked at. A seed sets the initialisation, the
batch order and the subset of pairs. Runs already done are kept in the cache, so a sweep can be stopped and resumed.

Where pairs come from is a value of the profile: Sounding Scenes, or public data (`public_data`), which are never cut: an arm
takes its items from all that are there, and a test set is the whole of it. Numbers on a second test set begin with its name,
as ``coco_text_to_image@1``.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from datetime import date
from functools import cache, lru_cache
from importlib import import_module
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from .arms import EXPERIMENTS, plan
from .datasets import SoundingScenes, scene_pairs
from .disk import as_json, write_aside
from .encoders import WEIGHTS
from .errors import FuseMixLiteError
from .pairs import LatentPairs
from .profiles import SCENES, Profile, profile
from .real import REAL, data_digest, find_latents, load_real, use_latents
from .records import RESULTS, Record, data_of, digest, encoders_of, fingerprint, sets_of

#: What of an arm `fit` is told, instead of the profile's values or its own.
FIT_OPTIONS = (
    "batch_size", "shared_dim", "depth", "expansion", "standardize", "alpha", "per", "mix_probability", "mask_negatives",
    "temperature", "precision",
)  # fmt: skip
TUNING = 1_000  # the first seed of the grid: far from those of the records
KNOBS = ("noise", "clean", "skew", "wording")  # of Sounding Scenes alone
ALL_CAPTIONS = 0


class Source(NamedTuple):
    """Where the latent pairs of a split come from."""

    data: str  # "image-text" or "audio-text" of Sounding Scenes, a name in `real.REAL`, or one of public data
    x_encoder: str
    y_encoder: str
    captions: int  # an item, at most; `ALL_CAPTIONS` of public data
    wording: str
    noise: float = 0.0
    skew: float = 0.0


def source_of(arm: dict, p: Profile, split: str) -> Source:
    """Where the pairs of an arm come from; captions are degraded in training only. Of several test sets: the first."""
    name, data = sets_of(arm, p)[split][0], data_of(arm)
    if name != SCENES and data not in REAL:
        return _public_source(arm, p, split, name)
    told = {"captions": arm.get("captions", p.captions)}
    if split == "train":
        told = {"captions": arm.get("train_captions", told["captions"]), "noise": arm.get("noise", 0.0)}
    return Source(data, *encoders_of(arm, p), wording=arm.get("wording", "natural"), skew=arm.get("skew", 0.0), **told)


def _public_source(arm: dict, p: Profile, split: str, name: str) -> Source:
    turned = [knob for knob in KNOBS if knob in arm]
    if turned:
        raise FuseMixLiteError(f"{turned[0]} is a knob of Sounding Scenes, not of {name}: run {arm} under `profile.scenes`")
    captions = arm.get("captions", ALL_CAPTIONS)
    captions = arm.get("train_captions", captions) if split == "train" else captions
    return Source(name, *encoders_of(arm, p), captions, "natural")


@lru_cache(maxsize=12)
def pairs_of(p: Profile, split: str, source: Source) -> LatentPairs:
    """The latent pairs of a split: from the cache, or real ones from their files."""
    if is_public(source):
        return _public_pairs(p, split, source)
    size = {"train": p.train_items, "val": p.val_items, "test": p.test_items}[split]
    if source.data in REAL:
        pairs = _real_parts(source.data)[split]
        return pairs if pairs.n_items <= size else pairs.take(range(size))
    dataset = SoundingScenes(source.data, split, size, source.captions, source.noise, source.skew, wording=source.wording)
    return scene_pairs(dataset, source.x_encoder, source.y_encoder, progress=False)


def is_public(source: Source) -> bool:
    """Whether pairs come from public data, not from Sounding Scenes or from real latents that are there already."""
    return source.data not in ("image-text", "audio-text", *REAL)


def _public_pairs(p: Profile, split: str, source: Source) -> LatentPairs:
    """All pairs of a split of public data, extracted into the cache on first use, with a bar."""
    from .extraction import cached_latents

    dataset, how = open_public(source.data, split), {"device": p.device, "precision": p.precision}
    stores = [cached_latents(dataset, side.split("+"), **how) for side in (source.x_encoder, source.y_encoder)]
    pairs = LatentPairs.from_stores(*stores, in_memory=p.in_memory)
    return pairs if source.captions == ALL_CAPTIONS else first_captions(pairs, source.captions)


def extract_public(p: Profile, arms: list[dict]) -> None:
    """Extract all latents of public data that runs of these arms load: one pass over a field of a split, however many encoders
    look at it."""
    from .extraction import cached_latents

    wanted: dict[tuple, dict] = {}  # data, split, side -> encoders, in order
    for split, source in needed(p, arms):
        if is_public(source):
            for side, names in (("x", source.x_encoder), ("y", source.y_encoder)):
                wanted.setdefault((source.data, split, side), {}).update(dict.fromkeys(names.split("+")))
    for (data, split, _), encoders in wanted.items():
        cached_latents(open_public(data, split), list(encoders), device=p.device, precision=p.precision)


def open_public(name: str, split: str):
    """A split of public data; what it lacks is an error that says how to fetch it."""
    return _opened(name, split, os.environ.get("FUSEMIX_LITE_DATA"))


@cache  # lists of millions of captions are read once; what is missing is looked for again
def _opened(name: str, split: str, folder: str | None):
    from .public_data import open_dataset

    return open_dataset(name, split)


def lacks_public(name: str, split: str) -> str | None:
    """What of a split of public data is not here, with the remedy; None where all is."""
    try:
        open_public(name, split)
    except FuseMixLiteError as error:
        return str(error)
    return None


def public_splits(p: Profile, arms: list[dict]) -> list[tuple[str, str]]:
    """Which splits of public data these arms need, by name."""
    found = {(data, split) for arm in arms for split, names in sets_of(arm, p).items() for data in names}
    return sorted((data, split) for data, split in found if data != SCENES and data not in REAL)


def first_captions(pairs: LatentPairs, n: int) -> LatentPairs:
    """The pairs with the first `n` rows of y that an item has, or fewer where it has fewer."""
    order = torch.argsort(pairs.owner, stable=True)
    counts = torch.bincount(pairs.owner, minlength=pairs.n_items)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    kept = place < n
    return LatentPairs(pairs.x, pairs.y[kept], pairs.owner[kept], pairs.names, pairs.item_ids)


@lru_cache(maxsize=2)
def _real_parts(name: str) -> dict[str, LatentPairs]:
    return load_real(name)


def training_pairs(p: Profile, arm: dict, seed: int) -> LatentPairs:
    """What an arm learns from with a seed: its subset of the training items, picked, mixed or mismatched as it says."""
    from .subsets import pick

    source = source_of(arm, p, "train")
    every = pairs_of(p, "train", source)
    if "pick" in arm:
        pool = every.subset(arm["pool"], seed)
        train = pool.take(pick(arm["pick"], pool, arm["items"], seed))
    else:
        train = every.subset(_as_many(arm["items"], every, source), seed)
    if "clean" in arm:  # the first items of the same random order
        clean = pairs_of(p, "train", source._replace(noise=0.0)).subset(arm["clean"], seed)
        train = clean if arm["clean"] == arm["items"] else clean.joined(train.take(range(arm["clean"], arm["items"])))
    return train.shuffled(seed) if arm.get("null") == "shuffled" else train


def _as_many(items: int, pairs: LatentPairs, source: Source) -> int:
    """So many items, or all, where public data have fewer than the profile counts on, as addresses die."""
    return min(items, pairs.n_items) if is_public(source) else items


def _as_wanted(p: Profile, arm: dict, split: str, pairs: LatentPairs, seed: int) -> LatentPairs:
    """What an arm does to latents of whatever split."""
    if arm.get("unit"):
        pairs = pairs.unit()
    if arm.get("null") == "shuffled-b":
        source = source_of(arm, p, split)
        first = pairs_of(p, split, source._replace(x_encoder=source.x_encoder.split("+")[0])).x.shape[1]
        pairs = pairs.mismatched(first, seed)
    return pairs


def run(p: Profile, arm: dict, dropout: float, steps: int, seed: int, test: bool) -> dict:
    """One fusion run of an arm: flat numbers, validation mean always, test recall where ``test``."""
    from .training import fit

    seed = seed_of(arm, seed)
    train = _as_wanted(p, arm, "train", training_pairs(p, arm, seed), seed)
    val = _as_wanted(p, arm, "val", pairs_of(p, "val", source_of(arm, p, "val")), seed)
    usual = {name: getattr(p, name) for name in ("batch_size", "shared_dim", "depth", "expansion", "warmup")}
    options = usual | {key: value for key, value in arm.items() if key in FIT_OPTIONS}
    result = fit(
        train, val, augment=arm["scheme"], steps=steps, lr=p.lr, dropout=dropout, seed=seed, device=p.device, progress=False,
        **options,
    )  # fmt: skip
    numbers = of_training(seed, result, result.model)
    for prefix, source in _tests(p, arm).items() if test else ():
        numbers |= of_test(result.model, _as_wanted(p, arm, "test", pairs_of(p, "test", source), seed), prefix)
    return numbers


def seed_of(arm: dict, seed: int) -> int:
    """The seed that a run really has: the null "again" takes others than the arm that it repeats."""
    return seed + 500 if arm.get("null") == "again" else seed


def of_training(seed: int, result, model, **more) -> dict:
    """What every run notes of its training: `result` as `fit` or `fit_end_to_end` returns it, `model` the `FusionModel`,
    and what else it took."""
    from .training import best_mean

    return {
        "seed": seed,
        "seconds": round(result.seconds, 1),
        **more,
        "best_step": result.best_step,
        "temperature": round(model.temperature.item(), 4),
        "val_mean": round(best_mean(result.history), 4),
    }


def of_test(model, pairs: LatentPairs, prefix: str = "") -> dict:
    """Recall of a `FusionModel` by name, as "image_to_text@1", in percent."""
    from .metrics import retrieval

    recalls = retrieval(model, pairs)
    return {f"{prefix}{way}@{k}": round(value, 4) for way, at in recalls.items() for k, value in at.items()}


def _tests(p: Profile, arm: dict) -> dict[str, Source]:
    """The test sets of an arm by what their metrics are called: its own, even scenes where its own are skewed, and further
    public ones."""
    own = source_of(arm, p, "test")
    others = {"even_": own._replace(skew=0.0)} if own.skew else {}
    return {"": own} | others | {f"{name}_": own._replace(data=name) for name in sets_of(arm, p)["test"][1:]}


def _needed(p: Profile, arm: dict) -> list[tuple[str, Source]]:
    """All latent pairs that runs of an arm load."""
    train = source_of(arm, p, "train")
    trains = [train, train._replace(noise=0.0)] if "clean" in arm else [train]
    tests = _tests(p, arm).values()
    return [*(("train", s) for s in trains), ("val", source_of(arm, p, "val")), *(("test", s) for s in tests)]


def needed(p: Profile, arms: Sequence[dict]) -> list[tuple[str, Source]]:
    """All latent pairs that runs of some arms load, each once, as (split, source)."""
    return list(dict.fromkeys(need for arm in arms for need in _needed(p, arm)))


def choose(runs: dict[tuple[float, int], list[dict]]) -> dict:
    """The grid point with the best mean validation score; at a tie the earlier one."""
    scores = {point: sum(r["val_mean"] for r in rs) / max(1, len(rs)) for point, rs in runs.items()}
    dropout, steps = max(scores, key=scores.get)
    return {"dropout": dropout, "steps": steps}


class Runs:
    """Runs already done, a JSON line each, so that a stopped sweep goes on where it was. Several sweeps may share a file.

    A line that was cut when a sweep was stopped, or that holds anything but numbers, is passed over, and its run made again.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.done = path, {}
        for line in path.read_bytes().split(b"\n") if path.exists() else ():
            try:
                entry = json.loads(line)
                job, numbers = entry["job"], entry["numbers"]
                finite = all(math.isfinite(value) for value in numbers.values())
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
                continue
            if isinstance(job, str) and finite and {"seconds", "val_mean"} <= numbers.keys():
                self.done[job] = numbers

    def add(self, job: str, numbers: dict) -> None:
        """Keep a run. Raises FuseMixLiteError where that cannot be done."""
        self.done[job] = numbers
        line = json.dumps({"job": job, "numbers": numbers})
        try:
            with self.path.open("ab") as file:  # in one piece, so that the lines of several sweeps do not mix
                file.write(f"\n{line}\n".encode())  # a line of its own, whatever a stopped sweep has left before it
        except OSError as error:
            kept = "what was kept before stays, and the same sweep goes on from there"
            raise FuseMixLiteError(f"{self.path} cannot be written ({error.strerror}): make room; {kept}") from error


def _key(p: Profile, arm: dict, dropout: float, steps: int, seed: int, test: bool) -> str:
    """What a run is known by: arms of two experiments that are the same run are run once."""
    named = {**arm, "source": [source_of(arm, p, split) for split in ("train", "test")]}
    real = data_digest(data_of(arm)) if data_of(arm) in REAL else data_stamp(p, [arm]) or None
    return digest([fingerprint(p, [named]), real, dropout, steps, seed, test])


def data_stamp(p: Profile, arms: list[dict]) -> dict[str, str]:
    """What tells the data of these arms from others: a hash of real latents, by their name, and the id of each split of public
    data. Sounding Scenes are in the fingerprint."""
    stamp = {}
    for arm in arms:
        for split, names in sets_of(arm, p).items():
            for name in names:
                if name in REAL:
                    stamp[name] = data_digest(name)
                elif name != SCENES:
                    stamp[f"{name} {split}"] = open_public(name, split).id
    return dict(sorted(stamp.items()))


def _job(*job) -> tuple[str, dict]:
    torch.set_num_threads(1)  # two processes of one thread beat one process of two
    name, *settings = job
    module = import_module(f".{EXPERIMENTS[name].module}", __package__)
    return _key(*settings), module.run(*settings)


def _run_all(name: str, jobs: list[tuple], runs: Runs, workers: int, what: str) -> None:
    jobs = {_key(*job): (name, *job) for job in jobs}
    missing = [job for key, job in jobs.items() if key not in runs.done]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool, tqdm(total=len(jobs), desc=f"{name}: {what}") as bar:
        bar.update(len(jobs) - len(missing))
        try:
            for future in as_completed([pool.submit(_job, *job) for job in missing]):
                runs.add(*future.result())
                bar.update()
        except BaseException:  # else the pool makes all other runs first, for days perhaps, and nobody keeps them
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _grid(p: Profile, arm: dict) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The dropouts and the lengths that an arm is tuned over."""
    return (arm["dropout"],) if "dropout" in arm else p.dropouts, (arm["steps"],) if "steps" in arm else p.lengths


def sweep(name: str, p: Profile, workers: int = 2) -> dict:
    """Run an experiment, tuned and then over all seeds; returns the record's content."""
    from .extraction import cache_dir

    p, arms = plan(name, p)
    runs = Runs(cache_dir() / "experiments" / f"{p.name}.jsonl")
    started = time.perf_counter()
    extract_public(p, arms)
    for split, source in needed(p, arms):
        if not is_public(source):
            pairs_of(p, split, source)  # latents first, so that no two workers extract the same ones
    pairs_of.cache_clear()

    grids = [list(product(*_grid(p, arm))) for arm in arms]
    tuning = [TUNING + i for i in range(p.tuning_seeds)]
    seeds = [p.seed + i for i in range(p.seeds)]
    tuned_as = [{key: value for key, value in arm.items() if key != "null"} for arm in arms]  # a null has its arm's settings
    trials = [  # a grid of one point leaves nothing to choose
        {point: [(p, arm, *point, s, False) for s in tuning] for point in grid if len(grid) > 1}
        for arm, grid in zip(tuned_as, grids, strict=True)
    ]
    _run_all(name, [job for trial in trials for jobs in trial.values() for job in jobs], runs, workers, "tuning")
    chosen = [
        choose({point: [runs.done[_key(*job)] for job in trial.get(point, [])] for point in grid})
        for grid, trial in zip(grids, trials, strict=True)
    ]
    final = [[(p, arm, *best.values(), s, True) for s in seeds] for arm, best in zip(arms, chosen, strict=True)]
    _run_all(name, [job for jobs in final for job in jobs], runs, workers, "seeds")
    cells = [
        {"arm": arm, "chosen": best, "runs": [runs.done[_key(*job)] for job in jobs]}
        for arm, best, jobs in zip(arms, chosen, final, strict=True)
    ]
    return {
        "name": name,
        "profile": p.name,
        "config": asdict(p),
        "fingerprint": fingerprint(p, arms),
        "data": data_stamp(p, arms),
        "seeds": seeds,
        "grid": {"dropout": p.dropouts, "steps": p.lengths, "seeds": tuning},
        "cells": cells,
        "provenance": {
            "date": date.today().isoformat(),
            "python": platform.python_version(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            **{package: version(package) for package in ("torch", "transformers", "numpy")},
            "seconds_of_all_runs_shown": round(sum(run["seconds"] for cell in cells for run in cell["runs"])),
            "wall_seconds_of_this_call": round(time.perf_counter() - started),
        },
    }


def obtain(name: str, p: Profile, live: str = "slice") -> Record:
    """The record that a chapter shows: the committed one, or with ``live="full"`` one that is made here and now.

    Scales without a record of their own (smoke) are shown the one of lite.
    """
    if live not in ("slice", "full"):
        raise FuseMixLiteError(f'live = {live!r}: choose "slice" or "full"')
    if live == "full":
        tell(*plan(name, p))
        return Record(json.loads(json.dumps(sweep(name, p, p.workers))))
    scaled, arms = plan(name, p)
    lack = next(filter(None, (lacks_public(data, split) for data, split in public_splits(scaled, arms))), None)
    if lack:
        warnings.warn(f"nothing of {name} can be run here: {lack}", stacklevel=2)
    own = Record.find(name, p.name)
    return own if own and own.is_of(scaled) else Record.load(name, "lite")


def tell(p: Profile, arms: list[dict], **options) -> None:
    """Print what runs of these arms will take and whether it fits (`budget.before_run`); what would not is a warning too."""
    from .budget import before_run

    forecast = before_run(p, arms, **options)
    print(forecast)
    for warning in forecast.warnings:
        warnings.warn(f"would not fit: {warning}", stacklevel=3)


def live_slice(record: Record, p: Profile, arms: list[dict], metrics: tuple[str, ...]) -> list[dict]:
    """Run some arms of a record again, on the first ``p.live_seeds`` seeds; one row an arm and seed. What that takes is
    printed first.

    Where the record was made at this scale and from these data, an arm runs with the settings chosen for it, and a value
    outside the range that the record states raises :class:`FuseMixLiteError`; elsewhere nothing is compared.
    """
    experiment = EXPERIMENTS[record.content["name"]]
    rows, p, module = [], experiment.scale(p), import_module(f".{experiment.module}", __package__)
    made_from = record.content.get("data", {})
    same = record.is_of(p) and data_stamp(p, [cell["arm"] for cell in record.content["cells"]]) == made_from
    tell(p, arms, seeds=p.live_seeds, tuned=False)
    extract_public(p, arms)
    for arm, i in product(arms, range(p.live_seeds)):
        first = dict(zip(("dropout", "steps"), (options[0] for options in _grid(p, arm)), strict=True))
        settings = record.cell(**arm)["chosen"] if same else first
        numbers = module.run(p, arm, **settings, seed=p.seed + i, test=True)
        row = {**arm, "seed": numbers["seed"], "seconds": numbers["seconds"]}
        for metric in metrics:
            row[metric] = numbers[metric]
            if same:
                expected = record.check_live(metric, numbers[metric], **arm)
                row[f"{metric} expected"] = f"{expected.low:.1f} to {expected.high:.1f}"
        rows.append(row | {"verdict": "as recorded" if same else "other scale or data: not compared"})
    return rows


def lacks(name: str, p: Profile) -> str | None:
    """What of an experiment's ingredients is not on this machine, with the remedy; None where all are."""
    p, arms = plan(name, p)
    for data in sorted({data_of(arm) for arm in arms} & set(REAL)):
        if not find_latents(data):
            return f"the latents of {data} are not here (--latents FOLDER)"
    for data, split in public_splits(p, arms):
        if lack := lacks_public(data, split):
            return lack
    for generator in sorted({arm["generator"] for arm in arms if "generator" in arm}):
        if not (WEIGHTS / generator / "model.safetensors").exists():
            return f"{generator} is not trained yet (python -m fusemix_lite.pretrain_generator {generator})"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", choices=[*EXPERIMENTS, "all"], help="which record to make")
    parser.add_argument("--profile", default="lite", help="the scale (default: lite)")
    parser.add_argument("--workers", type=int, help="processes of one thread each (default: the profile's)")
    parser.add_argument("--seeds", type=int, help="seeds a cell (default: the profile's); needs --out")
    other = "another value of the profile, as --set 'sizes=[100, 200]'; needs --out"
    parser.add_argument("--set", action="append", default=[], metavar="VALUE=JSON", dest="overrides", help=other)
    parser.add_argument("--out", type=Path, help="where the records go (default: the book's)")
    parser.add_argument("--latents", type=Path, help="folder of real latents (default: FUSEMIX_LITE_REAL)")
    parser.add_argument("--estimate", action="store_true", help="say what it would take, and run nothing")
    args = parser.parse_args()
    if (args.overrides or args.seeds) and not (args.out or args.estimate):
        option = "--set" if args.overrides else "--seeds"
        parser.error(f"{option} needs --out: the book's records are those of the profiles as they are")
    p = profile(args.profile, **{"seeds": args.seeds, "workers": args.workers} | dict(map(_override, args.overrides)))
    use_latents(args.latents)
    for name in EXPERIMENTS if "all" in args.names else args.names:
        if "all" in args.names and (lack := lacks(name, p)):
            print(f"{name}: left out, {lack}")
            continue
        print(f"{name}, profile {p.name}", flush=True)
        tell(*plan(name, p))
        if not args.estimate:
            path = (args.out or RESULTS) / p.name / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_aside(path, as_json(sweep(name, p, p.workers)))
            print(path)


def _override(text: str) -> tuple[str, object]:
    """``sizes=[100, 200]`` as a name and its value; what is no JSON is a text."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


if __name__ == "__main__":
    try:
        main()
    except FuseMixLiteError as error:
        sys.exit(f"error: {error}")
