"""The one error class of this package."""


class FuseMixLiteError(ValueError):
    """Bad input or a broken file: one line that says what is wrong, where, and what to do about it."""
