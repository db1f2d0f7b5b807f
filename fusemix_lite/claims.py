"""The claim ledger: rules that were fixed before the runs, applied to records. The rows stand in ``book/claims.yml``.

    for claim in load_claims():
        print(claim.id, judge(claim, record_of(claim)))

A rule names what is measured (a difference of two arms, the distance of one from a level, a ratio, a change of a lead, a
trend over arms, or mere arithmetic) and what that has to reach; `judge` turns both into a verdict. All arms of a rule run on
the same seeds, so everything is paired over them, with a 95 % Student-t interval.
"""

import ast
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from .bundled import bundled
from .errors import FuseMixLiteError
from .metrics import guessing
from .profiles import Profile
from .records import Record
from .reported import MARKS
from .stats import Interval, interval
from .untrusted import read_yaml

CLAIMS = bundled("claims.yml")

VERDICTS = ("reproduced", "direction only", "not reproduced", "not testable at this scale")
GROUPS = (
    "method", "retrieval", "efficiency", "quantity", "quality", "diversity", "ablations", "modularity", "generation",
)  # fmt: skip


class Kind(NamedTuple):
    """A kind of rule: what it measures, what may be asked of that, and how a null stands in for its arms."""

    fields: set[str]  # all needed, beside `metric`
    criteria: set[str]  # exactly one of them
    nulls: tuple[set[str], ...]  # fields that a null replaces: one of these sets
    optional: frozenset = frozenset()


#: The kinds of rules. Which one a rule is of follows from its fields alone; the top of book/claims.yml says what they mean.
KINDS = {
    "difference": Kind({"arm", "other"}, {"margin", "within", "share"}, ({"arm", "other"},)),
    "level": Kind({"arm", "level"}, {"margin", "within", "above"}, ({"arm"},)),
    "change": Kind({"change", "before", "after"}, {"margin", "within"}, ({"before", "after"},)),
    "trend": Kind(
        {"trend", "arms", "over"}, {"margin", "within"}, ({"arms", "at"}, {"arms", "others", "at"}, {"order"}),
        frozenset({"others", "at"}),
    ),
}  # fmt: skip
LARGEST = 1e100  # of the numbers in a rule
PLAIN = ("gap",)  # metrics that are no percentages
WORDS = {"change": {"grows": 1, "shrinks": -1, "stays": 1}, "trend": {"rises": 1, "falls": -1, "flat": 1}}


