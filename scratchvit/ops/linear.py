"""Matrix products and linear layers, where models do nearly all of their arithmetic."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from scratchvit.backend import Array, array_module
from scratchvit.facts import Bytes, Facts, Shape, Workspace, inputs, reshaped
from scratchvit.kernels import cuda, products
from scratchvit.kernels.cuda.bias_gelu import bias_gelu
from scratchvit.kernels.products import product, product_and_sums, sums_are_free
from scratchvit.kernels.sums import total, unbroadcast
from scratchvit.ops.checks import need_arrays, shapes_of
from scratchvit.ops.elementwise import gelu_and_slope
from scratchvit.precision import gradient_dtype
from scratchvit.tensor import op


@op(takes="any", autocast="casts", half_on_gpu=True, facts=Facts(
    shape=lambda x, y: _product_shape(x, y),
    saves=inputs("x", "y"),
    macs=lambda x, out: out.size * x.shape[-1],
))
def matmul(x: Array, y: Array):
    """x @ y: matrix products over the last two axes; the leading axes are broadcast.

    x (..., n, k), y (..., k, m) → (..., n, m). A vector (k,) is treated as a row on the left and as a column on the
    right; this axis is then removed from the result.
    With C = A B:  dA = dC Bᵀ,  dB = Aᵀ dC.
    Raises ValueError if the shapes do not fit together.
    """
    try:
        value = products.matmul(x, y)
    except ValueError:
        raise ValueError(
            f"matmul: x of shape {x.shape} and y of shape {y.shape} do not fit together: expected (..., n, k) @ "
            "(..., k, m), with leading axes that broadcast"
        ) from None

    def backward(dy, need):
        rows = x[None, :] if x.ndim == 1 else x
        columns = y[:, None] if y.ndim == 1 else y
        if y.ndim == 1:
            dy = dy[..., None]
        if x.ndim == 1:
            dy = dy[..., None, :]
        dx = d_y = None
        if need[0]:
            dx = unbroadcast(products.matmul(dy, columns.swapaxes(-1, -2)), rows.shape).reshape(x.shape)
        if need[1]:
            d_y = unbroadcast(products.matmul(rows.swapaxes(-1, -2), dy), columns.shape).reshape(y.shape)
        return dx, d_y

    return value, backward


def _product_shape(x: Array, y: Array) -> Shape:
    columns = y.shape[-1:] if y.ndim > 1 else ()
    if x.shape[-1] != y.shape[-1 - len(columns)]:
        raise ValueError(f"matmul: {x.shape} @ {y.shape} do not fit together")
    return (*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), *x.shape[-2:-1], *columns)


@op(half_on_gpu=True, facts=Facts(
    shape=lambda function, x, weight, bias: (*x.shape[:-1], *_of_no_rows(function, x, weight, bias)),
    saves=lambda x, weight: [reshaped(x, (-1, x.shape[-1])), weight],
    macs=lambda weight, out: out.size * weight.shape[1],
))
def linear(x: Array, weight: Array, bias: Array | None = None):
    """y = x Wᵀ + b over the last axis.

    x (..., in); weight (out, in); bias (out,) → (..., out), all of the same floating-point dtype.

        dx = dy W,   dW = Σ dyᵀ x,   db = Σ dy        (sums over all leading axes, which are flattened to one)

    Raises ValueError if the shapes do not fit together, TypeError for integers.
    """
    rows = _checked_rows("linear", x, weight, bias)                     # (N, in)
    y = product(rows, weight.T, bias)                                   # (N, out)
    precise = gradient_dtype(weight)

    def backward(dy, need):
        dy = dy.reshape(len(rows), len(weight))                         # (N, out)
        dx = product(dy, weight).reshape(x.shape) if need[0] else None
        gradients = product_and_sums(dy, rows, need[1:])                # (out, in), (out,)
        return dx, *(None if g is None else g.astype(precise, copy=False) for g in gradients)

    return y.reshape(*x.shape[:-1], len(weight)), backward


@op(half_on_gpu=True, facts=Facts(
    shape=lambda function, x, weight, bias: (*x.shape[:-1], *_of_no_rows(function, x, weight, bias)),
    saves=lambda x, weight, out: [reshaped(x, (-1, x.shape[-1])), weight, Bytes(out.nbytes)],
    macs=lambda weight, out: out.size * weight.shape[1],
    workspace=lambda out: Workspace(forward=out.nbytes, backward=out.nbytes),
))
def linear_gelu(x: Array, weight: Array, bias: Array):
    """gelu(x Wᵀ + b) over the last axis: the first layer of an MLP and its activation (see `linear` and `gelu`).

    x (..., in); weight (out, in); bias (out,) → (..., out), all of the same floating-point dtype.

        h = x Wᵀ + b,   dh = dy (Φ(h) + h φ(h));    dx = dh W,   dW = Σ dhᵀ x,   db = Σ dh

    On a GPU, the bias and GELU are one operation, and so are the derivative and the sums for db (see
    kernels/cuda/bias_gelu.py). x Wᵀ is stored there in the dtype of x, in 16 bits inside autocast.
    Raises ValueError if the shapes do not fit together, TypeError for integers.
    """
    rows = _checked_rows("linear_gelu", x, weight, bias)                # (N, in)
    y, backward_of_gelu = _rows_gelu(rows, weight, bias)                # (N, out)
    precise = gradient_dtype(weight)

    def backward(dy, need):
        dh, dbias = backward_of_gelu(dy.reshape(len(rows), len(weight)), need)      # (N, out), (out,) or None
        dx = product(dh, weight).reshape(x.shape) if need[0] else None
        dweight, sums = product_and_sums(dh, rows, (need[1], need[2] and dbias is None))
        gradients = dweight, sums if dbias is None else dbias
        return dx, *(None if g is None else g.astype(precise, copy=False) for g in gradients)

    return y.reshape(*x.shape[:-1], len(weight)), backward


def _rows_gelu(rows: Array, weight: Array, bias: Array):
    """GELU of rows Wᵀ + b, and its backward: of dy, the gradient dh of what GELU was taken of and, if it comes with
    that and is needed, the bias's."""
    if cuda.takes(rows):
        y, backward_of_sum = bias_gelu(product(rows, weight.T), bias)

        def backward(dy, need):
            dh = array_module(dy).empty(y.shape, dtype=y.dtype)
            in_product = need[1] and need[2] and sums_are_free(dh, rows)
            return dh, backward_of_sum(dy, dh, need[2] and not in_product)

        return y, backward
    y, slope = gelu_and_slope(product(rows, weight.T, bias))
    return y, lambda dy, need: (dy * slope, None)


