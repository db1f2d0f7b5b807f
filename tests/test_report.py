"""Outputs of a chapter: what they say, in HTML and in words."""

import base64
import io
import re

import matplotlib
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from fusemix_lite import FuseMixLiteError, report
from fusemix_lite.scenes import Scene, Thing
from fusemix_lite.stats import Interval

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


@pytest.fixture
def shown(monkeypatch):
    """Everything displayed, as (data, metadata); figure and table numbers start at 1."""
    outputs = []
    monkeypatch.setattr(
        "IPython.display.display", lambda data, raw, metadata=None: outputs.append((data, metadata or {}))
    )
    monkeypatch.setattr(report, "_numbers", {})
    return outputs


def figure():
    fig, ax = plt.subplots()
    ax.plot([0, 1])
    return fig


def embedded(markup: str) -> bytes:
    return base64.b64decode(re.search(r"base64,([^\"]+)", markup).group(1))


def test_figure_is_numbered_described_and_closed(shown):
    report.show(figure(), 'Recall "x" < y', "It rises.", "fig-a")
    report.show(figure(), "Second", "It falls.", "fig-b")
    report.show(figure(), "First again", "It rises.", "fig-a")
    html = [data["text/html"] for data, _ in shown]
    assert '<figure id="fig-a"' in html[0] and 'alt="It rises."' in html[0]
    assert "Recall &quot;x&quot; &lt; y" in html[0]
    assert [re.search(r"Figure \d", h).group() for h in html] == ["Figure 1", "Figure 2", "Figure 1"]
    assert shown[0][0]["text/plain"] == 'Figure 1. Recall "x" < y\n[It rises.]'
    assert not plt.get_fignums()


def test_figure_text_has_its_nominal_size_on_the_page(shown):
    report.use_style()
    fig = figure()
    inches = fig.get_size_inches()[0]
    report.show(fig, "c", "a", "fig-size")
    markup = shown[0][0]["text/html"]
    assert f"width:{round(inches * 96)}px" in markup
    assert Image.open(io.BytesIO(embedded(markup))).size[0] >= 1.5 * inches * 96
    assert min(v for k, v in report.STYLE.items() if k.endswith(("font.size", "labelsize", "fontsize"))) >= 10


def test_same_figure_gives_the_same_bytes(shown):
    report.show(figure(), "c", "a", "fig-1")
    report.show(figure(), "c", "a", "fig-2")
    assert embedded(shown[0][0]["text/html"]) == embedded(shown[1][0]["text/html"])


@pytest.mark.parametrize(
    "caption, alt, name, message",
    [
        ("", "a", "fig", "caption is empty"),
        ("c", "  ", "fig", "alt is empty"),
        ("c", "a", "Fig 1", "no anchor"),
    ],
)
def test_figure_refuses_missing_words(shown, caption, alt, name, message):
    with pytest.raises(FuseMixLiteError, match=message):
        report.show(figure(), caption, alt, name)
    plt.close("all")


def test_table_rounds_and_marks_headers(shown):
    rows = [
        {"scheme": "none", "R@1": 15.749, "n": 3, "note": None},
        {"scheme": "<mix>", "R@1": np.float32(18.0), "n": np.int64(4), "note": float("nan")},
    ]
    report.table(rows, "Recall in %.", digits=2)
    data = shown[0][0]
    assert data["text/plain"].splitlines() == [
        "Table 1. Recall in %.",
        "scheme | R@1 | n | note",
        "none | 15.75 | 3 | –",
        "<mix> | 18.00 | 4 | –",
    ]
    assert data["text/html"].count('scope="col"') == 4 and data["text/html"].count('scope="row"') == 2
    assert "&lt;mix&gt;" in data["text/html"] and "<mix>" not in data["text/html"]
    assert data["text/html"].count("</th>") == 6 and data["text/html"].count("</td>") == 6


def test_table_refuses_ragged_and_empty(shown):
    with pytest.raises(FuseMixLiteError, match="row 1 has columns"):
        report.table([{"a": 1}, {"b": 2}], "t")
    with pytest.raises(FuseMixLiteError, match="no rows"):
        report.table([], "t")


def test_gallery_takes_arrays_and_pictures(shown):
    images = [np.zeros((8, 8, 3), np.uint8), Image.new("RGB", (8, 8), "red")]
    report.gallery(images, ["a", "b"], ["black", "red"])
    markup = shown[0][0]["text/html"]
    assert markup.count("<figure") == 2 and 'alt="red"' in markup
    with pytest.raises(FuseMixLiteError, match="2 images, 1 captions"):
        report.gallery(images, ["a"], ["black", "red"])


