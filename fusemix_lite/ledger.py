"""The page of the claim ledger: every claim of the book with its rule, result, null and verdict, as Markdown and HTML.

Nothing on it is typed: it is made at build time from ``book/claims.yml`` and the records, so it cannot be stale. The two
directions of one question (a caption for an image, an image for a caption) share a card, and count as two claims.

    from fusemix_lite import ledger
    rows = ledger.judged()
    ledger.summary(rows), ledger.page(rows)
"""

import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from .claims import (
    GROUPS,
    VERDICTS,
    Claim,
    Verdict,
    judge,
    judge_each,
    judge_null,
    judge_real,
    load_claims,
    points,
    record_of,
    weakest,
)
from .errors import FuseMixLiteError
from .real import REAL
from .records import RESULTS, data_of
from .reported import MARKS
from .rule_words import asked_in_words, measured_in_words, metric_in_words, null_in_words

UNMEASURED = "not measured yet"
#: A verdict's sign on the page, the same in every colour, and the name of its style.
SIGNS = {
    "not reproduced": ("✗", "no"),
    "direction only": ("↗", "part"),
    "reproduced": ("✓", "yes"),
    "not testable at this scale": ("–", "open"),
    UNMEASURED: ("…", "wait"),
}
MEANINGS = {
    "reproduced": "the rule that was fixed before the run holds",
    "direction only": "the effect is surely there, but smaller than the margin",
    "not reproduced": "the rule does not hold; in a world larger by orders of magnitude it may",
    "not testable at this scale": "it would take the paper's own encoders, data or machines",
    UNMEASURED: "the rule stands, its run has not been made",
}
_DIRECTIONS = {"i2t": "to text", "a2t": "to text", "t2i": "from text", "t2a": "from text"}
_ALONE = re.compile(rf"^(.+)-({'|'.join(_DIRECTIONS)})$")


class Row(NamedTuple):
    """A claim with all that the records say to it; None where there is nothing to say."""

    claim: Claim
    verdict: str
    found: Verdict | None = None
    each: dict[str, Verdict] = {}  # noqa: RUF012 (never changed)
    null: Verdict | None = None
    real: Verdict | None = None
    seeds: int = 0


def judged(claims: Iterable[Claim] | None = None) -> list[Row]:
    """Every claim, judged. One whose record has not been made yet is "not measured yet"."""
    return [_row(claim) for claim in (load_claims() if claims is None else claims)]


def _row(claim: Claim) -> Row:
    if not claim.record:
        found = judge(claim, None)
        return Row(claim, found.verdict, found)
    if not _made(claim.record, claim.profile):
        return Row(claim, UNMEASURED)
    record, found = record_of(claim), judge(claim, record_of(claim))
    there = claim.real and _made(claim.real["record"], claim.real.get("profile", claim.profile))
    real = judge_real(claim, record_of(claim, real=True)) if there else None
    return Row(claim, found.verdict, found, judge_each(claim, record), judge_null(claim, record), real, len(record.seeds))


def _made(name: str, profile: str) -> bool:
    return (RESULTS / profile / f"{name}.json").exists()


class Nulls(NamedTuple):
    """How many different nulls were called reproduced, of how many, and how many luck alone would: only rules that ask
    for a difference leave luck a chance."""

    passed: int
    of: int
    expected: float


def nulls(rows: Iterable[Row]) -> Nulls:
    """Nulls that come to the same numbers are one null, however it is written, and count once. 2.5 % of intervals lie above
    0 where there is no difference, unless nothing can vary."""
    seen = {}
    for row in rows:
        if row.null:
            which = row.claim.record, row.claim.asks_for_likeness, *(round(number, 6) for number in row.null[:3])
            luck = not row.claim.asks_for_likeness and row.null.high > row.null.low
            seen[which] = seen.get(which, (False, luck))[0] or row.null.verdict == "reproduced", luck
    return Nulls(sum(passed for passed, _ in seen.values()), len(seen), 0.025 * sum(luck for _, luck in seen.values()))


def is_the_papers(claim: Claim) -> bool:
    """Whether others state it, and not only this book asks it."""
    return claim.mark != "ours"


# The page.


def outcome(row: Row, found: Verdict) -> str:
    """A result in words: the number with its interval, and where the interval lies."""
    text = points(found).replace("-", "−")
    unit = _unit(found)
    if found.verdict == "not reproduced" and unit and not row.claim.asks_for_likeness:
        unit += ", surely the other way" if found.high < 0 else ", the interval holds 0"
    return text + unit


