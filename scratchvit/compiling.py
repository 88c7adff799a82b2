"""What is shown while CuPy compiles kernels.

CuPy compiles a kernel when it is first called, in 0.1 s to 4 s, and keeps it in a folder. A first training step calls
50 to 150 of them. So a line says once where they are kept, and on a terminal they are counted while they are compiled.
How many there will be is not known in advance.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scratchvit import progress

# CuPy's function that compiles one text, in its newer and its older versions. It is not called for kept kernels.
_COMPILERS = ("_compile_using_nvrtc_no_warning", "compile_using_nvrtc")


def folder() -> Path | None:
    """Where CuPy keeps compiled kernels; None if the environment says that it is to keep none."""
    if os.environ.get("CUPY_CACHE_IN_MEMORY") == "1":
        return None
    return Path(os.environ.get("CUPY_CACHE_DIR", Path("~/.cupy/kernel_cache").expanduser()))


class Count:
    """The kernels that this process has compiled, and the seconds that it took."""

    def __init__(self) -> None:
        self.kernels, self.seconds = 0, 0.0
        self._lock = threading.Lock()
        self._announced = False

    @contextlib.contextmanager
    def one(self, mark: Callable[[], str]) -> Iterator[None]:
        """While one kernel is compiled. mark: as of `_announce`."""
        with self._lock:
            is_first, self._announced = not self._announced, True
        if is_first:
            _announce(mark)
        begun = time.perf_counter()
        so_far = f": {self.kernels} done in {progress.duration(self.seconds)}" if self.kernels else ""
        with progress.note(f"compiling kernels for the GPU{so_far}"):
            yield
        with self._lock:
            self.kernels += 1
            self.seconds += time.perf_counter() - begun


COUNT = Count()


def watch(cupy: Any) -> None:
    """From now on, show when this CuPy compiles a kernel. Without effect if that is shown already."""
    compiler = cupy.cuda.compiler
    name = next((name for name in _COMPILERS if hasattr(compiler, name)), None)
    if name is None or hasattr(getattr(compiler, name), "is_watched"):
        return
    compile_text = getattr(compiler, name)

    @functools.wraps(compile_text)
    def watched(*args: Any, **kwargs: Any) -> Any:
        with COUNT.one(lambda: _mark(cupy)):
            return compile_text(*args, **kwargs)

    watched.is_watched = True       # type: ignore[attr-defined]
    setattr(compiler, name, watched)


def _announce(mark: Callable[[], str]) -> None:
    """Say that kernels are compiled and where they are kept, unless a file there says that it was said before.

    mark: the name of that file. It is only called if it is needed.
    """
    kept = folder()
    if kept is None or (said := kept / mark()).exists():
        return
    progress.line(f"scratchvit: compiling kernels for the GPU, only the first time: they are kept in {kept}")
    with contextlib.suppress(OSError):      # CuPy itself says if it cannot write there
        said.touch()


def _mark(cupy: Any) -> str:
    """The name of a file that belongs to what decides whether kept kernels fit, and to the version of ours."""
    version = sys.modules[__package__].__version__      # to import it would be a circle
    nvrtc = ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
    return f"scratchvit-{version}-cupy-{cupy.__version__}-nvrtc-{nvrtc}-sm{cupy.cuda.Device().compute_capability}"
