"""The sweeps behind the book's records: ``python -m fusemix_lite.experiments fusemix``.

Every arm first runs over the same small grid (dropout x length) on tuning seeds, scored on validation pairs; its best
setting then runs on the record's seeds, and only there is the test set looked at. A seed sets the initialisation, the
batch order and the subset of pairs. Runs already done are kept in the cache, so a sweep can be stopped and resumed.
"""

import argparse
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from datetime import date
from functools import lru_cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from .datasets import SoundingScenes, scene_pairs
from .disk import as_json, write_aside
from .errors import FuseMixLiteError
from .mixing import SCHEMES
from .pairs import LatentPairs
from .profiles import Profile, profile
from .real import REAL, data_digest, find_latents, load_real, use_latents
from .records import RESULTS, Record, data_of, digest, encoders_of, fingerprint

TUNING = 1_000  # the first seed of the grid: far from those of the records


def arms_fusemix(p: Profile) -> list[dict]:
    """Chapter "FuseMix": the curve over pairs for three schemes, all schemes where pairs are scarce, the same three with
    another image encoder and with a schedule three times as long as the longest of the grid, and the nulls."""
    three = ("none", "separate", "fusemix")
    curve = [{"scheme": s, "items": n} for n, s in product(p.sizes, three)]
    rivals = [{"scheme": s, "items": p.scarce} for s in ("noise", "quantise", "slerp")]
    swapped = [{"scheme": s, "items": p.scarce, "image": p.image_encoders[1]} for s in three]
    longer = [{"scheme": s, "items": p.scarce, "steps": 3 * p.lengths[-1]} for s in three]
    nulls = [
        {"scheme": "none", "items": p.scarce, "null": "again"},  # the same arm on other seeds: no difference
        {"scheme": "fusemix", "items": p.scarce, "null": "shuffled"},  # pairs that do not match: chance
    ]
    return curve + rivals + swapped + longer + nulls


def arms_retrieval(p: Profile) -> list[dict]:
    """Chapter "Image-text retrieval": all encoder pairs on all pairs, with FuseMix and without, and the null."""
    pairs = list(product(p.image_encoders, p.text_encoders))
    arms = [{"scheme": s, "items": p.train_items, "image": i, "text": t} for (i, t), s in product(pairs, ("none", "fusemix"))]
    image, text = pairs[0]
    return [*arms, {"scheme": "fusemix", "items": p.train_items, "image": image, "text": text, "null": "shuffled"}]


def arms_audio(p: Profile) -> list[dict]:
    """Chapter "Audio-text retrieval": all encoder pairs, two audio encoders concatenated among them, on all pairs with
    FuseMix, and without it for the first text encoder; the schemes where pairs are scarce; the nulls."""
    (a, b), text, both = p.audio_encoders, p.text_encoders[0], "+".join(p.audio_encoders)
    data = {"data": "audio-text"}
    full = [
        {**data, "scheme": s, "items": p.train_items, "audio": audio, "text": t}
        for audio, (s, t) in product((a, b, both), [("none", text), *product(("fusemix",), p.text_encoders)])
    ]
    few = [(a, "none"), (a, "separate"), (a, "fusemix"), (both, "none"), (both, "fusemix")]
    scarce = [{**data, "scheme": s, "items": p.scarce, "audio": audio} for audio, s in few]
    nulls = [
        {**data, "scheme": "none", "items": p.scarce, "audio": a, "null": "again"},
        {**data, "scheme": "fusemix", "items": p.train_items, "audio": a, "text": text, "null": "again"},
        {**data, "scheme": "fusemix", "items": p.train_items, "audio": a, "text": text, "null": "shuffled"},
    ]
    return full + scarce + nulls


