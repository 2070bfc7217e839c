"""``python -m gan_fast`` is the command line ``gan-fast``."""

from __future__ import annotations

import sys

from gan_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
