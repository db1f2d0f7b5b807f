"""Numbers that others report, each with how we know it: ``book/reported.yml``, read and checked."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .bundled import bundled
from .errors import FuseMixLiteError
from .profiles import Profile, profile
from .records import Record, sets_of
from .untrusted import read_yaml

REPORTED = bundled("reported.yml")

#: How a number is known. What is only remembered, or was not found, has no mark and no place in the book.
MARKS = {
    "P": "stated in the paper",
    "C": "in the official code",
    "S": "reported by a secondary source",
    "D": "arithmetic from such facts",
}
DIRECTIONS = ("text_to_image", "image_to_text", "text_to_audio", "audio_to_text")


@dataclass(frozen=True)
class Reported:
    """One model's reported results.

    Attributes:
        pairs: how many pairs it was trained on; None where no source says so.
        mark: a key of `MARKS`. source: where the numbers were read.
        recall: in percent, by dataset, direction and k, as ``recall["COCO"]["text_to_image"][1]``.
    """

    model: str
    pairs: int | None
    mark: str
    source: str
    recall: dict[str, dict[str, dict[int, float]]]

    def at(self, dataset: str, direction: str, k: int = 1) -> float | None:
        """Recall@k in percent, None where it is not known."""
        return self.recall.get(dataset, {}).get(direction, {}).get(k)


@dataclass(frozen=True)
class Effort(Reported):
    """How long training took somebody: a row of the topics in `EFFORTS`.

    Attributes:
        device: on which device; device_hours: hours, times devices. None where no source says so.
    """

    device: str | None
    device_hours: float | None

    @property
    def device_days(self) -> float | None:
        return None if self.device_hours is None else self.device_hours / 24


EFFORTS = ("training-time", "pretraining-time")


def load_reported(topic: str, path: Path = REPORTED) -> list[Reported]:
    """The reported results of a topic, such as "image-text-retrieval", in the file's order; of those in `EFFORTS`, `Effort`.

    Raises:
        FuseMixLiteError: no such file or topic, or a row that lacks a field, a known mark or a source, or whose recall
            is no percentage.
    """
    try:
        topics = read_yaml(path)
    except FileNotFoundError:
        raise FuseMixLiteError(f"no file {path} with the reported numbers") from None
    except (OSError, ValueError) as error:
        raise FuseMixLiteError(f"{path} is no YAML: {error}") from None
    if not isinstance(topics, dict) or not isinstance(topics.get(topic), list):
        have = ", ".join(map(str, topics)) if isinstance(topics, dict) else "nothing"
        raise FuseMixLiteError(f"{path.name} has no topic {topic!r}; it has {have}")
    kind = Effort if topic in EFFORTS else Reported
    return [_checked(row, kind, f"{path.name}, {topic}, row {i}") for i, row in enumerate(topics[topic], 1)]


ARROWS = {"text_to_image": "T→I", "image_to_text": "I→T", "text_to_audio": "T→A", "audio_to_text": "A→T"}


def beside_ours(
    reported: Sequence[Reported], name: str, arm: Callable[[Profile], dict], scales: Sequence[str] = ("colab", "paper")
) -> list[dict]:
    """Reported R@1 in %, and under it ours on the same data sets: rows for a table.

    Args:
        reported: rows of one topic.
        name: the experiment whose records are ours.
        arm: which of its arms, by the record's profile.
        scales: the profiles; of one without a record the row says that it is not yet measured. Neither ours nor theirs says
            anything about the other where the training data differ: so the row names them.
    """
    cells = list(dict.fromkeys((data, way) for row in reported for data, ways in row.recall.items() for way in ways))
    columns = {f"{data} {ARROWS[way]}": (data, way) for data, way in cells}
    rows = []
    for row in reported:
        rows.append({"model": row.model} | {title: row.at(*cell) for title, cell in columns.items()})
        rows[-1] |= {"how we know": f"reported ({row.mark})"}
    for scale in scales:
        record, p = Record.find(name, scale), profile(scale)
        of, told = (p, "not yet measured") if record is None else (record.profile, f"measured, {len(record.seeds)} seeds")
        sets = sets_of(arm(of), of)
        rows.append({"model": f"ours, {scale}: {sets['train'][0]}"} | dict.fromkeys(columns) | {"how we know": told})
        for title, (data, way) in columns.items() if record else ():
            for i, tested in enumerate(sets["test"]):
                if tested == data.lower():
                    rows[-1][title] = record.interval(f"{'' if i == 0 else tested + '_'}{way}@1", **arm(of)).mean
    return rows


def _checked(row: dict, kind: type[Reported], where: str) -> Reported:
    fields = tuple(kind.__dataclass_fields__)
    if not isinstance(row, dict) or set(row) != set(fields):
        raise FuseMixLiteError(f"{where}: give exactly the fields {', '.join(fields)}")
    where = f"{where} ({row['model']!s:.80})"
    if not all(isinstance(row[key], str | None) for key in ("model", "mark", "source", "device") if key in row):
        raise FuseMixLiteError(f"{where}: model, mark, source and device are texts: put quotes around them")
    if row["mark"] not in MARKS:
        raise FuseMixLiteError(f"{where}: unknown mark {row['mark']!r}; choose one of {', '.join(MARKS)}")
    if not row["source"]:
        raise FuseMixLiteError(f"{where}: the source is empty; a number without one cannot be quoted")
    if row["pairs"] is not None and not (type(row["pairs"]) is int and row["pairs"] > 0):
        raise FuseMixLiteError(f"{where}: pairs = {row['pairs']!r:.80}; give a positive whole number, or null")
    for dataset, directions in _mapping(row["recall"], where).items():
        for direction, values in _mapping(directions, where).items():
            if direction not in DIRECTIONS:
                raise FuseMixLiteError(f"{where}: {dataset} {direction!r:.80}; choose one of {', '.join(DIRECTIONS)}")
            for k, value in _mapping(values, where).items():
                if type(value) not in (int, float) or not 0 <= value <= 100:
                    raise FuseMixLiteError(f"{where}: {dataset} {direction}@{k} = {value!r:.80} is no percentage")
    hours = row.get("device_hours")
    if hours is not None and not (type(hours) in (int, float) and 0 < hours < math.inf and row["device"]):
        given = f"device_hours = {hours!r:.80} of {row['device']}"
        raise FuseMixLiteError(f"{where}: {given}; give hours above 0, a device, or null")
    return kind(**row)


def _mapping(value: object, where: str) -> dict:
    if not isinstance(value, dict):
        raise FuseMixLiteError(f"{where}: recall is a mapping by dataset, direction and k, not {value!r:.80}")
    return value
