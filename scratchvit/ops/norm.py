"""Normalisation: subtract the mean, divide by the standard deviation, scale and shift. The ops differ in their axes.

All share one derivation. With x̂ = (x - μ) r, r = 1/√(σ² + ε), and g the gradient with respect to x̂, the gradients
through μ and σ remove from g its mean and its component along x̂:

    dx = r (g - mean(g) - x̂ mean(g x̂))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from scratchvit.backend import CPU, Array, array_module, backend_of
from scratchvit.facts import Bytes, Facts, like, reshaped
from scratchvit.kernels.sums import in_pairs, total
from scratchvit.tensor import op
from scratchvit.threads import PARALLEL_BYTES, deal, parallel_rows

ROW_BYTES = 384 << 10           # size of a block of rows: with its temporaries it stays in the cache
CHANNEL_BYTES = 512 << 10       # the same for a block of channels of batch norm


def _norm(saves: Any, name: str = "x") -> Facts:
    return Facts(shape=like(name), saves=saves, macs=0)


@op(takes="sums", facts=_norm(lambda x, normalized_shape, weight: [_saved_rows(x, normalized_shape), weight]))
def layer_norm(
    x: Array, normalized_shape: int | Sequence[int], weight: Array | None = None, bias: Array | None = None,
    eps: float = 1e-5,
):
    """Normalise the last axes, then scale and shift (Ba et al. 2016, arXiv 1607.06450).

    x: (..., *normalized_shape), floating-point; float16 is computed in float32.
    normalized_shape: a tuple, or an integer for the last axis: (D,) or D for x (B, N, D).
    weight, bias: arrays of shape normalized_shape, or None.
    eps: 1e-5 as in PyTorch; timm's ViT and `nn.LayerNorm` use 1e-6.
    Raises ValueError if the shapes do not match, TypeError for integers.

    With g = dy · weight:    dx as above,   dweight = Σ dy x̂,   dbias = Σ dy
    """
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or x.shape[-len(shape) :] != shape:
        raise ValueError(f"layer_norm: x has shape {x.shape}, which does not end in normalized_shape {shape}")
    for name, array in (("weight", weight), ("bias", bias)):
        if array is not None and array.shape != shape:
            raise ValueError(f"layer_norm: {name} has shape {array.shape}, it must be normalized_shape {shape}")
    D, rows = math.prod(shape), math.prod(x.shape[: -len(shape)])
    weight = None if weight is None else weight.reshape(D)
    bias = None if bias is None else bias.reshape(D)
    if D == 0:
        return x.copy(), lambda dy: (dy, dy.sum(axis=0).reshape(shape), dy.sum(axis=0).reshape(shape))
    y, backward_rows = _normalise_rows(x.reshape(rows, D), weight, bias, eps)

    def backward(dy, need):
        dx, *affine = backward_rows(dy.reshape(rows, D), need)
        return dx.reshape(x.shape), *(None if g is None else g.reshape(shape) for g in affine)

    return y.reshape(x.shape), backward


@op(takes="sums", facts=_norm(lambda weight: _saved_rows(weight, weight.shape[1:]), "weight"))
def weight_standardization(weight: Array, eps: float = 1e-6):
    """Normalise the kernel of each output channel (Qiao et al. 2019, arXiv 1903.10520).

    weight (out, in, *kernel), floating-point; the result has the same shape.  Raises TypeError for integers.
    """
    flat = (len(weight), math.prod(weight.shape[1:]))
    w_hat, backward_rows = _normalise_rows(weight.reshape(flat), None, None, eps)

    def backward(dy):
        return backward_rows(dy.reshape(flat), (True, False, False))[0].reshape(weight.shape)

    return w_hat.reshape(weight.shape), backward


def _normalise_rows(x: Array, weight: Array | None, bias: Array | None, eps: float):
    """Value and backward of layer norm of x (N, D). Saves x instead of x̂, and two numbers per row.

    Results are computed in place in a copy of the input, since NumPy takes twice as long to write a result to memory
    outside of the cache as to copy an array there. Sums are matrix products with ones, at the speed of BLAS.
    """
    xp = array_module(x)
    N, D = x.shape
    ones = xp.ones((D, 1), dtype=x.dtype)
    y = xp.empty((N, D), dtype=x.dtype)
    mean, r = (xp.empty((N, 1), dtype=x.dtype) for _ in range(2))

    def forward(x, y, mean, r):
        xp.copyto(y, x)
        xp.matmul(y, ones, out=mean)
        mean /= D
        y -= mean
        _reciprocal_deviation(y, eps, out=r)
        y *= r                                          # x̂
        if weight is not None:
            y *= weight
        if bias is not None:
            y += bias

    parallel_rows(forward, x, y, mean, r, block_bytes=ROW_BYTES)

    def backward(dy, need):
        dx = xp.empty((N, D), dtype=x.dtype)
        g_ones = ones if weight is None else weight[:, None]        # dy @ g_ones = Σ g

        def backward_rows(x, dy, mean, r, dx):
            centred = x - mean                          # x̂ / r
            xp.copyto(dx, dy)
            dy_centred = dx * centred
            dweight = r[:, 0] @ dy_centred if need[1] else None
            dbias = xp.ones(len(dx), dtype=dx.dtype) @ dx if need[2] else None
            mean_g = dx @ g_ones / D
            centred *= dy_centred @ g_ones * r * r / D  # x̂ mean(g x̂)
            if weight is not None:
                dx *= weight                            # g
            dx -= mean_g
            dx -= centred
            dx *= r
            return dweight, dbias

        parts = parallel_rows(backward_rows, x, dy, mean, r, dx, block_bytes=ROW_BYTES)
        dweight, dbias = (in_pairs(part) if wanted else None for part, wanted in zip(zip(*parts), need[1:]))
        return dx, dweight, dbias

    return y, backward


def _saved_rows(x: Array, shape: int | Sequence[int]) -> list[Any]:
    """x, the ones, and the mean and r of each row. A row is an array of this shape."""
    D = shape if isinstance(shape, int) else math.prod(shape)
    N = x.size // max(1, D)
    return [*reshaped(x, (N, D)), Bytes((D + 2 * N) * x.itemsize)]


def _reciprocal_deviation(centred: Array, eps: float, out: Array) -> None:
    """Write r of each row of x - μ (N, D) into out (N, 1)."""
    xp = array_module(centred)
    xp.matmul(centred[:, None], centred[:, :, None], out=out[:, None])      # the dot product of each row with itself
    out /= centred.shape[1]                             # σ²
    xp.copyto(out, math.nan, where=out == math.inf)     # of numbers around 1e20: 1/√∞ would make a row of zeros
    out += eps
    xp.sqrt(out, out=out)
    xp.reciprocal(out, out=out)


@op(takes="sums", facts=_norm(lambda x, num_groups, weight: [_saved_groups(x, num_groups), weight]))
def group_norm(x: Array, num_groups: int, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5):
    """Normalise each group of channels of each image (Wu & He 2018, arXiv 1803.08494).

    x (B, C, ...), floating-point; float16 is computed in float32.
    num_groups: must divide C.  weight, bias: (C,) or None.
    Raises ValueError if the shapes do not match or num_groups does not divide C, TypeError for integers.

    The backward sums dy and dy (x - μ) over each channel of each image. Weighted sums of these over the channels of a
    group give mean(g) and mean(g x̂), and sums over the images give dbias and dweight.
    """
    xp = array_module(x)
    _planes("group_norm", x, weight, bias)
    B, C = x.shape[:2]
    if num_groups < 1 or C % num_groups:
        raise ValueError(f"group_norm: {C} channels cannot be divided into {num_groups} groups")
    N, c, S = B * num_groups, C // num_groups, math.prod(x.shape[2:])
    weight = xp.ones(C, dtype=x.dtype) if weight is None else weight
    bias = xp.zeros(C, dtype=x.dtype) if bias is None else bias
    rows = x.reshape(N, c, S)
    weight, bias = (xp.broadcast_to(column, (B, C)).reshape(N, c, 1) for column in (weight, bias))
    ones = xp.ones((S, 1), dtype=x.dtype)
    y = xp.empty((N, c, S), dtype=x.dtype)
    mean, r = (xp.empty((N, 1, 1), dtype=x.dtype) for _ in range(2))

    def forward(x, y, mean, r, weight, bias):
        xp.copyto(y, x)
        y.mean(axis=(1, 2), keepdims=True, out=mean)    # for many numbers more accurate than a product with ones
        y -= mean
        _reciprocal_deviation(y.reshape(len(y), c * S), eps, out=r[:, 0])
        y *= r * weight
        y += bias

    parallel_rows(forward, rows, y, mean, r, weight, bias, block_bytes=ROW_BYTES)

    def backward(dy, need):
        dx = xp.empty((N, c, S), dtype=x.dtype)
        sum_dy, sum_dy_centred = (xp.empty((N, c, 1), dtype=x.dtype) for _ in range(2))

        def backward_rows(x, dy, dx, mean, r, weight, sum_dy, sum_dy_centred):
            centred = x - mean                          # x̂ / r
            xp.copyto(dx, dy)
            xp.matmul(dx, ones, out=sum_dy)
            xp.matmul(dx[:, :, None], centred[..., None], out=sum_dy_centred[..., None])
            mean_g = (weight * sum_dy).sum(axis=1, keepdims=True) / (c * S)
            centred *= (weight * sum_dy_centred).sum(axis=1, keepdims=True) * r * r * r / (c * S)   # r x̂ mean(g x̂)
            dx *= r * weight                            # r g
            dx -= r * mean_g
            dx -= centred

        parallel_rows(
            backward_rows, rows, dy.reshape(N, c, S), dx, mean, r, weight, sum_dy, sum_dy_centred,
            block_bytes=ROW_BYTES,
        )
        dweight = total((sum_dy_centred * r).reshape(B, C), (0,)) if need[1] else None
        dbias = total(sum_dy.reshape(B, C), (0,)) if need[2] else None
        return dx.reshape(x.shape), dweight, dbias

    return y.reshape(x.shape), backward


def _saved_groups(x: Array, num_groups: int) -> list[Any]:
    """x, the ones, the mean and r of each group of each image, and one number per channel."""
    B, C, S = len(x), x.shape[1], math.prod(x.shape[2:])
    numbers = S + 2 * B * num_groups + C
    return [*reshaped(x, (B * num_groups, C // num_groups, S)), Bytes(numbers * x.itemsize)]


@op(takes="sums", facts=_norm(lambda x, weight: [_saved_planes(x), weight]))
def batch_norm(
    x: Array,
    running_mean: Any,
    running_var: Any,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: Any = 0.1,
    eps: float = 1e-5,
):
    """Normalise each channel over the batch and all positions (Ioffe & Szegedy 2015, arXiv 1502.03167).

    x (B, C, ...), floating-point; float16 is computed in float32.
    weight, bias: (C,) or None.
    running_mean, running_var: arrays (C,) or None. In training they are updated in place with the mean and the unbiased
        variance of the batch: new = (1 - momentum) old + momentum batch. In evaluation they are used instead of the
        batch statistics; since they are constants, dx = g r.
    training: whether to use the statistics of the batch.
    momentum: a number, or an array () on the device.
    Raises ValueError if the shapes do not match, for one value per channel in training, and for evaluation without
    running statistics; TypeError for integers.

    There are two variances, as in PyTorch. The batch is normalised by the biased variance, the sum of squared
    deviations divided by n, which gives x̂ the variance 1. running_var estimates the variance of the data, of which the
    batch is a sample. Deviations from the sample's own mean are too small for that: their squares by a factor of
    (n - 1) / n on average. So this sum is divided by n - 1, which makes the estimate unbiased.

    >>> import numpy as np
    >>> running_mean, running_var = np.zeros(1, np.float32), np.ones(1, np.float32)
    >>> x = np.array([[1], [3]], np.float32)                # two values of one channel: μ = 2, σ² = (1 + 1) / 2
    >>> batch_norm(x, running_mean, running_var, training=True, momentum=1.0, eps=0.0).numpy()
    array([[-1.],
           [ 1.]], dtype=float32)
    >>> running_var                                         # (1 + 1) / (2 - 1)
    array([2.], dtype=float32)

    The graph saves x instead of x̂, which takes one product to recompute.
    """
    xp = array_module(x)
    planes = _planes("batch_norm", x, running_mean, running_var, weight, bias)      # (B, C, S)
    B, C, S = planes.shape
    n = B * S
    if training and n < 2:
        raise ValueError(
            f"batch_norm: training needs more than one value per channel, but x has shape {x.shape}: "
            "use more than one image, or larger ones"
        )
    if not training and running_mean is None:
        raise ValueError("batch_norm: evaluation needs running statistics; pass them, or training=True")
    y = xp.empty((B, C, S), dtype=x.dtype)
    ones = xp.ones((S, 1), dtype=x.dtype)               # the matrix product with ones sums a plane at the speed of BLAS
    sums = xp.empty((B, C, 1), dtype=x.dtype)

    def sum_planes(x, sums):
        xp.matmul(x, ones, out=sums)

    def centre(x, y, sums, mean):
        xp.copyto(y, x)
        y -= mean
        xp.matmul(y[:, :, None], y[..., None], out=sums[..., None])     # the dot product of each plane with itself

    if training:
        _by_block(sum_planes, [planes, sums])
        mean = total(sums, (0, 2)) / n
        _by_block(centre, [planes, y, sums], mean)
        var = total(sums, (0, 2)) / n
        if running_mean is not None:
            for running, batch in ((running_mean, mean), (running_var, var * (n / (n - 1)))):
                running *= 1 - momentum
                running += momentum * batch
    else:
        mean, var = running_mean.copy(), running_var    # a copy, since later training steps update it in place
    r = 1 / xp.sqrt(var + eps)
    scale = r if weight is None else r * weight
    shift = xp.zeros_like(mean) if bias is None else bias
    if training:
        _by_block(_affine, [y, y], scale, shift)
    else:
        _by_block(_affine, [planes, y], scale, shift - mean * scale)

    def backward(dy, need):
        dy = dy.reshape(B, C, S)
        dweight = dbias = dx = None
        sum_dy, sum_dy_x = (xp.empty((B, C, 1), dtype=x.dtype) for _ in range(2))

        def totals(x, dy, sum_dy, sum_dy_x, mean):
            xp.matmul(dy, ones, out=sum_dy)
            xp.matmul((x - mean)[:, :, None], dy[..., None], out=sum_dy_x[..., None])

        def through_statistics(x, dy, dx, mean, along_x_hat, average, scale):
            xp.copyto(dx, x)
            dx -= mean
            dx *= along_x_hat
            dx += dy
            dx -= average
            dx *= scale

        if training or need[1] or need[2]:
            _by_block(totals, [planes, dy, sum_dy, sum_dy_x], mean)
            dbias = total(sum_dy, (0, 2))             # Σ dy
            dweight = total(sum_dy_x, (0, 2)) * r     # Σ dy x̂
        if need[0]:
            dx = xp.empty((B, C, S), dtype=x.dtype)
            if training:
                _by_block(through_statistics, [planes, dy, dx], mean, r * dweight / -n, dbias / n, scale)
            else:
                _by_block(_times, [dy, dx], scale)
            dx = dx.reshape(x.shape)
        return dx, dweight if need[1] else None, dbias if need[2] else None

    return y.reshape(x.shape), backward


@op(takes="sums", facts=_norm(lambda x: Bytes(x.shape[1] * x.itemsize)))
def frozen_batch_norm(
    x: Array, running_mean: Any, running_var: Any, weight: Any, bias: Any, eps: float = 1e-5,
):
    """Batch norm with constant statistics, weight and bias: y = x scale + shift, dx = dy scale.

    x (B, C, ...); all others (C,).
    The value is that of batch_norm in evaluation. But batch_norm saves x for the gradient of its weight; this op does
    not save x, which halves the memory that a frozen backbone needs for activations.
    Raises ValueError if the shapes do not match, TypeError for integers.
    """
    xp = array_module(x)
    planes = _planes("frozen_batch_norm", x, running_mean, running_var, weight, bias)
    scale = weight / xp.sqrt(running_var + eps)
    y = xp.empty(planes.shape, dtype=x.dtype)
    _by_block(_affine, [planes, y], scale, bias - running_mean * scale)
    shape = planes.shape

    def backward(dy):
        dx = xp.empty(shape, dtype=dy.dtype)
        _by_block(_times, [dy.reshape(shape), dx], scale)
        return dx.reshape(dy.shape)

    return y.reshape(x.shape), backward


def _planes(name: str, x: Array, *per_channel: Any) -> Array:
    """x (B, C, ...) as (B, C, S). Raises ValueError if another array is neither (C,) nor None."""
    if x.ndim < 2:
        raise ValueError(f"{name}: x must be (B, C, ...), not {x.shape}")
    for array in per_channel:
        if array is not None and array.shape != x.shape[1:2]:
            raise ValueError(
                f"{name}: x {x.shape} has {x.shape[1]} channels, but an array of statistics, weight or bias has shape "
                f"{array.shape}"
            )
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:]))


def _saved_planes(x: Array) -> list[Any]:
    """x, the ones, and three numbers per channel."""
    S = math.prod(x.shape[2:])
    return [*reshaped(x, (*x.shape[:2], S)), Bytes((S + 3 * x.shape[1]) * x.itemsize)]


def _affine(x: Array, y: Array, scale: Array, shift: Array) -> None:
    array_module(x).multiply(x, scale, out=y)
    y += shift


def _times(x: Array, y: Array, scale: Array) -> None:
    array_module(x).multiply(x, scale, out=y)


def _by_block(fn: Callable[..., Any], arrays: list[Array], *columns: Array) -> None:
    """Call `fn(*arrays, *columns)` for blocks of some channels of some images that stay in the cache.

    arrays (B, C, ·), columns (C,). fn gets columns as (c, 1), or for small planes repeated to (c, S). NumPy then needs
    one inner loop for all channels instead of one per plane, and starting a loop takes as long as 1,000 numbers.
    """
    B, C, S = arrays[0].shape
    columns = tuple(column[:, None] for column in columns)
    if backend_of(arrays[0]) is not CPU:
        fn(*arrays, *columns)
        return
    if S <= 1024 and B > 1:
        columns = tuple(column.repeat(S, axis=1) for column in columns)
    plane = max(1, S * arrays[0].itemsize)
    c = max(1, min(C, CHANNEL_BYTES // plane))
    b = max(1, CHANNEL_BYTES // (c * plane))
    blocks = [
        (*(array[i : i + b, j : j + c] for array in arrays), *(column[j : j + c] for column in columns))
        for j in range(0, C, c)
        for i in range(0, B, b)
    ]
    deal(fn, blocks, arrays[0].nbytes >= PARALLEL_BYTES)