@dataclass(frozen=True)
class Claim:
    """A row of the ledger; its fields are explained at the top of ``book/claims.yml``."""

    id: str
    claim: str
    where: str
    mark: str
    reported: float | str | None
    record: str | None
    profile: str | None
    rule: dict | None  # None: not testable at this scale, and `why` says why
    null: dict | Literal["none"] | None  # what takes the place of the rule's arms; the claim cannot be true for it
    group: str | None = None
    chapter: str | None = None
    real: dict | None = None  # the same rule on real latents: record, and what it replaces of the rule
    why: str | None = None  # it cannot be tested, or its run has not been made yet

    def __post_init__(self):
        for field in ("id", "claim", "where", "mark", "record", "profile", "group", "chapter", "why"):
            value = getattr(self, field)
            if not isinstance(value, str) and (value is not None or field in ("id", "claim", "where", "mark")):
                raise self._wrong(f"its {field} is {value!r:.80}, no text")
        if not isinstance(self.rule, dict | None):
            raise self._wrong(f"its rule is {self.rule!r:.80}, no mapping")
        if self.mark not in (*MARKS, "ours"):
            raise self._wrong(f"its mark is {self.mark!r}, not one of {', '.join(MARKS)} or ours")
        if self.group not in (None, *GROUPS):
            raise self._wrong(f"its group is {self.group!r}, not one of {', '.join(GROUPS)}")
        if self.rule is None:
            if not self.why or self.null or self.record:
                raise self._wrong("without a rule it is not testable, so it says why, and has neither record nor null")
        elif "arithmetic" in self.rule:
            self._check_arithmetic()
        else:
            self._check_rule()

    @property
    def kind(self) -> Literal["difference", "level", "change", "trend", "arithmetic", "untestable"]:
        """What its rule measures."""
        if self.rule is None:
            return "untestable"
        first = {"arithmetic": "arithmetic", "change": "change", "trend": "trend", "level": "level"}
        return next((first[field] for field in first if field in self.rule), "difference")

    @property
    def criterion(self) -> str | None:
        """What is asked of it: "margin", "within", "above" or "share"."""
        asked = {"margin", "within", "above", "share"} & set(self.rule or ())
        return next(iter(asked), None)

    @property
    def asks_for_likeness(self) -> bool:
        """Whether a result has to lie near 0, so that its null plainly does not."""
        return self.criterion == "within" or (self.kind, self.criterion) == ("level", "margin")

    @property
    def metrics(self) -> list[str]:
        """Where the rule has to hold: at one metric, or at each of several."""
        named = (self.rule or {}).get("metric", [])
        return [named] if isinstance(named, str) else list(named)

    def _wrong(self, what: str) -> FuseMixLiteError:
        return FuseMixLiteError(f"claim {self.id!r}: {what}")

    def _check_arithmetic(self) -> None:
        numbers = [self.rule.get(key) for key in ("equals", "within")]
        given = all(type(number) in (int, float) and 0 < abs(number) < LARGEST for number in numbers)
        if set(self.rule) != {"arithmetic", "equals", "within"} or not given or numbers[1] < 0:
            raise self._wrong("arithmetic needs what it equals (not 0), and within how many % of that")
        if self.null != "none" or self.record or self.real:
            raise self._wrong('arithmetic has no record, and "null": none')
        _calculate(self.rule["arithmetic"], self.id)

    def _check_rule(self) -> None:
        kind = KINDS[self.kind]
        asked = set(self.rule) - kind.fields - kind.optional - {"metric"}
        if not kind.fields | {"metric"} <= set(self.rule) or len(asked) != 1 or not asked <= kind.criteria:
            if self.kind == "difference":
                raise self._wrong("its rule needs metric, arm, either other or level, and one of margin, within, share")
            needs, one = ", ".join(sorted(kind.fields)), ", ".join(sorted(kind.criteria))
            raise self._wrong(f"a rule about a {self.kind} needs metric, {needs} and one of {one}")
        if not self.metrics or not self.record or not self.profile or not all(isinstance(name, str) for name in self.metrics):
            raise self._wrong("a rule needs a metric (or several), a record and a profile")
        if not all(type(self.rule[key]) in (int, float) and 0 < self.rule[key] < LARGEST for key in asked):
            raise self._wrong(f"{self.criterion} is a number above 0")
        level = self.rule.get("level", "chance")
        if level != "chance" and not (type(level) in (int, float) and abs(level) < LARGEST):
            raise self._wrong(f"level is chance or a number, not {level!r:.80}")
        word = self.rule.get(self.kind)
        if self.kind in WORDS and (str(word) not in WORDS[self.kind] or (word in ("stays", "flat")) != ("within" in asked)):
            raise self._wrong(
                f"{self.kind} is one of {', '.join(WORDS[self.kind])}; the last one takes within, the others margin"
            )
        self._check_arms(self.rule)
        if not isinstance(self.null, dict) or set(self.null) not in kind.nulls:
            raise self._wrong("its null names the arms of its rule, no more and no less (a trend's: arms and at, or order)")
        if "order" in self.null and (self.null["order"] != "scrambled" or "within" in asked):
            raise self._wrong("the only order is scrambled, for a trend that rises or falls")
        self._check_arms({**self.rule, **self.null})
        if self.real is not None:
            if not isinstance(self.real, dict) or not {"record"} < set(self.real) <= {"record", "profile", *self.rule} - asked:
                raise self._wrong("real names a record and what it replaces of the rule, but neither margin, within nor share")
            self._check_arms(self.rule | self.real)

    def _check_arms(self, rule: dict) -> None:
        for side in ("before", "after"):
            if side in rule and (not isinstance(rule[side], dict) or set(rule[side]) != {"arm", "other"}):
                raise self._wrong(f"{side} names an arm and the other, whose difference is the lead")
        lists = [rule[key] for key in ("arms", "others", "at") if key in rule]
        if not all(isinstance(each, list) for each in lists):
            raise self._wrong("arms, others and at are lists")
        leads = [rule[side][key] for side in ("before", "after") if side in rule for key in ("arm", "other")]
        named = [rule[key] for key in ("arm", "other") if key in rule] + rule.get("arms", []) + rule.get("others", [])
        if not all(isinstance(arm, dict) and all(isinstance(key, str) for key in arm) for arm in leads + named):
            raise self._wrong("an arm is a mapping of what it runs with")
        if not isinstance(rule.get("over", ""), str):
            raise self._wrong("over names what a trend is over")
        if "arms" in rule:
            given = [rule[key] for key in ("arms", "others", "at") if key in rule]
            if len(rule["arms"]) < 2 or len({len(each) for each in given}) > 1:
                raise self._wrong("a trend needs two arms or more, and as many others and at, where they are given")


