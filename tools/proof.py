"""Does the book run where nobody has the repository? `make proof` (some minutes, needs a network).

In a fresh environment with a torch of its own, as on Colab: first one chapter as a reader meets it there, whose setup
cell installs the package from its address (here a file:// one); then the wheel, with whatever newest versions pip picks
within the declared ranges, under every chapter in an empty folder. The torch that was there must still be there after.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from .book import BUILD, ENVIRONMENT, BookError
from .notebooks import ROOT, chapters, read, set_address, write

PROOF = BUILD / "proof"
RUNNER = ("papermill>=2.6", "ipykernel>=6.29")  # Colab runs notebooks by itself


def run(*command: str | Path, **options) -> str:
    """Run a command with a clean environment of its own; returns what it printed, raises BookError with its last lines."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | ENVIRONMENT
    done = subprocess.run(command, capture_output=True, text=True, env=environment, **options)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise BookError(f"failed: {' '.join(map(str, command))}\n{tail}")
    return done.stdout


def proof(torch: list[str], profile: str, keep: bool) -> None:
    python = PROOF / "venv" / "bin" / "python"
    if not keep:
        shutil.rmtree(PROOF, ignore_errors=True)
    if not python.exists():
        print(f"fresh environment with {' '.join(torch)} … ", end="", flush=True)
        venv.create(PROOF / "venv", with_pip=True)
        run(python, "-m", "pip", "install", "-q", *torch, *RUNNER)
        print("done")
    before = installed(python)
    run(python, "-m", "pip", "uninstall", "-q", "-y", "fusemix-lite")

    first = chapters()[0]
    print(f"setup cell, from file://…: {first.stem} … ", end="", flush=True)
    execute(python, with_address(first, f"file://{ROOT}"), profile)
    print("done")

    run(python, "-m", "pip", "uninstall", "-q", "-y", "fusemix-lite")
    shutil.rmtree(PROOF / "wheel", ignore_errors=True)
    run(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", PROOF / "wheel", ROOT)
    (wheel,) = (PROOF / "wheel").glob("*.whl")
    run(python, "-m", "pip", "install", "-q", wheel)
    print(f"wheel {wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB, installed without the repository")
    for chapter in chapters():
        print(f"{chapter.stem} … ", end="", flush=True)
        execute(python, chapter, profile)
        print("done")

    after = installed(python)
    moved = {name: (before[name], after.get(name)) for name in before if "torch" in name and before[name] != after.get(name)}
    if moved:
        raise BookError(f"the torch that was there has been replaced: {moved}")
    told = ("torch", "torchvision", "transformers", "numpy", "pillow", "scipy", "matplotlib")
    print("all chapters ran with " + ", ".join(f"{name} {after[name]}" for name in told if name in after))


def installed(python: Path) -> dict[str, str]:
    listed = json.loads(run(python, "-m", "pip", "list", "--format", "json"))
    return {package["name"].lower(): package["version"] for package in listed}


def with_address(chapter: Path, address: str) -> Path:
    notebook = read(chapter)
    set_address(notebook, address)
    target = PROOF / "source" / chapter.name
    target.parent.mkdir(parents=True, exist_ok=True)
    write(notebook, target)
    return target


def execute(python: Path, chapter: Path, profile: str) -> None:
    """A chapter in an empty folder, by the fresh environment's own papermill and kernel."""
    folder = PROOF / "run" / chapter.stem
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    target = PROOF / "out" / chapter.name
    target.parent.mkdir(exist_ok=True)
    options = ("--cwd", folder, "-k", "python3", "-p", "profile", profile, "--no-progress-bar")
    run(python, "-m", "papermill", chapter, target, *options, cwd=folder)
    left = [path.name for path in folder.iterdir()]
    if left:
        raise BookError(f"{chapter.name} left files behind: {', '.join(left)}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.proof", description=__doc__.split("\n")[0])
    parser.add_argument("--torch", nargs="+", default=["torch", "torchvision"], help="what is there already, as pip takes it")
    parser.add_argument("--profile", default="smoke", help="the scale of the chapters (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the environment of the last proof")
    args = parser.parse_args()
    try:
        proof(args.torch, args.profile, args.keep)
    except BookError as error:
        sys.exit(f"\n{error}")


if __name__ == "__main__":
    main()
