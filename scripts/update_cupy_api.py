"""Write down what CuPy offers, so that the tests' stand-in for the GPU can be as strict on machines without CuPy.

    python scripts/update_cupy_api.py            # rewrites tests/support/cupy_api.json from the installed CuPy

CuPy imports without a GPU. Names and parameters come from it by `inspect`; its compiled methods have no signature, but
the first line of their docstring states one.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import cupy
import cupy.fft
import cupy.lib.stride_tricks
import cupy.linalg
import cupyx.scipy.special
import numpy as np

API_FILE = Path(__file__).parent.parent / "tests" / "support" / "cupy_api.json"


def api() -> dict[str, Any]:
    """The names by section. A value is a list of parameters, or "same" (NumPy's own object), or "ufunc", or "other"."""
    return {
        "version": {"cupy": cupy.__version__},
        "cupy": _names(cupy),
        "cupy.linalg": _names(cupy.linalg),
        "cupy.fft": _names(cupy.fft),
        "cupy.lib.stride_tricks": _names(cupy.lib.stride_tricks),
        "cupyx.scipy.special": _names(cupyx.scipy.special),
        "cupy.ndarray": {
            name: _method_parameters(getattr(cupy.ndarray, name))
            for name in dir(cupy.ndarray) if not name.startswith("_")
        },
        # ufunc.at is a scatter kernel, which only these have.
        "ufunc.at": {
            name: "ufunc" for name in dir(cupy)
            if isinstance(getattr(cupy, name), cupy.ufunc) and getattr(cupy, name)._scatter_op
        },
    }


def _names(module: ModuleType) -> dict[str, Any]:
    return {name: _describe(name, getattr(module, name)) for name in dir(module) if not name.startswith("_")}


def _describe(name: str, value: Any) -> Any:
    if isinstance(value, cupy.ufunc):
        return "ufunc"
    if value is getattr(np, name, None) or isinstance(value, float):
        return "same"
    if not callable(value) or isinstance(value, type):
        return "other"
    try:
        return _spell(inspect.signature(value).parameters.values())
    except ValueError:
        return "other"


def _spell(parameters: Any) -> list[str]:
    """["a", "axis=", "*", "dtype="]: a parameter with a default ends in "=", "*" comes before keyword-only ones."""
    words: list[str] = []
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not any(word.startswith("*") for word in words):
            words.append("*")
        stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        words.append(stars + p.name + ("" if p.default is p.empty else "="))
    return words


def _method_parameters(method: Any) -> list[str] | None:
    """The parameters of a method, from "_ndarray_base.sum(self, axis=None, …)"; None for an attribute."""
    if not callable(method):
        return None
    first_line = (method.__doc__ or "").partition("\n")[0]
    arguments = re.match(r"\w+\.\w+\(self(?:, )?(.*?)\)(?: ->|$)", first_line)
    if arguments is None:
        raise SystemExit(f"cannot read the parameters of cupy.ndarray.{method.__name__} from {first_line!r}")
    # "Py_ssize_t axis1", "dtype: DTypeLike = None" and "*shape" become "axis1", "dtype=" and "*shape".
    parts = [part.partition("=") for part in re.split(r",\s*(?![^()\[\]]*[)\]])", arguments[1]) if part]
    return [declared.partition(":")[0].split()[-1] + equals for declared, equals, _ in parts]


def text() -> str:
    """The file's text, one name a line."""
    sections = []
    for section, names in api().items():
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in sorted(names.items()))
        sections.append(f"{json.dumps(section)}: {{\n{lines}\n}}")
    return "{\n" + ",\n".join(sections) + "\n}\n"


if __name__ == "__main__":
    API_FILE.write_text(text(), encoding="utf-8", newline="\n")
    print(f"{API_FILE}: CuPy {cupy.__version__}")
