"""The stand-in for the GPU refuses what CuPy refuses, and what CuPy would do silently."""

from __future__ import annotations

import copy
import operator

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.graph import _owner
from tests.support import strict_array
from tests.support.seeds import seeded
from tests.support.strict_array import API, STRICT, StrictArray, no_transfers, to_host, xp


def make(*shape: int, dtype: type = np.float32) -> StrictArray:
    return xp.arange(int(np.prod(shape)), dtype=dtype).reshape(shape)


@pytest.mark.parity
def test_the_list_of_names_is_that_of_the_installed_cupy() -> None:
    cupy = pytest.importorskip("cupy", exc_type=ImportError)
    if cupy.__version__ != API["version"]["cupy"]:
        pytest.skip(f"cupy_api.json is of CuPy {API['version']['cupy']}, installed is {cupy.__version__}")
    from scripts.update_cupy_api import API_FILE, text

    assert API_FILE.read_text() == text(), "run python scripts/update_cupy_api.py"


# --- no way in or out without a word ---------------------------------------------------------------------------------


@pytest.mark.parametrize("convert", [
    np.asarray, np.array, np.sin, np.sum, np.concatenate, lambda x: np.matmul(x, x),
    lambda x: np.stack([x, x]), lambda x: np.add(np.ones(3), x), lambda x: np.zeros(3).__setitem__(slice(None), x),
    lambda x: np.array([x, x]), lambda x: np.maximum(x, 0), lambda x: np.where(x, 1, 0), memoryview,
    lambda x: operator.iadd(np.ones(3, np.float32), x),
])
def test_numpy_cannot_take_it(convert) -> None:
    with pytest.raises(TypeError):
        convert(make(3))


@pytest.mark.parametrize("name", [
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "eq", "ne", "lt", "le", "gt", "ge",
    "iadd", "isub", "imul", "itruediv",
])
def test_operators_refuse_host_arrays_on_either_side(name: str) -> None:
    function = getattr(operator, name)
    for host in (np.ones(3, np.float32), np.array(1.0)):
        with pytest.raises(TypeError):
            function(make(3), host)
        with pytest.raises(TypeError):
            function(host.copy(), make(3))


@pytest.mark.parametrize("call", [
    lambda x, host: xp.add(x, host),
    lambda x, host: xp.add(x, 1, out=host),
    lambda x, host: xp.sum(host),
    lambda x, host: xp.where(x > 0, x, host),
    lambda x, host: xp.concatenate([x, host]),
    lambda x, host: xp.take(x, host.astype(int)),
    lambda x, host: x.take(host.astype(int)),
    lambda x, host: x.dot(host),
    lambda x, host: xp.linalg.norm(host),
    lambda x, host: STRICT.special.erf(host),
    lambda x, host: xp.add.at(x, host.astype(int), 1),
    lambda x, host: x[host.astype(int)],
    lambda x, host: x[[0, 1]],
    lambda x, host: x.__setitem__(slice(None), host),
    lambda x, host: x.__setitem__(host > 0, 1),
    lambda x, host: xp.sum([1.0, 2.0]),
    lambda x, host: xp.add(x, [1.0, 2.0, 3.0]),
])
def test_functions_refuse_host_arrays_and_lists(call) -> None:
    with pytest.raises(TypeError):
        call(make(3), np.ones(3, np.float32))


def test_host_data_comes_in_through_asarray_as_a_copy() -> None:
    host = np.ones(3, np.float32)
    x, y = xp.asarray(host), xp.array([[1, 2], [3, 4]], dtype=np.float32)
    host += 1
    assert isinstance(x, StrictArray) and to_host(x).tolist() == [1, 1, 1] and y.shape == (2, 2)
    assert xp.asarray(x) is x
    back = to_host(x)
    back += 1
    assert to_host(x).tolist() == [1, 1, 1]


# --- only what CuPy has ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", [
    lambda x: xp.errstate, lambda x: xp.einsum_path, lambda x: xp.no_such_name, lambda x: xp.linalg.no_such_name,
    lambda x: x.itemset, lambda x: x.ctypes, lambda x: x.resize, lambda x: STRICT.special.softmin,
    lambda x: xp.exp.reduce, lambda x: xp.multiply.at,
])
def test_names_that_cupy_lacks_do_not_exist(use) -> None:
    with pytest.raises(AttributeError):
        use(make(3))


@pytest.mark.parametrize("use", [
    lambda x: xp.sum(x, where=x > 0), lambda x: xp.max(x, initial=0), lambda x: xp.mean(x, where=x > 0),
    lambda x: xp.exp(x, where=x > 0), lambda x: x.sum(initial=0), lambda x: xp.zeros(3, like=x),
    lambda x: xp.var(x, mean=x), lambda x: xp.clip(x, min=0),
])
def test_parameters_that_cupy_lacks_are_refused_by_name(use) -> None:
    with pytest.raises(TypeError, match="cupy"):
        use(make(3))


