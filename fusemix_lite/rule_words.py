"""Rules of the claim ledger in words, made from the rules themselves: what is measured, what is asked for, the null.

``{arm: {scheme: fusemix, items: 500}, other: {scheme: none, items: 500}}`` reads "FuseMix minus no mixing (500 scenes)".
"""

import re

from .claims import Claim
from .real import REAL
from .records import data_of

_SCHEMES = {
    "none": "no mixing",
    "noise": "Gaussian noise",
    "separate": "a λ for each modality",
    "quantise": "quantised latents",
    "slerp": "FuseMix by slerp",
    "fusemix": "FuseMix",
    "scratch": "both encoders from scratch",
}
#: Names of keys that read badly.
_NAMES = {
    "batch_size": "batch",
    "shared_dim": "shared dimension",
    "mix_probability": "share of mixed steps",
    "alpha": "α",
    "unit": "latents scaled to norm 1",
    "standardize": "standardised latents",
    "mask_negatives": "false negatives masked",
}
#: Values that have words of their own; an empty one goes without saying.
_WORDS = {
    "scheme": _SCHEMES,
    "null": {"again": "on other seeds", "shuffled": "shuffled pairs", "shuffled-b": "second encoder’s latents shuffled"},
    "per": {"pair": "a λ for each pair", "batch": "one λ a batch"},
    "wording": {"template": "captions from a template"},
    "swap": {"image": "a new image tower into the frozen text tower", "text": "a new text tower into the frozen image tower"},
    "kept": {"untrained": "frozen before it learnt anything"},
    "generator": {"lite-generator": ""},
    "told": {
        "sound": "pictures from sounds",
        "audio-caption": "pictures from captions of sounds",
        "image-caption": "pictures from captions of pictures",
    },
    "correct": {"none": "no correction", "mean": "mean corrected", "spread": "mean and spread corrected"},
}
#: What the lack of a key means beside an arm that has it.
_USUAL = {
    "scheme": "",
    "items": "",
    "null": "pairs as they are",
    "noise": "careful captions",
    "clean": "no more careful ones",
    "skew": "in an even world",
    "unit": "raw latents",
    "standardize": "raw latents",
    "mask_negatives": "nothing masked",
    "per": "one λ a batch",
    "dropout": "tuned dropout",
    "steps": "tuned steps",
    "wording": "people’s captions",
    "temperature": "learnt temperature",
    "before": "",
    "swap": "both towers anew",
    "kept": "frozen as trained",
    "correct": "",
}
_COUNTED = {
    "steps": "{:,} steps",
    "captions": "captions an item: {}",
    "train_captions": "captions an item in training: {}",
    "noise": "{:.0%} of captions as on the web",
    "clean": "{:,} careful ones among them",
    "pool": "of a pool of {:,}",
    "skew": "in a world skewed by {:g}",
    "before": "after {}",
}
_ITEMS = {"image-text": "scenes", "audio-text": "scenes", "flickr8k": "photos", "philharmonia": "notes"}


def metric_in_words(metric: str) -> str:
    """ "image_to_text@1" as "R@1 from image to text"; of another test, "even_image_to_text@1", that too; else its name."""
    found = re.fullmatch(r"(?:(\w+)_)?([a-z]+)_to_([a-z]+)@(\d+)", metric)
    if not found:
        return metric.replace("_", " ")
    test, x, y, k = found.groups()
    return f"R@{k} from {x} to {y}" + (f" ({test.replace('_', ' ')} test)" if test else "")


def arm_in_words(arm: dict) -> str:
    """An arm as a reader would name it: "FuseMix, 500 scenes, dropout 0.6"."""
    return _before(arm) + _listed(arm)


def measured_in_words(claim: Claim, rule: dict | None = None) -> str:
    """What the rule measures, without the metric: "FuseMix minus no mixing (500 scenes)"."""
    rule = rule or claim.rule
    if claim.kind == "arithmetic":
        return str(rule["arithmetic"]).replace("*", "×").replace("_", ",")
    if claim.kind == "level":
        level = "blind guessing" if rule["level"] == "chance" else f"{rule['level']:g} %"
        return f"{arm_in_words(rule['arm'])}, minus {level}"
    if claim.kind == "change":
        before, after = (_compared(rule[side]["arm"], rule[side]["other"]) for side in ("before", "after"))
        does = "changes" if rule["change"] == "stays" else rule["change"]
        return f"by how much the lead {does} from “{before}” to “{after}”"
    if claim.kind == "trend":
        return _trend_in_words(rule)
    return _compared(rule["arm"], rule["other"], "as a share of" if "share" in rule else "minus")


