"""Search: embed a gallery once, then ask it in words, with a picture or with a sound.

index = SearchIndex.shipped("image-text")              # adapters and encoders of the package, on Sounding Scenes
matches = index.search("two red birds on the beach")     # best first
page = index.html("two red birds on the beach", matches) # one file, readable without a network
"""

import base64
import html
import io
import os
import string
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import torch

from .adapters import FusionModel
from .device import pick_device
from .encoders import BaseEncoder, Encoder, load_encoder, resolve_encoder
from .errors import FuseMixLiteError
from .files import SUFFIXES
from .metrics import embed_rows
from .workflow import SHIPPED, load_model, model_folder

SCENES = 1000  # of the test split that a search without files looks through: the same latents as the book's
_MIME = {".wav": "audio/wav", ".mp3": "audio/mpeg", ".flac": "audio/flac", ".opus": "audio/ogg", ".oga": "audio/ogg"}
_EMBEDDED = 1_000_000  # bytes of a sound that a page holds itself; a longer one is linked
_SIDE = 320  # pixels of a thumbnail's longer side


class Match(NamedTuple):
    """One row of the gallery, as `SearchIndex.search` finds it."""

    rank: int  # from 1
    cosine: float  # with the query, in the shared space
    item: str
    caption: str  # the row itself in a gallery of captions, else the item's first one; "" where there is none
    row: int  # of the gallery's embeddings


