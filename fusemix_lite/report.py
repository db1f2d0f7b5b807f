"""What a chapter shows: figures, tables, galleries, players, recorded numbers and its own provenance.

Everything is HTML that stands alone (pictures and sound are embedded), so it reads the same in the book, on GitHub, in
Jupyter and on Colab, and captions and alt texts may hold numbers that the run has just computed. Each output also
carries a plain-text twin, which a notebook test compares: round what goes into a caption.
"""

import base64
import html
import io
import itertools
import math
import os
import platform
import re
import time
import warnings
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from .errors import FuseMixLiteError

#: One colour a scheme in every figure; told apart by readers with any colour vision (Okabe and Ito's palette).
COLOURS = {
    "none": "#5f6b7a",
    "noise": "#e69f00",
    "separate": "#0072b2",
    "quantise": "#cc79a7",
    "slerp": "#009e73",
    "fusemix": "#d55e00",
}

STYLE = {
    "figure.figsize": (7.0, 4.0),
    "figure.dpi": 96,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#4b5563",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.formatter.min_exponent": 6,  # 8000, not 8·10³, on logarithmic axes
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.2,
    "lines.markersize": 6,
    "errorbar.capsize": 3,
    "axes.prop_cycle": "cycler('color', ['#d55e00', '#0072b2', '#009e73', '#cc79a7', '#e69f00', '#5f6b7a'])",
}

# transformers brings tqdm, which warns in every notebook kernel without ipywidgets; the book shows no bars and needs none.
warnings.filterwarnings("ignore", message="IProgress not found")

_PIXELS_AN_INCH = 96  # CSS pixels: a figure of 7 inches is shown 672 pixels wide, so that its 10 pt text is 10 pt
_DOTS_AN_INCH = 150  # of the picture itself, sharp on dense screens too
_STARTED = time.perf_counter()
_numbers: dict[tuple[str, str], int] = {}  # ("Figure" | "Table", name) -> its number in this kernel


def use_style() -> None:
    """Set the book's matplotlib style: white ground, 10–12 pt text, colours that everyone can tell apart."""
    import matplotlib

    matplotlib.rcParams.update(STYLE)


def show(fig, caption: str, alt: str, name: str) -> None:
    """Display a matplotlib figure as a numbered HTML ``<figure>`` and close it.

    caption: what is plotted and how to read it. alt: the finding, in words, for a reader who does not see the picture.
    name: its anchor, lower-case letters, digits and dashes; showing the same name again keeps the number.
    """
    import matplotlib.pyplot as plt

    _check_text("show", caption=caption, alt=alt)
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise FuseMixLiteError(f"show: name {name!r} is no anchor; use lower-case letters, digits and dashes")
    png = io.BytesIO()
    fig.savefig(png, format="png", dpi=_DOTS_AN_INCH, metadata={"Software": None})
    width = round(fig.get_size_inches()[0] * _PIXELS_AN_INCH)
    plt.close(fig)
    label = _label("Figure", name)
    picture = (
        f'<img src="{_data_uri("image/png", png.getvalue())}" alt="{html.escape(alt)}" '
        f'style="width:{width}px;max-width:100%;height:auto;background:#fff">'
    )
    _display(
        f'<figure id="{name}" class="fusemix-figure" style="margin:1.2em 0">{picture}'
        f"<figcaption><strong>{label}.</strong> {html.escape(caption)}</figcaption></figure>",
        f"{label}. {caption}\n[{alt}]",
    )


def curves(ax, x: Sequence[float], series: dict[str, Sequence]) -> None:
    """Draw each series over `x` with its intervals, its name written at its end instead of into a legend.

    series: name -> intervals (``mean``, ``low``, ``high``), one a value of x; the name gives the colour (COLOURS).
    """
    for name, intervals in series.items():
        means = [i.mean for i in intervals]
        bars = [[i.mean - i.low for i in intervals], [i.high - i.mean for i in intervals]]
        ax.errorbar(x, means, bars, marker="o", color=COLOURS[name], label=name)
    bottom, top = ax.get_ylim()
    height, free = 0.07 * (top - bottom), -math.inf  # of a line of text; where the next name may stand
    for name in sorted(series, key=lambda name: series[name][-1].mean):
        free = max(free + height, series[name][-1].mean)
        place = {"xytext": (1.02, free), "textcoords": ("axes fraction", "data")}
        ax.annotate(name, (x[-1], free), **place, color=COLOURS[name], weight="bold", va="center", annotation_clip=False)


