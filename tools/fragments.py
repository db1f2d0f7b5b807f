"""Pieces of pages that are made at build time, from the file that knows: nobody types them, so none can be stale.

`write_fragments` puts them beside the pages of book/reference as `_generated/NAME.md`; a page includes the one it needs.
"""

import ast
import io
import json
import re
from pathlib import Path

import yaml

from .notebooks import ROOT, chapters, project, read
from .students import ARCHIVE

#: What a reader meets, of the packages in constraints.txt.
_SHOWN = {
    "the module": ["torch", "torchvision", "transformers", "numpy", "scipy", "scikit-learn", "pillow", "soundfile"],
    "figures": ["matplotlib"],
    "the book": ["jupyter-book", "Sphinx", "sphinx-book-theme", "papermill", "ipykernel"],
    "tests": ["pytest", "nbval", "ruff"],
}

#: What the landing page shows of the ledger: families of claims, by their id without its direction.
GAINS = [
    "quantity-fusemix-none-125",
    "fusemix-none-500",
    "fusemix-none-8000",
    "audio-fusemix-none-500",
    "audio-fusemix-none-8000",
    "flickr8k-none-500",
    "flickr8k-none-6000",
    "philharmonia-none-1000",
    "philharmonia-none-8246",
    "fusemix-separate-500",
    "flickr8k-separate-6000",
]
OTHERS = [
    "scratch-500",
    "scratch-16x",
    "scratch-tuned-16x",
    "quality-two-for-one",
    "diversity-kdpp-x",
    "ablation-tuned",
    "ablation-regularised",
    "audio-both",
    "swap-image-share",
    "generation-heard",
    "generation-near-moved-text",
]


def versions() -> str:
    """What was tested together, from constraints.txt and pyproject.toml."""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    python = project()["requires-python"].removeprefix(">=")
    lines = ["| for | package | version |", "|---|---|---|", f"| everything | Python | {python} or newer |"]
    lines += [f"| {what} | {name} | {pins[name]} |" for what, names in _SHOWN.items() for name in names]
    return "\n".join(lines) + "\n"


def times(measured: dict[str, dict]) -> str:
    """The table of execution times; `measured`: chapter's file name -> seconds, parameters and machine, as `build` kept it."""
    if not measured:
        return (
            "This copy of the book was built from the committed notebooks, without running them, so it has no times. "
            "`make book` measures them.\n"
        )
    lines = ["| chapter | seconds |", "|---|--:|"]
    for path in chapters():
        seconds = f"{measured[path.name]['seconds']:.0f}" if path.name in measured else "–"
        lines.append(f"| [{title(path)}](../{path.name}) | {seconds} |")
    lines += [f"| **all** | **{sum(at['seconds'] for at in measured.values()):.0f}** |", ""]
    told = []  # one line, unless chapters were kept from builds on different machines
    for at in measured.values():
        line = (
            "Measured on {processor}, {cores} cores, one thread a process; {system}, Python {python}, torch {torch}; "
            "profile {profile}.".format(**at["machine"], profile=at["parameters"].get("profile", "as the chapters say (lite)"))
        )
        if line not in told:
            told.append(line)
    return "\n".join(lines + told) + "\n"


def profiles() -> str:
    """The scales side by side: the values in which they differ, under the names that they have in the code."""
    from fusemix_lite.profiles import profile

    names = ("smoke", "lite", "colab", "paper")
    shown = [vars(profile(name)) for name in names]
    lines = [f"| value | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for key in shown[0]:
        if key != "name" and any(at[key] != shown[0][key] for at in shown):
            lines.append(f"| `{key}` | {' | '.join(_in_words(at[key]) for at in shown)} |")
    return "\n".join(lines) + "\n"


def _in_words(value) -> str:
    """A value of a profile for a reader; what is empty or zero takes no part at that scale."""
    if isinstance(value, tuple):
        return ", ".join(map(_in_words, value)) or "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value) or "–"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if value else "–"


def profile_source() -> str:
    """The values of a profile as they stand in the code, whose comments say what they are."""
    text = (ROOT / "fusemix_lite" / "profiles.py").read_text("utf-8")
    (found,) = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == "Profile"]
    lines = text.splitlines()[found.body[1].lineno - 1 : found.end_lineno]  # body[0] is the docstring
    while not lines[0].strip():
        lines.pop(0)
    return "\n".join(["```python", *(line.removeprefix("    ") for line in lines), "```", ""])