def asked_in_words(claim: Claim) -> str:
    """What has to come out: the rule's criterion and margin."""
    rule = claim.rule
    if claim.kind == "arithmetic":
        return f"reproduced if it comes to {rule['equals']:,g}, give or take {rule['within']:g} %"
    each = ", at each of the metrics" if len(claim.metrics) > 1 else ""
    if claim.criterion == "share":
        more = "; direction only if it lies above 100 %" if rule["share"] > 100 else ""
        return f"reproduced if the whole interval is at or above {rule['share']:g} %{each}{more}"
    wanted = rule[claim.criterion]
    margin = f"{wanted:g} point{'s' * (wanted != 1)}{' a doubling' * (claim.kind == 'trend')}"
    if claim.asks_for_likeness:
        return f"reproduced if the whole interval lies within {margin} of 0{each}"
    return (
        f"reproduced if the interval lies above 0 and the mean is at least {margin}{each}; "
        "direction only if the interval lies above 0, but the mean is smaller"
    )


def null_in_words(claim: Claim) -> str:
    """What stands in for the arms where the claim cannot be true."""
    if not isinstance(claim.null, dict):
        return "none" + ": there is no luck in arithmetic" * (claim.kind == "arithmetic")
    if "order" in claim.null:
        return "the same runs, each seed’s in random order"
    return measured_in_words(claim, claim.rule | claim.null)


def _compared(arm: dict, other: dict, by: str = "minus") -> str:
    """Two arms by what sets them apart, and in brackets what they share."""
    apart = sorted({key for key in arm | other if arm.get(key) != other.get(key)}, key=_place)
    same = {key: value for key, value in arm.items() if key not in apart}
    if not apart:
        return f"{arm_in_words(same)}, {by} itself"
    if apart == ["null"] and "again" in (arm.get("null"), other.get("null")):
        again, by = ("the same on other seeds", by) if "null" in other else ("other seeds", "minus the same on")
        return f"{arm_in_words(same)}, {by} {again}"
    both = ((arm, other), (other, arm))
    words = [", ".join(filter(None, (_told(one, key, two) for key in apart))) or "as usual" for one, two in both]
    shared = _listed(same)
    return f"{_before(same)}{words[0]} {by} {words[1]}" + (f" ({shared})" if shared else "")


def _trend_in_words(rule: dict) -> str:
    arms, over, others = rule["arms"], rule["over"], rule.get("others", [])
    same = {key: value for key, value in arms[0].items() if key != over and all(arm.get(key) == value for arm in arms)}
    shared = {key: value for key, value in same.items() if all(arm.get(key) == value for arm in others)}
    apart = {key: value for key, value in (others or arms)[0].items() if key not in (over, *shared)}
    if others:
        lead = {key: value for key, value in same.items() if key not in shared}
        told = f"{_listed(lead)} minus {_listed(apart)}" + (f" ({_listed(shared)})" if _listed(shared) else "")
    else:
        told = _listed(same)
    values = rule.get("at") or [arm[over] for arm in arms if over in arm]
    what = _ITEMS.get(data_of(arms[0]), over) if over == "items" else _NAMES.get(over, over.replace("_", " "))
    does = {"rises": "rises", "falls": "falls", "flat": "changes"}[rule["trend"]]
    ends = f", {min(values):,g} to {max(values):,g}" if len(values) > 1 else ""
    return f"{_before(shared)}by how much {told} {does} with each doubling of {what}{ends}"


def _before(arm: dict) -> str:
    """What is said first: which data, where they are not pictures and captions of scenes."""
    data = data_of(arm)
    return f"{REAL[data].title}: " if data in REAL else "sounds: " * (data == "audio-text")


def _listed(arm: dict) -> str:
    return ", ".join(filter(None, (_told(arm, key) for key in sorted(set(arm) - {"data"}, key=_place))))


def _place(key: str) -> tuple:
    first, last = ("scheme", "items"), ("null",)
    return (first.index(key) if key in first else 9 if key in last else 5, key)


def _told(arm: dict, key: str, beside: dict | None = None) -> str:
    """One key of an arm in words; one that it lacks, and the arm beside it has, is as usual."""
    value = arm.get(key)
    if value is None:
        if key == "null" and (beside or {}).get(key) == "again":
            return ""
        return _USUAL.get(key, f"usual {_NAMES.get(key, key.replace('_', ' '))}")
    if key in _WORDS:
        return _WORDS[key].get(value, f"{value} {key}")
    if key == "items":
        return f"{value:,} {_ITEMS.get(data_of(arm), 'pairs')}"
    if key == "pick":
        return _picked(value, data_of(arm))
    if key in ("image", "text", "audio"):
        return str(value).replace("lite-", "").replace("+", " + ").replace("@", ", layer ")
    if key in _COUNTED:
        return _COUNTED[key].format(value).replace("lite-", "")
    name = _NAMES.get(key, key.replace("_", " "))
    return name if value is True else f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"


def _picked(way: str, data: str) -> str:
    name, *sides = way.split("-")
    on = {"x": {"image-text": "images", "flickr8k": "photos"}.get(data, "sounds"), "y": "captions", "both": "both sides"}
    told = {"uniform": "at random", "kdpp": "by k-DPP", "kcentre": "by k-centre", "clusters": "by clusters",
            "redundant": "redundantly"}.get(name, name)  # fmt: skip
    return f"picked {told}" + "".join(f" on {on[side]}" if side in on else f", {side}" for side in sides)