def test_what_cupy_has_and_the_stand_in_lacks_says_so() -> None:
    for use in (lambda: xp.RawKernel, lambda: xp.random, lambda: make(3).device, lambda: make(3).scatter_add):
        with pytest.raises((NotImplementedError, AttributeError), match="stand-in"):
            use()


# --- transfers are counted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [
    float, int, bool, to_host, lambda x: x.item(), lambda x: x.tolist(), lambda x: x.get(), lambda x: f"{float(x):.2f}",
    xp.asnumpy, lambda x: xp.ones(3)[xp.arange(3) > 1], xp.unique, lambda x: xp.nonzero(x > 0)[0],
    lambda x: (x > 0).nonzero(), xp.flatnonzero, xp.where,
])
def test_waiting_for_the_device_is_counted(read) -> None:
    x = xp.ones(1, dtype=np.float32)
    before = strict_array.transfers
    read(x)
    assert strict_array.transfers == before + 1
    with pytest.raises(AssertionError, match="1 transfers"), no_transfers():
        read(x)


def test_work_on_the_device_is_not_counted() -> None:
    with no_transfers():
        x = make(3, 4)
        x += x.sum() / xp.maximum(x, 0).max(axis=1, keepdims=True)
        x[xp.arange(2)] = 0
        x[x > 1] = 0
        assert [row.shape for row in x] == [(4,)] * 3


# --- arrays behave as CuPy's -----------------------------------------------------------------------------------------


def test_reductions_and_elements_are_arrays_of_no_axes() -> None:
    x = make(2, 3)
    for value in (x.sum(), xp.max(x), x[0, 0], xp.allclose(x, x), x.sum() + 1, x.mean() > 0, x.argmax()):
        assert isinstance(value, StrictArray) and value.shape == ()


def test_an_element_is_a_view() -> None:
    x = make(2, 3)
    element = x[1, 2]
    element += 1
    assert to_host(x)[1, 2] == 6


def test_the_base_of_a_view_is_the_array_that_owns_the_memory() -> None:
    x = make(2, 3).copy()
    assert x.base is None
    views = [x.T, x[0], x.reshape(-1), x[:, ::2].T, x.transpose(1, 0), xp.swapaxes(x, 0, 1)[1:], x.ravel(), x[0, 0],
             xp.broadcast_to(x, (4, 2, 3)), xp.split(x, 2)[1], x.view(), next(iter(x)), x[None].squeeze()]
    assert all(view.base is x and _owner(view) is x for view in views)
    assert all(new.base is None for new in (x + 0, x.copy(), x.sum(axis=0), x[xp.arange(2)], xp.tile(x, 2), -x))
    assert xp.pad(x, 1).base is None and xp.roll(x, 1).base is None


def test_reduceat_is_the_difference_of_running_sums_as_in_cupy() -> None:
    values = seeded(0).standard_normal((2, 6, 3))
    for starts in ([0, 2, 5], [0, 0, 4], [3, 1, 5, 5]):
        sums = xp.add.reduceat(xp.asarray(values), xp.asarray(starts), axis=1)
        np.testing.assert_allclose(to_host(sums), np.add.reduceat(values, starts, axis=1), rtol=0, atol=1e-14)
    large_and_ones = xp.asarray([2**24, 1, 1, 1, 1], dtype=np.float32)
    assert to_host(xp.add.reduceat(large_and_ones, xp.asarray([0, 1])))[1] == 0     # NumPy: 4


def test_in_place_and_out_write_through_views() -> None:
    x = xp.zeros((2, 3), dtype=np.float32)
    view, row = x[:, 1:], x[0]
    view += 2
    row *= xp.asarray(np.float32(3))
    assert xp.add(x[1], 1, out=x[1]).base is x
    assert xp.multiply(x, 2, out=x) is x
    x[1, 0] = 9
    assert to_host(x).tolist() == [[0, 12, 12], [9, 6, 6]]


def test_dtypes_follow_numpy_2() -> None:
    x = make(3)
    assert (x * 2.0).dtype == (2 - x).dtype == np.float32
    assert (x * np.float64(2)).dtype == np.float64
    assert (x * xp.asarray(np.float64(2))).dtype == np.float64
    with pytest.raises(TypeError, match="same_kind"):
        y = xp.arange(3)
        y += 0.5


def test_numpy_s_scalars_are_operands_as_in_cupy() -> None:
    x = make(3)
    for value in (x * np.float32(2), np.float32(2) * x, xp.add(x, np.float32(2)), x[np.int64(1)] + x):
        assert isinstance(value, StrictArray) and value.dtype == np.float32


def test_tensors_take_over_from_arrays_on_the_left() -> None:
    sv.use(STRICT)
    try:
        result = make(3) * sv.Tensor(make(3))
        assert isinstance(result, sv.Tensor) and isinstance(result.data, StrictArray)
    finally:
        sv.use("cpu")


def test_it_can_be_copied_and_not_hashed() -> None:
    x = make(3)
    clone = copy.deepcopy(x)
    clone += 1
    assert to_host(x).tolist() == [0, 1, 2] and to_host(clone).tolist() == [1, 2, 3]
    with pytest.raises(TypeError, match="unhashable"):
        hash(x)