def arms_wording(p: Profile) -> list[dict]:
    """Why FuseMix trails on templated captions: the same sounds, told once by a person or by a template, at two sizes, and
    by five people at the larger one."""
    once, five = ({"captions": 1}, {"captions": 1, "wording": "template"}), ({},)
    told = [*product(once, (p.sizes[1],)), *product((*five, *once), (p.sizes[-1],))]
    return [
        {"data": "audio-text", "scheme": s, "items": n, **how} for (how, n), s in product(told, ("none", "fusemix"))
    ]


def arms_flickr8k(p: Profile) -> list[dict]:
    """Chapter "Real photos, real sounds": every scheme at every size, two with three times the steps, the nulls."""
    here = {"data": "flickr8k"}
    curve = [{**here, "scheme": s, "items": n} for n, s in product(p.sizes, SCHEMES)]
    return curve + _at_full_size(p, here, steps=3 * p.lengths[-1]) + _real_nulls(p, here)


def arms_philharmonia(p: Profile) -> list[dict]:
    """The same chapter: three schemes over the sizes, two with four times the steps and with standardised latents, the
    nulls."""
    here, three = {"data": "philharmonia"}, ("none", "separate", "fusemix")
    curve = [{**here, "scheme": s, "items": n} for n, s in product(p.sizes, three)]
    longer, scaled = _at_full_size(p, here, steps=4 * p.lengths[-1]), _at_full_size(p, here, standardize=True)
    return curve + longer + scaled + _real_nulls(p, here)


def _at_full_size(p: Profile, here: dict, **otherwise) -> list[dict]:
    """No mixing and FuseMix on all items, with something else than usual."""
    return [{**here, "scheme": s, "items": p.sizes[-1], **otherwise} for s in ("none", "fusemix")]


def _real_nulls(p: Profile, here: dict) -> list[dict]:
    return [
        {**here, "scheme": "none", "items": p.scarce, "null": "again"},
        {**here, "scheme": "fusemix", "items": p.sizes[-1], "null": "shuffled"},
    ]


def photos(p: Profile) -> Profile:
    """The scale on Flickr8K."""
    return _on_real(p, p.photo_sizes, "flickr8k")


def notes(p: Profile) -> Profile:
    """The scale on the Philharmonia notes."""
    return _on_real(p, p.note_sizes, "philharmonia")


def _on_real(p: Profile, sizes: tuple[int, ...], name: str) -> Profile:
    own = {"sizes": sizes, "scarce": sizes[0], "train_items": sizes[-1], "lengths": p.real_lengths}
    return replace(p, **own, captions=REAL[name].captions)


class Experiment(NamedTuple):
    """What a record is made of: its arms, and what it changes in a profile before they are drawn up."""

    arms: Callable[[Profile], list[dict]]
    scale: Callable[[Profile], Profile] = lambda p: p


EXPERIMENTS = {
    "fusemix": Experiment(arms_fusemix),
    "retrieval": Experiment(arms_retrieval),
    "audio": Experiment(arms_audio),
    "wording": Experiment(arms_wording),
    "flickr8k": Experiment(arms_flickr8k, photos),
    "philharmonia": Experiment(arms_philharmonia, notes),
}


def plan(name: str, p: Profile) -> tuple[Profile, list[dict]]:
    """The scale and the arms of an experiment under a profile."""
    scaled = EXPERIMENTS[name].scale(p)
    return scaled, EXPERIMENTS[name].arms(scaled)


@lru_cache(maxsize=8)
def pairs_of(
    p: Profile, split: str, data: str, x_encoder: str, y_encoder: str, captions: int, wording: str
) -> LatentPairs:
    """The latent pairs of a split: from the cache, or real ones from their files."""
    size = {"train": p.train_items, "val": p.val_items, "test": p.test_items}[split]
    if data in REAL:
        pairs = _real_parts(data)[split]
        return pairs if pairs.n_items <= size else pairs.take(range(size))
    dataset = SoundingScenes(data, split, size, captions, wording=wording)
    return scene_pairs(dataset, x_encoder, y_encoder, progress=False)


