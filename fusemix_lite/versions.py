"""Installed packages against the ranges that this package declares: what lies outside is said before it breaks something.

pip keeps to the ranges when it installs this package, but not afterwards: a later ``pip install`` of something else may
replace torch or transformers, and notebook services bring their own.
"""

import platform
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, metadata, version

NAME = "fusemix-lite"


def outside() -> list[str]:
    """A line for every installed package (and Python) whose version is outside of the declared range; empty if all is well.

    Packages that are not installed are no matter of this: optional ones are asked for by name where they are needed. Without
    metadata, as in a checkout that nobody installed, nothing is declared.
    """
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        declared = metadata(NAME)
    except PackageNotFoundError:
        return []
    found = {}  # package -> its line, since an optional package may be declared for several purposes
    if not SpecifierSet(declared["Requires-Python"] or "").contains(platform.python_version(), prereleases=True):
        found["Python"] = f"Python {platform.python_version()} is outside of {declared['Requires-Python']}: take another one"
    for line in declared.get_all("Requires-Dist") or []:
        wanted = Requirement(line)
        try:
            installed = version(wanted.name)
        except PackageNotFoundError:
            continue
        # 2.14.0.dev20260101 and 2.13.0+cpu are of their release, as far as a range is concerned
        if not wanted.specifier.contains(installed, prereleases=True):
            remedy = f"pip install '{wanted.name}{wanted.specifier}'"
            found[wanted.name] = f"{wanted.name} {installed} is outside of {wanted.specifier}: {remedy}"
    return list(found.values())


@cache
def warn_once() -> None:
    """Warn of what is `outside`, at the first call in a process."""
    for line in outside():
        warnings.warn(f"{NAME} has not been tested with this: {line}", stacklevel=3)
