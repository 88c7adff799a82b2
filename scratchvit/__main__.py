"""`python -m scratchvit` is the command `scratchvit`."""

import sys

from scratchvit.cli import main

if __name__ == "__main__":      # a worker process of a loader imports this file under another name
    sys.exit(main())
