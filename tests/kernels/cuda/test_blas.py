"""Products by cuBLAS: all strides, stacks of every kind, other dtypes, captures, and the same bits twice."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import gpu
from scratchvit.backend import array_module, asarray, asnumpy
from scratchvit.kernels import products
from scratchvit.kernels.cuda import blas, cublas
from scratchvit.kernels.cuda.addresses import addresses_of
from tests.support.product_bounds import exact, within
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("cuda")


def random(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return seeded(sum(shape)).standard_normal(shape).astype(dtype)


def check(x: Any, y: Any, out: Any = None, tolerance: float = 1, **options: Any) -> Any:
    """Assert that the product of arrays on the device is NumPy's; returns it."""
    expected, bound = exact(asnumpy(x), asnumpy(y))
    if x.dtype == np.float64:
        bound = bound * 2**-29
    found = blas.matmul(x, y, out, **options)
    assert found.shape == expected.shape and (out is None or found is out)
    within(asnumpy(found), expected, 4 * bound * tolerance)
    return found


# --- strides --------------------------------------------------------------------------------------------------------

# {name: a view of the shape (..., rows, columns) that it is given}
VIEWS: dict[str, Callable[..., Any]] = {
    "contiguous": lambda new, *shape: new(*shape),
    "transposed": lambda new, *shape: new(*shape[:-2], shape[-1], shape[-2]).swapaxes(-1, -2),
    "part of longer rows": lambda new, *shape: new(*shape[:-1], shape[-1] + 3)[..., 1:-2],
    "part of longer columns": lambda new, *shape: VIEWS["part of longer rows"](
        new, *shape[:-2], shape[-1], shape[-2]
    ).swapaxes(-1, -2),
    "every second column": lambda new, *shape: new(*shape[:-1], 2 * shape[-1])[..., ::2],
    "backwards": lambda new, *shape: new(*shape)[..., ::-1, :],
}