def test_player_holds_the_sound(shown):
    tone = torch.sin(torch.arange(16000) * 0.1) * 0.5
    report.play(tone, 16000, "a tone")
    data = shown[0][0]
    sound, rate = soundfile.read(io.BytesIO(embedded(data["text/html"])))
    assert rate == 16000 and sound.shape == (16000,) and abs(sound).max() == pytest.approx(0.5, abs=0.05)
    assert data["text/plain"] == "a tone [sound, 1.0 s]" and len(data["text/html"]) < 30_000


@pytest.mark.parametrize("audio", [np.zeros((2, 8)), np.zeros(0), np.array([0.0, np.nan])])
def test_player_refuses_what_is_no_clip(shown, audio):
    with pytest.raises(FuseMixLiteError, match="mono clip"):
        report.play(audio, 16000, "x")


@pytest.mark.parametrize(
    "value, kept",
    [(np.float64(1.5), "1.5"), (torch.tensor(2), "2"), (3.25, "3.25"), ("reproduced", "'reproduced'"), (True, "True")],
)
def test_record_keeps_plain_values_out_of_sight(shown, value, kept):
    report.record("r", value)
    data, metadata = shown[0]
    assert data == {"application/papermill.record/text/plain": kept}
    assert metadata["scrapbook"]["name"] == "r"


def test_scenes_are_told_in_words():
    bells, rain = Thing("bell", "small", "left", 3, "red", 0, 0), Thing("rain", "large", "right", 2, "blue", 0, 0)
    told = report.describe(Scene("snow", (bells, rain), "slow", "dry", -40))
    assert told == "3 small red bells (left) and 2 large blue rain clouds (right), background: snow"


def test_record_refuses_objects(shown):
    with pytest.raises(FuseMixLiteError, match="not list"):
        report.record("r", [1])


def test_provenance_names_no_place(shown, capsys):
    report.provenance(seeds=[0, 1])
    text = capsys.readouterr().out
    assert "torch " in text and re.search(r"seeds +\[0, 1\]", text) and re.search(r"lite weights +[0-9a-f]{16}", text)
    assert "/" not in text


def test_colours_are_distinct_and_readable_on_white():
    assert len(set(report.COLOURS.values())) == len(report.COLOURS)
    for colour in report.COLOURS.values():
        channels = np.array(matplotlib.colors.to_rgb(colour))
        linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        assert 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05) > 2


def test_curves_are_named_at_their_ends_without_overlap():
    fig, ax = plt.subplots()
    low, high = [Interval(1, 0, 2), Interval(10, 9, 11)], [Interval(2, 1, 3), Interval(10.1, 9, 11)]
    report.curves(ax, [500, 1000], {"fusemix": high, "none": low})
    names = sorted(ax.texts, key=lambda text: text.xyann[1])
    assert [text.get_text() for text in names] == ["none", "fusemix"]  # as the lines end
    assert names[0].xyann[1] == 10 and names[1].xyann[1] - names[0].xyann[1] > 0.5
    assert not ax.get_legend() and len(ax.containers) == 2
    plt.close(fig)


def test_a_forest_has_a_row_an_interval_and_a_label_a_group():
    fig, ax = plt.subplots()
    few = {"fusemix": Interval(1, 0, 2), "none": Interval(-1, -2, 0)}
    report.forest(ax, {"few": few, "many": {"fusemix": Interval(3, 2, 4)}})
    spans, means = ax.lines[::2], ax.lines[1::2]
    assert [tuple(line.get_xdata()) for line in spans] == [(0, 2), (-2, 0), (2, 4)]
    assert [line.get_xdata()[0] for line in means] == [1, -1, 3]
    heights = [line.get_ydata()[0] for line in means]
    assert heights == sorted(heights, reverse=True) and heights[1] - heights[2] > heights[0] - heights[1]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["few", "many"]
    assert list(ax.get_yticks()) == [sum(heights[:2]) / 2, heights[2]]
    assert ax.get_legend_handles_labels()[1] == ["fusemix", "none"]  # once each
    plt.close(fig)