class SearchIndex:
    """A gallery in the shared space of a `FusionModel`, ready to be asked.

    Args:
        model: adapters of two or more modalities.
        encoders: name, folder or loaded `Encoder` by modality: those that the model was fitted to. One is loaded when it is
            needed, so a gallery with latents and a query of another modality load a single encoder.
        dataset: what to look through; anything that `extract` takes, such as `FilePairs` or `SoundingScenes`. Its latents come
            from the cache, or go there.
        modality: which of its fields is looked through.
        store: a `LatentStore` of the dataset that is there already. Or, without a dataset, latents and item ids:
            ``(latents (N, d), N names)``.

    Raises:
        FuseMixLiteError: a modality that the model or the dataset lacks, or latents of other encoders.
    """

    def __init__(
        self,
        model: FusionModel,
        encoders: dict[str, str | Path | Encoder],
        dataset: Any = None,
        modality: str = "image",
        store: Any = None,
        device: str = "auto",
        batch_size: int = 64,
        progress: bool = True,
    ):
        from .extraction import cached_latents

        for name in (modality, *encoders):
            if name not in model.in_dims:
                raise FuseMixLiteError(f"no modality {name!r} in this model: it knows {', '.join(model.in_dims)}")
        self.model, self.encoders, self.dataset, self.modality = model, dict(encoders), dataset, modality
        self.device = pick_device(device)
        self._kept = None  # rows of the field that have an embedding; None: all
        if store is None and dataset is None:
            raise FuseMixLiteError("nothing to look through: give a dataset, or latents with item ids")
        if store is None:
            encoder = encoders[modality]
            name = encoder.name if isinstance(encoder, BaseEncoder) else encoder  # the cache knows encoders by name
            store = cached_latents(dataset, name, batch_size, device, progress)
        if isinstance(store, tuple):
            latents, self.item_ids = np.asarray(store[0]), list(store[1])
        else:
            latents, self.item_ids = np.asarray(store.array), store.item_ids
            gone = {entry["index"] for entry in store.quarantine}
            if store.origin.items != len(store) + len(gone):
                raise FuseMixLiteError(f"{store.path} holds {len(store)} of {store.origin.items} items, {len(gone)} left out")
            if gone:
                self._kept = [row for row in range(store.origin.items) if row not in gone]
        if latents.ndim != 2 or len(latents) != len(self.item_ids):
            raise FuseMixLiteError(f"latents {latents.shape} for {len(self.item_ids)} item ids: give one row each")
        z = torch.from_numpy(latents.astype(np.float32))
        self.embeddings = embed_rows(model.to(self.device), modality, z).cpu()  # (N, shared_dim), unit rows

    @classmethod
    def shipped(cls, pair: str = "image-text", modality: str | None = None, items: int | None = None, **options):
        """The package's own adapters and encoders, over the first `items` scenes of the test split of Sounding Scenes."""
        model, encoders = load_for_search(shipped_adapters(pair))
        return cls(model, encoders, gallery_scenes(pair, items), modality or pair.split("-")[0], **options)

    def __len__(self) -> int:
        """Rows of the gallery."""
        return len(self.item_ids)

    def search(self, query: Any, top: int = 5, modality: str | None = None) -> list[Match]:
        """The `top` rows with the largest cosine to the query, best first.

        `query` is a text, a path to a picture or a sound, a PIL image or a waveform (T,) at 16 kHz. What it is follows from
        its kind (see `query_modality`) unless `modality` says.
        """
        if top < 1:
            raise FuseMixLiteError(f"top = {top}: ask for one match or more")
        modality = modality or query_modality(query)
        if modality not in self.encoders:
            raise FuseMixLiteError(f"this model cannot be asked with {modality}: it knows {', '.join(self.model.in_dims)}")
        z = self._encoder(modality).encode([query])
        scores = self.embeddings @ embed_rows(self.model, modality, z).cpu()[0]  # (N,)
        best = scores.argsort(descending=True, stable=True)[:top].tolist()
        return [Match(rank, scores[row].item(), self.item_ids[row], self.caption(row), row) for rank, row in enumerate(best, 1)]

    def caption(self, row: int) -> str:
        """What a row says, or what is said of its item; "" where nothing is."""
        if self.modality == "text":
            return str(self._value(row)) if self.dataset is not None else ""
        return self._first_caption(self.item_ids[row])

    def html(self, query: Any, matches: Sequence[Match], folder: str | Path | None = None, note: str = "") -> str:
        """One page with the query and its matches: pictures, players, captions; everything in it, nothing fetched.

        A sound of more than a megabyte is not embedded but linked, relative to `folder`, where the page will stand.
        """
        asked = query_modality(query)
        title = f"“{query}”" if asked == "text" else Path(query).name if isinstance(query, str | Path) else f"one {asked}"
        shown = "" if asked == "text" else _medium(asked, query, f"the query: {title}", folder)
        rows = []
        for match in matches:
            label = match.caption or f"{self.modality} {match.item}, no caption known"
            value = self._value(match.row) if self.modality != "text" and self.dataset is not None else None
            medium = "" if value is None else _medium(self.modality, value, label, folder)
            caption = f'<p class="caption" dir="auto">{html.escape(match.caption)}</p>' if match.caption else ""
            rows.append(
                f'<li>{medium}{caption}<p class="facts"><span class="rank">{match.rank}</span> '
                f'cosine {match.cosine:.3f}<span class="item">{html.escape(match.item)}</span></p></li>'
            )
        return string.Template(_PAGE).substitute(
            title=html.escape(title),
            query=shown,
            note=html.escape(note or f"the best {len(matches)} of {len(self):,}"),
            rows="\n".join(rows),
        )

    def _encoder(self, modality: str) -> Encoder:
        encoder = self.encoders[modality]
        if not isinstance(encoder, BaseEncoder):
            encoder = self.encoders[modality] = load_encoder(encoder, self.device)
        return encoder

    def _value(self, row: int) -> Any:
        """The picture, sound or text of a row, as the dataset gives it."""
        return self._values[self._kept[row] if self._kept else row]

    @cached_property
    def _values(self) -> Sequence:
        return self.dataset.fields(self.modality)[1]

    @cached_property
    def _texts(self) -> tuple[dict[str, int], Sequence]:
        """Item -> its first caption's row, and the captions."""
        ids, values = ([], []) if self.dataset is None else self.dataset.fields("text")
        return {item: row for row, item in reversed(list(enumerate(ids)))}, values

    def _first_caption(self, item: str) -> str:
        first, values = self._texts
        return str(values[first[item]]) if item in first else ""


def query_modality(query: Any) -> str:
    """What a query is: a path by its suffix ("image" or "audio"), another string "text", an array "audio", else "image".

    Raises FuseMixLiteError for an empty text and a path that leads nowhere.
    """
    if isinstance(query, str | Path):
        suffix = Path(query).suffix.lower()
        for modality, suffixes in SUFFIXES.items():
            if suffix in suffixes:
                if not Path(query).is_file():
                    raise FuseMixLiteError(f"{query}: no such file to search with")
                return modality
        if isinstance(query, Path):
            known = " ".join(sorted(SUFFIXES["image"] | SUFFIXES["audio"]))
            raise FuseMixLiteError(f"{query} is neither a picture nor a sound by its suffix; known are {known}")
        if not query.strip():
            raise FuseMixLiteError("the query is empty: give some words, a picture or a sound")
        return "text"
    return "audio" if isinstance(query, np.ndarray) else "image"


def gallery_scenes(pair: str, items: int | None = None):
    """The scenes that a search without files looks through: of the test split, so no adapter has seen them."""
    from .datasets import SoundingScenes

    return SoundingScenes(pair, "test", items or SCENES)


