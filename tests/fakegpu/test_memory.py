"""Device memory: NaN in what is fresh, guards at the ends of arrays, copies that leave an array, a full device."""

import cupy
import numpy as np
import pytest

from tests.fakegpu.helpers import start


def test_fresh_memory_is_nan():
    assert np.isnan(cupy.asnumpy(cupy.empty(1000, np.float32))).all()


def test_memory_that_the_pool_gives_out_again_is_nan():
    cupy.get_default_memory_pool().free_all_blocks()
    x = cupy.ones(1000, np.float32)
    pointer = x.data.ptr
    del x
    again = cupy.empty(1000, np.float32)
    assert again.data.ptr == pointer and np.isnan(cupy.asnumpy(again)).all()


def test_a_copy_beyond_the_end_is_an_error(capfd):
    x, y = cupy.zeros(1000, np.float32), cupy.zeros(1000, np.float32)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
        cupy.cuda.runtime.memcpy(y.data.ptr, x.data.ptr, 1 << 30, cupy.cuda.runtime.memcpyDeviceToDevice)
    assert "a copy d2d of 1073741824 bytes leaves its device memory" in capfd.readouterr().err


def test_a_full_device_is_cupys_error():
    code = """
import cupy
try:
    cupy.zeros(30 << 20, "f")
except cupy.cuda.memory.OutOfMemoryError:
    print("full")
"""
    assert start("-c", code, FAKEGPU_MEMORY_MB="100").stdout == "full\n"


PROGRAM = """
import cupy, numpy as np
k = cupy.RawKernel('extern "C" __global__ void k(float* x, int i) { x[i] = x[i] + 1; }', 'k')
x = cupy.zeros(1000, np.float32)
"""
INSIDE, BEHIND, BEFORE = (f"k((1,), (1,), (x, np.int32({i})))" for i in (999, 1003, -500))


@pytest.mark.parametrize(
    ("guard", "code", "message"),
    [
        ("2", INSIDE, None),
        ("2", BEHIND, "OUT OF BOUNDS in kernel k, block (0, 0, 0), thread (0, 0, 0): 4012 bytes after"),
        ("2", BEFORE, "OUT OF BOUNDS in kernel k"),
        ("2", "p = np.uint64(x.data.ptr); del x; k((1,), (1,), (p, np.int32(0)))", "FREED MEMORY touched in kernel k"),
        ("1", INSIDE, None),
        ("1", f"{BEHIND}; del x", "memory was written out of bounds: byte 12 after the end of 4000 bytes"),
        ("1", "k((1,), (1,), (x, np.int32(-1)))", "memory was written out of bounds: byte 1 before 4000 bytes"),
    ],
)
def test_guards_notice_access_beyond_the_ends_and_of_freed_memory(guard, code, message):
    done = start("-c", PROGRAM + code, FAKEGPU_GUARD=guard)
    assert (done.returncode == 0) == (message is None), done.stderr
    assert message is None or message in done.stderr
