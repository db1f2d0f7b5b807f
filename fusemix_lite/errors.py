"""The one error class of this package."""

_HEAD, _TAIL = 1200, 600  # characters that are kept of a line that is too long: where it stands, and what to do about it


class FuseMixLiteError(ValueError):
    """Bad input or a broken file: one line that says what is wrong, where, and what to do about it.

    What it quotes may come from strangers, so its text stays one line: line ends, codes that a terminal would obey and
    characters that turn a line round are shown as escapes, and a line of a million characters loses its middle.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > _HEAD + _TAIL:
            text = f"{text[:_HEAD]} … {text[-_TAIL:]}"
        return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
