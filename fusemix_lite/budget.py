"""Before a run: what it will take, whether that fits this machine, and what to change where it does not.

Everything is counted by `costs` from the values of a profile, and no encoder is fetched for it. Two assumptions turn operations
into time, and every estimate names them: which part of a device's peak rate real programs reach (`REACHED`), and how many
tokens a caption has (`TOKENS`). Decoding pictures and sounds is not counted; where a machine has few cores, it takes longer
than the encoder does.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from .arms import plan
from .costs import DEVICES, Cost, extraction_cost, fusion_cost, measured_rate, transformer_flops, vit_flops
from .device import pick_device
from .disk import read_json
from .encoders import LITE_ENCODERS, split_layer
from .errors import FuseMixLiteError
from .losses import DENSE_BYTES, TILE
from .mixing import SCHEMES
from .profiles import SCENES, Profile
from .real import COMPONENTS, REAL
from .records import sets_of

GB = 1e9
#: The part of a peak rate that programs reach: of a GPU's data sheet an assumption (chapter 7 makes the same one of a V100 in
#: fp32); of a CPU's best products what the book's own records reached, a fifth to a third.
REACHED = {"fp32": 0.6, "fp16": 0.3, "cpu": 0.25}
TOKENS = 16  # a caption, special tokens among them
KEPT = 4  # sources whose pairs a process keeps, of the twelve splits in `experiments.pairs_of`
PAIR = 64  # bytes a pair: its item's name and its owner
LONG = 3_600  # seconds: a run that nobody waits for, so that it has to be said
HEADROOM = 0.8  # of free memory: what is counted here is within a quarter of what autograd keeps (tests/test_costs.py)


class Machine(NamedTuple):
    """What a run may use: bytes that are free, operations a second that programs reach."""

    name: str
    fp32: float
    fp16: float  # where matrix products are in half precision; on a CPU as fp32
    device: float | None  # memory of the GPU; None: there is none
    ram: float | None  # None: not asked for
    disk: float | None

    def __str__(self) -> str:
        has = {"on the device": self.device, "of RAM": self.ram, "on disk": self.disk}
        return f"{self.name}, {', '.join(f'{_gb(size)} free {where}' for where, size in has.items() if size is not None)}"


class Need(NamedTuple):
    """What one stage takes."""

    stage: str  # "extraction" or "fusion"
    what: str
    seconds: float
    disk: float = 0.0
    ram: float = 0.0
    device: float = 0.0


@dataclass(frozen=True)
class Forecast:
    """What `before_run` says. Print it, or look at `needs` and `warnings`.

    Attributes:
        machine: that it is compared with.
        needs: what each stage takes.
        warnings: one line for each need that would not fit, with its remedy.
        left_out: what could not be counted, and why.
        made_for: the device (in `costs.DEVICES`) that the profile was made for; "": any computer.
    """

    machine: Machine
    needs: list[Need]
    warnings: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    made_for: str = ""

    @property
    def seconds(self) -> float:
        return sum(need.seconds for need in self.needs)

    @property
    def fits(self) -> bool:
        return not self.warnings

    def __str__(self) -> str:
        lines = [f"Before the run, on {self.machine}:"]
        for need in self.needs:
            held = {"on disk": need.disk, "in RAM": need.ram, "on the device": need.device}
            sizes = ", ".join(f"{_gb(size)} {where}" for where, size in held.items() if size)
            lines.append(f"  {need.stage}: {need.what}: {duration(need.seconds)}; {sizes}")
        rates = f"{_rate(self.machine.fp32)} in fp32 and {_rate(self.machine.fp16)} in half precision"
        lines.append(f"  (at {rates}, {TOKENS} tokens a caption; decoding and evaluation are not counted)")
        lines += [f"  not counted: {what}" for what in self.left_out]
        lines += [f"  WOULD NOT FIT: {warning}" for warning in self.warnings] or [f"  It fits{self._slowly}."]
        return "\n".join(lines)

    @property
    def _slowly(self) -> str:
        """What has to be said where a machine has the memory for a run but not the speed that its profile counts on."""
        if not self.made_for or self.seconds < LONG or self.machine.fp32 >= sheet_machine(self.made_for).fp32:
            return ""
        return f", but takes {duration(self.seconds)} here: the profile was made for a device like the {self.made_for}"


def this_machine(device: str = "auto") -> Machine:
    """What is free here and now. The rate of a GPU is its data sheet's (`costs.DEVICES`) times `REACHED`; of one without a
    data sheet, and of a CPU, it is measured (a fifth of a second)."""
    from .extraction import cache_dir

    ram, disk = _free_ram(), shutil.disk_usage(_existing(cache_dir())).free
    device = pick_device(device)
    if device.type != "cuda":
        rate = REACHED["cpu"] * _measured("cpu")
        return Machine("this computer's CPU", rate, rate, None, ram, disk)
    name, free = torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch keeps what it gave back
    known = next((sheet for key, sheet in DEVICES.items() if re.search(rf"\b{key}\b", name)), None)  # no T400
    rates = (REACHED["fp32"] * _measured(str(device)),) * 2 if known is None else _rates(known)
    return Machine(name, *rates, free, ram, disk)


def sheet_machine(name: str, ram: float | None = None, disk: float | None = None) -> Machine:
    """A device as its data sheet has it (`costs.DEVICES`), with nothing else running on it."""
    if name not in DEVICES:
        raise FuseMixLiteError(f"no data sheet of {name!r}; there are {', '.join(DEVICES)}")
    return Machine(name, *_rates(DEVICES[name]), DEVICES[name].memory, ram, disk)


def before_run(
    p: Profile,
    arms: Sequence[dict],
    seeds: int | None = None,
    tuned: bool = True,
    machine: Machine | None = None,
    local: bool = True,
) -> Forecast:
    """What runs of these arms will take, extraction included, against what a machine has.

    Args:
        p: the profile, as `arms.plan` scales it for the experiment.
        arms: of the record, or some of them.
        seeds: runs an arm; None: as many as a record of the profile has.
        tuned: whether each arm runs over the grid first.
        machine: None: this one.
        local: whether what is on this machine counts: latents in the cache, the sizes of data sets that are here. False: the
            same answer on every machine.
    """
    machine = machine or this_machine(p.device)
    extraction, unknown = _extraction(p, arms, machine, local)
    fusion, skipped = _fusion(p, arms, p.seeds if seeds is None else seeds, tuned, machine, local)
    forecast = Forecast(machine, [*extraction, *fusion], left_out=[*unknown, *skipped], made_for=p.made_for)
    return replace(forecast, warnings=list(_warnings(forecast, p)))


def before_experiment(name: str, p: Profile, machine: Machine | None = None, local: bool = True) -> Forecast:
    """What the record of an experiment (`arms.EXPERIMENTS`) will take under a profile; see `before_run`."""
    return before_run(*plan(name, p), machine=machine, local=local)


def largest_batch(p: Profile, pairs: int, dims: dict[str, int], memory: float, latents: bool = True) -> int | None:
    """The largest of ``p.batch_size`` and its halves with which one fusion run fits into so much memory, with its `latents` or
    without; None where not even 64 pairs do."""
    batch = p.batch_size
    while batch >= 64:
        cost = _one_run(p, pairs, dims, batch_size=batch)
        if cost.total_bytes - (0 if latents else cost.bytes["latents"]) <= memory:
            return batch
        batch //= 2
    return None


def projection(p: Profile, titles: dict[str, str], devices: Iterable[str]) -> list[dict]:
    """What tables of the paper take, one row a table and device: time of extraction (every encoder over everything, once) and
    of one fusion run of its first arm; gigabytes of latents on disk, and of what the run holds on the device besides them;
    pairs in the loss, and how many fit, the batch halved as often as need be.

    Args:
        p: the profile.
        titles: what a row is called -> the experiment (`arms.EXPERIMENTS`).
        devices: names in `costs.DEVICES`.
    """
    rows = []
    for title, name in titles.items():
        scaled, arms = plan(name, p)
        pairs, items, dims = _first(scaled, arms[0], local=False)
        cost = _one_run(scaled, pairs, dims, items)
        for device in devices:
            machine = sheet_machine(device)
            once, _ = _extraction(scaled, arms, machine, local=False)
            fit = largest_batch(scaled, pairs, dims, HEADROOM * machine.device, latents=False)
            rows.append({
                "what": title,
                "device": f"{device}, {machine.device / GB:.0f} GB",
                "extraction": duration(sum(need.seconds for need in once)),
                "one run": duration(cost.at(machine.fp32).seconds),
                "latents on disk": _gb(sum(need.disk for need in once)),
                "besides, on the device": _gb(cost.total_bytes - cost.bytes["latents"]),
                "pairs in the loss": f"{scaled.batch_size:,}",
                "of them fit": "none" if fit is None else f"{fit:,}",
            })  # fmt: skip
    return rows


# --- extraction -----------------------------------------------------------------------------------------------------------


class EncoderFacts(NamedTuple):
    dim: int
    flops: float  # an item
    weights: float  # how many, roughly


def _transformer(dim: int, depth: int, flops: float, hidden: float = 8) -> EncoderFacts:
    """hidden: weights of the MLP in squares of dim."""
    return EncoderFacts(dim, flops, depth * (4 + hidden) * dim * dim)


_WHISPER = {"tiny": (384, 4), "base": (512, 6), "small": (768, 12), "medium": (1024, 24), "large-v3": (1280, 32)}

#: What the profiles' public encoders are, from their configurations, so that nothing need be fetched to reckon with them.
PUBLIC = {
    **{
        f"facebook/dinov2-{size}": _transformer(dim, depth, vit_flops(224, 14, dim, depth))
        for size, dim, depth in (("small", 384, 12), ("base", 768, 12), ("large", 1024, 24))
    },
    "facebook/dinov2-giant": _transformer(1536, 40, vit_flops(224, 14, 1536, 40, 4096, gated=True)),
    "DeepGlint-AI/mlcd-vit-large-patch14-336": _transformer(1024, 24, vit_flops(336, 14, 1024, 24)),
    **{
        f"{family}-{size}-{version}": _transformer(dim, depth, transformer_flops(TOKENS, dim, depth))
        for family, version in (("BAAI/bge", "en-v1.5"), ("intfloat/e5", "v2"))
        for size, dim, depth in (("small", 384, 12), ("base", 768, 12), ("large", 1024, 24))
    },
    "sentence-transformers/all-MiniLM-L6-v2": _transformer(384, 6, transformer_flops(TOKENS, 384, 6)),
    # 12 x 101 overlapping patches of a spectrogram, and two tokens more
    "MIT/ast-finetuned-audioset-10-10-0.4593": _transformer(768, 12, transformer_flops(1_214, 768, 12)),
    **{
        f"openai/whisper-{size}": _transformer(dim, depth, transformer_flops(1_500, dim, depth))  # 30 s, whatever the sound
        for size, (dim, depth) in _WHISPER.items()
    },
}


@cache
def encoder_facts(name: str) -> EncoderFacts | None:
    """Dimension, operations an item and weights of an encoder: from `PUBLIC`, or counted on one that is on this machine;
    None of one that would have to be fetched first."""
    from .costs import encoder_flops
    from .encoders import load_encoder

    base = split_layer(name.removeprefix("clean:"))[0]  # cleaning a caption costs nothing that is counted
    if base in PUBLIC:
        return PUBLIC[base]
    if base not in LITE_ENCODERS and not Path(base).is_dir():
        return None
    encoder = load_encoder(base, "cpu")
    return EncoderFacts(encoder.dim, encoder_flops(encoder, [_example(encoder.modality)]), _weights(encoder))


def _example(modality: str):
    import numpy as np
    from PIL import Image

    caption = "two people walk along a wet street in the evening with a small dog"  # about TOKENS
    return {"image": Image.new("RGB", (64, 64)), "text": caption, "audio": np.zeros(48_000, np.float32)}[modality]


def _weights(encoder) -> float:
    return float(sum(weight.numel() for weight in encoder.model.parameters()))


def _extraction(p: Profile, arms: Sequence[dict], machine: Machine, local: bool) -> tuple[list[Need], list[str]]:
    """One need for all latents, less those in the cache where `local`, and the encoders that nothing is known of."""
    from .experiments import is_public, needed

    flops = seconds = size = largest = 0.0
    counted: dict[str, int] = {}
    unknown, seen = [], set()
    for split, source in needed(p, arms):
        if source.data in REAL:
            continue
        for side, names in (("x", source.x_encoder), ("y", source.y_encoder)):
            modality = "text" if side == "y" else ("audio" if _is_sound(source.data, p) else "image")
            for encoder in names.split("+"):
                told = (source.captions, source.wording, source.noise) if side == "y" else ()
                key = (split, source.data, source.skew, encoder, told)
                if key in seen or (local and _in_cache(split, source, encoder, side, p)):
                    continue
                seen.add(key)
                facts = encoder_facts(encoder)
                if facts is None:
                    unknown.append(f"{encoder}, which is not on this machine yet")
                    continue
                items = rows_of(p, split, source, side, local)
                cost = extraction_cost(items, facts.flops, facts.dim)
                flops, size = flops + cost.total_flops, size + cost.total_bytes
                half = p.precision != "fp32" and is_public(source)
                seconds += cost.total_flops / (machine.fp16 if half else machine.fp32)
                largest = max(largest, 4 * facts.weights)
                counted[modality] = counted.get(modality, 0) + items
    if not counted:
        return [], list(dict.fromkeys(unknown))
    words = {"image": "pictures", "audio": "sounds", "text": "captions"}
    what = ", ".join(f"{items:,} {words[modality]}" for modality, items in counted.items()) + " to encode, once"
    held = {"device" if machine.device is not None else "ram": largest}
    return [Need("extraction", what, seconds, disk=size, **held)], list(dict.fromkeys(unknown))


def rows_of(p: Profile, split: str, source, side: str, local: bool) -> int:
    """How many items (side "x") or captions ("y") a split has: of public data that are here (where `local`) as many as there
    are, and else by the profile and what is known of the data."""
    from .experiments import is_public

    public = is_public(source)
    here = _rows_here(source.data, split) if local and public else None
    if here:
        return here[side] if side == "x" or not source.captions else min(here["y"], here["x"] * source.captions)
    of = p.sounds if _is_sound(source.data, p) else p
    own = {"train": of.train_items, "val": of.val_items, "test": of.test_items}[split]
    if public and split != "train":
        own = _known_items(source.data, split) or own
    if side == "x":
        return own
    if public and split == "train" and of.train_pairs and not source.captions:
        return of.train_pairs
    return own * (source.captions or of.captions)


def _rows_here(name: str, split: str) -> dict[str, int] | None:
    from .experiments import lacks_public, open_public

    if lacks_public(name, split) is not None:
        return None
    dataset = open_public(name, split)
    return {"x": len(dataset), "y": len(dataset.fields("text")[0])}


def _is_sound(data: str, p: Profile) -> bool:
    return data in ("audio-text", p.audio_text, p.audio_text_val, *p.audio_text_tests) and data != SCENES


def _known_items(name: str, split: str) -> int | None:
    """What the data set's record states, in words that begin with the number."""
    from .public_sets import DATASETS

    found = [re.match(r"[\d,]+", DATASETS[one].splits.get(split, "")) for one in name.split("+") if one in DATASETS]
    return sum(int(match[0].replace(",", "")) for match in found if match) or None


