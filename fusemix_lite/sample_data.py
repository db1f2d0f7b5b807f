"""Sounding Scenes as files: a folder as a reader's own pairs would be, with media files and a table of captions."""

import csv
import errno
import io
import json
from collections.abc import Iterable
from pathlib import Path

from .datasets import WORLD_VERSION, SoundingScenes
from .decoding import is_cut_short
from .disk import ASIDE, as_json, not_written, write_aside
from .errors import FuseMixLiteError

MEDIA = {"image-text": ("image", "png"), "audio-text": ("audio", "ogg")}  # pair set -> modality, kind of file
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
MARKER, TABLE = "sounding-scenes.json", "captions.csv"


def write_scenes(
    out: str | Path,
    pair: str = "image-text",
    items: int = 1000,
    split: str | None = None,
    captions: int = 5,
    noise: float = 0.0,
    seed: int = 0,
    progress: bool = True,
) -> dict:
    """Write scenes to a folder: pictures as PNG or sounds as Ogg, and ``captions.csv`` (image or audio, text, split).

    Without ``split`` the folder holds all three of them, 80 / 10 / 10 % of the items, and the table a column that says which;
    with it the column is left out. A pass that was stopped goes on where it stood. The table is written last, so a folder
    with a table is whole.

    Returns what was asked for, with the number of files written now (``written``).

    Raises FuseMixLiteError for a knob out of range, and if ``out`` holds anything else or cannot be written.
    """
    if pair not in MEDIA:
        raise FuseMixLiteError(f"no pairs {pair!r} in Sounding Scenes; there are {', '.join(MEDIA)}")
    if items < (1 if split else 10):
        raise FuseMixLiteError(f"items = {items}: give 10 or more for three splits, or name one split")
    counts = {split: items} if split else {name: round(items * share) for name, share in SHARES.items()}
    if not split:
        counts["train"] = items - counts["val"] - counts["test"]
    worlds = [SoundingScenes(pair, part, n, captions, noise, seed=seed) for part, n in counts.items()]
    modality, _ = MEDIA[pair]
    asked = {"world": f"sounding-scenes-v{WORLD_VERSION}", "pair": pair, "items": items, "split": split}
    asked |= {"captions": captions, "noise": noise, "seed": seed}
    try:
        rows, written = _write(Path(out), asked, worlds, progress)
    except OSError as error:
        raise not_written(Path(error.filename or out), error) from error
    return {**asked, "media": modality, "parts": counts, "rows": rows, "written": written}


def _write(out: Path, asked: dict, worlds: list[SoundingScenes], progress: bool) -> tuple[int, int]:
    """Write what is not there yet. Returns how many rows the table has, and how many files were written."""
    pair, split, captions = asked["pair"], asked["split"], asked["captions"]
    modality, suffix = MEDIA[pair]
    _claim(out, asked)
    (out / modality).mkdir(exist_ok=True)

    rows, written = [], 0
    for world, index in _tqdm([(w, i) for w in worlds for i in range(len(w))], pair, progress):
        name = f"{modality}/{world.split}-{index:06d}.{suffix}"
        if not (out / name).exists():
            if modality == "image":
                write_aside(out / name, _png(world.image(index)), sync=False)
            else:
                _write_ogg(out / name, world.audio(index))
            written += 1
        part = () if split else (world.split,)
        rows += [(name, world.caption(index, k), *part) for k in range(captions)]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([(modality, "text", *(() if split else ("split",))), *rows])
    write_aside(out / TABLE, table.getvalue().encode())
    for folder in (out, out / modality):
        for file in folder.glob("*" + ASIDE):
            file.unlink(missing_ok=True)  # left where a pass was killed
    return len(rows), written


def _claim(out: Path, asked: dict) -> None:
    """Make the folder ours by a marker file, or find that it is: the same request, or nothing at all."""
    if out.exists() and not out.is_dir():
        raise FuseMixLiteError(f"{out} is a file: choose a new folder")
    marker = out / MARKER
    if marker.is_file():
        try:
            found = json.loads(marker.read_text("utf-8"))
        except (ValueError, RecursionError):
            found = None
        if found != asked:
            raise FuseMixLiteError(f"{out} holds other scenes (see {marker}): choose a new folder, or ask for the same")
        return
    held = sorted(file.name for file in out.iterdir() if file.suffix != ASIDE) if out.is_dir() else []
    if held:
        raise FuseMixLiteError(f"{out} is in use (it holds {held[0]}): choose a new folder")
    out.mkdir(parents=True, exist_ok=True)
    write_aside(marker, as_json(asked))


def _png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _write_ogg(file: Path, audio) -> None:
    """Straight to the disk: into a buffer, soundfile writes through callbacks that would swallow a Ctrl-C."""
    import soundfile

    from .scene_audio import RATE

    aside = file.with_name(file.name + ASIDE)
    try:
        soundfile.write(aside, audio, RATE, format="OGG", subtype="VORBIS")
        with aside.open("rb") as opened:
            if is_cut_short(opened):
                raise OSError(errno.ENOSPC, "it was cut short; is the disk full?", str(file))
        aside.replace(file)
    except soundfile.LibsndfileError as error:
        aside.unlink(missing_ok=True)
        raise OSError(errno.ENOSPC, f"{error} Is the disk full?", str(file)) from error
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def _tqdm(items: list, label: str, progress: bool) -> Iterable:
    from tqdm import tqdm

    return tqdm(items, desc=f"writing {label}", unit=" items", disable=not progress)