def test_a_small_plot_of_an_ablation_marks_the_base():
    fig, ax = plt.subplots()
    full, hollow = [Interval(-3, -4, -2), None, Interval(1, 0, 2)], [Interval(-5, -6, -4), None, Interval(0, -1, 1)]
    report.against_base(ax, ["64", "256", "1,024"], {"t": full, "i": hollow}, (-6, 3))
    (first, _, (bar,)), (second, *_) = ax.containers
    assert list(first.get_ydata()) == [-3, 1] and list(second.get_ydata()) == [-5, 0]
    assert [tuple(segment[:, 1]) for segment in bar.get_segments()] == [(-4, -2), (0, 2)]
    assert all(a < b and round(a) == round(b) in (0, 2) for a, b in zip(first.get_xdata(), second.get_xdata(), strict=True))
    assert first.get_markerfacecolor() != second.get_markerfacecolor() == "white"
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_marker() == "D"] == [(1, 0)]
    labels = ax.get_xticklabels()
    assert [label.get_text() for label in labels] == ["64", "256", "1,024"]
    assert [label.get_weight() for label in labels].index("bold") == 1 and labels[0].get_weight() != "bold"
    plt.close(fig)


def test_what_lies_beyond_a_small_plot_is_an_arrow_with_its_number():
    fig, ax = plt.subplots()
    report.against_base(ax, ["8", "128", "512"], {"t": [Interval(-12.3, -14, -10), None, Interval(4.4, 2, 7)]}, (-6, 3))
    assert ax.get_ylim() == (-6, 3) and not len(ax.containers[0][0].get_xdata())  # no mark is left inside
    arrows = {line.get_marker(): line.get_ydata()[0] for line in ax.lines if line.get_marker() in ("v", "^")}
    assert arrows == {"v": -6, "^": 3}
    assert [text.get_text() for text in ax.texts] == ["-12", "+4"]
    huge = [Interval(-20, -30, -10)]
    report.against_base(ax, ["8"], {"t": huge, "i": huge}, (-6, 3))
    assert ax.texts[2].xyann[1] < ax.texts[3].xyann[1]  # two numbers at one place do not cover each other
    plt.close(fig)


def test_differences_are_told_in_words():
    some = {8: Interval(-4.06, -5.2, -3), "32": Interval(-0.5, -1.2, 0.2), "512": Interval(6, 4.5, 7.5)}
    some["64"] = Interval(0, 0, 0)
    assert report.in_words(some) == "512 gains 6.0 (4.5 to 7.5); 8 costs 4.1 (3.0 to 5.2); 32, 64: no clear difference"
    assert report.in_words({"a": Interval(1, 0.5, 1.5)}) == "a gains 1.0 (0.5 to 1.5)"
    assert report.in_words({"a": Interval(1, -0.5, 2.5)}) == "a: no clear difference"


def test_tabs_show_rows_or_say_why_there_are_none(shown):
    rows = [{"way": "a < b", "R@1": 12.345}]
    report.tabs({"lite": rows, "paper": "Not yet measured: `run it`"}, "Recall & more")
    markup, plain = shown[0][0]["text/html"], shown[0][0]["text/plain"]
    assert plain == "Table 1. Recall & more\n[lite]\nway | R@1\na < b | 12.3\n[paper]\nNot yet measured: `run it`"
    assert "a &lt; b" in markup and "Recall &amp; more" in markup
    inputs = re.findall(r'<input type="radio" name="([^"]+)" id="([^"]+)"( checked)?>', markup)
    assert [checked for *_, checked in inputs] == [" checked", ""] and len({name for name, *_ in inputs}) == 1
    assert re.findall(r'<label for="([^"]+)"', markup) == [which for _, which, _ in inputs]  # each is named by its tab
    report.table(rows, "Next")
    assert shown[1][0]["text/plain"].startswith("Table 2.")


def test_two_tables_in_tabs_do_not_share_their_buttons(shown):
    for caption in ("one", "two"):
        report.tabs({"lite": "nothing"}, caption)
    groups = [re.search(r'name="([^"]+)"', data["text/html"])[1] for data, _ in shown]
    assert len(set(groups)) == 2


@pytest.mark.parametrize(
    ("panels", "told"),
    [({}, "nothing to show"), ({"lite": []}, "tab 'lite' of 'c': there are no rows"), ({"": "text"}, "title 1 is empty")],
)
def test_tabs_without_content_are_refused(shown, panels, told):
    with pytest.raises(FuseMixLiteError, match=told):
        report.tabs(panels, "c")
    assert not shown