def _in_cache(split: str, source, encoder: str, side: str, p: Profile) -> bool:
    """Whether the latents are there, by the name of their folder (`extraction.cached_latents`) and their precision: nothing is
    loaded for it."""
    from .datasets import SoundingScenes
    from .experiments import is_public, lacks_public, open_public
    from .extraction import cache_dir, cache_name

    precision = p.precision
    if not is_public(source):
        precision = "fp32"
        size = {"train": p.train_items, "val": p.val_items, "test": p.test_items}[split]
        told = (source.captions, source.noise, source.wording) if side == "y" else (5, 0.0, "natural")
        identity = SoundingScenes(source.data, split, size, told[0], told[1], source.skew, wording=told[2]).id
    elif lacks_public(source.data, split) is None:
        identity = open_public(source.data, split).id
    else:
        return False
    name = Path(encoder).name if Path(encoder).is_dir() else encoder
    manifests = cache_dir().glob(f"{cache_name(identity, name)}--*/manifest.json")
    found = (read_json(file, "delete its folder") for file in manifests)
    return any(isinstance(manifest, dict) and manifest.get("precision", "fp32") == precision for manifest in found)


# --- fusion ---------------------------------------------------------------------------------------------------------------


def _fusion(
    p: Profile, arms: Sequence[dict], seeds: int, tuned: bool, machine: Machine, local: bool
) -> tuple[list[Need], list[str]]:
    """One need for all runs, and what of the arms is not counted."""
    from .experiments import source_of

    seconds = held = subset = 0.0
    runs, left_out, whole = 0, [], {}
    for arm in arms:
        if arm.get("scheme") not in SCHEMES:
            left_out.append(f"arms of {arm.get('scheme', 'pictures drawn')}, which are no fusion")
            continue
        known = _first(p, arm, local)
        if known is None:
            left_out.append("fusion with encoders that are not on this machine yet")
            continue
        pairs, items, dims = known
        for steps, times in _lengths(p, arm, seeds, tuned):
            cost = _one_run(p, pairs, dims, items, steps, arm, "cpu" if machine.device is None else "other")
            seconds += times * cost.total_flops / machine.fp32
            runs += times
            stay = cost.bytes["latents"] if _in_memory(p, arm) else 0.0
            held = max(held, cost.total_bytes - cost.bytes["latents"] + stay)
            subset = max(subset, stay, PAIR * pairs)
        whole[source_of(arm, p, "train")] = _whole(p, arm, local) if _in_memory(p, arm) else 0.0
    if not runs:
        return [], list(dict.fromkeys(left_out))
    ram = subset + sum(sorted(whole.values())[-KEPT:])  # all pairs of the last few sources, and one arm's part of them
    where = {"device": held, "ram": ram} if machine.device is not None else {"ram": held + ram}
    return [Need("fusion", f"{runs:,} runs", seconds, **where)], list(dict.fromkeys(left_out))