def forest(ax, groups: dict[str, dict[str, Sequence]], marker: str = "o") -> None:
    """Draw intervals (``mean``, ``low``, ``high``) as rows from top to bottom, a label beside every group of them.

    groups: label -> {name: interval}; the name gives the colour (COLOURS) and, once each, a label for a legend.
    """
    y, ticks, seen = 0.0, {}, set()
    for label, rows in groups.items():
        ticks[label] = y - (len(rows) - 1) / 2
        for name, (mean, low, high) in rows.items():
            ax.plot([low, high], [y, y], color=COLOURS[name])
            ax.plot(mean, y, marker, ms=7, color=COLOURS[name], label="_" * (name in seen) + name)
            seen.add(name)
            y -= 1
        y -= 1.5  # room between groups
    ax.set_yticks(list(ticks.values()), list(ticks))


def against_base(ax, values: Sequence[str], series: dict[str, Sequence], limits: tuple[float, float]) -> None:
    """Draw one ablation as a small plot: how far each value of an option is from the base, which lies on the zero line.

    values: what was tried, in order, one place each along x; the base among them is written in bold.
    series: name -> an interval (``mean``, ``low``, ``high``) of the difference a value, None for the base. Marks of the first
    series are full, those of the second are open, and they stand side by side.
    limits: of the y axis. A mean beyond them is drawn at the edge, as an arrow with its number, so that one huge effect does
    not flatten all others.
    """
    ax.axhline(0, color="black", lw=1)
    written = {}
    for i, (name, differences) in enumerate(series.items()):
        shift = 0.24 * (i - (len(series) - 1) / 2)
        style = {"color": COLOURS["fusemix"], "mfc": "white" if i else COLOURS["fusemix"], "ms": 6}
        inside, beyond = [], []
        for x, d in enumerate(differences):
            if d is not None:
                (inside if limits[0] <= d.mean <= limits[1] else beyond).append((x + shift, d))
        bars = [[d.mean - d.low for _, d in inside], [d.high - d.mean for _, d in inside]]
        x, y = [x for x, _ in inside], [d.mean for _, d in inside]
        ax.errorbar(x, y, bars, fmt="s" if i else "o", label=name, lw=1.6, capsize=0, **style)
        for x, d in beyond:
            edge, marker, inward = (limits[0], "v", 8) if d.mean < 0 else (limits[1], "^", -8)
            ax.plot(x, edge, marker, clip_on=False, **style)
            above = written[round(x), marker] = written.get((round(x), marker), -1) + 1  # numbers stand one above the other
            text = {"xytext": (0, inward * (1 + 1.5 * above)), "textcoords": "offset points", "ha": "center"}
            ax.annotate(f"{d.mean:+.0f}", (x, edge), **text, va="bottom" if inward > 0 else "top", fontsize=10)
    base = [x for x in range(len(values)) if all(differences[x] is None for differences in series.values())]
    ax.plot(base, [0] * len(base), "D", color="black", ms=6)
    ax.set_xticks(range(len(values)), values)
    for x in base:
        ax.get_xticklabels()[x].set_weight("bold")
    ax.set(xlim=(-0.6, len(values) - 0.4), ylim=limits)
    ax.grid(False, axis="x")


def in_words(differences: dict) -> str:
    """What intervals of differences to a base say, biggest first: "8 costs 4.1 (3.0 to 5.2); 32, 512: no clear difference".

    differences: value -> interval (``mean``, ``low``, ``high``) in points. What lies surely above zero "gains".
    """
    clear = {value: d for value, d in differences.items() if not d.low <= 0 <= d.high}
    told = [
        f"{value} {'gains' if d.mean > 0 else 'costs'} {abs(d.mean):.1f} ({lesser:.1f} to {greater:.1f})"
        for value, d in sorted(clear.items(), key=lambda pair: -abs(pair[1].mean))
        for lesser, greater in [sorted((abs(d.low), abs(d.high)))]
    ]
    rest = [str(value) for value in differences if value not in clear]
    return "; ".join(told + [f"{', '.join(rest)}: no clear difference"] * bool(rest))


def table(rows: Sequence[dict], caption: str, digits: int = 1) -> None:
    """Display a list of rows (dicts with the same keys) as a numbered HTML table; floats are rounded to `digits`."""
    _check_text("table", caption=caption)
    markup, plain = _grid(rows, digits, f"table {caption!r}")
    label = _label("Table", caption)
    head, body = markup
    _display(
        '<div class="fusemix-table" style="overflow-x:auto"><table>'
        f'<caption style="caption-side:top;text-align:left"><strong>{label}.</strong> {html.escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>",
        "\n".join([f"{label}. {caption}", *plain]),
    )


