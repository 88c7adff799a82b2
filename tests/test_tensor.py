"""What the engine promises: linear, iterative, free of cycles, freeing as it goes, never wrong in silence."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import ops, random
from scratchvit.backend import Array, asnumpy
from scratchvit.recording import is_recording
from scratchvit.tensor import Tensor, op
from tests.support.processes import alone
from tests.support.seeds import moved, seeded

LONG = 100_000


def leaf(*shape: int, seed: int = 0, dtype: type = np.float32) -> Tensor:
    return Tensor(seeded(seed).standard_normal(shape).astype(dtype), requires_grad=True)


def grad(t: Tensor) -> np.ndarray:
    assert t.grad is not None
    return asnumpy(t.grad)


# --- long, deep and shared graphs ------------------------------------------------------------------------------------


def chain(t: Tensor, length: int) -> Tensor:
    for _ in range(length):
        t = t + 1
    return t


@pytest.mark.parametrize("go_back", [True, False])
def test_a_long_chain_goes_back_and_is_dropped_without_recursion(go_back: bool) -> None:
    x = leaf()
    y = x * 1
    at_the_far_end = weakref.ref(y._edge[0].backward)
    y = chain(y, LONG)
    if go_back:
        y.backward()
        assert grad(x) == 1
    del y
    assert at_the_far_end() is None


def test_every_backward_is_called_once_however_many_paths_there_are() -> None:
    calls = 0

    def fork(x: Array):
        def backward(dy):
            nonlocal calls
            calls += 1
            return dy
        return x.copy(), backward

    forked = op(fork)
    x = leaf(dtype=np.float64)
    y = x
    for _ in range(30):
        y = forked(y)
        y = y + y
    y.backward()
    assert calls == 30 and grad(x) == 2**30


def test_shared_parts_and_diamonds(device: str) -> None:
    x, y = leaf(3, dtype=np.float64), leaf(1, seed=1, dtype=np.float64)

    def fn(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        shared = ops.tanh(x * y)
        left, right = shared * x, ops.exp(shared)
        return left + right, left * right + shared

    sv.gradcheck(fn, x.numpy(), y.numpy(), jacobian=True)


def test_gradients_accumulate_over_graphs_until_cleared(device: str) -> None:
    x = leaf(3)
    (x * 2).sum().backward()
    first = x.grad
    (x * 3).sum().backward()
    assert grad(x).tolist() == [5, 5, 5] and x.grad is first
    x.grad = None
    (x * 3).sum().backward()
    assert grad(x).tolist() == [3, 3, 3]


# --- several outputs -------------------------------------------------------------------------------------------------


def halves(x: Array):
    """The first and the second half of x (2n,)."""
    n = len(x) // 2

    def backward(dys):
        assert isinstance(dys, tuple) and len(dys) == 2
        dx = np.zeros(2 * n, x.dtype)
        for part, dy in zip((dx[:n], dx[n:]), dys):
            if dy is not None:
                part += dy
        return dx

    return (x[:n], x[n:]), backward


def test_outputs_that_nobody_used_get_no_cotangent() -> None:
    x = leaf(4)
    _, second = op(halves)(x)
    (second * 2 + second).sum().backward()
    assert grad(x).tolist() == [0, 0, 3, 3]
    sv.gradcheck(op(halves), np.arange(4.0) - 2, jacobian=True)


def test_an_op_that_returns_a_tuple_of_one_gets_a_tuple_of_one() -> None:
    x = leaf(4, dtype=np.float64)
    sv.gradcheck(lambda x: ops.split(x, 4), x.numpy())
    sv.gradcheck(lambda x: ops.unbind(x.reshape(1, 4)), x.numpy())


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Without the cycle collector, only what is free of cycles is freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def remember(x: Array):
    """x, with a backward that needs x."""
    return x + 0, lambda dy: dy * (x == x)


@pytest.mark.parametrize("go_back", [True, False])
def test_dropping_the_loss_frees_the_graph(no_collector: None, go_back: bool) -> None:
    x = leaf(5)
    hidden = op(remember)(x * 2)
    array, tensor, node = weakref.ref(hidden.data), weakref.ref(hidden), hidden._edge[0].backward
    closure = weakref.ref(node)
    del node
    loss = op(remember)(hidden).sum()
    del hidden
    assert array() is not None and closure() is not None and tensor() is None
    if go_back:
        loss.backward()
    del loss
    assert array() is None and closure() is None


def test_checkpoint_makes_no_cycles(no_collector: None) -> None:
    x = leaf(5)
    y = sv.checkpoint(lambda x: op(remember)(x * 2), x)
    closure = weakref.ref(y._edge[0].backward)
    y.sum().backward()
    del y
    assert closure() is None


def test_backward_frees_what_it_has_passed(no_collector: None) -> None:
    passed: list[weakref.ref] = []
    alive_when_reached: list[int] = []

    def watched(x: Array):
        saved = x * 1
        passed.append(weakref.ref(saved))

        def backward(dy):
            alive_when_reached.append(sum(ref() is not None for ref in passed))
            return dy * (saved == saved)

        return x + 1, backward

    y = leaf(5)
    for _ in range(4):
        y = op(watched)(y)
    loss = y.sum()
    loss.backward()             # `loss` and `y` still hold the graph's nodes, but no longer what those saved
    assert alive_when_reached == [4, 3, 2, 1]
    assert not any(ref() is not None for ref in passed)


def test_memory_falls_during_backward() -> None:
    saved, peak, left = alone(memory_of_40_layers)
    assert saved > 40 * 2**20 and peak < saved + 8 * 2**20 and left < 4 * 2**20


def memory_of_40_layers() -> tuple[int, int, int]:
    """Layers that save a megabyte each: what they hold, the peak of going back, which is a few gradients more, and
    what is left."""
    megabyte = 2**18
    x = leaf(megabyte)
    tracemalloc.start()
    y = x
    for _ in range(40):
        y = ops.tanh(y)
    loss = y.sum()
    saved = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    loss.backward()
    left, peak = tracemalloc.get_traced_memory()
    return saved, peak, left


# --- gradients belong to their tensor --------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", [
    lambda x, y: x + y, lambda x, y: x - y, lambda x, y: x + y.reshape(3, 2).reshape(2, 3), lambda x, y: x + x + y,
    lambda x, y: ops.concatenate([x, y]), lambda x, y: ops.stack([x.T, y.T]),
    lambda x, y: ops.where(np.array(True), x, y) + y,
], ids=["add", "sub", "reshape", "twice", "concatenate", "stack", "where"])
def test_gradients_share_no_memory(fn) -> None:
    x, y = leaf(2, 3), leaf(2, 3, seed=1)
    result = fn(x, y)
    cotangent = np.ones(result.shape, np.float32)
    result.backward(cotangent)
    before = grad(y).copy()
    x.grad += 100
    assert np.array_equal(grad(y), before) and (cotangent == 1).all()
    y.grad += 100
    assert (cotangent == 1).all()
    assert not np.may_share_memory(grad(x), x.data)


@pytest.mark.parametrize("twice", [
    lambda dy: np.broadcast_to(np.full(1, 2, np.float32), dy.shape), lambda dy: np.broadcast_to(2 * dy, dy.shape),
    lambda dy: np.concatenate([2 * dy, dy])[:3],
], ids=["one number for all", "read-only", "a part of an array"])
def test_a_gradient_that_does_not_own_all_of_its_memory_is_not_added_to_in_place(twice) -> None:
    @op
    def double(x: Array):
        return 2 * x, twice

    x = leaf(3)
    double(x).sum().backward()
    assert grad(x).tolist() == [2, 2, 2] and x.grad.base is None and x.grad.flags.writeable
    y = x * 1
    (double(y) + double(y) + double(y)).sum().backward()
    assert grad(x).tolist() == [8, 8, 8]


def test_a_leaf_that_is_the_result_gets_a_copy_of_the_cotangent() -> None:
    x, cotangent = leaf(3), np.ones(3, np.float32)
    x.backward(cotangent)
    x.backward(cotangent)
    assert grad(x).tolist() == [2, 2, 2] and cotangent.tolist() == [1, 1, 1]


# --- errors ----------------------------------------------------------------------------------------------------------


def test_a_second_backward_says_what_to_do() -> None:
    x = leaf(3)
    hidden = ops.exp(x)
    loss = hidden.sum()
    loss.backward()
    after_one = grad(x).copy()
    with pytest.raises(RuntimeError, match="'sum', whose graph was already used and freed: compute the loss again"):
        loss.backward()
    with pytest.raises(RuntimeError, match="'exp', whose graph was already used"):
        (hidden * 2).sum().backward()
    assert np.array_equal(grad(x), after_one)       # refused before anything was added


def test_backward_needs_a_number_or_a_gradient_of_the_right_shape() -> None:
    x = leaf(2, 3)
    with pytest.raises(RuntimeError, match=r"shape \(2, 3\) needs a gradient of that shape"):
        (x * 2).backward()
    with pytest.raises(ValueError, match=r"gradient has shape \(3,\), but the tensor has \(2, 3\)"):
        (x * 2).backward(np.ones(3))
    with pytest.raises(RuntimeError, match="does not depend on anything that requires a gradient"):
        (x.detach() * 2).sum().backward()
    (x * 2).backward([[1, 0, 0], [0, 0, 2]])        # anything that makes an array, in the tensor's dtype
    assert grad(x).tolist() == [[2, 0, 0], [0, 0, 4]] and grad(x).dtype == np.float32


def test_integers_cannot_require_gradients() -> None:
    with pytest.raises(TypeError, match="only floating-point tensors can require gradients, not int64"):
        Tensor(np.arange(3), requires_grad=True)


def test_a_tensor_has_no_truth() -> None:
    with pytest.raises(TypeError, match="truth value of a Tensor is not defined"):
        bool(leaf())


def test_a_backward_with_too_few_gradients_or_of_a_wrong_shape_is_named() -> None:
    def too_few(x: Array, y: Array):
        return x + y, lambda dy: dy

    def wrong_shape(x: Array):
        return x * 1, lambda dy: dy[None]

    def wrong_dtype(x: Array):
        return x * 1, lambda dy: dy.astype(np.float64)

    with pytest.raises(RuntimeError, match="'too_few': its backward returned 1 gradients for 2 inputs"):
        op(too_few)(leaf(), leaf()).backward()
    with pytest.raises(RuntimeError, match=r"gradient \(1, 3\) float32 for a tensor \(3,\) float32"):
        op(wrong_shape)(leaf(3)).sum().backward()
    with pytest.raises(RuntimeError, match="float64 for a tensor"):
        op(wrong_dtype)(leaf(3)).sum().backward()


def test_an_op_needs_something_to_differentiate() -> None:
    def nothing(n: int):
        return n, None

    with pytest.raises(TypeError, match="'nothing' has no parameter annotated Array"):
        op(nothing)


# --- no_grad ---------------------------------------------------------------------------------------------------------


def test_no_grad_records_and_keeps_nothing(no_collector: None) -> None:
    x = leaf(3)
    with sv.no_grad():
        hidden = op(remember)(x * 2)
        saved = weakref.ref(hidden.data)
        y = op(remember)(hidden)
        del hidden
        assert saved() is None and not y.requires_grad and not is_recording()
    assert is_recording() and (x * 2).requires_grad


def test_no_grad_nests_and_survives_exceptions() -> None:
    with pytest.raises(KeyError), sv.no_grad():
        with sv.no_grad():
            pass
        assert not is_recording()
        raise KeyError
    assert is_recording()


# --- scalars, arrays, conversion -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scalar", [0.5, 2, True, np.float64(0.5), np.float32(0.5), np.int64(2)], ids=repr)
def test_scalars_do_not_promote(scalar, device: str) -> None:
    for dtype in (np.float32, np.float64):
        t = leaf(3, dtype=dtype)
        for result in (t * scalar, scalar * t, t + scalar, scalar - t, t / scalar, scalar / t, ops.maximum(t, scalar)):
            assert isinstance(result, Tensor) and result.dtype == dtype
            result.sum().backward()
            assert t.grad.dtype == dtype


def test_arrays_on_the_left_give_tensors() -> None:
    t, array = leaf(2, 3), np.ones((2, 3), np.float32)
    for result in (array * t, array + t, array - t, array / t, array @ t.T, np.float32(2) * t):
        assert isinstance(result, Tensor) and result.requires_grad and result.dtype == np.float32


def test_what_becomes_of_data() -> None:
    assert Tensor([1.0, 2.0]).dtype == Tensor(1.5).dtype == np.float32
    assert Tensor(np.ones(2)).dtype == np.float64 and Tensor([1, 2]).dtype == np.int64
    array = np.ones(2, np.float32)
    assert Tensor(array).data is array and Tensor(Tensor(array)).data is array
    t = leaf(2, 3)
    assert (t.shape, t.ndim, t.size, len(t), t.T.shape) == ((2, 3), 2, 6, 2, (3, 2))
    assert [row.shape for row in t] == [(3,), (3,)]
    assert not t.detach().requires_grad and t.detach().data is t.data
    assert "requires_grad=True" in repr(t) and "op=exp" in repr(t.exp())
    assert Tensor(2.5).item() == 2.5


# --- checkpoint ------------------------------------------------------------------------------------------------------


def block(generator: random.Generator, weight: Tensor, x: Tensor) -> Tensor:
    """A layer with a parameter and dropout."""
    keep = Tensor(generator.bernoulli(0.5, x.shape), dtype=x.dtype)
    return ops.tanh(x * weight) * keep


def network(x: Tensor, weight: Tensor, checkpointed: str) -> tuple[Tensor, random.Generator]:
    generator = random.Generator(moved(3))

    def layer(x: Tensor) -> Tensor:
        return block(generator, weight, x)

    def inner(x: Tensor) -> Tensor:
        return sv.checkpoint(layer, x) if checkpointed == "nested" else layer(x)

    def two_layers(x: Tensor) -> Tensor:
        return inner(inner(x))

    for _ in range(2):
        x = two_layers(x) if checkpointed == "no" else sv.checkpoint(two_layers, x)
    return layer(x), generator


@pytest.mark.parametrize("checkpointed", ["yes", "nested"])
def test_checkpoint_equals_plain(checkpointed: str, device: str) -> None:
    results = []
    for how in ("no", checkpointed):
        x, weight = leaf(4, 8), leaf(8, seed=1)
        y, generator = network(x, weight, how)
        y.sum().backward()
        results.append((y.numpy(), grad(x), grad(weight), generator.draws, asnumpy(generator.bernoulli(0.5, (9,)))))
    for plain, again in zip(*results):
        assert np.array_equal(plain, again)


def test_checkpoint_keeps_only_its_inputs(no_collector: None) -> None:
    inside: list[weakref.ref] = []

    def layers(x: Tensor) -> Tensor:
        hidden = op(remember)(x * 2)
        inside.append(weakref.ref(hidden.data))
        return op(remember)(hidden)

    x = leaf(5)
    y = sv.checkpoint(layers, x)
    assert inside[0]() is None
    y.sum().backward()
    assert len(inside) == 2 and inside[1]() is None and grad(x).tolist() == [2] * 5


def test_checkpoint_of_what_needs_no_gradient() -> None:
    constant, x = leaf(3).detach(), leaf(3)
    assert not sv.checkpoint(ops.exp, constant).requires_grad
    with sv.no_grad():
        assert not sv.checkpoint(ops.exp, x).requires_grad
    y = sv.checkpoint(lambda c: c * x, constant)        # a parameter closed over, no input to differentiate
    y.sum().backward()
    assert np.array_equal(grad(x), constant.numpy())


def test_checkpoint_of_a_function_that_returns_its_input() -> None:
    x = leaf(3)
    (sv.checkpoint(lambda x: x, x) * 2).sum().backward()
    assert grad(x).tolist() == [2, 2, 2]
