"""The hook into `import cupy`: CuPy as pip installed it, with one module rebuilt and a few functions replaced."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType


class Hook(importlib.abc.MetaPathFinder):
    """Finds CuPy where it is, and prepares the device before and CuPy after its import."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "cupy_backends.cuda.api.runtime":
            # The wheel's is linked with a static CUDA runtime; this one, of the same source, is linked with ours.
            from fakegpu.settings import CACHE

            file = CACHE / "modules" / f"runtime{importlib.machinery.EXTENSION_SUFFIXES[0]}"
            return importlib.util.spec_from_file_location(name, file)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if name == "cupy" else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                before_import()
                execute(module)
                after_import(module)

            spec.loader.exec_module = exec_module       # type: ignore[method-assign]
        return spec


def install() -> None:
    """From now on `import cupy` gives CuPy on the stand-in."""
    sys.meta_path.insert(0, Hook())


def before_import() -> None:
    """Load the libraries that CuPy would load."""
    from fakegpu import device, settings

    device.load()
    if settings.COUNT_ONLY:
        device.execute(False)


def after_import(cupy: ModuleType) -> None:
    """Replace CuPy's compiler and what it calls of Thrust and cub, and let its memory pool give out NaN."""
    from fakegpu import compiler, device, host_work, settings

    compiler.install(cupy)
    host_work.install_thrust(cupy)
    host_work.install_cub(cupy)
    if settings.GUARD:
        cupy.cuda.set_allocator(None)       # each array has an allocation of its own, and so ends of its own
    elif settings.POISON >= 2 and not settings.COUNT_ONLY:
        device.poison_pool(cupy)
    if settings.GUARD == 1:
        device.check_fences_at_exit()
