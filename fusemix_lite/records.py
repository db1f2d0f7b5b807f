"""Records: what a sweep over many seeds measured, kept as JSON beside the book and checked against live runs.

A record holds, for every cell (an arm of an experiment), the values of each seed, together with a hash of all that
they depend on: the experiment's configuration, the encoders' weights and the data.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path

from .bundled import bundled
from .disk import read_json
from .encoders import WEIGHTS, resolve_encoder, split_layer
from .errors import FuseMixLiteError
from .profiles import Profile, profile
from .real import REAL
from .stats import Interval, interval, paired_interval, prediction_range

RESULTS = bundled("results")


class Record:
    """The record of one experiment at one scale: ``values(arm, metric)`` gives one number a seed, in the seeds' order."""

    def __init__(self, content: dict):
        self.content = content
        self._cells = {_key(cell["arm"]): cell for cell in content["cells"]}

    @classmethod
    def load(cls, name: str, profile: str = "lite") -> "Record":
        path = RESULTS / profile / f"{name}.json"
        if not path.exists():
            raise FuseMixLiteError(
                f"no record {path}: make it with `python -m fusemix_lite.experiments {name} --profile {profile}`"
            )
        content = read_json(path, "it is broken, make it again")
        wrong = _wrong(content)
        if wrong:
            raise FuseMixLiteError(f"record {path} is broken ({wrong}): make it again")
        return cls(content)

    @classmethod
    def find(cls, name: str, profile: str) -> "Record | None":
        """The record of an experiment at a scale, None where it has not been made yet."""
        return cls.load(name, profile) if (RESULTS / profile / f"{name}.json").exists() else None

    @property
    def seeds(self) -> list[int]:
        return self.content["seeds"]

    def cell(self, **arm) -> dict:
        """The cell of an arm: ``arm``, what was ``chosen`` for it on validation, its ``runs`` (one a seed)."""
        try:
            return self._cells[_key(arm)]
        except KeyError:
            raise FuseMixLiteError(f"record {self.content['name']!r} has no arm {arm}") from None

    def values(self, metric: str, **arm) -> list[float]:
        """One number a seed. ``metric`` is as "image_to_text@1" (test recall, %) or "val_mean"."""
        return [run[metric] for run in self.cell(**arm)["runs"]]

    def interval(self, metric: str, **arm) -> Interval:
        return interval(self.values(metric, **arm))

    def difference(self, metric: str, arm: dict, other: dict) -> Interval:
        """Paired difference arm - other over the seeds, with its Student-t interval."""
        return paired_interval(self.values(metric, **arm), self.values(metric, **other))

    def change_of_lead(self, metric: str, before: tuple[dict, dict], after: tuple[dict, dict]) -> Interval:
        """How far one arm's lead over another grows from one situation to the next: a difference of differences.

        ``before`` and ``after`` are (arm, other). All four run on the same seeds, so the change is paired over them, and
        what a seed's subset or start does to all four alike is gone from the interval.
        """
        leads = [
            [a - b for a, b in zip(self.values(metric, **arm), self.values(metric, **other), strict=True)]
            for arm, other in (after, before)
        ]
        return paired_interval(*leads)

    @property
    def stamp(self) -> str:
        """When and with what the record was made, for the captions of what is drawn from it."""
        made = self.content["provenance"]
        date, torch = (made.get(key, "(unknown)") for key in ("date", "torch"))
        return f"recorded on {date} with torch {torch}, {len(self.seeds)} seeds"

    @property
    def profile(self) -> Profile:
        """The scale at which the record was made; what its profile did not have yet is as it is now."""
        made_at = dict(self.content["config"])
        return profile(made_at.pop("name"), **made_at)

    def is_of(self, profile: Profile) -> bool:
        """Whether the record was made at that scale; the number of seeds and the device may differ."""
        return scale(self.profile) == scale(profile)

    def check_live(self, metric: str, live: float, **arm) -> Interval:
        """The range in which one more run of this arm lies (99.9 %); raises if the live value is outside."""
        expected = prediction_range(self.values(metric, **arm))
        if not expected.low <= live <= expected.high:
            raise FuseMixLiteError(
                f"{metric} of {arm}: the live run gave {live:.2f}, the record's runs say "
                f"{expected.low:.2f} to {expected.high:.2f}: the code, weights or data have changed since; "
                f"run `make reproduce`, or find out why"
            )
        return expected


def _wrong(content: object) -> str:
    """What a record lacks, or holds instead of what is read of one; "" where nothing is wrong."""
    kinds = {"name": str, "profile": str, "fingerprint": str, "seeds": list, "cells": list, "config": dict, "provenance": dict}
    for key, kind in kinds.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            return f"no {key}"
    if not content["seeds"] or not all(type(seed) is int for seed in content["seeds"]):
        return "seeds that are no whole numbers"
    if not all(isinstance(content["provenance"].get(key, ""), str) for key in ("date", "torch")):
        return "nothing that says when and with what it was made"
    known = set()
    for cell in content["cells"]:
        if not isinstance(cell, dict) or not isinstance(cell.get("arm"), dict) or not isinstance(cell.get("runs"), list):
            return "a cell without an arm or runs"
        if len(cell["runs"]) != len(content["seeds"]) or _key(cell["arm"]) in known:
            return f"not one run a seed for {str(cell['arm'])[:200]}"
        known.add(_key(cell["arm"]))
        for run in cell["runs"]:
            if not isinstance(run, dict) or not all(type(value) in (int, float) for value in run.values()):
                return f"a run of {str(cell['arm'])[:200]} that holds other things than numbers"
            if not all(abs(value) < math.inf for value in run.values()):
                return f"a number of {str(cell['arm'])[:200]} that is not finite"
    try:
        config = dict(content["config"])
        profile(config.pop("name", None), **config)
    except FuseMixLiteError as error:
        return str(error)
    return ""


