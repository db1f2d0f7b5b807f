"""Does the package work at both ends of the ranges that it declares? `make oldest`, `make newest` (minutes, network, 8 GB).

In an environment of its own, `uv` installs the lowest (or the highest) versions that pyproject.toml allows for every package
named there, the optional ones included, and the unit tests run with them. Latents go to a cache of its own: other versions may
give other last digits. The chapters' committed outputs belong to the versions in constraints.txt and are not compared.
"""

import argparse
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from .book import BUILD, ENVIRONMENT
from .notebooks import ROOT

RESOLUTION = {"oldest": "lowest-direct", "newest": "highest"}
TOOLS = ("pip", "uv")


def ranges(end: str, tests: list[str], workers: int, keep: bool) -> int:
    """Install one end of the ranges and run the tests there; returns pytest's exit code."""
    folder = BUILD / end
    python, uv = folder / "venv" / "bin" / "python", folder / "venv" / "bin" / "uv"
    pins = folder / "requirements.txt"
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    if not pins.exists():
        folder.mkdir(parents=True, exist_ok=True)
        venv.create(folder / "venv", with_pip=True, clear=True)
        run(python, "-m", "pip", "install", "-q", "--upgrade", *TOOLS)
        aside = pins.with_suffix(".tmp")
        compile = [uv, "pip", "compile", "-q", "--resolution", RESOLUTION[end], "--python", python, "-o", aside]
        run(*compile, "pyproject.toml", *(f"--extra={extra}" for extra in ("book", "minilm", "test")))
        print(f"installing the {end} of {ROOT.name}: {versions(aside)}", flush=True)
        run(uv, "pip", "install", "-q", "--python", python, "-r", aside)
        run(uv, "pip", "install", "-q", "--python", python, "--no-deps", "-e", ".")
        aside.rename(pins)
    pytest = [python, "-m", "pytest", "-p", "no:cacheprovider", "-n", str(workers), "--dist", "loadfile"]
    return subprocess.run([*pytest, *(tests or ["tests"])], cwd=ROOT, env=environment(folder)).returncode


def run(*command: str | Path) -> None:
    """Run a command in the repository; what it prints is seen only where it fails."""
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        sys.exit(f"failed: {' '.join(map(str, command))}\n{tail}")


def environment(folder: Path | None = None) -> dict[str, str]:
    """That of the book, without this process's own packages; latents below `folder`."""
    own = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    own |= ENVIRONMENT | {"UV_HTTP_TIMEOUT": "300", "UV_CACHE_DIR": str(BUILD / "uv")}
    return own | ({"FUSEMIX_LITE_CACHE": str(folder / "cache")} if folder else {})


def versions(pins: Path) -> str:
    """What was chosen for the packages that matter most."""
    chosen = dict(line.split("==") for line in pins.read_text("utf-8").splitlines() if "==" in line and line[0].isalpha())
    return ", ".join(f"{name} {chosen[name].split()[0]}" for name in ("torch", "transformers", "numpy", "pillow"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.ranges", description=__doc__.splitlines()[0])
    parser.add_argument("end", choices=RESOLUTION)
    parser.add_argument("tests", nargs="*", metavar="TEST", help="test files or ids; all unit tests if there is none")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--keep", action="store_true", help="keep the environment of the last time")
    args = parser.parse_intermixed_args()  # tests may come after --workers
    return ranges(args.end, args.tests, args.workers, args.keep)


if __name__ == "__main__":
    sys.exit(main())
