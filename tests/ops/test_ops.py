"""Every op of the table: gradients, dtypes, the GPU's stand-in, PyTorch, and shapes drawn by Hypothesis."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scratchvit as sv
from scratchvit import ops
from scratchvit.tensor import OPS, Tensor
from tests.cases import CASES
from tests.cases.case import Case
from tests.support.margins import agree, assert_all_close, assert_close, named, rounding
from tests.support.one_op import cotangents, forward_and_backward, run
from tests.support.seeds import seeded
from tests.support.strict_array import STRICT, no_transfers

by_case = pytest.mark.parametrize("case", CASES, ids=str)
by_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])

# A boolean index has to be counted before the result can be allocated, so the GPU waits.
WAITS_FOR_THE_DEVICE = {"getitem-mask"}


# --- the table -------------------------------------------------------------------------------------------------------


def test_every_op_has_a_row() -> None:
    missing = OPS.keys() - {case.op for case in CASES}
    assert not missing, f"no row in tests/cases for: {', '.join(sorted(missing))}"


def test_every_row_has_a_name_of_its_own() -> None:
    names = [str(case) for case in CASES]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})


@pytest.mark.filterwarnings("ignore:gradcheck. no entry is negative")       # a GPU does not look at probabilities
@by_case
def test_gradients_match_differences(case: Case, device: str) -> None:
    sv.gradcheck(case.ours, *case.make())


@by_case
def test_float32_stays_float32(case: Case, device: str) -> None:
    arrays = case.make(np.float32)
    found, exact = run(case.ours, arrays), run(case.ours, [array.astype(np.float64) for array in arrays])
    assert {array.dtype for array in named(found).values()} == {np.dtype(np.float32)}
    assert {array.dtype for array in named(exact).values()} == {np.dtype(np.float64)}
    agree(lambda: run(case.ours, arrays), exact)


@by_case
@by_dtype
def test_every_device_gives_what_the_cpu_gives(case: Case, dtype: Any, device: str) -> None:
    """Mostly the same bits. Not always: the CPU has a form of its own for GELU in float32, and CuPy adds up repeated
    indices by running sums; where an array begins in memory can decide how NumPy and BLAS round.
    """
    arrays = case.make(dtype)
    found = named(run(case.ours, arrays))
    sv.use("cpu")
    expected = named(run(case.ours, arrays))
    assert found.keys() == expected.keys()
    if any(not np.array_equal(array, expected[name]) for name, array in found.items()):
        assert_all_close(found, expected, rounding(lambda: run(case.ours, arrays), dtype=dtype))


@by_case
def test_nothing_waits_for_the_device(case: Case) -> None:
    sv.use(STRICT)
    try:
        waits = str(case) in WAITS_FOR_THE_DEVICE
        with pytest.raises(AssertionError, match="transfers") if waits else contextlib.nullcontext(), no_transfers():
            forward_and_backward(case.ours, case.make(np.float32))
    finally:
        sv.use("cpu")


@by_case
def test_arrays_given_are_never_written_to_nor_given_back(case: Case) -> None:
    arrays = case.make(np.float32)
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    gradients = run(case.ours, arrays)["gradient"]
    for array, copy, gradient in zip(arrays, before, gradients):
        assert np.array_equal(array, copy)
        assert gradient is not None and not any(np.may_share_memory(gradient, other) for other in arrays)


@by_case
def test_gradients_wanted_one_at_a_time_equal_those_wanted_together(case: Case) -> None:
    arrays = case.make(np.float64)
    together = run(case.ours, arrays)["gradient"]
    bounds = rounding(lambda: run(case.ours, arrays), dtype=np.float64)
    for i in range(len(arrays)):
        wanted = [i == j for j in range(len(arrays))]
        alone = run(case.ours, arrays, wanted)["gradient"]
        assert [gradient is not None for gradient in alone] == wanted
        assert_close(alone[i], together[i], bounds[f"gradient.{i}"])


def test_repeated_indices_add_up_without_losing_digits(device: str) -> None:
    index = seeded(0).integers(0, 500, 20_000)
    cotangent = seeded(1).random((20_000, 1)).astype(np.float32)

    def gradient() -> Any:
        weight = Tensor(np.zeros((500, 1), np.float32), requires_grad=True)
        ops.embedding(index, weight).backward(cotangent)
        return weight.grad

    agree(gradient, np.bincount(index, weights=cotangent[:, 0].astype(np.float64))[:, None])


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::UserWarning")      # PyTorch's advice on its own functions
@by_case
@by_dtype
def test_pytorch_gives_the_same(case: Case, dtype: Any) -> None:
    torch = pytest.importorskip("torch")
    if case.theirs is None:
        pytest.skip("PyTorch has nothing to compare with")
    arrays = case.make(dtype)
    # In float64: PyTorch's float32 loses more digits than ours where it makes the weights of a bicubic resize.
    tensors = [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in arrays]
    outputs = case.theirs(torch, *tensors)
    outputs = outputs if isinstance(outputs, tuple | list) else [outputs]
    torch.autograd.backward(outputs, [torch.tensor(v) for v in cotangents(outputs)])
    gradients = [np.zeros_like(x) if t.grad is None else t.grad for x, t in zip(arrays, tensors)]
    agree(lambda: run(case.ours, arrays), {"value": outputs, "gradient": gradients}, dtype=dtype)


# --- shapes drawn by Hypothesis --------------------------------------------------------------------------------------

few = settings(max_examples=25, deadline=None, derandomize=True, database=None)
any_point = pytest.mark.filterwarnings("ignore::scratchvit.GradcheckWarning")    # of all drawn, some are square
shapes = hnp.array_shapes(max_dims=4, max_side=4)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.asarray(seeded(seed).standard_normal(shape))


def check(ours: Callable[..., Any], numpys: Callable[..., Any], *arrays: np.ndarray) -> None:
    """Values as NumPy's, gradients as differences say."""
    np.testing.assert_allclose(ours(*map(Tensor, arrays)).numpy(), numpys(*arrays), rtol=1e-12, atol=1e-12)
    sv.gradcheck(ours, *arrays)