def _checked_rows(name: str, x: Array, weight: Array, bias: Array | None) -> Array:
    """x as (N, in). Raises ValueError if the shapes do not fit together."""
    if weight.ndim != 2 or x.shape[-1:] != weight.shape[1:]:
        raise ValueError(f"{name}: x must be (..., in) and weight (out, in), not {x.shape} and {weight.shape}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{name}: bias must be {weight.shape[:1]} for a weight of {weight.shape}, not {bias.shape}")
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


@op(half_on_gpu=True, facts=Facts(
    shape=lambda inputs, sizes: [(*x.shape[:-1], size) for x, size in zip(inputs, sizes)],
    saves=lambda inputs, weight: [*(reshaped(x, (-1, x.shape[-1])) for x in inputs), weight],
    macs=lambda weight, out: sum(y.size for y in out) * weight.shape[1],
))
def linear_parts(inputs: Sequence[Array], weight: Array, bias: Array, sizes: Sequence[int]):
    """Linear layers whose weights are parts of one array, one below the other: y_i = x_i W_iᵀ + b_i.

    inputs (..., in): a list of arrays.
    weight (out, in); bias (out,).
    sizes: how many rows of the weight W_i has, for each input; together out.
    Returns a tuple of (..., sizes[i]). All arrays are of the same floating-point dtype.

        dx_i = dy_i W_i;   dW and db consist of dW_i = Σ dy_iᵀ x_i and db_i = Σ dy_i        (see `linear`)

    So attention projects queries, keys and values that differ, and nothing is joined in backward.
    Raises ValueError if the shapes do not fit together, TypeError for integers.
    """
    need_arrays("linear_parts", inputs)
    if len(inputs) != len(sizes) or min(sizes) < 0 or weight.ndim != 2 or sum(sizes) != len(weight):
        raise ValueError(
            f"linear_parts: there must be a size for each of {len(inputs)} inputs, together the rows of a weight "
            f"(out, in), not sizes {tuple(sizes)} for a weight {weight.shape}"
        )
    if any(x.shape[-1:] != weight.shape[1:] for x in inputs) or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"linear_parts: the inputs must be (..., in), weight (out, in) and bias (out,), not {shapes_of(inputs)}, "
            f"{weight.shape} and {bias.shape}"
        )
    parts = [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes))]
    rows = [x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) for x in inputs]                # (N_i, in)
    y = [product(x, weight[part].T, bias[part]) for x, part in zip(rows, parts)]            # (N_i, sizes[i])
    shapes, precise = [x.shape for x in inputs], gradient_dtype(weight)

    def backward(dys, need):
        empty = array_module(weight).empty
        dweight = empty(weight.shape, dtype=precise) if need[-2] else None
        dbias = empty(bias.shape, dtype=precise) if need[-1] else None
        dx: list[Array | None] = []
        for dy, x, part, shape, wanted in zip(dys, rows, parts, shapes, need):
            gradients = [None if a is None else a[part] for a in (dweight, dbias)]
            if dy is None:                                              # the output is not used
                for gradient in gradients:
                    if gradient is not None:
                        gradient[...] = 0
                dx.append(None)
                continue
            dy = dy.reshape(x.shape[0], part.stop - part.start)         # (N_i, sizes[i])
            dx.append(product(dy, weight[part]).reshape(shape) if wanted else None)
            product_and_sums(dy, x, need[-2:], gradients)
        return *dx, dweight, dbias

    return tuple(each.reshape(*x.shape[:-1], size) for each, x, size in zip(y, inputs, sizes)), backward