def family(row: Row) -> str:
    """Claims of one family share a card: the directions of one question."""
    alone = _ALONE.match(row.claim.id)
    return alone[1] if alone else row.claim.id


def cards_of(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows by family, those with the worst verdict first; within a verdict in the ledger's order."""
    families = {}
    for row in rows:
        families.setdefault(family(row), []).append(row)
    order = list(SIGNS)
    return sorted(families.values(), key=lambda card: min(order.index(row.verdict) for row in card))


def page(rows: Sequence[Row], chapters: dict[str, str]) -> str:
    """The ledger: figure of counts, nulls, forest plot, and every claim by group. Markdown with blocks of HTML.

    chapters: the title of every chapter that the book has, by its file's name without ``.ipynb``; others get no link.
    """
    parts = [headline(rows), "## At a glance", counts(rows), _legend(), _nulls(rows)]
    parts += ["## All comparisons in one figure", _forest(rows)]
    parts += ["## Claim by claim", _filter()]
    for group in GROUPS:
        mine = [row for row in rows if row.claim.group == group]
        if mine:
            cards = "".join(_card(card, chapters) for card in cards_of(mine))
            parts += [f"### {group.capitalize()}", f'<div class="ledger-group">{cards}</div>']
    return "\n\n".join(parts) + "\n"


def results(rows: Iterable[Row], chosen: Iterable[str], both: bool = True) -> str:
    """A short table of results for a page of ``book/``, each linked to its card.

    chosen: families, that is ids without their direction. both: what is measured, and a column for each direction; or else
    the claim itself, and its result in one column.

    Raises:
        FuseMixLiteError: no claim is of that family, or it has no direction that a column asks for.
    """
    families = {}
    for row in rows:
        families.setdefault(family(row), []).append(row)
    lines = ["| measured | to text | from text |", "|---|---|---|"] if both else ["| claim | result |", "|---|---|"]
    for name in chosen:
        if name not in families:
            raise FuseMixLiteError(f"the ledger has no claim {name!r}; claims.yml says which ones there are")
        claim, told = families[name][0].claim, _by_direction(families[name])
        if both and set(told) != {"to text", "from text"}:
            raise FuseMixLiteError(f"claim {name!r} has {', '.join(filter(None, told)) or 'no direction'}, not both directions")
        cells = [told["to text"], told["from text"]] if both else ["<br>".join(f"{way} {t}".strip() for way, t in told.items())]
        label = escape(measured_in_words(claim) if both else claim.claim)
        lines.append(" | ".join([f'| <a href="reference/ledger.html#claim-{name}">{label}</a>', *cells]) + " |")
    told = f"{_signs(VERDICTS[:3])}; in points (where no other unit stands), with 95 % intervals."
    return "\n".join([*lines, "", told]) + "\n"


def _signs(verdicts: Iterable[str]) -> str:
    return ", ".join(f"{sign} {verdict}" for verdict, (sign, _) in SIGNS.items() if verdict in verdicts)


def _by_direction(card: Sequence[Row]) -> dict[str, str]:
    """The weakest result of a card in each direction, with its verdict's sign; "" is the direction of what has none."""
    told = {}
    for row in card:
        ways = {}
        for metric, found in row.each.items():
            name = metric.partition("@")[0]
            way = "to text" if name.endswith("_to_text") else "from text" if "text_to_" in name else ""
            ways.setdefault(way, {})[metric] = found
        if not ways:
            told[""] = _short(row.verdict, row.found)
        for way, each in ways.items():
            found = weakest(row.claim, each)
            told[way] = _short(found.verdict, found)
    return told


def _short(verdict: str, found: Verdict | None) -> str:
    """A sign and a number, broken at most before the interval."""
    if found is None:
        return f"{SIGNS[verdict][0]} {verdict}"
    mean, bracket, ends = points(found).replace("-", "−").partition(" (")
    return f"{SIGNS[verdict][0]} {mean}".replace(" ", "\xa0") + bracket + ends.replace(" ", "\xa0")


def _count(rows: Iterable[Row]) -> dict[str, int]:
    told = [row.verdict for row in rows]
    return {verdict: told.count(verdict) for verdict in SIGNS}


def _tried(rows: Iterable[Row]) -> list[Row]:
    """Rows that a run has judged: sums and what cannot be tested here are not among them."""
    return [row for row in rows if row.null]


def headline(rows: Sequence[Row]) -> str:
    """How many claims have which verdict, in words."""
    tried = _tried(row for row in rows if is_the_papers(row.claim))
    ours = _tried(row for row in rows if not is_the_papers(row.claim))
    n, own = _count(tried), _count(ours)
    sums = [row for row in rows if row.claim.kind == "arithmetic"]
    hold = sum(row.verdict == "reproduced" for row in sums)
    text = (
        f"Of **{len(tried)}** claims of the paper, or implied by it, that a run has put to the test, "
        f"**{n['not reproduced']}** are not reproduced, **{n['direction only']}** in direction only, and "
        f"**{n['reproduced']}** are reproduced. "
        f"**{_count(rows)['not testable at this scale']}** cannot be tested at this scale. "
        f"Of this book’s own **{len(ours)}** questions and controls, {own['not reproduced']} fail, {own['direction only']} "
        f"hold in direction only, {own['reproduced']} hold."
    )
    if sums:
        text += f" Of {len(sums)} sums about the paper’s own numbers, {hold} come out as stated; they are counted nowhere else."
    if waiting := _count(rows)[UNMEASURED]:
        text += f" {waiting} rules still wait for their runs."
    return text


def counts(rows: Sequence[Row]) -> str:
    """The figure that says it in three seconds: a bar of verdicts a group, a piece a claim."""
    told = {group: [row for row in rows if row.claim.group == group and is_the_papers(row.claim)] for group in GROUPS}
    told["our own"] = [row for row in rows if not is_the_papers(row.claim)]
    told = {name: [row for row in of if row.claim.kind != "arithmetic"] for name, of in told.items()}
    most = max(map(len, told.values()), default=1)
    lines = []
    for name, of in told.items():
        if of:
            n = {verdict: count for verdict, count in _count(of).items() if count}
            pieces = "".join(
                f'<span class="ledger-{style}" style="width:{100 * count / most:.2f}%">{sign}&#8239;{count}</span>'
                for (sign, style), count in ((SIGNS[verdict], count) for verdict, count in n.items())
            )
            words = ", ".join(f"{count} {verdict}" for verdict, count in n.items())
            lines.append(
                f'<div class="ledger-count"><span class="ledger-name">{name.capitalize()}</span>'
                f'<span class="ledger-bar" role="img" aria-label="{name}: {words}">{pieces}</span></div>'
            )
    return (
        f'<div class="ledger-counts">{"".join(lines)}</div>'
        f'<p class="ledger-caption">{_signs(VERDICTS)}; {SIGNS[UNMEASURED][0]} {UNMEASURED}. Verdicts on the paper’s claims by '
        "group, a claim about two directions counted twice; “our own” are this book’s questions and controls.</p>"
    )


def _legend() -> str:
    signs = "".join(
        f"<div><dt>{_sign(verdict)}</dt><dd>{MEANINGS[verdict]}</dd></div>" for verdict in SIGNS if verdict != UNMEASURED
    )
    return f'<dl class="ledger-legend">{signs}</dl>'


def _nulls(rows: Sequence[Row]) -> str:
    found = nulls(rows)
    return (
        f"**Nulls that passed: {found.passed} of {found.of}; by chance we expect about {found.expected:.1f}.** "
        "Every rule is also put to a case in which its claim cannot be true: the same arm on other seeds, a random order, or "
        "pairs that do match where the claim says that shuffled ones teach nothing. If such nulls passed often, the verdicts "
        "would be worth little. A null that several claims share counts once. Luck has a chance only where a rule asks for a "
        "difference: 2.5 % each."
    )


def _sign(verdict: str) -> str:
    sign, style = SIGNS[verdict]
    return f'<span class="ledger-verdict ledger-{style}"><span aria-hidden="true">{sign}</span> {verdict}</span>'


def _filter() -> str:
    """Which verdicts are shown: radio buttons that the style sheet listens to, without a script."""
    choices = [("all", "all"), *((style, verdict) for verdict, (_, style) in SIGNS.items() if verdict in VERDICTS)]
    buttons = "".join(
        f'<label><input type="radio" name="ledger-filter" value="{value}"{" checked" * (value == "all")}> {words}</label>'
        for value, words in choices
    )
    return (
        "Negative results come first in each group. Rules, nulls and sources unfold with a click, and with them how sure we "
        "are of what the paper says: stated in it (P), in its official code (C), told by a secondary source (S), or arithmetic "
        "from such facts (D). Claims without such a mark are this book’s own questions and controls.\n\n"
        f'<fieldset class="ledger-filter"><legend>Show</legend>{buttons}</fieldset>'
    )


def _card(card: Sequence[Row], chapters: dict[str, str]) -> str:
    claim = card[0].claim
    styles = " ".join(dict.fromkeys(f"ledger-has-{SIGNS[row.verdict][1]}" for row in card))
    lines = "".join(_line(row) for row in card)
    facts = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in _facts(card, chapters))
    link = _chapter(claim, chapters)
    return (
        f'<section class="ledger-card {styles}" id="claim-{family(card[0])}">{lines}'
        f"<details><summary>Rule, null and source</summary><dl>{facts}</dl></details>{link}</section>"
    )


