"""Matrix products on all cores, in blocks. A bias is added to a block while it is in the cache.

    plain       x @ y + bias
    problem     BLAS's own threads get in the way of ours (see `threads`), and its results depend on their number
    idea        blocks of rows or columns of the result, whichever are more, each a product of a single-threaded BLAS. A
                product with few rows and columns but a long inner axis, such as the gradient of a weight, is a sum
                of products of parts of that axis

A block needs enough rows: BLAS first rearranges the other factor, once for each block, which must not take long
compared with the product. With too many, it would not be in the cache any more when the bias is added.

On a GPU, cuBLAS does all that (cuda/blas.py), with the bias in the same operation (cuda/blas_lt.py). A stack of more
than STACK products is divided, since some of its kernels put the number of a product into a coordinate of the grid,
which ends there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from scratchvit.backend import CPU, Array, array_module, backend_of
from scratchvit.kernels.cuda import blas, blas_lt
from scratchvit.kernels.cuda.blas import STACK
from scratchvit.kernels.cuda.modules import computed_in
from scratchvit.kernels.sums import in_pairs, total
from scratchvit.plain import is_plain
from scratchvit.threads import BLOCKS, deal, inside_block, single_threaded

SMALL = 1 << 18         # multiply-adds of a product for which BLAS takes one thread anyway
PARALLEL = 1 << 23      # multiply-adds beyond which distributing blocks to threads is worth its 60 µs
LINES = 128             # rows that a block should have at least
MOST_LINES = 1024       # and at most
LONG = 4                # an inner axis is long if it has LONG times the rows and columns of the result


def matmul(x: Array, y: Array, out: Array | None = None, dtype: Any = None) -> Array:
    """x @ y as `numpy.matmul`: x (..., n, k), y (..., k, m), with leading axes that broadcast, or vectors (k,).

    dtype: of the new array, float32 for matrices of 16 bits, whose products are not rounded then. Raises ValueError as
    `numpy.matmul` does.
    """
    on_cpu = backend_of(x) is CPU
    if not on_cpu and blas.takes(x, y):
        return blas.matmul(x, y, out, dtype=dtype)
    if dtype is not None:
        x, y = x.astype(dtype, copy=False), y.astype(dtype, copy=False)
    if not on_cpu:
        return _by_cupy(x, y, out)
    if inside_block() or is_plain():
        return np.matmul(x, y, out=out)
    if min(x.ndim, y.ndim) < 2 or x.shape[-1] != y.shape[-2]:
        with single_threaded:
            return np.matmul(x, y, out=out)
    leading = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    out = np.empty((*leading, x.shape[-2], y.shape[-1]), np.result_type(x, y)) if out is None else out
    if y.ndim == 2 and x.flags.c_contiguous and out.flags.c_contiguous:
        rows = math.prod(leading) * x.shape[-2]
        product(x.reshape(rows, x.shape[-1]), y, out=out.reshape(rows, y.shape[1]))
    elif math.prod(leading) == 1:
        product(x.reshape(x.shape[-2:]), y.reshape(y.shape[-2:]), out=out.reshape(out.shape[-2:]))
    else:
        _stacks(x, y, out)
    return out


def product(x: Array, y: Array, bias: Array | None = None, out: Array | None = None) -> Array:
    """x @ y + bias for matrices x (n, k) and y (k, m); bias (m,) or None."""
    if blas.takes(x, y):
        return _product_on_gpu(x, y, bias, out)
    (n, k), m = x.shape, y.shape[1]
    xp = array_module(x)
    out = xp.empty((n, m), dtype=xp.result_type(x, y)) if out is None else out
    work = n * k * m
    if backend_of(x) is not CPU or work <= SMALL or inside_block() or is_plain():
        _block(x, y, out, bias)
    elif work <= PARALLEL:
        with single_threaded:
            _block(x, y, out, bias)
    elif k >= LONG * max(n, m):
        out[...] = in_pairs(deal(np.matmul, [(x[:, part], y[part]) for part in _parts(k)]))
        if bias is not None:
            out += bias
    elif n >= 2 * m:        # of a nearly square result, blocks of columns are 10 % faster than blocks of rows
        deal(_block, [(x[part], y, out[part], bias) for part in _parts(n)])
    else:
        deal(_block, [(x, y[:, part], out[:, part], None if bias is None else bias[part]) for part in _parts(m)])
    return out


def product_and_sums(
    dy: Array, x: Array, need: Sequence[bool], out: Sequence[Array | None] = (None, None)
) -> tuple[Array | None, Array | None]:
    """dyᵀ x and Σ_n dy_n for matrices dy (n, k) and x (n, m): (k, m) and (k,), each None if it is not needed.

    out: where to write them; new arrays for None. On a GPU, new arrays are of float32 for numbers of 16 bits: these are
    gradients of parameters.
    """
    if not blas.takes(dy, x):
        dweight = product(dy.T, x, out=out[0]) if need[0] else None
        dbias = total(dy, (0,)) if need[1] else None
    else:
        precise = computed_in(dy)
        found = blas_lt.product_and_sums(dy.T, x, precise, out) if all(need) else None
        if found is not None:
            return found
        dweight = blas.matmul(dy.T, x, out[0], dtype=precise) if need[0] else None
        dbias = total(dy, (0,), dtype=precise) if need[1] else None
    if dbias is None or out[1] is None:
        return dweight, dbias
    out[1][...] = dbias
    return dweight, out[1]


def sums_are_free(dy: Array, x: Array) -> bool:
    """Whether `product_and_sums` adds up dy during the product, on a GPU: then nobody else should."""
    return blas.takes(dy, x) and blas_lt.computes_sums(dy.T, x, computed_in(dy))


def _product_on_gpu(x: Array, y: Array, bias: Array | None, out: Array | None) -> Array:
    found = None if bias is None else blas_lt.product_with_bias(x, y, bias, out)
    if found is None:
        found = blas.matmul(x, y, out)
        if bias is not None:
            found += bias
    return found


def _block(x: Array, y: Array, out: Array, bias: Array | None) -> None:
    array_module(x).matmul(x, y, out=out)
    if bias is not None:
        out += bias


def _parts(length: int) -> Iterator[slice]:
    """Divide an axis: into a power of two up to BLOCKS, or a multiple of BLOCKS, for any such number of threads."""
    count = min(BLOCKS, 1 << max(0, (length // LINES).bit_length() - 1))
    if length > BLOCKS * MOST_LINES:
        count = BLOCKS * math.ceil(length / (BLOCKS * MOST_LINES))
    return _slices(length, count)


def _slices(length: int, count: int) -> Iterator[slice]:
    for part in range(count):
        yield slice(length * part // count, length * (part + 1) // count)


def _stacks(x: Array, y: Array, out: Array) -> None:
    """x @ y for stacks of matrices, some matrices at a time: parts of the longest leading axis."""
    axis, length = _longest_leading(out)
    parts = [_parts_of_stacks((x, y, out), axis, of) for of in _slices(length, min(BLOCKS, length))]
    deal(lambda x, y, out: np.matmul(x, y, out=out), parts, out.size * x.shape[-1] > PARALLEL)


def _by_cupy(x: Array, y: Array, out: Array | None) -> Array:
    """x @ y by CuPy's own product, at most STACK products at a time."""
    xp = array_module(x)
    if max(x.ndim, y.ndim) <= 2 or min(x.ndim, y.ndim) < 2:
        return xp.matmul(x, y, out=out)
    leading = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    if math.prod(leading) <= STACK:
        return xp.matmul(x, y, out=out)
    if out is None:
        out = xp.empty((*leading, x.shape[-2], y.shape[-1]), dtype=xp.result_type(x, y))
    axis, length = _longest_leading(out)
    for of in _slices(length, min(length, math.ceil(math.prod(leading) / STACK))):
        _by_cupy(*_parts_of_stacks((x, y, out), axis, of))
    return out


