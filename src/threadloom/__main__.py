"""``python -m threadloom``."""

import sys

from threadloom.cli import main

if __name__ == "__main__":
    sys.exit(main())
