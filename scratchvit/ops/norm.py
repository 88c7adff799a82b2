"""Normalisation: subtract the mean, divide by the standard deviation, scale and shift. The ops differ in their axes.

All share one derivation. With x̂ = (x - μ) r, r = 1/√(σ² + ε), and g the gradient with respect to x̂, the gradients
through μ and σ remove from g its mean and its component along x̂:

    dx = r (g - mean(g) - x̂ mean(g x̂))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from scratchvit import random
from scratchvit.backend import Array, array_module
from scratchvit.facts import Bytes, Facts, like, reshaped
from scratchvit.kernels.batch_norm import AddUp, normalise_channels, normalise_frozen, over_ranks, update_running
from scratchvit.kernels.dropout import drop
from scratchvit.kernels.group_norm import normalise_groups
from scratchvit.kernels.layer_norm import normalise_rows, normalise_sum
from scratchvit.kernels.sums import total
from scratchvit.ops.checks import check_probability
from scratchvit.plain import is_plain
from scratchvit.random import Draw, Generator
from scratchvit.tensor import op


def _standardised(
    x: Array, axes: tuple[int, ...], eps: float, statistics: tuple[Array, Array] | None = None,
    add_up: AddUp | None = None,
) -> tuple[Array, Callable[[Array], Array], Array, Array, Any]:
    """x̂ over the axes; the function g → dx of the head of this file; μ and σ², and of how many numbers they are.

    statistics: μ and σ² that are constants, so that dx = g r. add_up: means are over the numbers of all processes.
    """
    xp = array_module(x)
    own: Any = math.prod(x.shape[axis] for axis in axes)
    n = own

    def average(x: Array) -> Array:
        return over_ranks(total(x, axes, keepdims=True), own, add_up)[0] / n

    if statistics is None:
        sums, n = over_ranks(total(x, axes, keepdims=True), own, add_up)
        mean = sums / n
        variance = average((x - mean) ** 2)
        variance = xp.where(variance == math.inf, math.nan, variance)   # of numbers around 1e20: 1/√∞ would give 0
    else:
        mean, variance = statistics
    r = 1 / xp.sqrt(variance + eps)
    x_hat = (x - mean) * r

    def dx(g: Array) -> Array:
        return r * g if statistics else r * (g - average(g) - x_hat * average(g * x_hat))

    return x_hat, dx, mean, variance, n


def _affine(x_hat: Array, weight: Array | None, bias: Array | None) -> Array:
    """x̂ weight + bias, for what is not None."""
    y = x_hat if weight is None else x_hat * weight
    return y if bias is None else y + bias


def _norm(saves: Any, name: str = "x") -> Facts:
    return Facts(shape=like(name), saves=saves, macs=0)


@op(takes="sums", half_on_gpu=True, facts=_norm(
    lambda x, normalized_shape, weight: [_saved_rows(x, normalized_shape), weight]
))
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
    shape, D = _checked_shape("layer_norm", x, normalized_shape, weight, bias)
    rows = x.size // D if D else 0
    weight = None if weight is None else weight.reshape(D)
    bias = None if bias is None else bias.reshape(D)
    if D == 0:
        return x.copy(), lambda dy: (dy, dy.sum(axis=0).reshape(shape), dy.sum(axis=0).reshape(shape))
    normalise = _plain_rows if is_plain() else normalise_rows
    y, backward_rows = normalise(x.reshape(rows, D), weight, bias, eps)

    def backward(dy, need):
        gradients = backward_rows(dy.reshape(rows, D), need)
        return tuple(None if g is None else g.reshape(to) for g, to in zip(gradients, (x.shape, shape, shape)))

    return y.reshape(x.shape), backward


@op(takes="sums", half_on_gpu=True, facts=_norm(
    lambda x, normalized_shape, weight, p: [_saved_sum(x, normalized_shape, p), weight]
))
def add_layer_norm(
    x: Array, added: Array, normalized_shape: int | Sequence[int], weight: Array | None = None,
    bias: Array | None = None, eps: float = 1e-5, p: float = 0.0, generator: Generator | None = None,
):
    """layer_norm(x + dropout(added)): a residual connection with the norm after it (Vaswani et al. 2017, arXiv
    1706.03762, §3.1). On a GPU it is three operations, one forward and two backward, instead of six.

    x (..., *normalized_shape), floating-point; float16 is computed in float32.
    added: of the shape of x.
    normalized_shape, weight, bias, eps: those of `layer_norm`.
    p: the probability of setting an entry of `added` to zero, 0 for no dropout; generator: see `dropout`.
    Raises ValueError if the shapes do not match or p is not in [0, 1), TypeError for integers.

    With z = x + added · kept / (1 - p):    dx = dz,   d(added) = dz · kept / (1 - p)
    """
    if added.shape != x.shape:
        raise ValueError(f"add_layer_norm: x {x.shape} and added {added.shape} must have one shape")
    shape, D = _checked_shape("add_layer_norm", x, normalized_shape, weight, bias)
    whole, rows = x.shape, (x.size // D if D else 0, D)
    weight = None if weight is None else weight.reshape(D)
    bias = None if bias is None else bias.reshape(D)
    draw = (generator or random.DEFAULT).draw(1 - p, rows) if check_probability(p) else None
    normalise = _plain_sum if is_plain() or not x.size else normalise_sum
    y, backward_rows = normalise(x.reshape(rows), added.reshape(rows), draw, weight, bias, eps)

    def backward(dy, need):
        gradients = backward_rows(dy.reshape(rows), need)
        return tuple(None if g is None else g.reshape(to) for g, to in zip(gradients, (whole, whole, shape, shape)))

    return y.reshape(whole), backward


def _checked_shape(
    name: str, x: Array, normalized_shape: int | Sequence[int], weight: Array | None, bias: Array | None
) -> tuple[tuple[int, ...], int]:
    """normalized_shape as a tuple, and its number of entries D. Raises ValueError if the shapes do not match."""
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or x.shape[-len(shape) :] != shape:
        raise ValueError(f"{name}: x has shape {x.shape}, which does not end in normalized_shape {shape}")
    for of, array in (("weight", weight), ("bias", bias)):
        if array is not None and array.shape != shape:
            raise ValueError(f"{name}: {of} has shape {array.shape}, it must be normalized_shape {shape}")
    return shape, math.prod(shape)


@op(takes="sums", facts=_norm(lambda weight: _saved_rows(weight, weight.shape[1:]), "weight"))
def weight_standardization(weight: Array, eps: float = 1e-6):
    """Normalise the kernel of each output channel (Qiao et al. 2019, arXiv 1903.10520).

    weight (out, in, *kernel), floating-point; the result has the same shape.  Raises TypeError for integers.
    """
    flat = (len(weight), math.prod(weight.shape[1:]))
    w_hat, backward_rows = (_plain_rows if is_plain() else normalise_rows)(weight.reshape(flat), None, None, eps)

    def backward(dy):
        return backward_rows(dy.reshape(flat), (True, False, False))[0].reshape(weight.shape)

    return w_hat.reshape(weight.shape), backward


def _plain_rows(x: Array, weight: Array | None, bias: Array | None, eps: float):
    """Value and backward of layer norm of x (N, D)."""
    x_hat, dx, *_ = _standardised(x, (1,), eps)

    def backward(dy, need):
        g = dy if weight is None else dy * weight
        return dx(g), total(dy * x_hat, (0,)) if need[1] else None, total(dy, (0,)) if need[2] else None

    return _affine(x_hat, weight, bias), backward


def _plain_sum(
    x: Array, added: Array, draw: Draw | None, weight: Array | None, bias: Array | None, eps: float
):
    """Value and backward of layer norm of x + added (N, D), with dropout of `added`."""
    kept = None if draw is None else draw.array()

    def dropped(values: Array) -> Array:
        return values if draw is None else drop(values, kept, draw.probability)

    y, backward_rows = _plain_rows(x + dropped(added), weight, bias, eps)

    def backward(dy, need):
        dz, dweight, dbias = backward_rows(dy, [True, *need[2:]])
        return dz, dropped(dz), dweight, dbias

    return y, backward


def _saved_rows(x: Array, shape: int | Sequence[int]) -> list[Any]:
    """x, the ones, and the mean and r of each row. A row is an array of this shape."""
    D = shape if isinstance(shape, int) else math.prod(shape)
    N = x.size // max(1, D)
    return [*reshaped(x, (N, D)), Bytes((D + 2 * N) * x.itemsize)]


def _saved_sum(x: Array, shape: int | Sequence[int], p: float) -> Bytes:
    """z, the ones, the mean and r of each row, and which entries were kept."""
    D = shape if isinstance(shape, int) else math.prod(shape)
    return Bytes((x.size + D + 2 * (x.size // max(1, D))) * x.itemsize + (x.size if p else 0))


@op(takes="sums", half_on_gpu=True, facts=_norm(lambda x, num_groups, weight: [_saved_groups(x, num_groups), weight]))
def group_norm(x: Array, num_groups: int, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5):
    """Normalise each group of channels of each image (Wu & He 2018, arXiv 1803.08494).

    x (B, C, ...), floating-point; float16 is computed in float32.
    num_groups: must divide C.  weight, bias: (C,) or None.
    Raises ValueError if the shapes do not match or num_groups does not divide C, TypeError for integers.

    With g = dy · weight:    dx as above,   dweight = Σ dy x̂,   dbias = Σ dy    (sums over images and positions)
    """
    planes = _planes("group_norm", x, weight, bias)                                 # (B, C, S)
    B, C = x.shape[:2]
    if num_groups < 1 or C % num_groups:
        raise ValueError(f"group_norm: {C} channels cannot be divided into {num_groups} groups")
    if not is_plain():
        return normalise_groups(x, num_groups, weight, bias, eps)
    groups = (B, num_groups, C // num_groups * planes.shape[2])
    x_hat, dx, *_ = _standardised(planes.reshape(groups), (2,), eps)
    x_hat = x_hat.reshape(planes.shape)
    weight, bias = _columns(weight), _columns(bias)

    def backward(dy, need):
        dy = dy.reshape(planes.shape)
        g = dy if weight is None else dy * weight
        return (
            dx(g.reshape(groups)).reshape(x.shape),
            total(dy * x_hat, (0, 2)) if need[1] else None, total(dy, (0, 2)) if need[2] else None,
        )

    return _affine(x_hat, weight, bias).reshape(x.shape), backward


def _saved_groups(x: Array, num_groups: int) -> list[Any]:
    """x, the ones, the mean and r of each group of each image, and one number per channel."""
    B, C, S = len(x), x.shape[1], math.prod(x.shape[2:])
    numbers = S + 2 * B * num_groups + C
    return [*reshaped(x, (B * num_groups, C // num_groups, S)), Bytes(numbers * x.itemsize)]


@op(takes="sums", half_on_gpu=True, facts=_norm(lambda x, weight: [_saved_planes(x), weight]))
def batch_norm(
    x: Array,
    running_mean: Any,
    running_var: Any,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: Any = 0.1,
    eps: float = 1e-5,
    add_up: AddUp | None = None,
):
    """Normalise each channel over the batch and all positions (Ioffe & Szegedy 2015, arXiv 1502.03167).

    x (B, C, ...), floating-point; float16 is computed in float32.
    weight, bias: (C,) or None.
    running_mean, running_var: arrays (C,) or None. In training they are updated in place with the mean and the unbiased
        variance of the batch: new = (1 - momentum) old + momentum batch. In evaluation they are used instead of the
        batch statistics; since they are constants, dx = g r.
    training: whether to use the statistics of the batch.
    momentum: a number, or an array () on the device.
    add_up: replaces an array by its sum over all processes that have images of the batch (`Communicator.sum`). In
        training, statistics and dx are then those of the whole batch, however it is divided, as in
        torch.nn.SyncBatchNorm; dweight and dbias are the sums over the own images. It must be called in all processes,
        forward and backward.
    Raises ValueError if the shapes do not match, for one value per channel in training (of several processes: for
    none), and for evaluation without running statistics; TypeError for integers.

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

    With g = dy · weight:    dx as above,   dweight = Σ dy x̂,   dbias = Σ dy
    """
    planes = _planes("batch_norm", x, running_mean, running_var, weight, bias)      # (B, C, S)
    n = len(planes) * planes.shape[2]
    if training and n < (2 if add_up is None else 1):
        raise ValueError(
            f"batch_norm: training needs more than one value per channel, but x has shape {x.shape}: "
            "use more than one image, or larger ones"
        )
    if not training and running_mean is None:
        raise ValueError("batch_norm: evaluation needs running statistics; pass them, or training=True")
    normalise = _plain_channels if is_plain() else normalise_channels
    y, backward_planes = normalise(planes, (running_mean, running_var, momentum), training, weight, bias, eps, add_up)

    def backward(dy, need):
        dx, *affine = backward_planes(dy.reshape(planes.shape), need)
        return None if dx is None else dx.reshape(x.shape), *affine

    return y.reshape(x.shape), backward


def _plain_channels(
    planes: Array, running: tuple[Any, Any, Any], training: bool, weight: Array | None, bias: Array | None, eps: float,
    add_up: AddUp | None = None,
):
    """Value and backward of batch norm of planes (B, C, S), as `normalise_channels`."""
    constants = None if training else (_columns(running[0].copy()), _columns(running[1]))
    x_hat, dx, mean, var, n = _standardised(planes, (0, 2), eps, constants, add_up)
    if training:
        update_running(running, mean.reshape(-1), var.reshape(-1), n)
    weight, bias = _columns(weight), _columns(bias)

    def backward(dy, need):
        g = dy if weight is None else dy * weight
        return dx(g), total(dy * x_hat, (0, 2)) if need[1] else None, total(dy, (0, 2)) if need[2] else None

    return _affine(x_hat, weight, bias), backward


def _columns(x: Any) -> Any:
    """A number for each channel as (C, 1), which broadcasts to planes."""
    return None if x is None else x[:, None]


@op(takes="sums", half_on_gpu=True, facts=_norm(lambda x: Bytes(x.shape[1] * x.itemsize)))
def frozen_batch_norm(
    x: Array, running_mean: Any, running_var: Any, weight: Any, bias: Any, eps: float = 1e-5,
):
    """Batch norm with constant statistics, weight and bias: y = x scale + shift, dx = dy scale.

    x (B, C, ...); all others (C,).
    The value is that of batch_norm in evaluation. But batch_norm saves x for the gradient of its weight; this op does
    not save x, which halves the memory that a frozen backbone needs for activations.
    Raises ValueError if the shapes do not match, TypeError for integers.
    """
    planes = _planes("frozen_batch_norm", x, running_mean, running_var, weight, bias)
    normalise = _plain_frozen if is_plain() else normalise_frozen
    y, backward_planes = normalise(planes, running_mean, running_var, weight, bias, eps)
    shape, planes_shape = x.shape, planes.shape
    return y.reshape(shape), lambda dy: backward_planes(dy.reshape(planes_shape)).reshape(shape)


def _plain_frozen(planes: Array, running_mean: Array, running_var: Array, weight: Array, bias: Array, eps: float):
    """Value of frozen batch norm of planes (B, C, S), and a function dy → dx."""
    scale = _columns(weight / array_module(planes).sqrt(running_var + eps))
    return planes * scale + _columns(bias - running_mean * scale[:, 0]), lambda dy: dy * scale


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
