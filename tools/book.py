"""The book's pipeline: execute the chapters, stage the pages, build the HTML. `python -m tools.book --help`.

Nothing is written into the work tree but by `refresh` and `address`, whose business it is.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

from .fragments import write_fragments
from .notebooks import ROOT, chapters, clean, project, read, repository_address, set_address, setup_source, write
from .students import write_students

BUILD = ROOT / "_build"
PAGES = ("_config.yml", "_toc.yml", "references.bib", "CHANGELOG.md", "book/*.md", "book/reference/*.md", "data_cards/*.md")
FOLDERS = ("book/images", "book/_vendor")
#: Seconds a cell: a first run also extracts latents, and laptops differ. Larger scales train for longer.
CELL_TIMEOUT = int(os.environ.get("FUSEMIX_LITE_CELL_TIMEOUT", 600))

#: What every chapter runs under, here and in the tests: one thread (digits and times then depend less on the machine),
#: no network, quiet libraries.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


class BookError(Exception):
    """The book cannot be built: which chapter, which cell, why, and where to look."""


def set_environment() -> None:
    """Apply ENVIRONMENT to this process and the kernels it starts; what the caller has set stays.

    A list of fonts is made here if there is none: matplotlib says so on stderr, and so it does where it cannot write below the
    home folder and takes another one, for this process and its children. In a chapter that would be an output.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import_module("matplotlib.font_manager")


def execute(source: Path, target: Path, parameters: dict | None = None, cell_timeout: int = CELL_TIMEOUT) -> float:
    """Run a chapter with papermill into `target`. Returns the seconds it took.

    Without parameters `target` is clean, as it is committed; with parameters it shows the cell that sets them. The
    kernel runs in an empty folder beside `target`, so a chapter cannot lean on files around it. On an error, `target`
    is the annotated notebook that papermill leaves.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent / f".run-{source.stem}"
    folder.mkdir(exist_ok=True)
    started = time.perf_counter()
    try:
        papermill.execute_notebook(
            source,
            target,
            parameters=parameters or {},
            kernel_name="python3",
            cwd=folder,
            execution_timeout=cell_timeout,
            progress_bar=sys.stderr.isatty(),
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )
    except PapermillExecutionError as error:
        line = f"cell {error.cell_index + 1}: {error.ename}: {error.evalue}"
        raise BookError(f"{source.name} failed in {line}\n  see {target}") from error
    except (CellTimeoutError, DeadKernelError) as error:
        line = str(error).splitlines()[0]
        raise BookError(f"{source.name}: {line} (limit: {cell_timeout} s a cell)\n  see {target}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not parameters:
        write(clean(read(target)), target)
    return time.perf_counter() - started


def stage(folder: Path, notebooks: list[Path], address: str, measured: dict[str, dict] | None = None) -> None:
    """Lay out the pages and these notebooks in a fresh `folder`, with the repository's address filled in.

    `measured` holds what `build` knows of each chapter's execution, by file name; without it the page of times says so.
    The pieces that pages include, and the notebooks for students that they offer, are made here as well.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for pattern in PAGES:
        for source in ROOT.glob(pattern):
            target = folder / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(source.read_text("utf-8").replace("@REPO_URL@", address), "utf-8")
    for source in FOLDERS:
        shutil.copytree(ROOT / source, folder / source)
    shutil.copytree(ROOT / "book/_static", folder / "_static")
    write_fragments(folder / "book/reference/_generated", address, measured or {})
    write_students(folder / "book/reference/students", address)
    for source in notebooks:
        notebook = read(source)
        set_address(notebook, address)
        notebook.metadata.language_info.pygments_lexer = "ipython3"  # Python's own stops at a line like `!ls`
        write(notebook, folder / "book" / source.name)


