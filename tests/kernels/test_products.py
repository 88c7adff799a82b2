"""Products in blocks equal NumPy's, for shapes on both sides of every limit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import ops
from scratchvit.backend import asarray, asnumpy
from scratchvit.kernels import products
from scratchvit.kernels.products import BLOCKS, LINES, MOST_LINES, matmul, product
from scratchvit.plain import plain_forms
from scratchvit.threads import deal
from tests.support import strict_array
from tests.support.one_op import run
from tests.support.product_bounds import exact, within
from tests.support.seeds import seeded

L = LINES
SHAPES = {                                      # n, k, m
    "small": (5, 7, 3),
    "one thread": (2 * L, 96, L),
    "one block": (2 * L - 1, 600, L),
    "rows": (2 * L, 700, 65),
    "rows, odd": (6 * L + 1, 130, 93),
    "more rows": (BLOCKS * MOST_LINES + 7, 40, 32),
    "columns": (80, 300, 5 * L + 3),
    "a long inner axis": (90, BLOCKS * L + 5, 94),
    "a long inner axis, little work": (30, 4 * L, 120),
    "no rows": (0, 4, 3),
    "no columns": (4, 3, 0),
    "nothing to add up": (4, 0, 3),
}


def random(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return seeded(sum(shape)).standard_normal(shape).astype(dtype)


def test_the_shapes_are_on_both_sides_of_the_limits() -> None:
    work = {name: n * k * m for name, (n, k, m) in SHAPES.items()}
    assert work["small"] <= products.SMALL < work["one thread"] < products.PARALLEL
    assert products.SMALL < work["a long inner axis, little work"] < products.PARALLEL
    cut = ("one block", "rows", "rows, odd", "more rows", "columns", "a long inner axis")
    assert min(work[name] for name in cut) > products.PARALLEL


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("name", list(SHAPES))
def test_a_product_is_the_definition(name: str, has_bias: bool, transposed: bool) -> None:
    n, k, m = SHAPES[name]
    x, y = (random(k, n).T, random(m, k).T) if transposed else (random(n, k), random(k, m))
    bias = random(m) if has_bias else None
    expected, bound = exact(x, y)
    found = product(x, y, bias)
    assert found.shape == (n, m) and found.dtype == np.float32 and found.flags.c_contiguous
    if has_bias:
        expected = expected + bias
        bound = bound + np.finfo(np.float32).eps * np.abs(expected)
    within(found, expected, 8 * bound)


@pytest.mark.parametrize("shapes", [((5, 7), (7, 3)), ((3 * L, 80), (80, 90))])
def test_float32_times_float64_is_float64(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    x, y = random(*shapes[0]), random(*shapes[1], dtype=np.float64)
    for a, b in ((x, y), (y.T, x.T)):
        assert product(a, b).dtype == matmul(a, b).dtype == np.float64
        np.testing.assert_allclose(product(a, b), a @ b, rtol=1e-12)


def test_parts_cover_an_axis_and_do_not_depend_on_threads() -> None:
    most = BLOCKS * MOST_LINES
    for length in (0, 1, L - 1, L, 2 * L - 1, 2 * L, 4 * L, BLOCKS * L, most, 10 * most + 3):
        parts = list(products._parts(length))
        assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])] and parts[-1].stop == length
        longest = max(part.stop - part.start for part in parts)
        assert longest <= MOST_LINES and (len(parts) == 1 or longest >= L)


@pytest.mark.parametrize(("x", "y"), [
    ((7,), (7,)), ((7,), (7, 3)), ((4, 7), (7,)), ((2, 4, 7), (7,)), ((6, 5, 4, 7), (7, 3)),
    ((6, 1, 4, 7), (1, 5, 7, 3)), ((300, 40, 30), (300, 30, 50)), ((1, 1, 400, 90), (1, 1, 90, 200)),
    ((3, 1, 2, 4, 5), (6, 1, 5, 4)), ((0, 4, 5), (0, 5, 4)), ((2, 3, 200, 64), (64, 200)), ((4, 5), (3, 5, 2)),
])
def test_matmul_has_numpys_shapes_and_values(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    x, y = random(*x), random(*y)
    for a in (x, np.asfortranarray(x)):
        found = matmul(a, y)
        expected = np.matmul(x.astype(np.float64), y.astype(np.float64))
        assert found.shape == expected.shape
        bound = np.finfo(np.float32).eps * np.matmul(np.abs(x), np.abs(y)) * x.shape[-1]
        within(found, expected, 2 * bound + 1e-30)
        out = np.full(expected.shape, np.nan, np.float32)
        if out.ndim >= 2:
            assert matmul(a, y, out=out) is out and np.array_equal(out, found)


@pytest.mark.parametrize(("x", "y"), [((2, 3), (4, 5)), ((2, 4, 3), (3, 3, 5)), ((3,), (4,)), ((), (3,))])
def test_shapes_that_do_not_fit_are_numpys_error(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        matmul(random(*x), random(*y))


@pytest.mark.parametrize(("terms", "output", "shapes"), [
    (["bqd", "bkd"], "bqk", [(6, 70, 40), (6, 60, 40)]),
    (["ij", "jk", "kl"], "li", [(90, 50), (50, 70), (70, 80)]),
    (["ij", "ij"], "", [(60, 70), (60, 70)]),
    (["ij", "jk"], "ik", [(0, 3), (3, 4)]),
    (["aij", "bjk"], "abik", [(1, 40, 50), (9, 50, 60)]),
    (["ij", "ij"], "ij", [(1, 900), (500, 900)]),           # an axis of length 1 is broadcast
])
def test_einsum_is_numpys(terms: list[str], output: str, shapes: list[tuple[int, ...]]) -> None:
    operands = [random(*shape, dtype=np.float64) for shape in shapes]
    expected = np.einsum(f"{','.join(terms)}->{output}", *operands, optimize=True)
    found = products.einsum(terms, output, operands)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_inside_a_block_a_product_is_not_cut_again() -> None:
    x, y = random(4 * L, 300), random(300, 64)
    found: list[np.ndarray] = []
    deal(lambda: found.append(product(x, y)), [()])
    expected, bound = exact(x, y)
    within(found[0], expected, 8 * bound)


# --- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Products on the stand-in, where 6 are the most at once; the list has the number of products of each call."""
    counts = []
    multiply = strict_array.xp.matmul

    def counted(x: Any, y: Any, out: Any = None) -> Any:
        counts.append(int(np.prod(np.broadcast_shapes(x.shape[:-2], y.shape[:-2]))))
        return multiply(x, y, out=out)

    monkeypatch.setattr(products, "STACK", 6)
    monkeypatch.setattr(strict_array.xp, "matmul", counted)
    sv.use(strict_array.STRICT)
    with plain_forms(False):
        yield counts
    sv.use("cpu")


