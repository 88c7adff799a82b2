"""Recompute instead of remember: memory for time (Chen et al. 2016, arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Callable

from scratchvit import random
from scratchvit.backend import Array
from scratchvit.graph import Node, reachable, run_backward
from scratchvit.recording import is_recording, recording
from scratchvit.tensor import Tensor, edge_to, wrap


def checkpoint(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function(*tensors)`, keeping only its inputs: what lies between is computed again when gradients are wanted.

    Dropout draws the same masks again. Parameters that the function uses get their gradients as usual. It returns one
    Tensor; other tensors than `tensors` and parameters it must not use; running statistics inside (BatchNorm) are
    updated twice.
    When going back, raises RuntimeError if a parameter was changed in place since, or if the function then draws more
    random numbers than it did at first.
    """
    if not is_recording():
        return function(*tensors)
    with random.recorded() as draws:
        value = function(*(Tensor(t.data, requires_grad=t.requires_grad) for t in tensors))
    if not value.requires_grad:
        return value

    arrays = [t.data for t in tensors]
    wants = [t.requires_grad for t in tensors]
    _, leaves = reachable([edge_to(value)])

    def backward(dy: Array) -> list[Array | None]:
        if any(leaf._version != version for leaf, version in leaves):
            raise RuntimeError(
                "checkpoint: a parameter was changed in place (by an optimiser's step, or by +=) after the value was "
                "computed, so that computing it again gives another: go back first"
            )
        inputs = [Tensor(array, requires_grad=want) for array, want in zip(arrays, wants)]
        with recording(), random.replayed(draws):
            again = function(*inputs)
        run_backward([(edge_to(again), dy)])
        return [tensor.grad for tensor in inputs]

    result = wrap(value.data)      # without the node of `value`: its graph dies here
    result.requires_grad = True
    result._edge = (Node("checkpoint", backward, tuple(edge_to(t) for t in tensors), 1), 0)
    return result