def _whole(p: Profile, arm: dict, local: bool) -> float:
    """Bytes of all pairs that an arm's are taken from, in fp32."""
    if sets_of(arm, p)["train"][0] in REAL:
        return 0.0  # small, and read once
    pairs, items, dims = _first(p, arm | {"items": p.train_items + p.sounds.train_items}, local)  # more than there are
    x, y = dims.values()
    return 4.0 * (items * x + pairs * y)


def _in_memory(p: Profile, arm: dict) -> bool:
    return p.in_memory or sets_of(arm, p)["train"][0] in (SCENES, *REAL)


def _lengths(p: Profile, arm: dict, seeds: int, tuned: bool) -> list[tuple[int, int]]:
    """(steps, how many runs have them): the grid, then the longest for every seed, since nobody knows what will be chosen."""
    dropouts = (arm["dropout"],) if "dropout" in arm else p.dropouts
    lengths = (arm["steps"],) if "steps" in arm else p.lengths
    trials = [(steps, len(dropouts) * p.tuning_seeds) for steps in lengths]
    return [*(trials if tuned and len(dropouts) * len(lengths) > 1 else []), (max(lengths), seeds)]


def _first(p: Profile, arm: dict, local: bool) -> tuple[int, int, dict[str, int]] | None:
    """Pairs and items that an arm learns from, and its latents' dimensions; None where an encoder is not known."""
    from .experiments import source_of

    source = source_of(arm, p, "train")
    if source.data in REAL:
        items = arm["items"]
        return items * REAL[source.data].captions, items, dict.fromkeys(REAL[source.data].names, COMPONENTS)
    facts = [[encoder_facts(name) for name in names.split("+")] for names in (source.x_encoder, source.y_encoder)]
    if None in (fact for side in facts for fact in side):
        return None
    every, captions = (rows_of(p, "train", source, side, local) for side in ("x", "y"))
    items = min(arm["items"], every)
    names = ("audio" if _is_sound(source.data, p) else "image", "text")
    dims = {name: sum(fact.dim for fact in side) for name, side in zip(names, facts, strict=True)}
    return max(1, captions * items // every), items, dims


def _one_run(
    p: Profile,
    pairs: int,
    dims: dict[str, int],
    items: int | None = None,
    steps: int = 0,
    arm: dict | None = None,
    kind: str = "other",
    **other,
) -> Cost:
    """One run of an arm, of FuseMix where none is given, with some options otherwise. `kind` is "cpu" or "other", as the loss
    tells devices apart (`losses.DENSE_BYTES`)."""
    arm = arm or {"scheme": "fusemix"}
    options = {name: getattr(p, name) for name in ("batch_size", "shared_dim", "depth", "expansion")}
    options |= {name: arm[name] for name in options if name in arm} | other
    mixing = SCHEMES[arm["scheme"]].rows_per_pair
    batch = options["batch_size"] = max(2, min(options["batch_size"], pairs // mixing))  # as fit makes it smaller
    options["tile"] = TILE[kind] if 4 * batch**2 > DENSE_BYTES[kind] else None  # as the loss takes them
    return fusion_cost(pairs, dims, items=items, steps=steps or max(p.lengths), rows_per_pair=mixing, **options)


# --- what fits ------------------------------------------------------------------------------------------------------------


def _warnings(forecast: Forecast, p: Profile) -> Iterator[str]:
    machine = forecast.machine
    keep = "leave the latents on disk (in_memory=False), " if p.in_memory else ""
    for need in forecast.needs:
        if machine.disk is not None and need.disk > HEADROOM * machine.disk:
            yield (
                f"{need.stage} writes {_gb(need.disk)}, {_gb(machine.disk)} are free on disk: "
                "name a cache elsewhere (FUSEMIX_LITE_CACHE), or take fewer or smaller encoders"
            )
        if machine.device is not None and need.device > HEADROOM * machine.device:
            yield (
                f"{need.stage} holds {_gb(need.device)} on the device, {_gb(machine.device)} are free: take a smaller "
                f"batch_size than {p.batch_size:,}, {keep}or fewer encoders side by side"
            )
        if machine.ram is not None and need.ram > HEADROOM * machine.ram:
            yield (
                f"{need.stage} holds {_gb(need.ram)} in RAM, {_gb(machine.ram)} are free: {keep}take fewer items or a "
                "smaller batch_size"
            )


def _rates(sheet) -> tuple[float, float]:
    return sheet.fp32 * REACHED["fp32"], sheet.fp16 * REACHED["fp16"]


@cache
def _measured(device: str) -> float:
    return measured_rate(0.2, device=device)


def _free_ram() -> float | None:
    """Bytes that a process may still take: what Linux calls available, or less where a container has a limit."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text("utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(1024.0 * int(line.split()[1]))
        limit, used = (Path(f"/sys/fs/cgroup/memory.{what}").read_text("utf-8").strip() for what in ("max", "current"))
        if limit != "max":
            found.append(float(limit) - float(used))
    except (OSError, ValueError):
        pass
    if not found and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    return min(found, default=None)


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _gb(size: float) -> str:
    return f"{size / GB:,.1f} GB" if size >= 0.05 * GB else f"{size / 1e6:,.0f} MB"


def _rate(rate: float) -> str:
    return f"{rate / 1e12:,.1f} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:,.0f} GFLOP/s"


def duration(seconds: float) -> str:
    """In the unit that suits, as roughly as it is known: "23 days", "7.0 h", "2.3 min", "15 s"."""
    size, unit = _unit(seconds)
    return f"{seconds / size:,.{0 if seconds >= 9.95 * size or size == 1 else 1}f} {unit}"


def order_of(seconds: float) -> str:
    """The same to one digit, for a page: "20 days", "7 h", "2 min"."""
    size, unit = _unit(seconds)
    return f"{float(f'{seconds / size:.0e}'):,.0f} {unit}"


def _unit(seconds: float) -> tuple[int, str]:
    return next((pair for pair in ((86_400, "days"), (3_600, "h"), (60, "min")) if seconds >= 2 * pair[0]), (1, "s"))