class Verdict(NamedTuple):
    """What a rule measures, with its 95 % interval, and what it says to that.

    A positive number is one in the claim's direction. Points of a metric in %, but for a share (% of the other arm), a trend
    (points an octave, that is a doubling), a metric that is no percentage (plain) and arithmetic (no unit, no interval).
    """

    mean: float
    low: float
    high: float
    verdict: Literal["reproduced", "direction only", "not reproduced", "not testable at this scale"]
    unit: Literal["points", "% of the other", "points an octave", "plain", ""] = "points"

    def __str__(self) -> str:
        return f"{points(self)}: {self.verdict}"


def load_claims(path: Path = CLAIMS) -> list[Claim]:
    """All rows of the ledger, checked."""
    try:
        rows = read_yaml(Path(path))
        if not isinstance(rows, list):
            raise TypeError("no list of claims")
        claims = [Claim(**row) for row in rows]
    except FileNotFoundError:
        raise FuseMixLiteError(f"no claim ledger {path}") from None
    except FuseMixLiteError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise FuseMixLiteError(f'claim ledger {path} is broken ({error}); note that the key "null" needs quotes') from None
    ids = [claim.id for claim in claims]
    if len(set(ids)) < len(ids):
        raise FuseMixLiteError(f"claim ledger {path}: an id stands there twice: {sorted(ids)}")
    return claims


def record_of(claim: Claim, real: bool = False) -> Record | None:
    """The record that a claim is judged by, or with ``real`` the one of real latents; None where it names none.

    Raises:
        FuseMixLiteError: the record has not been made yet.
    """
    if real:
        return Record.load(claim.real["record"], claim.real.get("profile", claim.profile)) if claim.real else None
    return Record.load(claim.record, claim.profile) if claim.record else None


def judge(claim: Claim, record: Record | None) -> Verdict:
    """What the claim's rule says to a record of its experiment at its scale (None for claims that need no record).

    A rule over several metrics has to hold at each of them: the verdict is that of the weakest (`judge_each` has all).
    """
    if claim.kind == "untestable":
        return Verdict(math.nan, math.nan, math.nan, "not testable at this scale", "")
    if claim.kind == "arithmetic":
        value, rule = _calculate(claim.rule["arithmetic"], claim.id), claim.rule
        off = 100 * abs(value / rule["equals"] - 1)
        return Verdict(value, value, value, "reproduced" if off <= rule["within"] else "not reproduced", "")
    return weakest(claim, judge_each(claim, record))


def judge_each(claim: Claim, record: Record) -> dict[str, Verdict]:
    """The verdict at each metric of a rule."""
    return _apply(claim, claim.rule, record, (claim.record, claim.profile))


