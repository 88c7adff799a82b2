"""Normalisations: subtract a mean, divide by a deviation, scale and shift. They differ in what the mean is taken over.

All share one derivation. With x̂ = (x - μ) r, r = 1/√(σ² + ε), and g the gradient that reaches x̂, what flows back
through μ and σ removes from g its mean and its component along x̂:

    dx = r (g - mean(g) - x̂ mean(g x̂))
"""

from __future__ import annotations

import math
from typing import Any

from scratchvit.backend import Array, array_module, parallel_rows
from scratchvit.tensor import op


@op
def layer_norm(x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-6):
    """Normalise the last axis, then scale and shift (Ba et al. 2016, arXiv 1607.06450).

    x (..., D); weight, bias (D,) or None.  With g = dy · weight:
        dx as above,   dweight = Σ dy x̂,   dbias = Σ dy
    """
    xp = array_module(x)
    D = x.shape[-1]
    if weight is not None and weight.shape != (D,):
        raise ValueError(f"layer_norm: x {x.shape} has {D} features, weight has shape {weight.shape}")
    average = xp.full((D, 1), 1 / D, dtype=x.dtype)     # a product with it is a row's mean, at the speed of BLAS
    rows = x.reshape(-1, D)                             # (N, D)
    y = xp.empty_like(rows)
    mean, r = (xp.empty((len(rows), 1), dtype=x.dtype) for _ in range(2))

    def forward(x, y, mean, r):
        xp.matmul(x, average, out=mean)
        xp.subtract(x, mean, out=y)
        xp.matmul(y * y, average, out=r)                # σ²
        r += eps
        xp.sqrt(r, out=r)
        xp.reciprocal(r, out=r)
        y *= r                                          # x̂
        if weight is not None:
            y *= weight
        if bias is not None:
            y += bias

    parallel_rows(forward, rows, y, mean, r)

    def backward(dy, need):
        dx = xp.empty_like(rows)

        def backward_rows(x, dy, mean, r, dx):
            x_hat = x - mean
            x_hat *= r
            xp.multiply(dy, x_hat, out=dx)
            dweight = dx.sum(axis=0) if need[1] else None
            dbias = dy.sum(axis=0) if need[2] else None
            g = dy
            if weight is not None:
                g = dy * weight
                dx *= weight                            # g x̂
            x_hat *= xp.matmul(dx, average)
            xp.subtract(g, x_hat, out=dx)
            dx -= xp.matmul(g, average)
            dx *= r
            return dweight, dbias

        parts = parallel_rows(backward_rows, rows, dy.reshape(-1, D), mean, r, dx)
        dweight, dbias = (sum(part) if wanted else None for part, wanted in zip(zip(*parts), need[1:]))
        return dx.reshape(x.shape), dweight, dbias

    return y.reshape(x.shape), backward


@op
def group_norm(x: Array, num_groups: int, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5):
    """Normalise each group of channels of each image (Wu & He 2018, arXiv 1803.08494).

    x (B, C, ...); weight, bias (C,) or None; num_groups divides C.
    """
    B, C = x.shape[:2]
    if C % num_groups:
        raise ValueError(f"group_norm: {C} channels cannot be divided into {num_groups} groups")
    grouped = (B, num_groups, C // num_groups * math.prod(x.shape[2:]))
    x_hat, r = _normalise(x.reshape(grouped), (2,), eps)
    x_hat = x_hat.reshape(B, C, math.prod(x.shape[2:]))
    y = _scale_and_shift(x_hat, weight, bias)

    def backward(dy, need):
        dy = dy.reshape(x_hat.shape)
        g = dy if weight is None else dy * weight[:, None]
        dx = _normalise_backward(g.reshape(grouped), x_hat.reshape(grouped), r, (2,)) if need[0] else None
        return None if dx is None else dx.reshape(x.shape), *_affine_gradients(dy, x_hat, need[1:])

    return y.reshape(x.shape), backward


@op
def batch_norm(
    x: Array,
    running_mean: Any,
    running_var: Any,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
):
    """Normalise each channel over the batch and all positions (Ioffe & Szegedy 2015, arXiv 1502.03167).

    x (B, C, ...); weight, bias (C,) or None. In training, the batch's mean and (unbiased) variance are mixed into
    running_mean and running_var, arrays (C,) or None, in place: new = (1 - momentum) old + momentum batch. Otherwise
    those are used instead of the batch's, and being constants they let the gradient straight through: dx = g r.
    """
    xp = array_module(x)
    B, C = x.shape[:2]
    channels = x.reshape(B, C, math.prod(x.shape[2:]))
    over = (0, 2)
    if training:
        n = channels.size // C
        if n < 2:
            raise ValueError(f"batch_norm: one value per channel (x {x.shape}) has no variance to train with")
        x_hat, r = _normalise(channels, over, eps)
        if running_mean is not None:
            batch_mean = channels.mean(axis=over)
            batch_var = (1 / (r * r) - eps).reshape(C) * (n / (n - 1))
            running_mean *= 1 - momentum
            running_mean += momentum * batch_mean
            running_var *= 1 - momentum
            running_var += momentum * batch_var
    else:
        if running_mean is None:
            raise ValueError("batch_norm: without running statistics it can only be used in training")
        r = (1 / xp.sqrt(running_var + eps)).reshape(1, C, 1)
        x_hat = (channels - running_mean[:, None]) * r
    y = _scale_and_shift(x_hat, weight, bias)

    def backward(dy, need):
        dy = dy.reshape(channels.shape)
        dx = None
        if need[0]:
            g = dy if weight is None else dy * weight[:, None]
            dx = _normalise_backward(g, x_hat, r, over) if training else g * r
            dx = dx.reshape(x.shape)
        return dx, *_affine_gradients(dy, x_hat, need[1:])

    return y.reshape(x.shape), backward


@op
def weight_standardization(weight: Array, eps: float = 1e-6):
    """Normalise the kernel of each output channel (Qiao et al. 2019, arXiv 1903.10520). weight (out, in, k, k)."""
    w_hat, r = _normalise(weight.reshape(len(weight), -1), (1,), eps)

    def backward(dy):
        return _normalise_backward(dy.reshape(w_hat.shape), w_hat, r, (1,)).reshape(weight.shape)

    return w_hat.reshape(weight.shape), backward


def _normalise(x: Array, axes: tuple[int, ...], eps: float) -> tuple[Array, Array]:
    """x̂ and r of the derivation above, with mean and variance over the axes."""
    x_hat = x - x.mean(axis=axes, keepdims=True)
    r = 1 / array_module(x).sqrt((x_hat * x_hat).mean(axis=axes, keepdims=True) + eps)
    x_hat *= r
    return x_hat, r


def _normalise_backward(g: Array, x_hat: Array, r: Array, axes: tuple[int, ...]) -> Array:
    dx = g - g.mean(axis=axes, keepdims=True)
    dx -= x_hat * (g * x_hat).mean(axis=axes, keepdims=True)
    dx *= r
    return dx


def _scale_and_shift(x_hat: Array, weight: Array | None, bias: Array | None) -> Array:
    """x̂ (B, C, S) times weight plus bias, both (C,) or None, as a new array."""
    y = x_hat.copy() if weight is None else x_hat * weight[:, None]
    if bias is not None:
        y += bias[:, None]
    return y


def _affine_gradients(dy: Array, x_hat: Array, need: list[bool]) -> tuple[Array | None, Array | None]:
    dweight = (dy * x_hat).sum(axis=(0, 2)) if need[0] else None
    return dweight, dy.sum(axis=(0, 2)) if need[1] else None
