"""Where the book's data are that the module reads: in the repository, or packed into an installed wheel."""

from pathlib import Path


def bundled(name: str) -> Path:
    """``book/<name>`` of the repository; in a wheel the copy that pyproject.toml packs as ``_<name>``."""
    package = Path(__file__).parent
    packed = package / f"_{name}"
    return packed if packed.exists() else package.parent / "book" / name
