"""RawKernel and RawModule: templates, constant memory, dynamic shared memory, launches that a GPU would refuse."""

import cupy
import numpy as np
import pytest

from tests.fakegpu import kernel_checks
from tests.fakegpu.helpers import agree, start
from tests.support.seeds import seeded

TEXT = """
__constant__ float factors[4];

template <typename T> __global__ void __launch_bounds__(256) scale(const T* x, T* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * (T)factors[i % 4];
}
"""
REVERSE = """
extern "C" __global__ void reverse(const float* x, float* y) {
    extern __shared__ float s[];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    s[threadIdx.x] = x[i];
    __syncthreads();
    y[i] = s[blockDim.x - 1 - threadIdx.x];
}
"""


def test_a_kernel_of_a_text():
    x = seeded(0).standard_normal((64, 48), dtype=np.float32)
    y = cupy.empty_like(x)
    cupy.RawKernel(kernel_checks.TEXT, "softmax_rows")((64,), (128,), (cupy.asarray(x), y, np.int32(48)))
    e = np.exp(x - x.max(1, keepdims=True))
    agree(y, e / e.sum(1, keepdims=True))


@pytest.mark.parametrize(("name", "dtype"), [("float", np.float32), ("double", np.float64)])
def test_templates_and_constant_memory(name, dtype):
    module = cupy.RawModule(code=TEXT, name_expressions=["scale<float>", "scale<double>"])
    cupy.ndarray(4, np.float32, module.get_global("factors"))[...] = cupy.arange(1, 5, dtype=np.float32)
    x = seeded(1).standard_normal(3000).astype(dtype)
    y = cupy.empty_like(x)
    module.get_function(f"scale<{name}>")((12,), (256,), (cupy.asarray(x), y, np.int32(3000)))
    agree(y, (x * np.tile(np.arange(1, 5), 750)).astype(dtype))


def test_dynamic_shared_memory():
    x = seeded(2).standard_normal(512, dtype=np.float32)
    y = cupy.empty_like(x)
    cupy.RawKernel(REVERSE, "reverse")((2,), (256,), (cupy.asarray(x), y), shared_mem=1024)
    agree(y, x.reshape(2, 256)[:, ::-1].ravel())


@pytest.mark.parametrize(
    ("grid", "block", "shared"), [((1,), (2048,), 0), ((1,), (32,), 64 << 10), ((1, 70_000), (32,), 128)]
)
def test_launches_beyond_the_limits_are_refused(grid, block, shared):
    x = cupy.zeros(2048, np.float32)
    with pytest.raises(cupy.cuda.driver.CUDADriverError):
        cupy.RawKernel(REVERSE, "reverse")(grid, block, (x, x), shared_mem=shared)


def test_more_shared_memory_can_be_asked_for():
    x = cupy.arange(32, dtype=np.float32)
    kernel = cupy.RawKernel(REVERSE, "reverse")
    kernel.max_dynamic_shared_size_bytes = 64 << 10
    y = cupy.empty_like(x)
    kernel((1,), (32,), (x, y), shared_mem=64 << 10)
    agree(y, np.arange(32, dtype=np.float32)[::-1])


def test_a_text_that_is_no_cuda_is_an_error_of_cupys():
    with pytest.raises(cupy.cuda.compiler.CompileException, match="undeclared"):
        cupy.RawKernel('extern "C" __global__ void k() { undeclared(); }', "k")((1,), (1,), ())


def test_nvrtc_can_be_asked_as_well():
    """It refuses INFINITY, which g++ takes."""
    code = """
import cupy
x = cupy.zeros(1, "f")
cupy.RawKernel('extern "C" __global__ void k(float* x) { x[0] = INFINITY; }', "k")((1,), (1,), (x,))
assert float(x[0]) == float("inf")
"""
    assert start("-c", code).returncode == 0
    done = start("-c", code, FAKEGPU_NVRTC="1")
    assert done.returncode and "INFINITY" in done.stderr
