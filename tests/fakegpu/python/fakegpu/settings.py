"""Where the stand-in was built, and those of its options that Python reads. tests/fakegpu/README.md lists all."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]                      # tests/fakegpu
CACHE = Path(os.environ["FAKEGPU_CACHE"])                       # set by tests/fakegpu/run

COUNT_ONLY = os.environ.get("FAKEGPU_COUNT") == "1"
GUARD = int(os.environ.get("FAKEGPU_GUARD") or 0)
POISON = int(os.environ.get("FAKEGPU_POISON") or 2)
ASK_NVRTC = os.environ.get("FAKEGPU_NVRTC") == "1"
