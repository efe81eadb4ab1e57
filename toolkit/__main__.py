"""`python -m toolkit`, and what `accelerate launch -m toolkit` starts on every process."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