@pytest.mark.parametrize(("x", "y"), [
    ((6, 2, 3), (6, 3, 4)), ((7, 2, 3), (7, 3, 4)), ((5, 7, 2, 3), (5, 7, 3, 4)), ((7, 1, 2, 3), (5, 3, 4)),
    ((13, 2, 3), (3, 4)), ((2, 3), (13, 3, 4)), ((3, 2, 3, 2, 3), (3, 1, 3, 3, 4)), ((0, 9, 2, 3), (0, 9, 3, 4)),
], ids=str)
def test_a_gpu_gets_no_larger_stacks_than_it_takes(stacks: list[int], x: Any, y: Any) -> None:
    a, b = random(*x), random(*y)
    found = matmul(asarray(a), asarray(b))
    expected, bound = exact(a, b)
    within(asnumpy(found), expected, bound)
    out = asarray(np.empty(expected.shape, np.float32))
    assert matmul(asarray(a), asarray(b), out=out) is out
    within(asnumpy(out), expected, bound)
    assert max(stacks) <= 6 and sum(stacks) == 2 * np.prod(expected.shape[:-2])


@pytest.mark.parametrize(("blocks", "plain"), [(False, False), (True, False), (False, True)])
def test_attention_of_many_windows_on_a_gpu(
    stacks: list[int], monkeypatch: pytest.MonkeyPatch, blocks: bool, plain: bool
) -> None:
    """More windows times heads than one stack may have, as in a Swin with large batches."""
    arrays = [random(8, 2, 5, 4), random(8, 2, 5, 4)[::-1].copy(), random(8, 2, 5, 6), random(2, 5, 5)]

    def attend() -> list[Any]:
        with plain_forms(plain):
            found = run(lambda q, k, v, bias: ops.attention(q, k, v, bias, blocks=blocks), arrays)
        return [*found["value"], *found["gradient"]]

    divided = attend()
    products_of_each = 2 + (4 if plain else 5)      # forward and backward, which computes the scores again
    assert max(stacks) <= 6 and sum(stacks) == 16 * products_of_each
    monkeypatch.setattr(products, "STACK", 16)
    assert all(map(np.array_equal, divided, attend()))
    assert stacks[-products_of_each:] == [16] * products_of_each


def stack_of(terms: str, *operands: Any) -> int:
    """The number of products of an einsum: of the letters of the output that several operands have."""
    inputs, output = terms.split("->")
    sizes: dict[str, list[int]] = {}
    for term, x in zip(inputs.split(","), operands):
        for letter, n in zip(term, x.shape):
            sizes.setdefault(letter, []).append(n)
    return int(np.prod([max(sizes[letter]) for letter in output if sum(n > 1 for n in sizes[letter]) > 1]))


@pytest.mark.parametrize(("equation", "shapes", "divided"), [
    ("bqd,bkd->bqk", [(7, 3, 4), (7, 5, 4)], True),
    ("bhqd,bhkd->hbqk", [(5, 4, 3, 2), (5, 4, 2, 2)], True),        # 20 products: both letters have to be cut
    ("bqd,bkd->bqk", [(6, 3, 4), (6, 5, 4)], False),
    ("bqd,bkd->bqk", [(1, 3, 4), (9, 5, 4)], False),                # one of the first for all: no stack
    ("ij,jk->ik", [(9, 8), (8, 7)], False),
    ("bij,bij->bij", [(9, 8, 7), (9, 8, 7)], False),                # nothing is summed
    ("bij,bjk,bkl->bil", [(8, 2, 3), (8, 3, 4), (8, 4, 5)], True),
    ("bi,bi->b", [(9, 4), (9, 4)], True),
], ids=str)
def test_einsum_gives_a_gpu_no_larger_stacks_than_it_takes(
    stacks: list[int], monkeypatch: pytest.MonkeyPatch, equation: str, shapes: Any, divided: bool
) -> None:
    asked: list[int] = []
    multiply = strict_array.xp.einsum

    def counted(terms: str, *operands: Any, **options: Any) -> Any:
        asked.append(stack_of(terms, *operands))
        return multiply(terms, *operands, **options)

    monkeypatch.setattr(strict_array.xp, "einsum", counted)
    operands = [random(*shape) for shape in shapes]
    inputs, output = equation.split("->")
    found = asnumpy(products.einsum(inputs.split(","), output, [asarray(x) for x in operands]))
    expected = np.einsum(equation, *(x.astype(np.float64) for x in operands))
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert (len(asked) > 1) == divided and (not divided or max(asked) <= 6)
