"""What training makes small. Named and argued as in `torch.nn.functional`.

`reduction` is "mean", "sum" or "none" everywhere. With the mean over n numbers, dy reaches each of them divided by n.
"""

from __future__ import annotations

from typing import Any

from scratchvit import backend
from scratchvit.backend import CPU, Array, array_module, backend_of
from scratchvit.ops.attention import log_probabilities
from scratchvit.ops.elementwise import logistic
from scratchvit.tensor import op


@op
def cross_entropy(
    x: Array, target: Any, weight: Any = None, label_smoothing: float = 0.0, reduction: str = "mean",
    ignore_index: int = -100,
):
    """-Σ_c q_c log p_c with p = softmax(x) over axis 1: how many nats p needs to tell what q already knows.

    x (B, C) or (B, C, d1, …).  target: class indices (B, d1, …), where q is 1 at the class, or a distribution for each
    row, of x's shape; a constant either way.  weight (C,): multiplies q.  label_smoothing ε: q becomes
    (1 - ε) q + ε / C (Szegedy et al., arXiv 1512.00567).  Rows labelled ignore_index count for nothing.
    "mean" divides by the sum of the rows' weights for indices, by the number of rows for distributions.

    As log p_c = x_c - log Σ eˣ, whose derivative is δ - p:    dx = dy (p Σ_c q_c - q).
    """
    xp = array_module(x)
    target = backend.asarray(target)
    _check_options("cross_entropy", reduction, ("mean", "sum", "none"))
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing must lie in [0, 1], not {label_smoothing}")
    weight = _class_weights(x, weight)
    log_p = log_probabilities(x, 1)
    if target.dtype.kind == "f":
        find = _distribution
    else:
        find = _labels
        _check_labels(target, x.shape[1], ignore_index)
    rows, mass, q, count = find(x, log_p, target, weight, label_smoothing, ignore_index)

    def backward(dy):
        dx = xp.exp(log_p)
        dx *= mass
        dx -= q()
        dx *= xp.expand_dims(dy, 1) if reduction == "none" else dy / count if reduction == "mean" else dy
        return dx

    return rows if reduction == "none" else rows.sum() / count if reduction == "mean" else rows.sum(), backward


def _distribution(x, log_p, target, weight, smoothing, ignore_index):
    """For a given distribution: each row's loss, Σ_c q_c (B, 1, …), q as a function, and what the mean divides by."""
    if target.shape != x.shape:
        raise ValueError(f"cross_entropy: a target of distributions has x's shape {x.shape}, not {target.shape}")
    q = target.astype(x.dtype, copy=False)
    if smoothing:
        q = q * (1 - smoothing) + smoothing / x.shape[1]
    if weight is not None:
        q = q * weight
    return -(q * log_p).sum(axis=1), q.sum(axis=1, keepdims=True), lambda: q, x.size // x.shape[1]


def _labels(x, log_p, target, weight, smoothing, ignore_index):
    """The same for class indices: q = a at the class, plus b everywhere."""
    xp = array_module(x)
    if target.shape != (x.shape[0], *x.shape[2:]):
        raise ValueError(
            f"cross_entropy: for x of shape {x.shape} a target of class indices has shape "
            f"{(x.shape[0], *x.shape[2:])}, not {target.shape}"
        )
    counts = target != ignore_index
    label = xp.expand_dims(xp.where(counts, target, 0), 1)                          # (B, 1, …)
    row_weight = xp.expand_dims(counts.astype(x.dtype), 1)
    b = row_weight * (smoothing / x.shape[1])                                       # (B, 1, …)
    if weight is not None:
        row_weight = row_weight * xp.take(weight, label)
        b = b * weight                                                              # (B, C, …)
    a = row_weight * (1 - smoothing)
    rows, mass = -(a * xp.take_along_axis(log_p, label, axis=1)), a
    if smoothing:
        rows = rows - (b * log_p).sum(axis=1, keepdims=True)
        mass = a + (b.sum(axis=1, keepdims=True) if weight is not None else b * x.shape[1])

    classes = xp.arange(x.shape[1]).reshape(-1, *(1 for _ in x.shape[2:]))          # (C, 1, …)

    def q():
        one_hot = (classes == label) * a
        return one_hot + b if smoothing else one_hot

    return rows[:, 0], mass, q, row_weight.sum()