def judge_null(claim: Claim, record: Record | None) -> Verdict:
    """The same rule where the claim cannot be true; "reproduced" here would speak against the rule."""
    if not isinstance(claim.null, dict):
        raise FuseMixLiteError(f"claim {claim.id!r} has no null: it is about arithmetic, or cannot be tested")
    return weakest(claim, _apply(claim, claim.rule | claim.null, record, (claim.record, claim.profile)))


def judge_real(claim: Claim, record: Record | None) -> Verdict:
    """The same rule, with the same margin, on the real latents that the claim names (``record_of(claim, real=True)``)."""
    if not claim.real:
        raise FuseMixLiteError(f"claim {claim.id!r} names no real latents")
    real = dict(claim.real)
    made = real.pop("record"), real.pop("profile", claim.profile)
    return weakest(claim, _apply(claim, claim.rule | real, record, made))


def points(gain: Interval | Verdict) -> str:
    """A difference with its interval, as text: "+1.8 (+1.2 to +2.4)"; a share as "93 % (91 to 95)"; a plain number as it is."""
    unit = getattr(gain, "unit", "points")
    if not unit:
        return "–" if math.isnan(gain.mean) else f"{gain.mean:,.4g}"
    if unit == "% of the other":
        return f"{gain.mean:.0f} % ({gain.low:.0f} to {gain.high:.0f})"
    digits = 1 if unit == "points" else 2
    return f"{gain.mean:+.{digits}f} ({gain.low:+.{digits}f} to {gain.high:+.{digits}f})"


def effect(gain: Interval) -> Literal["leads", "trails", "makes no clear difference"]:
    """What the interval of a paired difference says about its first arm, whatever was claimed."""
    if gain.low <= 0 <= gain.high:
        return "makes no clear difference"
    return "leads" if gain.low > 0 else "trails"


def explains(rise: Interval, margin: float = 0.5) -> Literal["a cause", "acquitted", "open"]:
    """What an interval says about a suspected cause of a lag, where `rise` is by how many points the lead grows once the
    suspect is taken away: "a cause" if it surely grows, by the margin at least; "acquitted" if it surely grows by less
    than that (an interval that merely holds 0 acquits nobody); else "open"."""
    if rise.high < margin:
        return "acquitted"
    return "a cause" if rise.low > 0 and rise.mean >= margin else "open"


def chance(metric: str, profile: Profile) -> float:
    """Recall in percent of blind guessing on the test items, each with as many captions as the profile says."""
    way, _, k = metric.partition("@")
    if not re.fullmatch("[1-9][0-9]{0,5}", k):
        raise FuseMixLiteError(f"chance is known of a recall, such as image_to_text@1, not of {metric!r:.80}")
    owner = torch.arange(profile.test_items).repeat_interleave(profile.captions)
    return guessing(owner, profile.test_items, int(k))["x_to_y" if way.endswith("_to_text") else "y_to_x"]


def octaves(claim: Claim, profile: Profile, rule: dict | None = None) -> list[float]:
    """Where the arms of a trend stand, in octaves: log2 of ``at``, else of the arm's own value of ``over``, else of the
    profile's, which is what an arm without that key runs with."""
    rule = rule or claim.rule
    name = rule["over"]
    values = rule.get("at") or [arm.get(name, getattr(profile, name, None)) for arm in rule["arms"]]
    if not all(isinstance(value, (int, float)) and value > 0 for value in values) or len(set(values)) < 2:
        raise FuseMixLiteError(
            f"claim {claim.id!r}: its arms stand at {values} of {name!r}; give two or more positive numbers as `at`"
        )
    return [math.log2(value) for value in values]


def _apply(claim: Claim, rule: dict, record: Record, made: tuple) -> dict[str, Verdict]:
    found = record.content["name"], record.content["profile"]
    if found != made:
        raise FuseMixLiteError(f"claim {claim.id!r} is about {made}, the record is {found}")
    metrics = [rule["metric"]] if isinstance(rule["metric"], str) else rule["metric"]
    try:
        return {metric: _verdict(claim, rule, metric, _MEASURES[claim.kind](claim, rule, metric, record)) for metric in metrics}
    except KeyError as error:
        raise FuseMixLiteError(f"claim {claim.id!r}: the runs of record {found[0]!r} have no metric {error}") from None