def shipped_adapters(pair: str) -> Path:
    """The folder of the package's own adapters for "image-text" or "audio-text"."""
    if f"adapters-{pair}" not in SHIPPED:
        known = ", ".join(name.removeprefix("adapters-") for name in SHIPPED)
        raise FuseMixLiteError(f"no adapters for {pair!r} in the package; there are {known}")
    return model_folder(f"adapters-{pair}")


def load_for_search(folder: str | Path) -> tuple[FusionModel, dict[str, str]]:
    """The model of a folder and its encoders by modality, as `SearchIndex` takes them.

    Raises FuseMixLiteError for an encoder that nobody knows, or that is not the one the model was fitted to any more.
    """
    model, known = load_model(folder)
    names = {}
    for modality, encoder in known.items():
        if not encoder.get("name"):
            raise FuseMixLiteError(f"{folder}: nobody knows which encoder made its {modality} latents: fit with known ones")
        found = resolve_encoder(encoder["name"])
        for key in ("revision", "preprocessing_hash"):
            if encoder.get(key) and getattr(found, key) != encoder[key]:
                what = f"encoder {found.id} has another {key} ({getattr(found, key)[:12]}) than the one"
                raise FuseMixLiteError(f"{what} that {folder} was fitted to ({encoder[key][:12]}): extract and fit again")
        names[modality] = encoder["name"]
    return model, names


def _medium(modality: str, value: Any, label: str, folder: str | Path | None) -> str:
    """A thumbnail or a player. What cannot be shown any more is said instead."""
    from .decoding import as_image

    label = html.escape(label)
    try:
        if modality == "image":
            picture = as_image(value)
            picture.thumbnail((_SIDE, _SIDE))
            kind, options = ("PNG", {}) if max(picture.size) <= 128 else ("JPEG", {"quality": 85})
            buffer = io.BytesIO()
            picture.save(buffer, kind, **options)
            return f'<img src="{_data_uri(f"image/{kind.lower()}", buffer.getvalue())}" alt="{label}">'
        source = _sound(value, folder)
        preload = "metadata" if source.startswith("data:") else "none"
        return f'<audio controls preload="{preload}" aria-label="{label}" src="{source}"></audio>'
    except (FuseMixLiteError, OSError) as error:
        return f'<p class="gone">{html.escape(str(error))}</p>'


def _sound(value: Any, folder: str | Path | None) -> str:
    """The address of a sound: all of it where that is short, else a link."""
    if isinstance(value, str | Path):
        path = Path(value)
        if path.stat().st_size > _EMBEDDED:
            return quote(Path(os.path.relpath(path, folder or Path.cwd())).as_posix())
        return _data_uri(_MIME.get(path.suffix.lower(), "audio/ogg"), path.read_bytes())
    import soundfile

    from .decoding import ARRAY_RATE

    buffer = io.BytesIO()
    soundfile.write(buffer, value, ARRAY_RATE, format="OGG", subtype="VORBIS")
    return _data_uri("audio/ogg", buffer.getvalue())


def _data_uri(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; media-src data: file: 'self'; \
style-src 'unsafe-inline'">
<title>$title – fusemix-lite search</title>
<style>
:root { color-scheme: light dark; --ground: #fbfaf8; --card: #fff; --text: #1f2328; --soft: #57606a; --line: #d8dee4;
  --accent: #b34700; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #15181c; --card: #1f242a; --text: #e8eaed; --soft: #a5adb6; --line: #39414a; --accent: #ff9a57; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 3rem; background: var(--ground); color: var(--text);
  font: 1rem/1.45 system-ui, sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
header img { width: 12rem; } header audio { width: min(24rem, 100%); }
p { margin: 0; } .note { margin: .25rem 0 1.5rem; color: var(--soft); }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(14rem, 100%), 1fr)); gap: 1rem; margin: 0; padding: 0;
  list-style: none; }
li { display: flex; flex-direction: column; gap: .5rem; padding: .75rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .5rem; overflow-wrap: anywhere; }
img { display: block; width: 100%; height: auto; border-radius: .25rem; } audio { width: 100%; }
.facts { margin-top: auto; color: var(--soft); font-size: .875rem; font-variant-numeric: tabular-nums; }
.rank { display: inline-block; min-width: 1.4em; color: var(--accent); font-weight: 700; }
.item { display: block; }
.gone { color: var(--soft); font-style: italic; }
</style>
</head>
<body>
<header>
<h1 dir="auto">$title</h1>
$query
<p class="note">$note</p>
</header>
<main>
<ol role="list" aria-label="Matches, best first">
$rows
</ol>
</main>
</body>
</html>
"""
