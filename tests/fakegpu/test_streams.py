"""Streams and events, and with FAKEGPU_ASYNC=1 what goes wrong if one is not waited for."""

import cupy
import numpy as np
import pytest

from tests.fakegpu.helpers import agree, start
from tests.support.seeds import seeded


def test_a_stream_waits_for_an_event_of_another():
    first, second, event = (*(cupy.cuda.Stream(non_blocking=True) for _ in range(2)), cupy.cuda.Event())
    x = seeded(0).standard_normal(1000, dtype=np.float32)
    with first:
        doubled = cupy.asarray(x) * 2
        event.record()
    second.wait_event(event)
    with second:
        y = doubled + 1
    second.synchronize()
    agree(y, 2 * x + 1)


def test_the_time_between_two_events():
    begin, end, x = cupy.cuda.Event(), cupy.cuda.Event(), cupy.ones(10)
    begin.record()
    x = x + x
    end.record()
    end.synchronize()
    assert cupy.cuda.get_elapsed_time(begin, end) >= 0


def test_host_functions():
    stream, seen = cupy.cuda.Stream(non_blocking=True), []
    stream.launch_host_func(seen.append, 7)
    stream.synchronize()
    assert seen == [7]


# Prints Y[0], which is 2 if the second stream waited for the first, and X[0], which is 5 if `pinned` was not written to
# before it was copied.
PROGRAM = """
import cupy, numpy as np
first, second, event = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True), cupy.cuda.Event()
X, Y = cupy.zeros(100, "f"), cupy.zeros(100, "f")
cupy.cuda.runtime.deviceSynchronize()
with first:
    X += 1
    event.record()
if {waits}:
    second.wait_event(event)
with second:
    cupy.add(X, 1, out=Y)
second.synchronize()
host = np.empty(100, "f")
cupy.cuda.runtime.memcpyAsync(host.ctypes.data, Y.data.ptr, 400, cupy.cuda.runtime.memcpyDeviceToHost, second.ptr)
second.synchronize()

memory = cupy.cuda.alloc_pinned_memory(400)
pinned = np.frombuffer(memory, "f", 100)
pinned[:] = 5
X.data.copy_from_host_async(pinned.ctypes.data, 400, first)
if {synchronizes}:
    first.synchronize()
pinned[:] = 7
first.synchronize()
print(host[0], float(X[0]))
"""


@pytest.mark.parametrize(
    ("waits", "synchronizes", "delayed", "expected"),
    [
        (True, True, "1", "2.0 5.0"),
        (False, True, "1", "1.0 5.0"),
        (True, False, "1", "2.0 7.0"),
        (False, False, "0", "2.0 5.0"),     # everything is done at once: the mistakes do not show
    ],
)
def test_a_wait_that_is_missing_shows_if_work_is_done_late(waits, synchronizes, delayed, expected):
    done = start("-c", PROGRAM.format(waits=waits, synchronizes=synchronizes), FAKEGPU_ASYNC=delayed)
    assert done.stdout.strip() == expected, done.stderr