BROADCASTING = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "maximum": np.maximum, "minimum": np.minimum,
}


@pytest.mark.parametrize("name", BROADCASTING)
@any_point
@few
@given(drawn=hnp.mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_side=4, max_dims=4))
def test_broadcasting(name: str, drawn: Any) -> None:
    x, y = normal(*drawn.input_shapes[0]), normal(*drawn.input_shapes[1], seed=1)
    if name == "div":
        y = 1 + np.abs(y)
    check(OPS[name], BROADCASTING[name], x, y)


@any_point
@few
@given(drawn=hnp.mutually_broadcastable_shapes(num_shapes=3, max_side=4, max_dims=3))
def test_where_broadcasts(drawn: Any) -> None:
    z, x, y = (normal(*shape, seed=i) for i, shape in enumerate(drawn.input_shapes))
    condition = np.asarray(z > 0)
    check(lambda x, y: ops.where(condition, x, y), lambda x, y: np.where(condition, x, y), x, y)


@any_point
@few
@given(drawn=hnp.mutually_broadcastable_shapes(signature=np.matmul.signature, min_side=0, max_side=3, max_dims=2))
def test_matmul_broadcasts(drawn: Any) -> None:
    check(ops.matmul, np.matmul, normal(*drawn.input_shapes[0]), normal(*drawn.input_shapes[1], seed=1))


REDUCTIONS = {
    "sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min, "var": lambda *a, **k: np.var(*a, ddof=1, **k),
}


@pytest.mark.parametrize("name", REDUCTIONS)
@any_point
@few
@given(data=st.data(), keepdim=st.booleans())
def test_reductions_over_any_axes(name: str, data: st.DataObject, keepdim: bool) -> None:
    shape = data.draw(hnp.array_shapes(min_side=2, max_side=3, max_dims=4))
    one_axis, several = st.integers(-len(shape), len(shape) - 1), hnp.valid_tuple_axes(len(shape), min_size=1)
    axes = data.draw(st.none() | one_axis | several)
    check(
        lambda x: OPS[name](x, dim=axes, keepdim=keepdim),
        lambda x: REDUCTIONS[name](x, axis=axes, keepdims=keepdim),
        normal(*shape),
    )


@any_point
@few
@given(data=st.data())
def test_basic_indices(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    check(lambda x: x[index], lambda x: x[index], normal(*shape))


@any_point
@few
@given(data=st.data())
def test_indices_by_integer_arrays_add_up_repeats(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    index = data.draw(hnp.integer_array_indices(shape))
    check(lambda x: x[index], lambda x: x[index], normal(*shape))
    mask = normal(*shape, seed=2) > 0
    check(lambda x: x[mask], lambda x: x[mask], normal(*shape))
    mixed = (..., index[-1].reshape(-1))
    check(lambda x: x[mixed], lambda x: x[mixed], normal(*shape))


@any_point
@few
@given(data=st.data())
def test_permutations(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    axes = tuple(data.draw(st.permutations(range(len(shape)))))
    a, b = data.draw(st.tuples(*[st.integers(-len(shape), len(shape) - 1)] * 2))
    check(lambda x: ops.permute(x, axes), lambda x: np.transpose(x, axes), normal(*shape))
    check(lambda x: ops.transpose(x, a, b), lambda x: np.swapaxes(x, a, b), normal(*shape))


@any_point
@few
@given(data=st.data())
def test_einsum(data: st.DataObject) -> None:
    sizes = dict(zip("abcd", (2, 3, 1, 4)))
    term = st.lists(st.sampled_from("abcd"), unique=True, min_size=1, max_size=3)
    terms = data.draw(st.lists(term, min_size=1, max_size=3))
    present = sorted({letter for term in terms for letter in term})
    result = data.draw(st.lists(st.sampled_from(present), unique=True))
    equation = ",".join(map("".join, terms)) + "->" + "".join(result)
    arrays = [normal(*(sizes[letter] for letter in term), seed=i) for i, term in enumerate(terms)]
    check(lambda *xs: ops.einsum(equation, *xs), lambda *xs: np.einsum(equation, *xs), *arrays)