def _verdict(claim: Claim, rule: dict, metric: str, gain: Interval) -> Verdict:
    """What a rule asks of what it measured."""
    unit = "plain" if metric in PLAIN else "points an octave" if claim.kind == "trend" else "points"
    if "share" in rule:
        unit = "% of the other"
        surely, enough = gain.low >= rule["share"], True
        partly = rule["share"] > 100 and gain.low > 100  # surely more than the other, not surely so much more
    elif claim.asks_for_likeness:
        band = rule[claim.criterion]
        surely, enough, partly = -band <= gain.low and gain.high <= band, True, False
    else:
        surely = partly = gain.low > 0
        enough = gain.mean >= rule.get("margin", rule.get("above"))
    verdict = "reproduced" if surely and enough else "direction only" if partly else "not reproduced"
    return Verdict(*gain, verdict, unit)


def weakest(claim: Claim, each: dict[str, Verdict]) -> Verdict:
    """The verdict that a rule over all of these metrics has; of equals, the one nearest to failing."""

    def strength(found: Verdict) -> tuple:
        near = claim.asks_for_likeness
        return -VERDICTS.index(found.verdict), -max(-found.low, found.high) if near else found.low

    return min(each.values(), key=strength)


def _difference(claim: Claim, rule: dict, metric: str, record: Record) -> Interval:
    if "share" not in rule:
        return record.difference(metric, rule["arm"], rule["other"])
    a, b = (record.values(metric, **rule[side]) for side in ("arm", "other"))
    if min(b) <= 0:
        raise FuseMixLiteError(f"claim {claim.id!r}: a share of {metric} = {min(b)} means nothing; give a difference")
    return interval([100 * x / y for x, y in zip(a, b, strict=True)])


def _level(claim: Claim, rule: dict, metric: str, record: Record) -> Interval:
    level = chance(metric, record.profile) if rule["level"] == "chance" else rule["level"]
    return Interval(*(value - level for value in record.interval(metric, **rule["arm"])))


def _change(claim: Claim, rule: dict, metric: str, record: Record) -> Interval:
    before, after = ((rule[side]["arm"], rule[side]["other"]) for side in ("before", "after"))
    if rule["change"] == "shrinks":
        before, after = after, before
    return record.change_of_lead(metric, before, after)


def _trend(claim: Claim, rule: dict, metric: str, record: Record) -> Interval:
    """Slope of a straight line over the octaves, one a seed: what all arms of a seed share is gone from it."""
    y = np.array([record.values(metric, **arm) for arm in rule["arms"]], dtype=float)  # (arms, seeds)
    if "others" in rule:
        y = y - [record.values(metric, **arm) for arm in rule["others"]]
    if "order" in rule:  # a null: each seed's arms change places, so whatever trend there is, is luck
        y = np.random.default_rng(0).permuted(y, axis=0)
    x = np.array(octaves(claim, record.profile, rule))
    slopes = (x - x.mean()) @ y / ((x - x.mean()) ** 2).sum()
    sign = WORDS["trend"][rule["trend"]]
    return interval((sign * slopes).tolist())


_MEASURES: dict[str, Callable] = {"difference": _difference, "level": _level, "change": _change, "trend": _trend}
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def _calculate(text: str, claim: str) -> float:
    """The value of a sum as "400_000_000 / 5_000_000": numbers, + - * / and brackets, nothing else is looked at."""

    def value(node: ast.AST) -> float:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise ValueError(ast.unparse(node))

    try:
        if not isinstance(text, str) or len(text) > 1000:
            raise ValueError("no sum of a line or two")
        return float(value(ast.parse(text, mode="eval").body))
    except (ValueError, SyntaxError, ZeroDivisionError, OverflowError, RecursionError, MemoryError) as error:
        raise FuseMixLiteError(
            f"claim {claim!r}: cannot calculate {text!r:.200} ({error}); numbers, + - * / and brackets only"
        ) from None