def build_html(staged: Path, out: Path) -> Path:
    """Run jupyter-book over a staged folder, warnings being errors. Returns the folder of the HTML."""
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    command = [jupyter_book, "build", staged, "--path-output", out, "-W", "-n", "--keep-going", "--all", "-q"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        text = done.stdout + done.stderr
        lines = [line for line in text.splitlines() if re.search("WARNING|ERROR", line)]
        raise BookError("jupyter-book is not content:\n" + ("\n".join(lines) or text[-4000:]))
    return out / "_build" / "html"


def fingerprint(chapter: Path, parameters: dict) -> str:
    """A hash over what a chapter's outputs stand on: itself, its parameters, the module, the weights, the records."""
    digest = hashlib.sha256(repr(sorted(parameters.items())).encode())
    inputs = [chapter, ROOT / "constraints.txt", *sorted((ROOT / "book").glob("*.yml"))]
    for folder in ("fusemix_lite", "book/results"):
        inputs += sorted(p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    for path in inputs:
        digest.update(path.relative_to(ROOT).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def build(profile: str | None, address: str, keep: bool) -> None:
    """Execute all chapters into _build/executed, one after another, and build the pages into _build/html."""
    from fusemix_lite.bench import machine  # brings torch, which no other command needs

    parameters = {"profile": profile} if profile else {}
    executed, measured = [], {}
    todo = chapters()
    for i, chapter in enumerate(todo, 1):
        target = BUILD / "executed" / chapter.name
        stamp = target.with_suffix(".json")
        key = fingerprint(chapter, parameters)
        print(f"[{i}/{len(todo)}] {chapter.stem} … ", end="", flush=True)
        made = json.loads(stamp.read_text("utf-8")) if stamp.exists() and target.exists() else {}
        if keep and made.get("fingerprint") == key:
            print("kept")
        else:
            stamp.unlink(missing_ok=True)
            try:
                seconds = execute(chapter, target, parameters)
            except BookError:
                print("failed")
                raise
            print(f"{seconds:.0f} s")
            made = {"fingerprint": key, "seconds": seconds, "parameters": parameters, "machine": machine()}
            stamp.write_text(json.dumps(made, indent=1) + "\n", "utf-8")
        executed.append(target)
        measured[chapter.name] = made
    print("building the pages … ", end="", flush=True)
    stage(BUILD / "stage", executed, address, measured)
    shutil.rmtree(BUILD / "html", ignore_errors=True)
    html = build_html(BUILD / "stage", ROOT)
    print(f"done\n\nOpen {html / 'index.html'}")


def refresh(paths: list[Path]) -> None:
    """Execute chapters with the parameters they carry and write them back, clean, as the committed ones."""
    for chapter in paths or chapters():
        notebook = read(chapter)
        set_address(notebook, repository_address())
        source = BUILD / "refresh" / "source" / chapter.name
        source.parent.mkdir(parents=True, exist_ok=True)
        write(notebook, source)
        target = BUILD / "refresh" / chapter.name
        seconds = execute(source, target)
        shutil.copyfile(target, chapter)
        print(f"{chapter.name}: {seconds:.0f} s, {chapter.stat().st_size / 1e6:.2f} MB")


def write_address(address: str) -> None:
    """Put another repository address where it stands: pyproject.toml, and the chapters' setup cells made from it."""
    if not re.match(r"(https|file)://\S+$", address):
        raise BookError(f"not an address: {address!r}; give one as in REPO_URL=https://github.com/someone/fusemix-lite")
    path = ROOT / "pyproject.toml"
    path.write_text(path.read_text("utf-8").replace(f'"{repository_address()}"', f'"{address}"'), "utf-8")
    for chapter in chapters():
        notebook = read(chapter)
        set_address(notebook, address)
        write(notebook, chapter)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.book", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="execute the chapters and build the pages into _build/html")
    command.add_argument("--profile", help="smoke, lite, colab or paper (default: what the chapters say)")
    command.add_argument("--repo-url", default=repository_address(), help="address of the repository")
    command.add_argument("--keep", action="store_true", help="keep executed chapters whose inputs have not changed")
    command = commands.add_parser("refresh", help="execute chapters and write them back as the committed ones")
    command.add_argument("chapters", nargs="*", type=Path, help="notebooks (default: all)")
    command = commands.add_parser("address", help="write another repository address into the repository")
    command.add_argument("url")
    commands.add_parser("setup-cell", help=f"print the setup cell of a chapter of {project()['name']}")
    args = parser.parse_args()

    set_environment()
    try:
        if args.command == "build":
            build(args.profile, args.repo_url, args.keep)
        elif args.command == "refresh":
            refresh(args.chapters)
        elif args.command == "address":
            write_address(args.url)
        else:
            print(setup_source(repository_address()))
    except BookError as error:
        sys.exit(f"\n{error}")


if __name__ == "__main__":
    main()
