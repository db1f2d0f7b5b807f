"""The claim ledger: rules that were fixed before the runs, applied to records. The rows stand in ``book/claims.yml``.

    for claim in load_claims():
        print(claim.id, judge(claim, Record.load(claim.record, claim.profile)))

A comparison (``other``) is reproduced where its paired Student-t interval lies above 0 and its mean reaches the margin; a
level (``level: chance``) where its whole interval lies within the margin of what blind guessing gives.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from .bundled import bundled
from .errors import FuseMixLiteError
from .metrics import guessing
from .profiles import Profile
from .records import Record
from .reported import MARKS
from .stats import Interval

CLAIMS = bundled("claims.yml")


@dataclass(frozen=True)
class Claim:
    """A row of the ledger; its fields are explained at the top of ``book/claims.yml``."""

    id: str
    claim: str
    where: str
    mark: str
    reported: float | None
    record: str
    profile: str
    rule: dict  # metric, arm, margin in points, and either other (an arm) or level ("chance")
    null: dict  # arms that take the place of the rule's; the claim cannot be true for them

    def __post_init__(self):
        if self.mark not in (*MARKS, "ours"):
            raise FuseMixLiteError(f"claim {self.id!r}: its mark is {self.mark!r}, not one of {', '.join(MARKS)} or ours")
        if set(self.rule) not in ({"metric", "arm", "other", "margin"}, {"metric", "arm", "level", "margin"}):
            raise FuseMixLiteError(f"claim {self.id!r}: its rule needs metric, arm, margin and either other or level")
        if self.rule.get("level", "chance") != "chance" or not self.rule["margin"] > 0:
            raise FuseMixLiteError(f"claim {self.id!r}: the only level is chance, and a margin is above 0")
        if set(self.null) != {"arm", "other"} & set(self.rule):
            raise FuseMixLiteError(f"claim {self.id!r}: its null names the arms of its rule, no more and no less")


class Verdict(NamedTuple):
    """Mean and 95 % interval of arm - other, or of arm - chance, in points of recall, and what the rule says to it."""

    mean: float
    low: float
    high: float
    verdict: Literal["reproduced", "direction only", "not reproduced"]

    def __str__(self) -> str:
        return f"{points(self)}: {self.verdict}"


def load_claims(path: Path = CLAIMS) -> list[Claim]:
    """All rows of the ledger, checked."""
    import yaml

    try:
        claims = [Claim(**row) for row in yaml.safe_load(Path(path).read_text(encoding="utf-8"))]
    except OSError:
        raise FuseMixLiteError(f"no claim ledger {path}") from None
    except (yaml.YAMLError, TypeError) as error:
        raise FuseMixLiteError(f'claim ledger {path} is broken ({error}); note that the key "null" needs quotes') from None
    ids = [claim.id for claim in claims]
    if len(set(ids)) < len(ids):
        raise FuseMixLiteError(f"claim ledger {path}: an id stands there twice: {sorted(ids)}")
    return claims


def judge(claim: Claim, record: Record) -> Verdict:
    """What the claim's rule says to a record of its experiment at its scale."""
    return _apply(claim, claim.rule, record)


def judge_null(claim: Claim, record: Record) -> Verdict:
    """The same rule where the claim cannot be true; "reproduced" here would speak against the rule."""
    return _apply(claim, claim.rule | claim.null, record)


def points(gain: Interval | Verdict) -> str:
    """A difference with its interval, as text: "+1.8 (+1.2 to +2.4)"."""
    return f"{gain.mean:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})"


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
    way, k = metric.split("@")
    owner = torch.arange(profile.test_items).repeat_interleave(profile.captions)
    return guessing(owner, profile.test_items, int(k))["x_to_y" if way.endswith("_to_text") else "y_to_x"]


def _apply(claim: Claim, rule: dict, record: Record) -> Verdict:
    made = record.content["name"], record.content["profile"]
    if made != (claim.record, claim.profile):
        raise FuseMixLiteError(f"claim {claim.id!r} is about {(claim.record, claim.profile)}, the record is {made}")
    metric, margin = rule["metric"], rule["margin"]
    if "other" in rule:
        gain = record.difference(metric, rule["arm"], rule["other"])
        sizeable = "reproduced" if gain.mean >= margin else "direction only"
        return Verdict(*gain, sizeable if gain.low > 0 else "not reproduced")
    level = chance(metric, record.profile)
    excess = Interval(*(value - level for value in record.interval(metric, **rule["arm"])))
    return Verdict(*excess, "reproduced" if -margin <= excess.low and excess.high <= margin else "not reproduced")