def _of_no_rows(function: Any, x: Array, weight: Array, bias: Array | None) -> Shape:
    """(out,), from a call without rows, which checks the arguments as `linear` does."""
    return function(np.empty((0, *x.shape[-1:]), x.dtype), weight, bias)[0].shape[1:]


@op(facts=Facts(
    shape=lambda equation, operands: _einsum_shape(equation, operands),
    saves=inputs("operands"),
    macs=lambda equation, operands: _einsum_macs(equation, operands),
))
def einsum(equation: str, *operands: Array):
    """Sums of products in Einstein notation, such as "bqd,bkd->bqk": indices that are not in the output are summed.

    equation: a letter for every axis of every operand. "..." stands for leading axes, which are broadcast. Without
        "->", the output has the letters that occur once, in alphabetical order. A letter may not occur twice in one
        operand (a diagonal).
    operands: arrays of any shape that matches the equation.

    The gradient of an operand is another einsum, in which the operand and the output have exchanged places; along an
    index that occurs only in that operand, the gradient is broadcast.

    Raises ValueError if the equation and the operands do not fit together.
    """
    inputs, output = spell_out(equation, [x.ndim for x in operands])
    xp = array_module(operands[0])
    try:
        y = _contract(inputs, output, operands)
    except ValueError:
        raise ValueError(f"einsum: {equation!r} does not fit operands of shapes {shapes_of(operands)}") from None

    def gradient(i, dy):
        x, wanted = operands[i], inputs[i]
        other_terms = [*inputs[:i], *inputs[i + 1 :]]
        found = "".join(c for c in wanted if c in output or any(c in term for term in other_terms))
        dx = _contract([output, *other_terms], found, [dy, *operands[:i], *operands[i + 1 :]])
        for axis, c in enumerate(wanted):
            if c not in found:
                dx = xp.broadcast_to(xp.expand_dims(dx, axis), (*dx.shape[:axis], x.shape[axis], *dx.shape[axis:]))
        return unbroadcast(dx, x.shape)

    return y, lambda dy, need: [gradient(i, dy) if need[i] else None for i in range(len(operands))]


def _contract(terms: Sequence[str], output: str, operands: Sequence[Array]) -> Array:
    """einsum of spelled-out terms; but an index that one operand alone has is summed first, accurately."""
    terms, operands = list(terms), list(operands)
    for i, (term, x) in enumerate(zip(terms, operands)):
        elsewhere = "".join([output, *terms[:i], *terms[i + 1 :]])
        alone = tuple(axis for axis, c in enumerate(term) if c.isalpha() and c not in elsewhere)
        if alone:
            terms[i], operands[i] = "".join(c for c in term if c in elsewhere), total(x, alone)
    return products.einsum(terms, output, operands)


def spell_out(equation: str, ndims: list[int]) -> tuple[list[str], str]:
    """The letters of every operand and of the output, with "..." replaced by unused letters.

    Raises ValueError if the equation does not match the operands' numbers of axes.
    """
    left, arrow, output = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    if len(inputs) != len(ndims):
        raise ValueError(f"einsum: {equation!r} has {len(inputs)} operands, but {len(ndims)} were given")
    unused = [c for c in string.ascii_uppercase if c not in equation]
    rests = [ndim - len(term.replace("...", "")) if "..." in term else 0 for term, ndim in zip(inputs, ndims)]
    batch = "".join(unused[: max(rests)])
    inputs = [term.replace("...", batch[len(batch) - rest :]) for term, rest in zip(inputs, rests)]
    for term, ndim in zip(inputs, ndims):
        if len(term) != ndim:
            raise ValueError(f"einsum: {equation!r} has {term!r} for an operand with {ndim} axes")
        if len(set(term)) != len(term):
            raise ValueError(f"einsum: an index occurs twice in {term!r}; diagonals are not supported")
    if not arrow:       # by convention: the batch axes, then every index that occurs once, in alphabetical order
        letters = "".join(inputs)
        output = "..." + "".join(sorted(c for c in set(letters) if letters.count(c) == 1 and c not in batch))
    return inputs, output.replace("...", batch)


def _einsum_shape(equation: str, operands: Sequence[Array]) -> Shape:
    output, sizes = _index_sizes(equation, operands)
    return tuple(sizes[letter] for letter in output)


def _einsum_macs(equation: str, operands: Sequence[Array]) -> int:
    """For two operands. More are counted as one product over all indices, an upper bound; one is only summed."""
    return math.prod(_index_sizes(equation, operands)[1].values()) if len(operands) > 1 else 0


def _index_sizes(equation: str, operands: Sequence[Array]) -> tuple[str, dict[str, int]]:
    """The output's letters, and the length of the axis of every letter."""
    inputs, output = spell_out(equation, [x.ndim for x in operands])
    sizes: dict[str, int] = {}
    for letter, n in ((letter, n) for term, x in zip(inputs, operands) for letter, n in zip(term, x.shape)):
        if sizes.setdefault(letter, n) == 1:
            sizes[letter] = n
        elif n not in (1, sizes[letter]):
            raise ValueError(f"einsum: in {equation!r}, {letter!r} has the lengths {sizes[letter]} and {n}")
    return output, sizes