def new(dtype: Any) -> Callable[..., Any]:
    return lambda *shape: asarray(random(*shape, dtype=dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("out", VIEWS)
@pytest.mark.parametrize(("x", "y"), itertools.product(VIEWS, VIEWS))
def test_all_strides_of_matrices(x: str, y: str, out: str, dtype: Any) -> None:
    for n, k, m in ((5, 7, 3), (1, 4, 6), (6, 1, 1), (1, 1, 1)):
        check(VIEWS[x](new(dtype), n, k), VIEWS[y](new(dtype), k, m), VIEWS[out](new(dtype), n, m))


@pytest.mark.parametrize("out", VIEWS)
@pytest.mark.parametrize(("x", "y"), itertools.product(VIEWS, VIEWS))
def test_all_strides_of_stacks(x: str, y: str, out: str) -> None:
    make = new(np.float32)
    check(VIEWS[x](make, 2, 3, 5, 7), VIEWS[y](make, 2, 3, 7, 4), VIEWS[out](make, 2, 3, 5, 4))


@pytest.mark.parametrize(("x", "y"), [
    ((7,), (7,)), ((7,), (7, 3)), ((4, 7), (7,)), ((2, 4, 7), (7,)), ((7,), (2, 7, 3)),
    ((6, 5, 4, 7), (7, 3)), ((4, 7), (3, 7, 2)), ((5, 1, 7), (7, 3)), ((2, 1, 1, 7), (1, 3, 7, 2)),
    ((6, 1, 4, 7), (1, 5, 7, 3)), ((1, 5, 4, 7), (6, 5, 7, 3)), ((6, 5, 4, 7), (5, 7, 3)),
    ((3, 1, 2, 4, 5), (6, 1, 5, 4)),
    ((0, 4, 5), (0, 5, 4)), ((2, 0, 7), (2, 7, 3)), ((4, 0), (0, 3)), ((3, 4, 0), (3, 0, 2)), ((2, 3, 5, 0), (1, 0, 2)),
], ids=str)
def test_broadcast_vectors_and_empty_arrays(x: Any, y: Any) -> None:
    a, b = asarray(random(*x)), asarray(random(*y))
    found = check(a, b)
    out = array_module(a).full(found.shape, np.nan, dtype=np.float32)
    check(a, b, out)
    assert np.array_equal(asnumpy(out), asnumpy(found))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_stacks_in_every_order_of_memory(order: tuple[int, ...]) -> None:
    """Windows, images and heads: axes that can be one, that are two, and that need a loop."""
    def view(*shape: int) -> Any:
        return asarray(random(*(shape[axis] for axis in order), *shape[3:])).transpose(*np.argsort(order), 3, 4)

    x, y = view(2, 3, 4, 5, 6), view(2, 3, 4, 6, 7)
    check(x, y)
    check(x, y, view(2, 3, 4, 5, 7))
    check(x, asarray(random(2, 3, 4, 6, 7)), view(2, 3, 4, 5, 7))


@pytest.mark.parametrize(("B", "N", "H", "d"), [(3, 5, 4, 8), (1, 5, 4, 8), (3, 5, 1, 8), (3, 1, 4, 8), (3, 5, 4, 1)])
def test_attention_of_views_of_one_array(B: int, N: int, H: int, d: int) -> None:
    qkv, y = asarray(random(B, N, 3, H, d)), asarray(random(B, N, H, d)).transpose(0, 2, 1, 3)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    s = asarray(random(B, H, N, N))
    for addresses in (addresses_of(q, k, v, s, y), addresses_of(q, k), addresses_of(v, y, q, k, s)):
        check(q, k.swapaxes(-1, -2), s, addresses=addresses)
        check(s, v, y, addresses=addresses)
        check(s.swapaxes(-1, -2), y, q, addresses=addresses)


@pytest.mark.parametrize("rows", ["overlap", "are one", "do not follow each other"])
def test_rows_that_cannot_be_those_of_one_matrix(rows: str) -> None:
    """A leading dimension is at least as long as a row, and the same between all rows."""
    tricks = array_module(asarray(random(1))).lib.stride_tricks
    x = {
        "overlap": lambda: tricks.as_strided(asarray(random(20)), (5, 4), (8, 4)),
        "are one": lambda: tricks.as_strided(asarray(random(4)), (5, 4), (0, 4)),
        "do not follow each other": lambda: asarray(random(3, 5, 4))[:, :2],
    }[rows]()
    check(x, asarray(random(4, 6)))
    check(asarray(random(6, 4)), x.swapaxes(-1, -2))


def test_addresses_of_other_arrays_are_not_used() -> None:
    q, k, v = asarray(random(2, 5, 3, 4, 8)).transpose(2, 0, 3, 1, 4)
    s = asarray(random(2, 4, 5, 6))[..., :5]
    check(q[:, :2], v[:, :2].swapaxes(-1, -2), s[:, :2], addresses=addresses_of(q, v, s))
    others = addresses_of(k[:, :, 1:], v[:, :2])
    check(q, k.swapaxes(-1, -2), addresses=others)
    check(q[:, :2], v[:, :2].swapaxes(-1, -2), addresses=addresses_of(q, k, v))


@pytest.mark.parametrize("shapes", [((7, 2, 3), (7, 3, 4)), ((13, 2, 3), (1, 3, 4)), ((3, 5, 2, 3), (3, 5, 3, 4))])
def test_large_stacks_are_divided(shapes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert blas.STACK == 65_535
    monkeypatch.setattr(blas, "STACK", 4)
    x, y = (asarray(random(*shape)) for shape in shapes)
    check(x, y)
    check(x.swapaxes(0, -3), y.swapaxes(0, -3))
    long = asarray(random(*shapes[0][:-1], 9))[..., :3]
    check(long, y)


def test_more_products_than_a_grid_has_blocks() -> None:
    x, y = asarray(random(65_537, 2, 3)), asarray(random(65_537, 3, 2))
    check(x, y)


# --- alpha, beta, dtypes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 6])
@pytest.mark.parametrize("view", VIEWS)
def test_adding_to_what_is_there(view: str, k: int) -> None:
    x, y, out = asarray(random(3, 5, k)), asarray(random(3, k, 7)), VIEWS[view](new(np.float32), 3, 5, 7)
    expected = -0.5 * (asnumpy(x) @ asnumpy(y)) + 2 * asnumpy(out)
    assert blas.matmul(x, y, out, alpha=-0.5, beta=2) is out
    np.testing.assert_allclose(asnumpy(out), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("result", [np.float16, np.float32])
def test_float16_is_summed_in_float32(result: Any) -> None:
    """4,096 times 1: a sum in float16 would stop at 2,048."""
    x, y = asarray(np.ones((3, 4096), np.float16)), asarray(np.ones((4096, 2), np.float16))
    for found in (blas.matmul(x, y, dtype=result), blas.matmul(x, y, array_module(x).empty((3, 2), result))):
        assert found.dtype == result and np.array_equal(asnumpy(found), np.full((3, 2), 4096, result))


def test_float16_of_attention() -> None:
    """A table needs aligned matrices; others are multiplied head by head."""
    for d in (8, 5):
        q, k, _ = asarray(random(2, 5, 3, 4, d, dtype=np.float16)).transpose(2, 0, 3, 1, 4)
        check(q, k.swapaxes(-1, -2), dtype=np.float32)


def test_bfloat16() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x, y = (asarray(random(*shape).astype(bfloat16)) for shape in ((5, 8), (8, 3)))
    assert check(x, y, dtype=np.float32).dtype == np.float32


@pytest.fixture
def tf32() -> Iterator[None]:
    sv.set_matmul_precision("tf32")
    yield
    sv.set_matmul_precision("float32")


def test_tf32_rounds_what_is_multiplied(tf32: None) -> None:
    """10 bits of mantissa: 1 + 2⁻¹² is 1."""
    x, y = asarray(np.full((8, 8), 1 + 2**-12, np.float32)), asarray(np.full((8, 8), 2, np.float32))
    if _has_tf32():
        assert np.array_equal(asnumpy(blas.matmul(x, y)), np.full((8, 8), 16))
    sv.set_matmul_precision("float32")
    assert np.array_equal(asnumpy(blas.matmul(x, y)), np.full((8, 8), 16 + 2**-8))


def _has_tf32() -> bool:
    import cupy

    return int(cupy.cuda.Device().compute_capability) >= 80


@pytest.mark.parametrize("d", [8, 5])
def test_tf32_of_attention(tf32: None, d: int) -> None:
    q, k, v = asarray(random(2, 7, 3, 4, d)).transpose(2, 0, 3, 1, 4)
    check(q, k.swapaxes(-1, -2), tolerance=2**13)
    check(asarray(random(2, 4, 7, 7)), v, tolerance=2**13)


def test_float64_stays_exact_in_tf32(tf32: None) -> None:
    check(asarray(random(5, 7, dtype=np.float64)), asarray(random(7, 3, dtype=np.float64)))


def test_another_precision_is_refused() -> None:
    with pytest.raises(sv.ScratchvitError, match="'medium' is unknown: choose one of float32, tf32"):
        sv.set_matmul_precision("medium")


# --- streams, captures, threads -------------------------------------------------------------------------------------


def products_of_every_kind(x: Any, y: Any) -> list[Any]:
    """x, y (2, 5, 3, 4): of matrices, of stacks with strides and with a table, and with more in the same operation."""
    matrix, other = x[0, 0], y[0, 0]
    a, b, out = x.transpose(0, 2, 1, 3), y.transpose(0, 2, 3, 1), array_module(x).empty((2, 3, 5, 5), x.dtype)
    addresses = addresses_of(a, b, out)
    return [
        blas.matmul(matrix, other.T), blas.matmul(x, y.swapaxes(-1, -2)), blas.matmul(a, b, out, addresses=addresses),
        products.product(matrix, other.T, matrix[0, :3]), *products.product_and_sums(matrix, other, (True, True)),
        addresses.table,        # a graph writes and reads it whenever it is launched
    ]


def bits(arrays: list[Any]) -> list[bytes]:
    """Of all but the table."""
    return [asnumpy(array).tobytes() for array in arrays[:-1]]


def test_a_capture_replays_the_bits_of_an_eager_run() -> None:
    import cupy

    x, y = asarray(random(2, 5, 3, 4)), asarray(random(2, 5, 3, 4))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        products_of_every_kind(x, y)        # loads the kernels
        stream.synchronize()
        stream.begin_capture()
        captured = products_of_every_kind(x, y)
        graph = stream.end_capture()
        for numbers in (random(2, 5, 3, 4), random(2, 5, 3, 4)[::-1]):
            x.set(numbers)
            eager = products_of_every_kind(x, y)
            graph.launch()
            stream.synchronize()
            assert bits(captured) == bits(eager)
            assert not np.isnan(asnumpy(captured[1])).any()
    _forget(stream)


def _forget(*streams: Any) -> None:
    """Give back the workspaces of streams that end."""
    for stream in streams:
        cublas.current_handle().workspaces.pop(stream.ptr)


def test_a_thread_has_a_handle_and_a_stream_a_workspace_of_its_own() -> None:
    import cupy

    here, x, y = cublas.current_handle(), asarray(random(2, 5, 3, 4)), asarray(random(2, 5, 3, 4))
    expected = bits(products_of_every_kind(x, y))
    assert bits(products_of_every_kind(x, y)) == expected
    found: list[Any] = []

    def work() -> None:
        sv.use("gpu")
        found.append(cublas.current_handle())
        found.extend(bits(products_of_every_kind(x, y)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[1:] == expected and found[0] is not here and found[0].pointer.value != here.pointer.value
    stream = cupy.cuda.Stream()
    with stream:
        assert cublas.current_handle() is here and here.stream == stream.ptr
        assert bits(products_of_every_kind(x, y)) == expected
    workspaces = [memory.ptr for memory in here.workspaces.values()]
    assert len(set(workspaces)) == len(workspaces) >= 2
    cublas.current_handle()
    _forget(stream)


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("x", "y", "out"), [
    ((2, 3), (4, 5), None), ((2, 4, 3), (3, 3, 5), None), ((3,), (4,), None), ((), (3,), None),
    ((2, 3), (3, 4), (2, 5)), ((2, 3), (3, 4), (1, 2, 4)),
])
def test_shapes_that_do_not_fit(x: Any, y: Any, out: Any) -> None:
    with pytest.raises(ValueError):
        blas.matmul(asarray(random(*x)), asarray(random(*y)), None if out is None else asarray(random(*out)))


def test_a_status_of_cublas_is_told_in_a_sentence() -> None:
    with pytest.raises(cublas.library().Error) as caught:
        cublas.library().cublasSetStream_v2(None, None)
    assert "cuBLAS does not start on the GPU (CUBLAS_STATUS_NOT_INITIALIZED" in (gpu.explain(caught.value) or "")


def test_a_matrix_that_is_too_large_for_an_int() -> None:
    from scratchvit.kernels.cuda.blas_plan import plan

    with pytest.raises(ValueError, match="larger than cuBLAS can compute"):
        plan((2**31, 1), (4, 4), (1, 1), (4, 4), None, "f", "f", False)


def test_what_is_taken() -> None:
    x, wide, whole = asarray(random(2, 2)), asarray(random(2, 2, dtype=np.float64)), asarray(np.ones((2, 2), int))
    assert blas.takes(x, x) and blas.takes(wide) and not blas.takes(x, wide) and not blas.takes(whole)
    assert not blas.takes(random(2, 2))
    with sv.plain_forms():
        assert not blas.takes(x)
    for a, b in ((x, wide), (wide, x), (whole, whole)):
        np.testing.assert_allclose(asnumpy(products.matmul(a, b)), asnumpy(a) @ asnumpy(b), rtol=1e-6)
    assert math.prod(products.matmul(x, wide).shape) == 4