def _line(row: Row) -> str:
    parts = [f'<p class="ledger-claim" id="{row.claim.id}">{_sign(row.verdict)} {escape(row.claim.claim)}</p>']
    if row.claim.why:
        parts.append(f'<p class="ledger-result">{escape(row.claim.why)}</p>')
    if row.found and row.claim.kind != "untestable":
        parts.append(f'<p class="ledger-result"><b>{_data(row.claim.rule)}</b> {_told(row)}</p>')
    if row.real:
        title = REAL[data_of(_first_arm(row.claim.rule | row.claim.real))].title
        verdict = f"by the same rule {row.real.verdict}"
        parts.append(f'<p class="ledger-result"><b>{title}</b> {outcome(row, row.real)}; {verdict}</p>')
    return "".join(parts)


def _unit(found: Verdict) -> str:
    return {"points": " points", "points an octave": " points a doubling"}.get(found.unit, "")


def _data(rule: dict) -> str:
    """Which data a result is about."""
    if "arithmetic" in rule:
        return "It comes to"
    data = data_of(_first_arm(rule))
    return REAL[data].title if data in REAL else "Sounding Scenes"


def _first_arm(rule: dict) -> dict:
    return rule.get("arm") or rule.get("after", {}).get("arm") or rule["arms"][0]