@lru_cache(maxsize=2)
def _real_parts(name: str) -> dict[str, LatentPairs]:
    return load_real(name)


def source_of(arm: dict, p: Profile) -> tuple:
    """What `pairs_of` wants to know of an arm beside the split."""
    return data_of(arm), *encoders_of(arm, p), arm.get("captions", p.captions), arm.get("wording", "natural")


def run(p: Profile, arm: dict, dropout: float, steps: int, seed: int, test: bool) -> dict:
    """One fusion run of an arm: flat numbers, validation mean always, test recall where ``test``."""
    from .metrics import retrieval
    from .training import fit

    if arm.get("null") == "again":
        seed += 500  # other seeds than the arm it repeats
    source = source_of(arm, p)
    train = pairs_of(p, "train", *source).subset(arm["items"], seed)
    if arm.get("null") == "shuffled":
        train = train.shuffled(seed)
    val = pairs_of(p, "val", *source)
    result = fit(
        train, val, augment=arm["scheme"], batch_size=p.batch_size, steps=steps, lr=p.lr, shared_dim=p.shared_dim,
        depth=p.depth, dropout=dropout, standardize=arm.get("standardize", False), seed=seed, device=p.device, progress=False,
    )  # fmt: skip
    numbers = {
        "seed": seed,
        "seconds": round(result.seconds, 1),
        "best_step": result.best_step,
        "val_mean": round(max(entry.get("val_mean", 0.0) for entry in result.history), 4),
    }
    if test:
        recalls = retrieval(result.model, pairs_of(p, "test", *source))
        numbers |= {f"{way}@{k}": round(value, 4) for way, at in recalls.items() for k, value in at.items()}
    return numbers


def choose(runs: dict[tuple[float, int], list[dict]]) -> dict:
    """The grid point with the best mean validation score; at a tie the earlier one."""
    scores = {point: sum(r["val_mean"] for r in rs) / len(rs) for point, rs in runs.items()}
    dropout, steps = max(scores, key=scores.get)
    return {"dropout": dropout, "steps": steps}


