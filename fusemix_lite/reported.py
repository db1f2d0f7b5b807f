"""Numbers that others report, each with how we know it: ``book/reported.yml``, read and checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .bundled import bundled
from .errors import FuseMixLiteError
from .profiles import Profile, profile
from .records import Record, sets_of

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
    import yaml

    try:
        topics = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FuseMixLiteError(f"no file {path} with the reported numbers") from None
    except yaml.YAMLError as error:
        raise FuseMixLiteError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(topics, dict) or topic not in topics:
        have = ", ".join(topics) if isinstance(topics, dict) else "nothing"
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
    if not isinstance(row, dict) or sorted(row) != sorted(fields):
        raise FuseMixLiteError(f"{where}: give exactly the fields {', '.join(fields)}")
    where = f"{where} ({row['model']})"
    if row["mark"] not in MARKS:
        raise FuseMixLiteError(f"{where}: unknown mark {row['mark']!r}; choose one of {', '.join(MARKS)}")
    if not row["source"]:
        raise FuseMixLiteError(f"{where}: the source is empty; a number without one cannot be quoted")
    if row["pairs"] is not None and not (isinstance(row["pairs"], int) and row["pairs"] > 0):
        raise FuseMixLiteError(f"{where}: pairs = {row['pairs']!r}; give a positive whole number, or null")
    for dataset, directions in row["recall"].items():
        for direction, values in directions.items():
            if direction not in DIRECTIONS:
                raise FuseMixLiteError(f"{where}: {dataset} {direction!r}; choose one of {', '.join(DIRECTIONS)}")
            for k, value in values.items():
                if not isinstance(value, (int, float)) or not 0 <= value <= 100:
                    raise FuseMixLiteError(f"{where}: {dataset} {direction}@{k} = {value!r} is no percentage")
    hours = row.get("device_hours")
    if hours is not None and not (isinstance(hours, (int, float)) and hours > 0 and row["device"]):
        raise FuseMixLiteError(f"{where}: device_hours = {hours!r} of {row['device']}; give hours above 0, a device, or null")
    return kind(**row)