def _told(row: Row) -> str:
    """The result of a row; of a rule over several metrics, at each of them."""
    if len(row.each) < 2:
        return outcome(row, row.found)
    told = [f"{metric_in_words(metric)} {points(found)}".replace("-", "−") for metric, found in row.each.items()]
    return f"{'; '.join(told)}{_unit(row.found)}; the weakest counts"


def _facts(card: Sequence[Row], chapters: dict[str, str]) -> list[tuple[str, str]]:
    claim = card[0].claim
    told = f"{claim.reported:,g}" if isinstance(claim.reported, (int, float)) else escape(claim.reported or "none known to us")
    facts = [("Where", escape(claim.where))]
    if is_the_papers(claim):
        facts += [("Paper’s value", told), ("How we know", f"<b>{claim.mark}</b>: {MARKS[claim.mark]}")]
    if claim.kind == "untestable":
        return facts
    if claim.kind != "arithmetic":
        metrics = dict.fromkeys(metric_in_words(metric) for row in card for metric in row.claim.metrics)
        facts.append(("Metric", escape("; ".join(metrics))))
    seeds = f", paired over {card[0].seeds} seeds" * (claim.kind != "level") if card[0].seeds else ""
    facts += [("Measured", escape(measured_in_words(claim) + seeds)), ("Rule", escape(asked_in_words(claim)))]
    told = [null_in_words(claim)]
    told += [
        f"{outcome(row, row.null)}: {'passed' if row.null.verdict == 'reproduced' else 'did not pass'}"
        for row in card
        if row.null
    ]
    return [*facts, ("Null", "<br>".join(map(escape, told)))]


def _chapter(claim: Claim, chapters: dict[str, str]) -> str:
    if claim.chapter not in chapters:
        return ""
    return f'<a class="ledger-chapter" href="../{claim.chapter}.html">Chapter: {escape(chapters[claim.chapter])}</a>'


# The forest plot: HTML, so that its text is as large on a phone as elsewhere, and its colours are the page's.


def _forest(rows: Sequence[Row]) -> str:
    """All results in points, a line a card: a mark a direction with its interval, and a tick at the margin."""
    drawn = [row for row in rows if row.found and row.null and row.found.unit.startswith("points")]
    if not drawn:
        return "*Nothing has been measured yet.*"
    blocks = "".join(_forest_group(group, [row for row in drawn if row.claim.group == group]) for group in GROUPS)
    return (
        f'<div class="ledger-forest">{blocks}</div>'
        '<p class="ledger-caption">Points of test recall (of a trend: a doubling), in the claim’s direction, with 95 % '
        "intervals over seeds; each group has its own axis. Filled circle: reproduced; half-filled diamond: direction only; "
        "hollow square: not reproduced. Of two marks in a line the upper one is to text, the lower one from text. The dotted "
        "tick is the margin that was fixed beforehand; a grey band is where a result has to lie if the claim is that there is "
        "hardly any difference. An arrow: the interval goes on. Of a rule over several metrics the weakest is drawn.</p>"
    )


