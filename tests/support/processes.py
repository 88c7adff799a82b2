"""Measuring in a process of its own, so that neither the tests before nor what they left in the process count."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

SECONDS = 600       # only to end a process that hangs: machines differ

_PROGRAM = """
import importlib, json, sys
module, name, arguments = json.loads(sys.argv[1])
print(json.dumps(getattr(importlib.import_module(module), name)(*arguments)))
"""


def alone(function: Callable[..., Any], *arguments: Any, **environment: str) -> Any:
    """function(*arguments) as a new process computes it, with these environment variables.

    function: a module's, by its name. Arguments and result are what JSON knows, so that a tuple comes back as a list.
    """
    call = json.dumps([function.__module__, function.__name__, arguments])
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, call], capture_output=True, text=True, timeout=SECONDS,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most memory that call() holds at once, of what Python and NumPy allocate for it.

    What the process has free already makes no difference, as it does to the process's own size. Caches and imports do:
    for that, and for the garbage of others, it is called in a process of its own.
    """
    gc.collect()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
