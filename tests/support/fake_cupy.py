"""A small module in CuPy's place, for what is said when CuPy, a library of CUDA or a device fails; and CuPy's errors.

It computes what `gpu.prove` asks for. Every part of it can be made to raise or to compute wrongly.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, Self

import numpy as np

# {class: (its module, the class it inherits from)}, as in CuPy 14.2 and cuda-pathfinder 1.3
CLASSES = {
    "OutOfMemoryError": ("cupy.cuda.memory", MemoryError),
    "CompileException": ("cupy.cuda.compiler", Exception),
    "CUDARuntimeError": ("cupy_backends.cuda.api.runtime", RuntimeError),
    "CUDADriverError": ("cupy_backends.cuda.api.driver", RuntimeError),
    "CUBLASError": ("cupy_backends.cuda.libs.cublas", RuntimeError),
    "NVRTCError": ("cupy_backends.cuda.libs.nvrtc", RuntimeError),
    "DynamicLibNotFoundError": ("cuda.pathfinder._dynamic_libs.load_dl_common", RuntimeError),
}


def cupy_error(name: str, text: str) -> Exception:
    """The exception that CuPy raises, without CuPy."""
    module, base = CLASSES[name]
    error: Exception = type(name, (base,), {"__module__": module})(text)
    return error


OUT_OF_MEMORY = cupy_error(
    "OutOfMemoryError", "Out of memory allocating 2,147,483,648 bytes (allocated so far: 140,660,178,944 bytes)."
)
ILLEGAL_ACCESS = cupy_error(
    "CUDARuntimeError", "cudaErrorIllegalAddress: an illegal memory access was encountered"
)
NO_NVRTC = cupy_error(
    "DynamicLibNotFoundError",
    'Failure finding "libnvrtc.so.13 or libnvrtc.so.12": No such file: libnvrtc.so*\n'
    '  listdir("/usr/local/cuda-11.8/lib64"):\n    libnvrtc.so.11.2',
)


class FakeArray:
    """An array on a device of a FakeCuPy."""

    def __init__(self, cupy: FakeCuPy, values: Any, device: int):
        self.cupy, self.values, self.data = cupy, np.asarray(values), SimpleNamespace(device_id=device)
        self.shape, self.dtype = self.values.shape, self.values.dtype

    @property
    def T(self) -> FakeArray:
        return FakeArray(self.cupy, self.values.T, self.data.device_id)

    def __add__(self, other: FakeArray) -> FakeArray:
        return self.cupy.made("kernel", self.values + other.values)

    def sum(self) -> FakeArray:
        return self.cupy.made("sum", self.values.sum())

    def copy(self) -> FakeArray:
        return self.cupy.made("copy", self.values.copy())


class FakeDevice:
    """`cupy.cuda.Device`: current is that of the calling thread."""

    def __init__(self, cupy: FakeCuPy, number: int | None):
        self.cupy, self.number = cupy, cupy.current if number is None else number
        self.before: list[int] = []

    @property
    def compute_capability(self) -> str:
        return f"9{self.number}"

    def use(self) -> None:
        self.cupy.thread.device = self.number

    def __enter__(self) -> Self:
        self.before.append(self.cupy.current)
        self.use()
        return self

    def __exit__(self, *error: object) -> None:
        self.cupy.thread.device = self.before.pop()


class FakeCuPy:
    """What `import cupy` finds.

    fails: {part: what it raises}. Parts are "allocation", "kernel", "sum", "product", "copy", and the functions of
    cupy.cuda.runtime. wrong: parts that compute wrongly. calls: the parts that were asked, in order.
    """

    ndarray = FakeArray

    def __init__(self, devices: int = 1, version: str = "14.2.0", cuda: int = 12):
        self.__version__ = version
        self.fails: dict[str, Exception] = {}
        self.wrong: set[str] = set()
        self.calls: list[str] = []
        self.thread = threading.local()
        runtime = {
            "getDeviceCount": lambda: devices,
            "getDeviceProperties": lambda number: {"name": f"NVIDIA T{number}".encode(), "major": 9, "minor": number},
            "memGetInfo": lambda: ((1 + self.current) * 2**30, 16 * 2**30),
            "runtimeGetVersion": lambda: 1000 * cuda + 90,
        }
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(**{name: self._failing(name, call) for name, call in runtime.items()}),
            Device=lambda number=None: FakeDevice(self, number),
            compiler=SimpleNamespace(compile_using_nvrtc=lambda source: f"compiled {source}"),
            nvrtc=SimpleNamespace(getVersion=lambda: (cuda, 9)),
        )

    def _failing(self, name: str, call: Any) -> Any:
        def called(*args: Any) -> Any:
            if name in self.fails:
                raise self.fails[name]
            return call(*args)

        return called

    @property
    def current(self) -> int:
        return getattr(self.thread, "device", 0)

    def made(self, part: str, values: Any) -> FakeArray:
        """The result of a part, on the current device."""
        self.calls.append(part)
        if part in self.fails:
            raise self.fails[part]
        return FakeArray(self, values + 1 if part in self.wrong else values, self.current)

    def asarray(self, values: np.ndarray) -> FakeArray:
        return self.made("allocation", values)

    def matmul(self, x: FakeArray, y: FakeArray) -> FakeArray:
        return self.made("product", x.values @ y.values)

    def asnumpy(self, x: FakeArray) -> np.ndarray:
        return x.values

    def get_default_memory_pool(self) -> Any:
        return SimpleNamespace(total_bytes=lambda: 14 * 2**30)
