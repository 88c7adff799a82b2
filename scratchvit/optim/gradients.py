"""The norm of all gradients, and clipping by it."""

from __future__ import annotations

from collections.abc import Iterable

from scratchvit.backend import Array, array_module, asarray
from scratchvit.errors import ScratchvitError
from scratchvit.kernels import total_norm, updates
from scratchvit.tensor import Tensor


def grad_norm(params: Iterable[Tensor]) -> Array:
    """The total norm √Σ g² of all gradients: a 0-d array on the device; nothing is copied to the host.

    It is finite only if all entries are, so it is enough to check this number before a step. (In float32, a norm above
    1.8e19 is infinite too, as the squares in Adam's second moment would be.)
    """
    gradients = contiguous_gradients(params)
    return total_norm.total_norm(gradients) if gradients else asarray(0.0)


def clip_factor(norm: Array, max_norm: float) -> Array:
    """What gradients of this total norm are multiplied by to clip it: min(1, max_norm / (norm + 1e-6)).

    norm: a 0-d array, from `grad_norm`. Returns a 0-d array on the device, for `Optimizer.step`, which then needs no
    `clip_grad_norm`: a pass over the gradients less. It is NaN if the norm is.
    Raises ScratchvitError for a max_norm that is not positive.
    """
    if not max_norm > 0:
        raise ScratchvitError(f"max_norm must be positive, not {max_norm}")
    return total_norm.clip_factor(norm, max_norm)


def clip_grad_norm(params: Iterable[Tensor], max_norm: float, norm: Array | None = None) -> Array:
    """Clip the total norm of the gradients, in place: scale all by min(1, max_norm / (norm + 1e-6)).

    As `torch.nn.utils.clip_grad_norm_` (Pascanu et al. 2013, arXiv 1211.5063, algorithm 1).
    norm: the result of `grad_norm`, if it is already known.
    Returns the total norm before clipping, a 0-d array on the device; nothing is copied to the host. If it is infinite
    or NaN, the clipped gradients are invalid: check it before a step.
    Raises ScratchvitError for a max_norm that is not positive.
    """
    params = list(params)
    norm = grad_norm(params) if norm is None else norm
    factor = clip_factor(norm, max_norm)
    if gradients := contiguous_gradients(params):
        updates.scale(gradients, factor)
    return norm


def contiguous_gradients(params: Iterable[Tensor]) -> list[Array]:
    """The gradients that are not None, made contiguous; writing to them changes the gradients."""
    gradients = []
    for parameter in params:
        if parameter.grad is not None:
            parameter.grad = contiguous(parameter.grad)
            gradients.append(parameter.grad)
    return gradients


def contiguous(x: Array) -> Array:
    """x, or a copy of it if its entries do not lie one after the other in memory."""
    return x if x.flags.c_contiguous else array_module(x).asarray(x, order="C")