def title(chapter: Path) -> str:
    return read(chapter).cells[0].source.splitlines()[0].removeprefix("# ").strip()


def course() -> str:
    """The chapters for a teacher: minutes, exercises, and the notebook for students (which lies beside the pages)."""
    lines = ["| chapter | minutes to read | exercises | for students |", "|---|--:|--:|---|"]
    for path in chapters():
        prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
        minutes = re.search(r"(\d+)\s+minutes", prose)[1]
        exercises = len(re.findall(r"^#+ Exercise \d", prose, re.MULTILINE))
        link = f"{{download}}`notebook <students/{path.name}>`"
        lines.append(f"| [{title(path)}](../{path.name}) | {minutes} | {exercises} | {link} |")
    lines += ["", f"All of them in one file: {{download}}`{ARCHIVE} <students/{ARCHIVE}>`."]
    return "\n".join(lines) + "\n"


def modules(address: str) -> str:
    """Every module of the package with the first sentence of its docstring."""
    lines = ["| module | what it holds |", "|---|---|"]
    for path in sorted((ROOT / "fusemix_lite").glob("*.py")):
        if path.stem != "__init__":
            about = " ".join((ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n\n")[0].split())
            about = re.sub(r":\w+:`([^`]*)`", r"`\1`", about).replace("``", "`").replace("|", "\\|")
            lines.append(f"| [`{path.stem}`]({address}/blob/main/fusemix_lite/{path.name}) | {about} |")
    return "\n".join(lines) + "\n"


def head(module: str) -> str:
    """What the head of a module says, in Markdown already; without its first sentence, which the list of modules has."""
    text = ast.get_docstring(ast.parse((ROOT / "fusemix_lite" / f"{module}.py").read_text("utf-8")))
    return text.split("\n\n", 1)[1] + "\n"


def ledgers() -> dict[str, str]:
    """Every claim with its verdict, from book/claims.yml and the records: the page, and the landing page's tables."""
    from fusemix_lite.ledger import counts, headline, judged, page, results

    rows = judged()
    return {
        "ledger": page(rows, {path.stem: title(path) for path in chapters()}),
        "verdicts": f"{headline(rows)}\n\n{counts(rows)}\n",
        "gains": results(rows, GAINS),
        "others": results(rows, OTHERS, both=False),
    }


def speed(record: dict[str, dict]) -> str:
    """The table of speed from its record: ours, the plain way, the limit, ratios, goals; the machines and the commands."""
    from fusemix_lite.bench import amount, judged

    if not record:
        return "Nothing was measured yet: `fusemix-lite bench` does.\n"
    lines = ["| what | ours | plain way | limit | ours : plain | limit : ours | goal | on a GPU |"]
    lines.append("|---|--:|--:|--:|--:|--:|---|---|")
    for row in record.values():
        unit = "bytes" if row["unit"] == "bytes" else "seconds"
        cells = [row["about"], *(amount(row[way], unit) for way in ("ours", "plain", "limit"))]
        cells.append("–" if row["ratio"] is None else f"{row['ratio']:.2g}")
        cells.append(f"{row['of_limit']:.2g}" if row["of_limit"] >= 0.01 else "< 0.01")
        peak = f"peak {amount(row['peak'], 'bytes')}; " if "peak" in row else ""
        lines.append("| " + " | ".join([*cells, peak + judged(row).removeprefix("goal: "), "not measured"]) + " |")
    lines += ["", "Against what, and how it was run:", ""]
    for row in record.values():
        same = f" Both ways: {row['agreement']}." if "agreement" in row else ""
        lines.append(f"- **{row['about']}.** Plain: {row['against']}. Limit: {row['limit_is']}.{same} `{row['command']}`")
    told = []
    for row in record.values():
        line = "{processor}, {threads} of {cores} cores, {system}, Python {python}, torch {torch}".format(**row["machine"])
        if line not in told:
            told.append(line)
    lines += ["", f"Measured on: {'; '.join(told)}. There was no GPU at hand.", ""]
    for name, row in record.items():
        if "growth" in row:
            lines += [f"{row['about'][0].upper()}{row['about'][1:]}:", "", *grown(row["growth"]), ""]
        if "curve" in row:
            picks, seconds = row["curve"][-1]
            half = next(at for at in row["curve"] if at[0] >= picks / 2)
            tale = f"half of the {picks:,} picks after {half[1]:.0f} of {seconds:.0f} seconds"
            alt = f"Seconds against picks, a curve that bends upwards: {tale}."
            lines += [f"```{{figure}} _generated/{name}.svg", f":alt: {alt}", ""]
            lines += [f"{row['about'][0].upper()}{row['about'][1:]}: {tale}.", "```", ""]
    return "\n".join(lines)


def grown(points: list[dict]) -> list[str]:
    """Time and memory of every size, and how far they are from the prediction, as a multiple of that at the first size."""
    from fusemix_lite.bench import amount

    lines = [
        "| what grows | to | seconds | measured : predicted | memory | measured : predicted |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for at in points:
        cells = [at["what"], f"{at['size']:,}"]
        for unit in ("seconds", "bytes"):
            cells += [amount(at[unit], unit), f"{at[f'{unit}_off']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def curve(row: dict) -> str:
    """Time against picks, measured and as the operations grow, as SVG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    from fusemix_lite.report import COLOURS, STYLE

    picks, seconds = zip(*row["curve"], strict=True)
    d = int(re.search(r"d = (\d+)", row["about"])[1])
    counted = [k * (2 * d + k) * seconds[-1] / (picks[-1] * (2 * d + picks[-1])) for k in picks]
    with plt.rc_context({**STYLE, "svg.hashsalt": "fusemix-lite"}):
        fig, axes = plt.subplots()
        axes.plot(picks, seconds, color=COLOURS["fusemix"], label="measured")
        axes.plot(picks, counted, color=COLOURS["none"], linestyle="--", label="as the operations grow")
        axes.set(xlabel="picks", ylabel="seconds", xlim=(0, None), ylim=(0, None))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(loc="upper left")
        file = io.StringIO()
        fig.savefig(file, format="svg", metadata={"Date": None})
        plt.close(fig)
    return file.getvalue()


def faults(parts: list[dict], record: dict, address: str) -> str:
    """The tables of book/faults.yml: fault, what happens, and the tests that prove it with how often they have tried."""
    lines = []
    for part in parts:
        lines += [f"### {part['part']}", "", "| what goes wrong | what happens |", "|---|---|"]
        for row in part["faults"]:
            tests = [row["test"]] if isinstance(row["test"], str) else row["test"]
            proofs = [_proof(name, record.get("proofs", {}).get(name, {}), address) for name in tests]
            cells = [row["fault"], f"{row['happens']}<br>*Proved by:* {'; '.join(proofs)}"]
            lines.append(f"| {' | '.join(' '.join(cell.split()) for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


def _proof(name: str, at: dict, address: str) -> str:
    """A test by what its name says, with a link to its file, and what it has tried."""
    file, _, test = name.partition("::")
    tried = " and ".join(f"{at[kind]:,} {kind}" for kind in ("faults", "inputs") if kind in at)
    words = test.removeprefix("test_").replace("_", " ")
    return f"[{words}]({address}/blob/main/{file})" + (f" ({tried})" if tried else "")


def torture(record: dict, heavy: int) -> str:
    """What the heavy proofs have tried in all, and on which machine. `heavy`: how many proofs there are."""
    if not record:
        return "The heavy proofs have not been run yet: `make torture` does.\n"
    proofs = record["proofs"].values()
    sums = {kind: sum(at.get(kind, 0) for at in proofs) for kind in ("faults", "inputs")}
    failed = sum(not at["passed"] for at in proofs)
    told = "{processor}, {cores} cores, {system}, Python {python}, torch {torch}".format(**record["machine"])
    left = heavy - len(proofs)
    lightly = f" {left} other proofs have only been tried lightly so far, as `make test` does." if left else ""
    return (
        f"**{sums['faults']:,} faults** were injected and **{sums['inputs']:,} inputs** tried by {len(proofs)} proofs, "
        f"of which **{failed} failed** (`{record['command']}`; {told}).{lightly}\n"
    )


def same_again(record: dict) -> str:
    """What differs under other threads and processors, by how much, and how much is the same to the bit."""
    if not record:
        return "Not measured yet: `python -m tests.same_again --record` does.\n"
    settings = list(record["differ"])
    lines = [f"| against {record['first']} | {' | '.join(settings)} |", "|---|" + "--:|" * len(settings)]
    for kind in sorted({kind for found in record["differ"].values() for kind in found}):
        cells = []
        for setting in settings:
            share = record["differ"][setting].get(kind)
            cells.append("the same" if share is None else "other bytes" if share == "bytes" else f"{share:.0e}")
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    same = ", ".join(f"{record['same'][setting]} under {setting}" for setting in settings)
    told = "{processor}, {cores} cores, {system}, Python {python}, torch {torch}".format(**record["machine"])
    lines += ["", f"Shares of the largest number. Of {record['results']} results the same to the bit: {same}."]
    if "recall_off" in record:
        off = ", ".join(f"{points:.2g} under {setting}" for setting, points in record["recall_off"].items())
        lines.append(f"A run of chapter 3 at the book's scale, its test R@1 against the committed record, in points: {off}.")
    return "\n".join([*lines, f"(`{record['command']}`; {told}.)", ""])


def citation(address: str) -> str:
    """How to cite book and paper, from CITATION.cff."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    (paper,) = cff["references"]
    authors = [f"{a['family-names']}, {a['given-names']}" for a in paper["authors"]]
    year = re.search(r"\d{4}", yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["copyright"])[0]
    book_author = " and ".join(a["name"] for a in cff["authors"])
    return f"""\
**The paper**, whose method this is:

```bibtex
@inproceedings{{vouitsis2024fusemix,
  title     = {{{paper["title"]}}},
  author    = {{{" and ".join(authors)}}},
  booktitle = {{{paper["collection-title"]}}},
  year      = {{{paper["year"]}}},
  url       = {{{paper["url"]}}}
}}
```

**This book and its module**, version {cff["version"]}:

```bibtex
@software{{fusemixlite{year},
  title   = {{{cff["title"]}}},
  author  = {{{{{book_author}}}}},
  year    = {{{year}}},
  version = {{{cff["version"]}}},
  url     = {{{address}}}
}}
```
"""


def _heavy(tests: Path) -> int:
    """How many heavy proofs a file of tests holds."""
    return len(re.findall(r"^@pytest\.mark\.torture$", tests.read_text("utf-8"), re.MULTILINE))


def _record(path: Path) -> dict:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def write_fragments(folder: Path, address: str, measured: dict[str, dict]) -> None:
    """Write all fragments into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    record, tortured, again = (_record(ROOT / f"book/results/{name}.json") for name in ("speed", "torture", "same-again"))
    for name, row in record.items():
        if "curve" in row:
            (folder / f"{name}.svg").write_text(curve(row), "utf-8")
    fragments = {
        "speed": speed(record),
        "faults": faults(yaml.safe_load((ROOT / "book/faults.yml").read_text("utf-8")), tortured, address),
        "torture": torture(tortured, sum(map(_heavy, ROOT.glob("tests/test_*.py")))),
        "same-again": same_again(again),
        "versions": versions(),
        "profiles": profiles(),
        "profile-source": profile_source(),
        "times": times(measured),
        "course": course(),
        "modules": modules(address),
        "files": head("files"),
        "arrays": head("arrays"),
        "citation": citation(address),
        **ledgers(),
    }
    for name, text in fragments.items():
        (folder / f"{name}.md").write_text(text, "utf-8")
