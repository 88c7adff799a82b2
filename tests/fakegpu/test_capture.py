"""Capturing a stream into a graph: what a replay does, and what CUDA forbids in a capture."""

import cupy
import numpy as np
import pytest
from fakegpu import device

runtime = cupy.cuda.runtime

# cudaError_t
UNSUPPORTED, INVALIDATED, UNJOINED, ISOLATION, IMPLICIT, CAPTURED_EVENT = 900, 901, 904, 905, 906, 907
ILLEGAL_STATE = 401


@pytest.fixture
def stream():
    return cupy.cuda.Stream(non_blocking=True)


@pytest.fixture
def other():
    return cupy.cuda.Stream(non_blocking=True)


@pytest.fixture
def x():
    return cupy.ones(1000, np.float32)


def test_a_graph_is_replayed_with_the_values_of_its_arrays(stream, x):
    y = cupy.zeros(1000, np.float32)
    with stream:
        cupy.add(x * 2 + 1, y, out=y)       # so that the kernels are compiled, and the pool has memory
        y.fill(0)
        stream.begin_capture()
        cupy.add(x * 2 + 1, y, out=y)
        total = y.sum()
        graph = stream.end_capture()
    assert float(y[0]) == 0                 # captured, and not done
    for n in (1, 2, 3):
        graph.launch(stream)
        stream.synchronize()
        assert float(y[5]) == 3 * n and float(total) == 3000 * n
    x.fill(2)
    graph.launch(stream)
    stream.synchronize()
    assert float(y[5]) == 14
    assert len(device.graph_nodes(graph)) >= 4


def errors(stream, inside, mode=None):
    """The status of what inside() raises in a capture, and of the end of the capture; 0 for none."""
    stream.begin_capture(mode)
    found = []
    for call in (inside, lambda: runtime.streamEndCapture(stream.ptr)):
        try:
            with stream:
                call()
            found.append(0)
        except runtime.CUDARuntimeError as error:
            found.append(error.status)
    return tuple(found)


def record_and_synchronize(stream):
    event = cupy.cuda.Event()
    event.record(stream)
    event.synchronize()


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        (lambda stream: stream.synchronize(), UNSUPPORTED),
        (lambda stream: runtime.deviceSynchronize(), UNSUPPORTED),
        (lambda stream: cupy.sort(cupy.ones(10)), UNSUPPORTED),         # Thrust waits
        (record_and_synchronize, CAPTURED_EVENT),
    ],
)
def test_waiting_is_forbidden_and_invalidates_the_capture(inside, expected, stream):
    cupy.sort(cupy.ones(10))
    assert errors(stream, lambda: inside(stream)) == (expected, INVALIDATED)


def test_allocating_is_forbidden_by_the_mode(stream):
    """CuPy's default, the relaxed mode, allows it."""
    assert errors(stream, lambda: runtime.malloc(1 << 20)) == (0, 0)
    for mode in (runtime.streamCaptureModeGlobal, runtime.streamCaptureModeThreadLocal):
        assert errors(stream, lambda: runtime.malloc(1 << 20), mode) == (UNSUPPORTED, INVALIDATED)
        assert errors(stream, lambda: runtime.hostAlloc(1 << 20, 0), mode) == (UNSUPPORTED, INVALIDATED)


def test_an_event_from_outside_cannot_be_waited_for(stream, other):
    event = cupy.cuda.Event()
    event.record(other)
    assert errors(stream, lambda: stream.wait_event(event)) == (ISOLATION, INVALIDATED)


def test_a_second_capture_of_the_same_stream_is_refused(stream):
    assert errors(stream, lambda: runtime.streamBeginCapture(stream.ptr)) == (ILLEGAL_STATE, 0)


def test_the_default_stream_waits_for_blocking_streams_only(stream, x):
    def use_default_stream():
        runtime.memsetAsync(x.data.ptr, 0, 4, 0)

    assert errors(cupy.cuda.Stream(), use_default_stream) == (IMPLICIT, INVALIDATED)
    assert errors(stream, use_default_stream) == (0, 0)


def test_the_default_stream_cannot_be_captured():
    with pytest.raises(runtime.CUDARuntimeError) as caught:
        runtime.streamBeginCapture(0)
    assert caught.value.status == UNSUPPORTED


@pytest.mark.parametrize("join", [True, False])
def test_a_fork_must_be_joined(join, stream, other, x):
    y, fork, end = cupy.empty_like(x), cupy.cuda.Event(), cupy.cuda.Event()
    stream.begin_capture()
    with stream:
        cupy.add(x, 1, out=x)
    fork.record(stream)
    other.wait_event(fork)
    with other:
        cupy.multiply(x, 2, out=y)
    if join:
        end.record(other)
        stream.wait_event(end)
        stream.end_capture().launch(stream)
        stream.synchronize()
        assert float(y[0]) == 4
    else:
        with pytest.raises(runtime.CUDARuntimeError) as caught:
            stream.end_capture()
        assert caught.value.status == UNJOINED
    other.begin_capture()       # neither stream is captured any more
    runtime.streamEndCapture(other.ptr)


def test_cupy_refuses_its_own_products_in_a_capture(stream):
    a = cupy.ones((4, 4), np.float32)
    with stream:
        a @ a
        stream.begin_capture()
        with pytest.raises(NotImplementedError):
            a @ a
        runtime.streamEndCapture(stream.ptr)
