"""What runs in the process of a part: some of its items, each of whose rows is on the disk before the next begins.

    python -m scripts.gpu_parts.child '{"mode": "quick", "plan": …, "part": "probes", "items": […], "setting": {…}}'
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from typing import Any

from scratchvit import gpu
from scripts.gpu_parts.part import ROWS, Item, Row, Setting, append, not_run

BEGUN = ">>> item: "                # before the name of an item, in the log: its time runs from here
OPTIONAL = {"torch", "pytest"}      # without them, an item is not run
DEVICE_FAILED = 3                   # the exit status: the items that follow need a new process


def main(order: dict[str, Any]) -> int:
    setting = Setting.from_json(order["setting"])
    part = importlib.import_module(order["plan"]).find(order["part"])
    for name in order["items"]:
        print(f"{BEGUN}{name}", flush=True)
        begin = time.perf_counter()
        row = run(part.items[name], setting)
        seconds = round(time.perf_counter() - begin, 3)
        append(setting.out / ROWS, {"mode": order["mode"], "part": part.name, "item": name, "seconds": seconds, **row})
        if row["ok"] is False and not device_answers():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(DEVICE_FAILED)     # a regular exit would wait for the device
    return 0


def run(item: Item, setting: Setting) -> Row:
    """The row of an item; what it raises is a failure, except that an optional package is missing."""
    try:
        return item(setting)
    except (KeyboardInterrupt, SystemExit):
        raise
    except ModuleNotFoundError as error:
        if error.name in OPTIONAL:
            return not_run(f"{error.name} is not installed")
        return failure(error)
    except BaseException as error:      # pytest's Skipped is no Exception
        return failure(error)


def failure(error: BaseException) -> Row:
    traceback.print_exception(error)
    return {"ok": False, "result": gpu.told(error), "traceback": traceback.format_exception(error)[-6:]}


def device_answers() -> bool:
    """Whether the device can still be used, which it cannot after a kernel with an illegal access."""
    cupy, torch = sys.modules.get("cupy"), sys.modules.get("torch")
    try:
        if cupy is not None:
            cupy.cuda.runtime.deviceSynchronize()
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except Exception:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