def _class_weights(x: Array, weight: Any) -> Array | None:
    """The weights as (C, 1, …), to stand against x (B, C, …)."""
    if x.ndim < 2:
        raise ValueError(f"cross_entropy: x must be (B, C) or (B, C, d1, …), not {x.shape}")
    if weight is None:
        return None
    weight = backend.asarray(weight, dtype=x.dtype)
    if weight.shape != (x.shape[1],):
        raise ValueError(
            f"cross_entropy: weight has shape {weight.shape}, but x of shape {x.shape} has {x.shape[1]} classes"
        )
    return weight.reshape(-1, *(1 for _ in x.shape[2:]))


def _check_labels(target: Array, classes: int, ignore_index: int) -> None:
    """Labels in range? On the CPU only: on a GPU the answer would have to be waited for in every step. There a wrong
    label reads a wrong number; data is checked when it is loaded."""
    if target.dtype.kind not in "iu":
        raise ValueError(
            f"cross_entropy: a target holds integers (classes) or floats (distributions), not {target.dtype}"
        )
    if backend_of(target) is not CPU or target.size == 0:
        return
    used = target[target != ignore_index]
    if used.size and (used.min() < 0 or used.max() >= classes):
        worst = int(used.min()) if used.min() < 0 else int(used.max())
        raise ValueError(
            f"cross_entropy: label {worst} is not one of the {classes} classes 0…{classes - 1} that x has scores for; "
            "mend the labels, or give the model num_classes to match"
        )


@op
def kl_div(x: Array, target: Array, reduction: str = "mean", log_target: bool = False):
    """Σ t (log t - x): how far the distribution t is from the one whose logarithms x are.

    log_target: target holds log t.  reduction: also "batchmean", the sum over the length of axis 0, which is the
    divergence as mathematics has it; "mean" divides by the number of entries.
        dx = -dy t,    dt = dy (log t + 1 - x),    d(log t) = t dt;    t log t is 0 at t = 0
    """
    xp = array_module(x)
    target = _like("kl_div", x, target)
    _check_options("kl_div", reduction, ("mean", "sum", "none", "batchmean"))
    if log_target:
        t, log_t = xp.exp(target), target
    else:
        t, log_t = target, xp.log(xp.where(target > 0, target, 1))

    def backward(dy, need):
        g = _to_each(dy, x, reduction)
        dt = (log_t + 1 - x) * g if need[1] else None
        return -t * g if need[0] else None, dt * t if need[1] and log_target else dt

    return _reduce(t * (log_t - x), reduction), backward


@op
def binary_cross_entropy(x: Array, target: Array, weight: Any = None, reduction: str = "mean"):
    """-w (t log x + (1 - t) log(1 - x)) for probabilities x, logarithms no lower than -100.

    dx = dy w (x - t) / x (1 - x),    dt = dy w (log(1 - x) - log x).    weight: constant, broadcast against x.
    Numbers that are still logits are better left to binary_cross_entropy_with_logits.
    """
    xp = array_module(x)
    target = _like("binary_cross_entropy", x, target)
    _check_options("binary_cross_entropy", reduction, ("mean", "sum", "none"))
    if backend_of(x) is CPU and x.size and not (x.min() >= 0 and x.max() <= 1):         # on a GPU it would have to wait
        raise ValueError(
            f"binary_cross_entropy: x holds probabilities, but lies in [{x.min():g}, {x.max():g}]; "
            "for logits use binary_cross_entropy_with_logits"
        )
    w = 1 if weight is None else backend.asarray(weight, dtype=x.dtype)
    log_x, log_not_x = _log_at_least(x, -100), _log_at_least(1 - x, -100)

    def backward(dy, need):
        g = _to_each(dy, x, reduction) * w
        return (
            g * (x - target) / xp.maximum(x * (1 - x), 1e-12) if need[0] else None,
            g * (log_not_x - log_x) if need[1] else None,
        )

    return _reduce(-w * (target * log_x + (1 - target) * log_not_x), reduction), backward


def _log_at_least(x: Array, least: float) -> Array:
    xp = array_module(x)
    return xp.where(x > 0, xp.maximum(xp.log(xp.where(x > 0, x, 1)), least), least)