def tabs(panels: dict[str, Sequence[dict] | str], caption: str, digits: int = 1) -> None:
    """Display one numbered table in several versions, a tab each: those of other profiles, say (`records.at_scales`).

    panels: what the tab says -> rows as `table` takes them, or a sentence where there are none. The first is open. The tabs
    need no script; where a viewer removes styles (GitHub does), all of them stand one below the other.
    """
    _check_text("tabs", caption=caption, **{f"title {i}": title for i, title in enumerate(panels, 1)})
    if not panels:
        raise FuseMixLiteError(f"tabs {caption!r}: there is nothing to show")
    label, parts, plain = _label("Table", caption), [], []
    group = "fusemix-tabs-" + label.split()[1]
    for i, (title, content) in enumerate(panels.items()):
        if isinstance(content, str):
            shown, told = f"<p>{html.escape(content)}</p>", [content]
        else:
            (head, body), told = _grid(content, digits, f"tab {title!r} of {caption!r}")
            shown = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        parts.append(
            f'<input type="radio" name="{group}" id="{group}-{i}"{" checked" * (i == 0)}>'
            f'<label for="{group}-{i}"><strong>{html.escape(title)}</strong></label>'
            f'<div class="fusemix-tab" style="overflow-x:auto">{shown}</div>'
        )
        plain += [f"[{title}]", *told]
    _display(
        f"<style>{_TABS}</style><p><strong>{label}.</strong> {html.escape(caption)}</p>"
        f'<div class="fusemix-tabs">{"".join(parts)}</div>',
        "\n".join([f"{label}. {caption}", *plain]),
    )


#: Radio buttons that nobody sees, but that the keyboard finds, open the panel behind their label.
_TABS = (
    ".fusemix-tabs{display:flex;flex-wrap:wrap;gap:0 1.2em}"
    ".fusemix-tabs>input{position:absolute;opacity:0;pointer-events:none}"
    ".fusemix-tabs>label{cursor:pointer;padding:.2em .1em;border-bottom:3px solid transparent}"
    ".fusemix-tabs>input:checked+label{border-color:currentColor}"
    ".fusemix-tabs>input:focus-visible+label{outline:2px solid currentColor}"
    ".fusemix-tabs>.fusemix-tab{display:none;order:1;flex-basis:100%;padding:.6em 0}"
    ".fusemix-tabs>input:checked+label+.fusemix-tab{display:block}"
    "@media print{.fusemix-tabs>.fusemix-tab{display:block;order:0}}"
)


def _grid(rows: Sequence[dict], digits: int, where: str) -> tuple[tuple[str, str], list[str]]:
    """Head and body of an HTML table of these rows, and its lines as plain text."""
    if not rows:
        raise FuseMixLiteError(f"{where}: there are no rows to show")
    columns = list(rows[0])
    for i, row in enumerate(rows):
        if list(row) != columns:
            raise FuseMixLiteError(f"{where}: row {i} has columns {list(row)}, the first one has {columns}")
    cells = [[_cell(row[column], digits) for column in columns] for row in rows]
    numeric = [all(_is_number(row[column]) or row[column] is None for row in rows) for column in columns]
    align = ["right" if is_numeric else "left" for is_numeric in numeric]
    head = "".join(
        f'<th scope="col" style="text-align:{a}">{html.escape(str(c))}</th>'
        for c, a in zip(columns, align, strict=True)
    )
    body = "".join(_table_row(row, align) for row in cells)
    return (head, body), [" | ".join(map(str, columns)), *(" | ".join(row) for row in cells)]


def gallery(images: Iterable, captions: Sequence[str], alts: Sequence[str], width: int = 128) -> None:
    """Display pictures side by side, each with its caption and alt text.

    images: PIL images or (H, W, 3) uint8 arrays; width: of each on the page, in pixels.
    """
    images = list(images)
    if not len(images) == len(captions) == len(alts):
        raise FuseMixLiteError(
            f"gallery: {len(images)} images, {len(captions)} captions and {len(alts)} alt texts; give one of each"
        )
    tiles = []
    for image, caption, alt in zip(images, captions, alts, strict=True):
        _check_text("gallery", caption=caption, alt=alt)
        tiles.append(
            f'<figure style="margin:0;width:{width}px"><img src="{_data_uri("image/png", _png(image))}" '
            f'alt="{html.escape(alt)}" width="{width}" style="max-width:100%;height:auto">'
            f'<figcaption style="font-size:.85em">{html.escape(caption)}</figcaption></figure>'
        )
    _display(
        '<div class="fusemix-gallery" style="display:flex;flex-wrap:wrap;gap:14px">' + "".join(tiles) + "</div>",
        "\n".join(f"- {caption} [{alt}]" for caption, alt in zip(captions, alts, strict=True)),
    )


