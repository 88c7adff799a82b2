"""What a part is: items that are run one after the other, in a setting, each of which gives a row of results."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import scratchvit as sv
from scratchvit import backend, gpu

Row: TypeAlias = dict[str, Any]     # {"ok": True, False or None (not run), "result": a sentence, figures}
T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS = "gpu.jsonl"                  # in the folder of results: a line for each item


@dataclass(frozen=True)
class Setting:
    """What an item needs to know.

    device: "gpu" or "cpu". out: the folder of results. scratch: a folder that is removed at the end, for kernels that
    are compiled. small: a rehearsal, with the smallest sizes. seconds: until the process is ended.
    """

    device: str
    out: Path
    scratch: Path
    small: bool
    seconds: float = 60.0

    @property
    def on_gpu(self) -> bool:
        return self.device == "gpu"

    def use(self) -> backend.Backend:
        """Make the device the current one."""
        return sv.use(self.device)

    def pick(self, full: T, small: T) -> T:
        """`small` in a rehearsal, `full` otherwise."""
        return small if self.small else full

    def to_json(self) -> dict[str, Any]:
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Setting:
        return cls(**{**fields, "out": Path(fields["out"]), "scratch": Path(fields["scratch"])})


Item: TypeAlias = Callable[[Setting], Row]


@dataclass(frozen=True)
class Part:
    """Items that share a process, which starts anew after an item that broke it.

    seconds: the limit of the whole part; item_seconds: of an item, once it has begun. alone: every item has a process
    of its own.
    """

    name: str
    about: str
    items: Mapping[str, Item]
    seconds: float
    item_seconds: float = 60
    alone: bool = False


def not_run(reason: str) -> Row:
    """The row of an item that cannot run here, which is no failure."""
    return {"ok": None, "result": f"not run: {reason}"}


def cannot_be_captured(error: Exception) -> Row:
    """The row of a step that should be replayed."""
    return {"ok": False, "result": f"a step cannot be captured: {gpu.told(error)}"}


def append(path: Path, row: Row) -> None:
    """Add a line to a file of rows. It is on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, default=_plain, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Row]:
    """The rows of a file; a last line that was cut off is left out."""
    return list(_rows(path.read_text("utf-8"))) if path.exists() else []


def _rows(text: str) -> Iterator[Row]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def _plain(value: Any) -> Any:
    """A NumPy number as Python's; anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)


def kernel_names() -> dict[str, list[str]]:
    """{module: the names of our kernels in its text}, as kernels/cuda/modules.py has them."""
    from scratchvit.kernels.cuda import modules

    pattern = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(")
    return {module: pattern.findall(modules.text_of(module, "f")) for module in modules.MODULES}