def _longest_leading(out: Array) -> tuple[int, int]:
    """The longest axis of a stack of matrices, and its length."""
    leading = out.shape[:-2]
    axis = max(range(len(leading)), key=leading.__getitem__)
    return axis, leading[axis]


def _parts_of_stacks(stacks: Sequence[Array], axis: int, of: slice) -> tuple[Array, ...]:
    """The part `of` of a leading axis of the last stack, and the parts that belong to it of the others."""
    def part(array: Array) -> Array:
        place = axis + array.ndim - stacks[-1].ndim     # leading axes are aligned at their ends
        if place < 0 or array.shape[place] == 1:
            return array
        return array[(*(slice(None) for _ in range(place)), of)]

    return tuple(map(part, stacks))


def einsum(terms: Sequence[str], output: str, operands: Sequence[Array]) -> Array:
    """The sums of products that the letters of the operands and of the output describe, as `numpy.einsum`.

    Blocks are parts of the longest axis of the output.
    """
    equation = f"{','.join(terms)}->{output}"
    if backend_of(operands[0]) is not CPU:
        return _einsum_on_gpu(terms, output, operands)
    if is_plain():
        return np.einsum(equation, *operands, optimize=True)
    sizes = _sizes(terms, output, operands)
    out = np.empty([sizes[letter] for letter in output], np.result_type(*operands))
    cut = max(output, key=sizes.__getitem__, default="")

    def some(of: slice) -> None:
        parts = (_part_of_letter(term, x, cut, of) for term, x in zip(terms, operands))
        np.einsum(equation, *parts, out=_part_of_letter(output, out, cut, of), optimize=True)

    deal(some, [(of,) for of in _parts(sizes[cut])] if cut else [(slice(None),)], math.prod(sizes.values()) > PARALLEL)
    return out


