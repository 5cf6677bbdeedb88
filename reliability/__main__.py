"""`python -m reliability`: the soak."""

import sys

from reliability.soak import main

if __name__ == "__main__":
    sys.exit(main())
