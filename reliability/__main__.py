"""`python -m reliability` runs the soak: see soak.py."""

import sys

from reliability.soak import main

if __name__ == "__main__":
    sys.exit(main())