def _einsum_on_gpu(terms: Sequence[str], output: str, operands: Sequence[Array]) -> Array:
    """`einsum`, at most STACK products at a time.

    Its products are stacked along the letters of the output that several operands have; there are none without another
    letter, over which they are summed.
    """
    xp, sizes = array_module(operands[0]), _sizes(terms, output, operands)
    shapes = [dict(zip(term, x.shape)) for term, x in zip(terms, operands)]
    shared = [letter for letter in sizes if sum(shape.get(letter, 1) > 1 for shape in shapes) > 1]
    stack = [letter for letter in shared if letter in output]
    count = math.prod(sizes[letter] for letter in stack)
    if count <= STACK or len(stack) == len(shared):
        return xp.einsum(f"{','.join(terms)}->{output}", *operands, optimize=True)
    out = xp.empty([sizes[letter] for letter in output], dtype=xp.result_type(*operands))
    cut = max(stack, key=sizes.__getitem__)
    for of in _slices(sizes[cut], min(sizes[cut], math.ceil(count / STACK))):
        parts = [_part_of_letter(term, x, cut, of) for term, x in zip(terms, operands)]
        _part_of_letter(output, out, cut, of)[...] = _einsum_on_gpu(terms, output, parts)
    return out


def _sizes(terms: Sequence[str], output: str, operands: Sequence[Array]) -> dict[str, int]:
    """The length of the axis that each letter stands for. Raises ValueError if the output has one that is unknown."""
    sizes: dict[str, int] = {}
    for letter, n in ((letter, n) for term, x in zip(terms, operands) for letter, n in zip(term, x.shape)):
        if sizes.setdefault(letter, n) == 1:
            sizes[letter] = n
    if not sizes.keys() >= set(output):
        raise ValueError(f"{output} has letters that no operand has")
    return sizes


def _part_of_letter(term: str, x: Array, cut: str, of: slice) -> Array:
    """The part `of` of the axis of x that a letter stands for."""
    return x[(*(of if letter == cut and n > 1 else slice(None) for letter, n in zip(term, x.shape)), ...)]
