"""Loss functions. Names and arguments are as in `torch.nn.functional`.

`reduction` is "mean", "sum" or "none" everywhere. For the mean over n values, each of them gets the cotangent dy / n.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scratchvit import backend
from scratchvit.backend import CPU, AnyArray, Array, array_module, backend_of
from scratchvit.dtypes import is_float
from scratchvit.facts import Bytes, Facts, Workspace, one_like_x, unless_reduced
from scratchvit.kernels.cross_entropy import cross_entropy_kernel
from scratchvit.kernels.logistic import logistic
from scratchvit.kernels.sums import total
from scratchvit.ops.attention import log_probabilities
from scratchvit.tensor import op


def _loss(saves: Any) -> Facts:
    return Facts(shape=unless_reduced, saves=saves, macs=0)


@op(takes="sums", autocast="loss", half_on_gpu=True, facts=Facts(
    shape=lambda x, reduction: (*x.shape[:1], *x.shape[2:]) if reduction == "none" else (), macs=0,
    saves=lambda x, target, weight, label_smoothing: _saved_probabilities(x, target, weight, label_smoothing),
    workspace=lambda x: Workspace(x.nbytes, x.nbytes * 5 // 4),
))
def cross_entropy(
    x: Array, target: AnyArray, weight: Array | None = None, label_smoothing: float = 0.0,
    reduction: str = "mean", ignore_index: int = -100,
):
    """Cross-entropy -Σ_c w_c q_c log p_c between targets q and p = softmax(x) over axis 1, in nats.

    x: (B, C) or (B, C, d1, …), floating-point logits; float16 is computed in float32. The C logits of a position are a
        row below.
    target: class indices (B, d1, …), for which q is one-hot, or class probabilities of x's shape.
    weight w: class weights (C,).
    label_smoothing ε: q becomes (1 - ε) q + ε / C (Szegedy et al., arXiv 1512.00567).
    ignore_index: rows with this label do not contribute to the loss.
    reduction: "mean" divides by the sum of the rows' weights for class indices, and by the number of rows for
        probabilities. If there are no rows, or all are ignored, it is NaN, with gradient 0. "none" gives (B, d1, …).
    Raises ValueError for shapes that do not match, labels out of range, and options out of range; TypeError for
    integers in x and, in backward, for a weight that requires a gradient together with class indices. Labels are
    checked where that needs no wait: those in a NumPy array on every device, others on the CPU. On a GPU, a label out
    of range makes the loss of its row NaN, and with "mean" and "sum" the whole loss, and so gradients.

    Since log p_c = x_c - log Σ eˣ, whose derivative is δ - p (and for class probabilities t):
        dx = dy (p Σ_c w_c q_c - w q),    dt = -dy (1 - ε) w log p,    dw = -Σ dy q log p
    """
    xp = array_module(x)
    given, target = target, backend.asarray(target)
    _check_options("cross_entropy", reduction, ("mean", "sum", "none"))
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing must be in [0, 1], not {label_smoothing}")
    weight = _class_weights(x, weight)
    classes, positions = x.shape[1], tuple(range(2, x.ndim))
    soft = is_float(target.dtype)
    _check_target(x, target)
    if not soft:
        _check_labels(given if isinstance(given, np.ndarray) else target, classes, ignore_index)
    compute = cross_entropy_kernel(x) or _plain_cross_entropy
    value, input_gradient, log_p = compute(x, target, weight, label_smoothing, reduction, ignore_index)

    def backward(dy, need):
        if need[2] and not soft:
            raise TypeError("cross_entropy: with class indices, weight gets no gradient (as in PyTorch): detach it")
        dx, dtarget, dweight = input_gradient(dy) if need[0] else None, None, None
        if need[1] or need[2]:                          # of class probabilities
            divisor = max(1, target.size // classes) if reduction == "mean" else 1
            dy = (xp.expand_dims(dy, 1) if reduction == "none" else dy) / divisor
        if need[1]:
            dtarget = log_p() * (dy * (label_smoothing - 1))
            if weight is not None:
                dtarget *= weight
        if need[2]:
            smoothed = target * (1 - label_smoothing) + label_smoothing / classes
            dweight = total(-dy * smoothed * log_p(), (0, *positions))
        return dx, dtarget, dweight

    return value, backward


def _plain_cross_entropy(x, target, weight, smoothing, reduction, ignore_index):
    """The value, a function dy → dx, and one that returns log p."""
    xp = array_module(x)
    log_p = log_probabilities(x, 1)
    soft = is_float(target.dtype)
    rows, mass, q, count = (_probabilities if soft else _labels)(x, log_p, target, weight, smoothing, ignore_index)

    def input_gradient(dy):
        if reduction == "none":
            dy = xp.where(mass == 0, 0, xp.expand_dims(dy, 1)) if not soft else xp.expand_dims(dy, 1)
        elif reduction == "mean":
            dy = dy / (count + (count == 0))            # the gradient is 0 if there are no rows
        dx = xp.exp(log_p)
        dx *= mass
        dx -= q()
        dx *= dy
        return dx

    return _reduce(rows, reduction, count), input_gradient, lambda: log_p


def _saved_probabilities(x: Array, target: Array, weight: Array | None, smoothing: float) -> list[Any]:
    """log p; w q, or for class indices a label and two numbers per row; and Σ_c w_c q_c per row, if not among these."""
    row, weighted = x.nbytes // x.shape[1], 0 if weight is None else x.nbytes
    if is_float(target.dtype):
        q = row + (weighted or (x.nbytes if smoothing else 0))
    else:
        q = row + (weighted or row) + (row if smoothing else 0) + 8 * (target.size + x.shape[1])
    return [target, weight, Bytes(x.nbytes + q)]


def _probabilities(x, log_p, target, weight, smoothing, ignore_index):
    """For class probabilities: each row's loss, Σ_c w_c q_c (B, 1, …), a function for w q, and the mean's divisor."""
    q = target.astype(x.dtype, copy=False)
    if smoothing:
        q = q * (1 - smoothing) + smoothing / x.shape[1]
    if weight is not None:
        q = q * weight
    return -total(q * log_p, (1,)), total(q, (1,), True), lambda: q, math.prod((len(x), *x.shape[2:]))


def _labels(x, log_p, target, weight, smoothing, ignore_index):
    """The same for class indices: w q is a at the class, plus b everywhere."""
    xp = array_module(x)
    counts = target != ignore_index
    inside = (target >= 0) & (target < x.shape[1])
    label = xp.expand_dims(xp.where(inside, target, 0), 1)                          # (B, 1, …)
    row_weight = counts.astype(x.dtype)
    xp.copyto(row_weight, math.nan, where=counts > inside)                          # on a GPU: nobody has checked
    row_weight = xp.expand_dims(row_weight, 1)
    b = row_weight * (smoothing / x.shape[1])                                       # (B, 1, …)
    if weight is not None:
        row_weight = row_weight * xp.take(weight, label)
        b = b * weight                                                              # (B, C, …)
    a = row_weight * (1 - smoothing)
    rows, mass = -(a * xp.take_along_axis(log_p, label, axis=1)), a
    if smoothing:
        rows = rows - total(b * log_p, (1,), True)
        mass = a + (total(b, (1,), True) if weight is not None else b * x.shape[1])

    classes = xp.arange(x.shape[1]).reshape(-1, *(1 for _ in x.shape[2:]))          # (C, 1, …)

    def q():
        one_hot = (classes == label) * a
        return one_hot + b if smoothing else one_hot

    return xp.where(counts, rows[:, 0], 0), mass, q, row_weight.sum()        # a label to ignore beside NaN too


def _class_weights(x: Array, weight: Any) -> Array | None:
    """The weights as (C, 1, …), which broadcasts with x (B, C, …)."""
    if x.ndim < 2 or x.shape[1] == 0:
        raise ValueError(f"cross_entropy: x must be (B, C) or (B, C, d1, …) with C ≥ 1 classes, not {x.shape}")
    if weight is None:
        return None
    weight = backend.asarray(weight, dtype=np.float32 if x.itemsize == 2 else x.dtype)
    if weight.shape != (x.shape[1],):
        raise ValueError(
            f"cross_entropy: weight has shape {weight.shape}, but x of shape {x.shape} has {x.shape[1]} classes"
        )
    return weight.reshape(-1, *(1 for _ in x.shape[2:]))


def _check_target(x: Array, target: Array) -> None:
    """Raise ValueError if the target has another shape than x needs."""
    if is_float(target.dtype):
        if target.shape != x.shape:
            raise ValueError(f"cross_entropy: class probabilities must have x's shape {x.shape}, not {target.shape}")
    elif target.shape != (x.shape[0], *x.shape[2:]):
        raise ValueError(
            f"cross_entropy: for x of shape {x.shape}, class indices must have shape "
            f"{(x.shape[0], *x.shape[2:])}, not {target.shape}"
        )


def _check_labels(target: Array, classes: int, ignore_index: int) -> None:
    """Raise ValueError if a label is out of range. Those on a GPU are not looked at: every step would wait for it."""
    if target.dtype.kind not in "iu":
        raise ValueError(
            f"cross_entropy: target must hold integers (class indices) or floats (class probabilities), not "
            f"{target.dtype}"
        )
    if backend_of(target) is not CPU or target.size == 0:
        return
    wrong = label_out_of_range(target[target != ignore_index], classes)
    if wrong is not None:
        raise ValueError(
            f"cross_entropy: label {wrong} is not one of the {classes} classes 0…{classes - 1} that x has scores for; "
            "correct the labels, or give the model num_classes to match"
        )


def label_out_of_range(labels: np.ndarray, classes: int) -> int | None:
    """The smallest label, if it is negative, or the largest, if it is not one of 0 … classes - 1; None: all are."""
    if labels.size and labels.min() < 0:
        return int(labels.min())
    return int(labels.max()) if labels.size and labels.max() >= classes else None


@op(takes="sums", autocast="loss", facts=_loss(lambda x, target: [x, target, Bytes(x.nbytes)]))
def kl_div(x: Array, target: AnyArray, reduction: str = "mean", log_target: bool = False):
    """Kullback-Leibler divergence Σ t (log t - x) of the distribution t from the one with log-probabilities x.

    x: any shape.  target: x's shape.  Both floating-point; float16 is computed in float32.
    log_target: whether target holds log t.
    reduction: also "batchmean", the sum divided by the length of axis 0, which is the divergence as it is defined
        (Kullback & Leibler 1951); "mean" divides by the number of entries.
    Raises ValueError for shapes that differ and for another reduction, TypeError for integers in x.

        dx = -dy t,    dt = dy (log t + 1 - x),    d(log t) = t dt;    t log t is 0 at t = 0
    """
    xp = array_module(x)
    target = _like("kl_div", x, target)
    _check_options("kl_div", reduction, ("mean", "sum", "none", "batchmean"))
    if log_target:
        t, log_t = xp.exp(target), target
    else:
        with np.errstate(invalid="ignore"):             # the logarithm of a negative target is NaN
            t, log_t = target, xp.log(xp.where(target == 0, 1, target))

    def backward(dy, need):
        g = _to_each(dy, x, reduction)
        dt = (log_t + 1 - x) * g if need[1] else None
        return -t * g if need[0] else None, dt * t if need[1] and log_target else dt

    return _reduce(t * (log_t - x), reduction), backward


@op(takes="sums", autocast="loss", facts=_loss(lambda x, target, weight: [x, target, weight, Bytes(2 * x.nbytes)]))
def binary_cross_entropy(x: Array, target: AnyArray, weight: Any = None, reduction: str = "mean"):
    """-w (t log x + (1 - t) log(1 - x)) for probabilities x, with the logarithms clamped to at least -100.

    x: any shape, in [0, 1].  target t: x's shape, in [0, 1].  weight w: a constant, broadcast to x's shape.
    For logits use binary_cross_entropy_with_logits, which is more accurate.
    Raises ValueError for shapes that differ, for another reduction and, on the CPU, for values outside of [0, 1];
    TypeError for integers in x.

        dx = dy w (x - t) / x (1 - x),    dt = dy w (log(1 - x) - log x)
    """
    xp = array_module(x)
    target = _like("binary_cross_entropy", x, target)
    _check_options("binary_cross_entropy", reduction, ("mean", "sum", "none"))
    _need_probabilities("binary_cross_entropy: x", x, "; for logits use binary_cross_entropy_with_logits")
    _need_probabilities("binary_cross_entropy: target", target, slack=ROUNDING)
    w = 1 if weight is None else backend.asarray(weight, dtype=x.dtype)
    with np.errstate(divide="ignore"):                  # log 0
        log_x, log_not_x = xp.maximum(xp.log(x), -100), xp.maximum(xp.log1p(-x), -100)

    def backward(dy, need):
        g = _to_each(dy, x, reduction) * w
        return (
            g * (x - target) / xp.maximum(x * (1 - x), 1e-12) if need[0] else None,
            g * (log_not_x - log_x) if need[1] else None,
        )

    return _reduce(-w * (target * log_x + (1 - target) * log_not_x), reduction), backward


@op(takes="sums", autocast="loss", facts=_loss(
    lambda x, target, weight, pos_weight: [x, target, weight, pos_weight, Bytes(x.nbytes)]
))
def binary_cross_entropy_with_logits(
    x: Array, target: AnyArray, weight: Any = None, reduction: str = "mean", pos_weight: Any = None,
):
    """binary_cross_entropy of σ(x): w (P t s(-x) + (1 - t) s(x)) with s(x) = log(1 + eˣ) and P = pos_weight.

    x: any shape, floating-point.  target t: x's shape.  weight w, pos_weight: constants, broadcast to x's shape.
    Raises ValueError for shapes that differ and for another reduction, TypeError for integers in x.

    With s(-x) = log(1 + e^-|x|) + max(-x, 0), which never overflows, and s(x) = x + s(-x), it is
        w ((1 - t) x + c s(-x)),  c = 1 + (P - 1) t,    dx = dy w (c σ(x) - P t),    dt = dy w ((P - 1) s(-x) - x)
    """
    xp = array_module(x)
    target = _like("binary_cross_entropy_with_logits", x, target)
    _check_options("binary_cross_entropy_with_logits", reduction, ("mean", "sum", "none"))
    w = 1 if weight is None else backend.asarray(weight, dtype=x.dtype)
    P = 1 if pos_weight is None else backend.asarray(pos_weight, dtype=x.dtype)
    c = 1 + (P - 1) * target

    def softplus_of_minus_x() -> Array:
        return xp.log1p(xp.exp(-xp.abs(x))) + xp.maximum(-x, 0)

    def backward(dy, need):
        g = _to_each(dy, x, reduction) * w
        return (
            g * (c * logistic(x) - P * target) if need[0] else None,
            g * ((P - 1) * softplus_of_minus_x() - x) if need[1] else None,
        )

    return _reduce(w * ((1 - target) * x + c * softplus_of_minus_x()), reduction), backward


@op(takes="sums", autocast="loss", facts=_loss(
    lambda x, target, alpha: [x, target, Bytes((2 if alpha >= 0 else 1) * x.nbytes)]
))
def sigmoid_focal_loss(
    x: Array, target: AnyArray, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "none",
):
    """Focal loss: element-wise binary cross-entropy that down-weights easy examples (Lin et al. 2017, eq. 5).

    x: logits, any shape.  target t: x's shape; 0 or 1, or between them as in torchvision.
    alpha α: the weight of the positives, and 1 - α that of the negatives; if negative, both weights are 1.
    gamma γ: the focusing parameter; the larger it is, the less easy examples count.
    Raises ValueError for shapes that differ, for another reduction and, on the CPU, for a target outside of [0, 1];
    TypeError for integers in x.

    With p = 1 / (1 + e⁻ˣ), e = 1 - p_t of the paper, ce the binary cross-entropy of p and t, and α(t), e(t) linear
    between t = 0 and 1:

        y = α eᵞ ce,    e = p (1 - t) + (1 - p) t,    ce = -t log p - (1 - t) log(1 - p)
        dx = dy α (eᵞ (p - t) + γ eᵞ⁻¹ (1 - 2t) p (1 - p) ce)
        dt = dy (α′ eᵞ ce + α (γ eᵞ⁻¹ (1 - 2p) ce - eᵞ x))

    Source: arXiv 1708.02002.
    """
    _check_options("sigmoid_focal_loss", reduction, ("none", "mean", "sum"))
    xp = array_module(x)
    t = _like("sigmoid_focal_loss", x, target)
    _need_probabilities("sigmoid_focal_loss: target", t, slack=ROUNDING)
    a, a_slope = (1 - alpha + (2 * alpha - 1) * t, 2 * alpha - 1) if alpha >= 0 else (1, 0)

    def parts() -> tuple[Array, ...]:
        p, not_p = logistic(x), logistic(-x)            # 1 - p would round small values away
        ce = xp.log1p(xp.exp(-xp.abs(x))) + xp.maximum(x, 0) - x * t
        error = p * (1 - t) + not_p * t
        factor = error**gamma
        return p, not_p, ce, factor, gamma * factor / xp.where(error > 0, error, 1) * ce

    p, not_p, ce, factor, slope = parts()
    dydx = a * (factor * (p - t) + slope * (1 - 2 * t) * p * not_p)
    y = _reduce(a * factor * ce, reduction)
    del p, not_p, ce, factor, slope                     # needed again only for dt, which is rare

    def backward(dy, need):
        dy = _to_each(dy, x, reduction)
        dt = None
        if need[1]:
            p, _, ce, factor, slope = parts()
            dt = dy * (a_slope * factor * ce + a * (slope * (1 - 2 * p) - factor * x))
        return dy * dydx if need[0] else None, dt

    return y, backward


@op(takes="sums", autocast="loss", facts=_loss(one_like_x))
def l1_loss(x: Array, target: AnyArray, reduction: str = "mean"):
    """|x - t|:  dx = dy sign(x - t),  dt = -dx.

    x: any shape, floating-point.  target t: x's shape.
    Raises ValueError for shapes that differ and for another reduction, TypeError for integers in x.
    """
    xp = array_module(x)
    difference = x - _like("l1_loss", x, target)
    return _of_difference("l1_loss", difference, xp.abs(difference), lambda: xp.sign(difference), reduction)


@op(takes="sums", autocast="loss", facts=_loss(one_like_x))
def smooth_l1_loss(x: Array, target: AnyArray, reduction: str = "mean", beta: float = 1.0):
    """d² / 2β where |d| < β, else |d| - β/2, with d = x - t (Girshick, arXiv 1504.08083).

    dx = dy · clip(d / β, ±1),  dt = -dx.
    x: any shape, floating-point.  target t: x's shape.  beta β: with 0 this is l1_loss.
    Raises ValueError for shapes that differ, another reduction and a negative beta, TypeError for integers in x.
    """
    xp = array_module(x)
    if beta < 0:
        raise ValueError(f"smooth_l1_loss: beta must be 0 or more, not {beta}")
    difference = x - _like("smooth_l1_loss", x, target)
    size = xp.abs(difference)
    if beta == 0:
        return _of_difference("smooth_l1_loss", difference, size, lambda: xp.sign(difference), reduction)
    values = xp.where(size < beta, size * size * (0.5 / beta), size - 0.5 * beta)
    return _of_difference("smooth_l1_loss", difference, values, lambda: xp.clip(difference / beta, -1, 1), reduction)


@op(takes="sums", autocast="loss", facts=_loss(one_like_x))
def mse_loss(x: Array, target: AnyArray, reduction: str = "mean"):
    """(x - t)²:  dx = 2 dy (x - t),  dt = -dx.

    x: any shape, floating-point.  target t: x's shape.
    Raises ValueError for shapes that differ and for another reduction, TypeError for integers in x.
    """
    difference = x - _like("mse_loss", x, target)
    return _of_difference("mse_loss", difference, difference * difference, lambda: 2 * difference, reduction)


def _of_difference(name: str, difference: Array, values: Array, slope, reduction: str):
    """The loss `values`, a function of x - t; slope() is its derivative: dx = dy slope, dt = -dx."""
    _check_options(name, reduction, ("mean", "sum", "none"))

    def backward(dy, need):
        dx = _to_each(dy, difference, reduction) * slope()
        return dx if need[0] else None, -dx if need[1] else None

    return _reduce(values, reduction), backward


def _reduce(values: Array, reduction: str, count: Any = None) -> Array:
    """Apply the reduction. count: the divisor of the mean, if it is not the number of values."""
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if count is None:
        count = len(values) if reduction == "batchmean" else values.size
    with np.errstate(invalid="ignore"):                 # the mean of no values is NaN, without a warning
        return values.sum() / count


def _to_each(dy: Array, x: Array, reduction: str) -> Array:
    """The cotangent of the loss before its reduction."""
    if reduction == "mean":
        return dy / max(1, x.size)
    return dy / max(1, len(x)) if reduction == "batchmean" else dy


def _like(name: str, x: Array, target: Any) -> Array:
    """The target on the device in use, in x's dtype. Raises ValueError if its shape is not x's."""
    target = backend.asarray(target, dtype=x.dtype)
    if target.shape != x.shape:
        raise ValueError(f"{name}: target has shape {target.shape}, x has shape {x.shape}; they must be equal")
    return target


ROUNDING = 1e-6     # by so much a target may lie outside of [0, 1]: shares that were mixed add up to 1 only nearly


def _need_probabilities(what: str, array: Array, hint: str = "", slack: float = 0.0) -> None:
    """Raise ValueError for numbers out of [0, 1]. On the CPU only: a GPU would have to wait for the answer."""
    if backend_of(array) is CPU and array.size and not (array.min() >= -slack and array.max() <= 1 + slack):
        raise ValueError(f"{what} holds probabilities, but lies in [{array.min():g}, {array.max():g}]{hint}")


def _check_options(name: str, reduction: str, allowed: tuple[str, ...]) -> None:
    if reduction not in allowed:
        raise ValueError(f"{name}: reduction must be one of {', '.join(map(repr, allowed))}, not {reduction!r}")