class Runs:
    """Runs already done, a JSON line each, so that a stopped sweep goes on where it was."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.done = path, {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the line that was being written when the sweep was stopped
                self.done[entry["job"]] = entry["numbers"]

    def add(self, job: str, numbers: dict) -> None:
        self.done[job] = numbers
        with self.path.open("a") as file:
            file.write(json.dumps({"job": job, "numbers": numbers}) + "\n")


def _key(p: Profile, arm: dict, dropout: float, steps: int, seed: int, test: bool) -> str:
    """What a run is known by: arms of two experiments that are the same run are run once."""
    named = {**arm, "source": source_of(arm, p)}
    real = data_digest(data_of(arm)) if data_of(arm) in REAL else None
    return digest([fingerprint(p, [named]), real, dropout, steps, seed, test])


def _job(*job) -> tuple[str, dict]:
    import torch

    torch.set_num_threads(1)  # two processes of one thread beat one process of two
    return _key(*job), run(*job)


def _run_all(jobs: list[tuple], runs: Runs, workers: int, what: str) -> None:
    jobs = {_key(*job): job for job in jobs}
    missing = [job for key, job in jobs.items() if key not in runs.done]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool, tqdm(total=len(jobs), desc=what) as bar:
        bar.update(len(jobs) - len(missing))
        for future in as_completed([pool.submit(_job, *job) for job in missing]):
            runs.add(*future.result())
            bar.update()


def sweep(name: str, p: Profile, workers: int = 2) -> dict:
    """Run an experiment, tuned and then over all seeds; returns the record's content."""
    from .extraction import cache_dir

    p, arms = plan(name, p)
    runs = Runs(cache_dir() / "experiments" / f"{p.name}.jsonl")
    started = time.perf_counter()
    for source, split in product(dict.fromkeys(source_of(arm, p) for arm in arms), ("train", "val", "test")):
        pairs_of(p, split, *source)  # latents first, so that no two workers extract the same ones
    pairs_of.cache_clear()

    grids = [list(product(p.dropouts, (arm["steps"],) if "steps" in arm else p.lengths)) for arm in arms]
    tuning = [TUNING + i for i in range(p.tuning_seeds)]
    seeds = [p.seed + i for i in range(p.seeds)]
    tuned_as = [{key: value for key, value in arm.items() if key != "null"} for arm in arms]  # a null has its arm's settings
    trials = [
        {point: [(p, arm, *point, s, False) for s in tuning] for point in grid}
        for arm, grid in zip(tuned_as, grids, strict=True)
    ]
    _run_all([job for trial in trials for jobs in trial.values() for job in jobs], runs, workers, f"{name}: tuning")
    chosen = [choose({point: [runs.done[_key(*job)] for job in jobs] for point, jobs in trial.items()}) for trial in trials]
    final = [[(p, arm, *best.values(), s, True) for s in seeds] for arm, best in zip(arms, chosen, strict=True)]
    _run_all([job for jobs in final for job in jobs], runs, workers, f"{name}: seeds")
    cells = [
        {"arm": arm, "chosen": best, "runs": [runs.done[_key(*job)] for job in jobs]}
        for arm, best, jobs in zip(arms, chosen, final, strict=True)
    ]
    return {
        "name": name,
        "profile": p.name,
        "config": asdict(p),
        "fingerprint": fingerprint(p, arms),
        "data": {name: data_digest(name) for name in sorted({data_of(arm) for arm in arms} & set(REAL))},
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
        return Record(json.loads(json.dumps(sweep(name, p))))
    return Record.load(name, "lite")


def live_slice(record: Record, p: Profile, arms: list[dict], metrics: tuple[str, ...]) -> list[dict]:
    """Run some arms of a record again, on the first ``p.live_seeds`` seeds; one row an arm and seed.

    Where the record was made at this scale and from these data, an arm runs with the settings chosen for it, and a value
    outside the range that the record states raises :class:`FuseMixLiteError`; elsewhere nothing is compared.
    """
    rows, p = [], EXPERIMENTS[record.content["name"]].scale(p)
    made_from = record.content.get("data", {})
    same = record.is_of(p) and all(data_digest(name) == made_from[name] for name in made_from)
    for arm, i in product(arms, range(p.live_seeds)):
        settings = record.cell(**arm)["chosen"] if same else {"dropout": p.dropouts[0], "steps": p.lengths[0]}
        numbers = run(p, arm, **settings, seed=p.seed + i, test=True)
        row = {**arm, "seed": numbers["seed"], "seconds": numbers["seconds"]}
        for metric in metrics:
            row[metric] = numbers[metric]
            if same:
                expected = record.check_live(metric, numbers[metric], **arm)
                row[f"{metric} expected"] = f"{expected.low:.1f} to {expected.high:.1f}"
        rows.append(row | {"verdict": "as recorded" if same else "other scale or data: not compared"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", choices=[*EXPERIMENTS, "all"], help="which record to make")
    parser.add_argument("--profile", default="lite", help="the scale (default: lite)")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each (default: 2)")
    parser.add_argument("--seeds", type=int, help="seeds a cell (default: the profile's)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the records go (default: the book's)")
    parser.add_argument("--latents", type=Path, help="folder of real latents (default: FUSEMIX_LITE_REAL)")
    args = parser.parse_args()
    p = profile(args.profile, seeds=args.seeds)
    use_latents(args.latents)
    for name in EXPERIMENTS if "all" in args.names else args.names:
        if "all" in args.names and name in REAL and not find_latents(name):
            print(f"{name}: left out, its latents are not here (--latents FOLDER)")
            continue
        path = args.out / p.name / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_aside(path, as_json(sweep(name, p, args.workers)))
        print(path)


if __name__ == "__main__":
    main()
