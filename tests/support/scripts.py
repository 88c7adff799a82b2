"""The programs in scripts/, as modules."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"


def import_script(path: str) -> ModuleType:
    """scripts/<path>, which finds its neighbours as when it is run, and leaves sys.path as it is."""
    script, before = SCRIPTS / path, list(sys.path)
    sys.path.insert(0, str(script.parent))
    try:
        return importlib.import_module(script.stem)
    finally:
        sys.path[:] = before
