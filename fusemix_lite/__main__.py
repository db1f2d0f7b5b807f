"""``python -m fusemix_lite`` is the command ``fusemix-lite``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