@op
def binary_cross_entropy_with_logits(
    x: Array, target: Array, weight: Any = None, reduction: str = "mean", pos_weight: Any = None,
):
    """w (P t s(-x) + (1 - t) s(x)) with s(x) = log(1 + eˣ) and P = pos_weight: binary_cross_entropy of σ(x).

    With s(-x) = log(1 + e^-|x|) + max(-x, 0), which never overflows, and s(x) = x + s(-x), it is
        w ((1 - t) x + c s(-x)),  c = 1 + (P - 1) t,    dx = dy w (c σ(x) - P t),    dt = dy w ((P - 1) s(-x) - x)
    weight, pos_weight: constants, broadcast against x.
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


@op
def sigmoid_focal_loss(x: Array, target: Any, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "none"):
    """Cross-entropy in which what is right already counts little (Lin et al., arXiv 1708.02002, eq. 5), entry by entry.

    x: logits. target: 0 or 1, of x's shape. alpha: what a 1 counts, and 1 - alpha a 0; below 0: both 1.
    With s = x where target is 1, -x where 0, and p = 1 / (1 + e⁻ˢ) the probability of what is right:

        y = -α (1 - p)ᵞ log p,    dx = ±dy α (1 - p)ᵞ (γ p log p + p - 1)                       (appendix B)
    """
    _check_options("sigmoid_focal_loss", reduction, ("none", "mean", "sum"))
    xp = array_module(x)
    target = _like("sigmoid_focal_loss", x, target)
    sign = 2 * target - 1
    s = x * sign
    p, log_p = logistic(s), xp.minimum(s, 0) - xp.log1p(xp.exp(-xp.abs(s)))
    weight = (1 - p) ** gamma
    if alpha >= 0:
        weight *= 1 - alpha + (2 * alpha - 1) * target
    slope = sign * weight * (gamma * p * log_p + p - 1)
    return _reduce(-weight * log_p, reduction), lambda dy: _to_each(dy, slope, reduction) * slope


@op
def l1_loss(x: Array, target: Array, reduction: str = "mean"):
    """|x - t|:  dx = dy sign(x - t),  dt = -dx."""
    xp = array_module(x)
    difference = x - _like("l1_loss", x, target)
    return _of_difference("l1_loss", difference, xp.abs(difference), lambda: xp.sign(difference), reduction)


@op
def smooth_l1_loss(x: Array, target: Array, reduction: str = "mean", beta: float = 1.0):
    """With d = x - t: d² / 2β where |d| < β, else |d| - β/2 (Girshick, arXiv 1504.08083).

    dx = dy · clip(d / β, ±1),  dt = -dx.
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


@op
def mse_loss(x: Array, target: Array, reduction: str = "mean"):
    """(x - t)²:  dx = 2 dy (x - t),  dt = -dx."""
    difference = x - _like("mse_loss", x, target)
    return _of_difference("mse_loss", difference, difference * difference, lambda: 2 * difference, reduction)


def _of_difference(name: str, difference: Array, values: Array, slope, reduction: str):
    """A loss of x - t: its slope goes to x, and with the other sign to t."""
    _check_options(name, reduction, ("mean", "sum", "none"))

    def backward(dy, need):
        dx = _to_each(dy, difference, reduction) * slope()
        return dx if need[0] else None, -dx if need[1] else None

    return _reduce(values, reduction), backward


def _reduce(values: Array, reduction: str) -> Array:
    if reduction == "none":
        return values
    if reduction == "batchmean":
        return values.sum() / len(values)
    return values.mean() if reduction == "mean" else values.sum()


def _to_each(dy: Array, x: Array, reduction: str) -> Array:
    """The cotangent of every entry of what was reduced."""
    if reduction == "mean":
        return dy / max(1, x.size)
    return dy / max(1, len(x)) if reduction == "batchmean" else dy


def _like(name: str, x: Array, target: Any) -> Array:
    """The target on x's device, in its dtype, when it has x's shape."""
    target = backend.asarray(target, dtype=x.dtype)
    if target.shape != x.shape:
        raise ValueError(f"{name}: target has shape {target.shape}, x has shape {x.shape}; they must be equal")
    return target


def _check_options(name: str, reduction: str, allowed: tuple[str, ...]) -> None:
    if reduction not in allowed:
        raise ValueError(f"{name}: reduction must be one of {', '.join(map(repr, allowed))}, not {reduction!r}")