def _forest_group(group: str, rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    wanted = [(row.claim.rule[row.claim.criterion], row.claim.asks_for_likeness) for row in rows]
    bands = [sign * size for size, likeness in wanted for sign in (-1, 1)[not likeness :]]
    axis = _axis([end for row in rows for end in row.found[1:3]], bands)
    lines = "".join(_forest_line(card, axis) for card in cards_of(rows))
    ticks = "".join(f'<span style="left:{axis.at(x):.2f}%">{"−" * (x < 0)}{abs(x):g}</span>' for x in axis.ticks())
    ticks = f'<div class="ledger-axis"><span></span><span class="ledger-track">{ticks}</span></div>'
    return f'<h4 class="ledger-forest-group">{group.capitalize()}</h4>{lines}{ticks}'


class Axis(NamedTuple):
    """From where to where, and how far apart its ticks are, all in points."""

    left: float
    right: float
    step: float

    def at(self, value: float) -> float:
        """Where a value lies, in % of the width; beyond the axis, at its end."""
        return 100 * (min(max(value, self.left), self.right) - self.left) / (self.right - self.left)

    def ticks(self) -> list[float]:
        return [self.step * i for i in range(round(self.left / self.step), round(self.right / self.step) + 1)]


def _axis(ends: Sequence[float], margins: Sequence[float]) -> Axis:
    """An axis with all ends and margins on it, unless a few would press the others together."""
    sizes = sorted(map(abs, ends))
    many = max(2 * sizes[math.ceil(0.8 * (len(sizes) - 1))], *map(abs, margins))
    left, right = max(-many, min(0.0, *margins, *ends)), min(many, max(0.0, *margins, *ends))
    step = next(step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if right - left <= 7 * step or step == 100)
    return Axis(step * math.floor(left / step), step * math.ceil(right / step), step)


def _forest_line(card: Sequence[Row], axis: Axis) -> str:
    claim = card[0].claim
    marks = "".join(_forest_mark(row, axis, 100 * (i + 1) / (len(card) + 1)) for i, row in enumerate(card))
    words = "; ".join(f"{row.claim.claim} {outcome(row, row.found)}: {row.verdict}" for row in card)
    wanted = claim.rule[claim.criterion]
    zero = f'<i class="ledger-zero" style="left:{axis.at(0):.2f}%"></i>'
    if claim.asks_for_likeness:
        left, right = axis.at(-wanted), axis.at(wanted)
        margin = f'<i class="ledger-band" style="left:{left:.2f}%;width:{right - left:.2f}%"></i>'
    else:
        margin = f'<i class="ledger-margin" style="left:{axis.at(wanted):.2f}%"></i>'
    track = f'<span class="ledger-track" role="img" aria-label="{escape(words)}">{zero}{margin}{marks}</span>'
    label = f'<a href="#claim-{family(card[0])}">{escape(_brief(measured_in_words(claim)))}</a>'
    return f'<div class="ledger-forest-line">{label}{track}</div>'


def _brief(words: str) -> str:
    """Without settings that only a long list of what both arms share names: the card has them."""
    settings = r"captions an item in training: \d+|standardised latents|[\d,]+ steps|dropout [\d.]+|of a pool of [\d,]+"
    return re.sub(r"\([^()]{36,}\)", lambda shared: re.sub(rf"(?:, )(?:{settings})(?=[,)])", "", shared[0]), words)


def _forest_mark(row: Row, axis: Axis, top: float) -> str:
    mean, low, high = row.found[:3]
    beyond = " ledger-goes-left" * (low < axis.left) + " ledger-goes-right" * (high > axis.right)
    width = max(axis.at(high) - axis.at(low), 0.2)
    bar = f'<i class="ledger-interval{beyond}" style="left:{axis.at(low):.2f}%;width:{width:.2f}%;top:{top:.0f}%"></i>'
    mark = f'<i class="ledger-mark" style="left:{axis.at(mean):.2f}%;top:{top:.0f}%"></i>'
    return f'<span class="ledger-{SIGNS[row.verdict][1]}">{bar}{mark * (axis.left <= mean <= axis.right)}</span>'
