"""The one error class of this package, and text from strangers made fit for a terminal."""

import re

_HEAD, _TAIL = 6000, 2000  # characters that are kept of a line that is too long: where it stands, and what to do about it
# Control characters but the tab, what turns a line round, other ends of lines, halves of characters.
_OBEYED = re.compile("[\0-\x08\n-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, in_json: bool = False) -> str:
    """One line, in which what a terminal would obey is shown as an escape: Python's, or JSON's, which knows no other form."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}" if in_json else ascii(found[0])[1:-1], text)


class FuseMixLiteError(ValueError):
    """Bad input or a broken file: one line that says what is wrong, where, and what to do about it.

    What it quotes may come from strangers, so its text stays `printable`, and a line of a million characters loses its middle.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return printable(text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]} … {text[-_TAIL:]}")
