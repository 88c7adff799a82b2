"""Replaying captured functions: they do what eager calls do, with new numbers in every replay."""

import numpy as np
import pytest

from scratchvit.backend import asarray, asnumpy, current
from scratchvit.kernels import products
from scratchvit.precision import set_matmul_precision
from scratchvit.replay import MOST, WARM_UP, NotContinued, Replay, every_time, is_capturing, numbers

pytestmark = pytest.mark.usefixtures("cuda")


def unexpected(error):
    raise AssertionError("the function could not be captured") from error


def make(log):
    """A function with state on the device, a number from the host, and something to count."""
    state = asarray(np.zeros(3, np.float32))
    rates = iter(np.arange(1, 100, dtype=np.float32))

    def function(x):
        rate = numbers(lambda: next(rates), (), np.float32)
        every_time(lambda: log.append("step"))
        state[...] = state + x * rate
        return state * 2, is_capturing()

    return function


def test_replays_do_what_calls_do():
    xs = [asarray(np.full(3, value, np.float32)) for value in (1, 2, 3, 4, 5, 6)]
    eager_log, log = [], []
    eager, replay = make(eager_log), Replay(make(log), unexpected)
    expected = [asnumpy(eager(x)[0]).tolist() for x in xs]
    found = [asnumpy(replay(x)[0]).tolist() for x in xs]
    assert found == expected and log == eager_log
    assert replay(xs[0])[1]                         # what was captured is what is returned


def test_a_replay_is_one_launch_and_allocates_nothing():
    from fakegpu import device

    replay, x = Replay(make([]), unexpected), asarray(np.ones(3, np.float32))
    for _ in range(WARM_UP + 1):
        replay(x)
    seen = []
    device.trace(lambda what, name, a, b: seen.append(what))
    replay(x)
    device.trace(None)
    assert seen.count("graph launch") == 1
    assert not {"malloc", "sync", "host alloc"} & set(seen)


def test_another_shape_is_called_and_captured_for_itself():
    calls = []

    def function(x):
        calls.append(x.shape)
        return x + 1

    replay = Replay(function, unexpected)
    for shape in [(2,)] * 4 + [(3,)] + [(2,)] * 2 + [(3,)] * 3:
        assert asnumpy(replay(asarray(np.ones(shape, np.float32)))).tolist() == [2] * shape[0]
    assert calls == [(2,)] * (WARM_UP + 1) + [(3,)] * (WARM_UP + 1)


def test_a_key_stands_for_what_the_arrays_do_not_show():
    sign = 1
    replay, x = Replay(lambda x: x * sign, unexpected), asarray(np.ones(2, np.float32))
    for sign in (1, -1) * 4:
        assert asnumpy(replay(x, key=sign)).tolist() == [sign] * 2


def test_products_in_another_precision_are_captured_anew():
    replay = Replay(lambda x: products.matmul(x, x), unexpected)
    x = asarray(np.full((2, 2), 1 + 2**-13, np.float32))     # in TF32, 1
    try:
        for _ in range(2):
            for precision, expected in (("float32", 2 + 2**-11), ("tf32", 2.0)):
                set_matmul_precision(precision)
                for _ in range(WARM_UP + 2):
                    np.testing.assert_allclose(asnumpy(replay(x)), expected, rtol=1e-6)
    finally:
        set_matmul_precision("float32")


def test_a_function_that_waits_is_never_captured():
    errors = []
    replay = Replay(lambda x: x * float(x[0]), errors.append)
    x = asarray(np.full(2, 3, np.float32))
    for _ in range(5):
        assert asnumpy(replay(x)).tolist() == [9, 9]
    assert len(errors) == 1 and not replay.can_capture
    current().xp.cuda.get_current_stream().synchronize()        # the device still works


def test_further_shapes_are_called():
    calls, told = [], []

    def function(x):
        calls.append(len(x))
        return x + 1

    replay = Replay(function, unexpected, full=lambda: told.append("full"))
    for length in (*range(1, MOST + 3), 1):
        for _ in range(WARM_UP + 2):
            assert asnumpy(replay(asarray(np.ones(length, np.float32)))).tolist() == [2] * length
    assert [calls.count(length) for length in (1, MOST, MOST + 1, MOST + 2)] == [3, 3, 4, 4]
    assert told == ["full"] and replay.was_replayed


def halves(errors, second):
    first = Replay(lambda x: x * 2, errors.append)
    second = Replay(second, errors.append, beside=first)
    second.after = first
    return first, second


def test_two_halves_with_the_host_between_them():
    """The second half finds what the first has made, for each shape, without being warmed up."""
    calls, kept = [], []

    def function(y):
        calls.append(len(kept[0]))
        return kept[0] + y

    first, second = halves([], function)
    for number in range(WARM_UP + 3):
        for length in (2, 3):
            kept[:] = [first(asarray(np.full(length, number, np.float32)))]
            y = float(kept[0].sum())
            assert asnumpy(second(asarray(np.full(length, y, np.float32)))).tolist() == [2 * number + y] * length
    assert second.was_replayed and calls == [2, 3] * (WARM_UP + 1)


def test_a_second_half_that_cannot_be_captured():
    errors = []
    first, second = halves(errors, lambda y: y * float(y[0]))
    x = asarray(np.ones(2, np.float32))
    for _ in range(WARM_UP):
        first(x)
        second(x)
    first(x)
    with pytest.raises(NotContinued):
        second(x)
    assert len(errors) == 1
    assert asnumpy(first(x)).tolist() == [2, 2] and not first.was_replayed
    assert asnumpy(second(x)).tolist() == [1, 1] and not second.was_replayed


def test_too_many_numbers():
    errors = []
    replay = Replay(lambda x: x + numbers(lambda: np.zeros(1 << 14), (1 << 14,), np.float32).sum(), errors.append)
    for _ in range(4):
        replay(asarray(np.ones(1, np.float32)))
    assert "bytes of numbers" in str(errors[0])