def describe(scene) -> str:
    """What the picture of a Sounding Scene shows, in words: for alt texts."""
    names = (t.kind + " cloud" * (t.kind == "rain") + "s" * (t.count > 1) for t in scene.things)
    things = (f"{t.count} {t.size} {t.colour} {n} ({t.position})" for t, n in zip(scene.things, names, strict=True))
    return f"{' and '.join(things)}, background: {scene.background}"


def play(audio, rate: int, label: str) -> None:
    """Display a small player. audio: (T,) float in [-1, 1]; rate: in Hz; label: what is to be heard."""
    import soundfile

    _check_text("play", label=label)
    audio = np.asarray(audio, dtype=np.float32)
    if audio.ndim != 1 or not audio.size or not np.isfinite(audio).all():
        raise FuseMixLiteError(f"play {label!r}: a mono clip (T,) of finite samples is needed, this is {audio.shape}")
    ogg = io.BytesIO()
    soundfile.write(ogg, audio, rate, format="OGG", subtype="VORBIS")
    _display(
        f'<figure class="fusemix-player" style="margin:.6em 0"><figcaption>{html.escape(label)}</figcaption>'
        f'<audio controls preload="none" aria-label="{html.escape(label)}" '
        f'src="{_data_uri("audio/ogg", ogg.getvalue())}"></audio></figure>',
        f"{label} [sound, {audio.size / rate:.1f} s]",
    )


def record(name: str, value) -> None:
    """Keep a number (or a short text) under a name, without showing it, for ``{glue:text}`` in the book's pages.

    value: a Python, NumPy or torch scalar, kept as a plain int, float, bool or str. A name belongs to one page.
    """
    if hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, (int, float, str)):
        raise FuseMixLiteError(f"record {name!r}: a number or a text is needed, not {type(value).__name__}")
    from IPython.display import display

    prefix = "application/papermill.record/"  # the format of scrapbook and MyST-NB; viewers ignore the unknown type
    display(
        {prefix + "text/plain": repr(value)},
        raw=True,
        metadata={"scrapbook": {"name": name, "mime_prefix": prefix}},
    )


def provenance(**extra) -> None:
    """Print what this run stood on: versions, weights, threads, seconds, and whatever the chapter adds (seeds, …).

    No host name and no path, but times and versions differ between machines: tag the cell ``nbval-ignore-output``.
    """
    import torch

    from .encoders import WEIGHTS
    from .records import digest, weights_digest

    weights = digest([weights_digest(path.parent.name) for path in sorted(WEIGHTS.glob("*/model.safetensors"))])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    lines = {
        "fusemix_lite": _version("fusemix-lite"),
        "python": platform.python_version(),
        **{package: _version(package) for package in ("torch", "transformers", "numpy", "scipy")},
        "lite weights": weights,
        "device": device,
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        **extra,
        "seconds": round(time.perf_counter() - _STARTED),
    }
    pad = max(map(len, lines))
    print("\n".join(f"{key:<{pad}}  {value}" for key, value in lines.items()))


def _label(kind: str, name: str) -> str:
    number = _numbers.setdefault((kind, name), 1 + sum(known == kind for known, _ in _numbers))
    return f"{kind} {number}"


def _display(markup: str, plain: str) -> None:
    from IPython.display import display

    display({"text/html": markup, "text/plain": plain}, raw=True)


def _check_text(where: str, **texts: str) -> None:
    for what, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise FuseMixLiteError(f"{where}: the {what} is empty; say in words what there is to see or hear")


def _data_uri(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def _png(image) -> bytes:
    from PIL import Image

    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _is_number(value) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _cell(value, digits: int) -> str:
    if value is None or (isinstance(value, (float, np.floating)) and math.isnan(value)):
        return "–"
    if isinstance(value, (float, np.floating)):
        return f"{value:.{digits}f}"
    return str(value)


def _table_row(cells: list[str], align: list[str]) -> str:
    tags = itertools.chain(['th scope="row"'], itertools.repeat("td"))
    row = "".join(
        f'<{tag} style="text-align:{a}">{html.escape(cell)}</{tag.split()[0]}>'
        for tag, cell, a in zip(tags, cells, align, strict=False)
    )
    return f"<tr>{row}</tr>"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