#: The profiles whose records a chapter shows beside each other.
SCALES = ("lite", "colab", "paper")


def at_scales(name: str, rows: Callable[[Record], list[dict]], scales: Sequence[str] = SCALES) -> dict[str, list[dict] | str]:
    """What `report.tabs` shows of an experiment: the rows of each profile's record, or that it is not yet measured, how it
    would be, and how long that takes on the device that the profile is made for."""
    found = {}
    for scale in scales:
        record = Record.find(name, scale)
        found[scale] = not_yet(name, scale) if record is None else rows(record)
    return found


def not_yet(name: str, scale: str) -> str:
    """A sentence about a record that nobody has made."""
    from .budget import before_experiment, order_of, sheet_machine

    p = profile(scale)
    made = f"Not yet measured: `python -m fusemix_lite.experiments {name} --profile {scale}` makes it"
    if not p.made_for:
        return f"{made}."
    forecast = before_experiment(name, p, sheet_machine(p.made_for), local=False)
    return f"{made}, in about {order_of(forecast.seconds)} on one {p.made_for}, reading of files not counted."


def _key(arm: dict) -> str:
    return json.dumps(arm, sort_keys=True)


def digest(thing: object) -> str:
    return hashlib.sha256(json.dumps(thing, sort_keys=True, default=str).encode()).hexdigest()[:16]


@cache
def weights_digest(encoder: str) -> str:
    """Of a packaged encoder's weights: the first 16 hexadecimal digits of the file's SHA-256. A layer ("@2") has the same
    weights as its encoder. Of any other encoder: those of its revision, a commit of the hub or a hash of its folder."""
    name = split_layer(encoder)[0]
    path = WEIGHTS / name / "model.safetensors"
    if len(Path(name).parts) > 1 or not path.exists():  # a hub id, a folder
        return resolve_encoder(name).revision[:16]
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@cache
def world_digest(wording: str = "natural", noise: float = 0.0, skew: float = 0.0) -> str:
    """Of Sounding Scenes: factors and captions of 100 scenes a split (exact on every machine, unlike pixels)."""
    from .datasets import SoundingScenes
    from .scenes import SPLITS

    worlds = [SoundingScenes(pair, split, 100, noise=noise, skew=skew, wording=wording) for pair, split in SPLITS]
    return digest([(repr(w.scene(i)), w.caption(i)) for w in worlds for i in range(len(w))])


def scale(profile: Profile) -> dict:
    """What of a profile a single run depends on: not how many seeds there are, nor the device, nor the values that only
    take the place of others (audio-text pairs, real latents) or that only draw up arms. What came later than the first
    records counts where it is not as it was then, so that those stay what they are."""
    whole = {key: value for key, value in asdict(profile).items() if key not in _FREE}
    return {key: value for key, value in whole.items() if key not in _LATER or value != _LATER[key]}


_FREE = (
    "name", "seeds", "live_seeds", "device", "made_for", "workers", "in_memory", "photo_sizes", "note_sizes", "real_lengths",
    "scenes_as", "audio_items", "audio_sizes", "audio_lengths", "audio_batch_size", "audio_pairs", "train_pairs",
    "image_layers", "text_layer", "batch_factors",
)  # fmt: skip
_LATER = {
    f.name: f.default for f in fields(Profile)
    if f.name.startswith(("image_text", "audio_text")) or f.name in ("expansion", "warmup", "precision")
}  # fmt: skip


def data_of(arm: dict) -> str:
    """Which pairs an arm is about: "image-text" or "audio-text", of whatever the profile measures on, or a name in
    `real.REAL`."""
    return arm.get("data", "image-text")


def sets_of(arm: dict, profile: Profile) -> dict[str, tuple[str, ...]]:
    """The names of the data that an arm's splits come from, ``{"train": (name,), "val": (name,), "test": names}``: those of
    the profile, `profiles.SCENES` among them, or one in `real.REAL`. Of several to test on the first gives the plain
    metrics."""
    kind = data_of(arm)
    if kind in REAL:
        return dict.fromkeys(("train", "val", "test"), (kind,))
    train, val, tests = (getattr(profile, kind.replace("-", "_") + end) for end in ("", "_val", "_tests"))
    return {"train": (train,), "val": (val or train,), "test": tests or (train,)}


def encoders_of(arm: dict, profile: Profile) -> tuple[str, str]:
    """The encoders of an arm, that of x first: the profile's first ones unless it names others ("a+b": concatenated)."""
    if data_of(arm) in REAL:
        return REAL[data_of(arm)].encoders
    media = data_of(arm).split("-")[0]
    usual = {"image": profile.image_encoders, "audio": profile.audio_encoders}[media][0]
    return arm.get(media, usual), arm.get("text", profile.text_encoders[0])


def fingerprint(profile: Profile, arms: list[dict]) -> str:
    """What a record depends on: scale, arms, weights and data. A record with another one is stale.

    Real latents are not in it, since most readers do not have them: the record names their hash beside it.
    """
    made_here = [arm for arm in arms if data_of(arm) not in REAL]
    encoders = sorted({name for arm in made_here for side in encoders_of(arm, profile) for name in side.split("+")})
    usual = {"wording": "natural", "noise": 0.0, "skew": 0.0}
    told = sorted({tuple(arm.get(key, value) for key, value in usual.items()) for arm in arms} - {tuple(usual.values())})
    worlds = [world_digest(), *(world_digest(*how) for how in told)]
    drawn = sorted({name for arm in arms if "generator" in arm for name in (arm["generator"], "lite-reader")})
    return digest([scale(profile), arms, [weights_digest(name) for name in [*encoders, *drawn]], *worlds])
