"""Gradient checkpointing: recompute activations instead of storing them (Chen et al. 2016, arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Callable

from scratchvit import random
from scratchvit.backend import Array
from scratchvit.casting import mark_alike
from scratchvit.errors import WrongState
from scratchvit.graph import Recomputed, new_node, reachable, run_backward
from scratchvit.recording import enable_grad, is_recording, mode, storing
from scratchvit.tensor import Tensor, edge_to, watch_constants, wrap


def checkpoint(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Compute `function(*tensors)` but save only its inputs; the backward pass recomputes the function.

    When it is recomputed, dropout uses the same masks. Parameters that the function uses get their gradients as usual.
    The function must return one Tensor, and must not use tensors other than `tensors` and parameters. Running
    statistics inside (BatchNorm) are updated twice.
    The backward pass raises RuntimeError if a parameter was changed in place in the meantime, or if the function draws
    more random numbers than in the forward pass.
    """
    if not is_recording():
        return function(*tensors)
    half = mode.get().half      # of autocast, outside of which backward() is usually called
    with random.recorded() as draws:
        own = [*map(_leaf_like, tensors)]
        value = function(*own)
    if not value.requires_grad:
        return value

    constants = [_leaf_like(t) for t in tensors]    # of the same arrays, without the graph that made them
    _, leaves = reachable([edge_to(value)])
    leaves = [edge for edge in leaves if all(edge[0] is not tensor for tensor in own)]

    def backward(dy: Array) -> list[Array | None]:
        if any(leaf.version.count != version for leaf, version in leaves):
            raise WrongState(
                "checkpoint: a parameter was changed in place (by an optimiser's step, or by +=) after the forward "
                "pass, so recomputing the function would give another value: call backward() before changing it"
            )
        inputs = [*map(_leaf_like, constants)]
        with enable_grad(), storing(half), random.replayed(draws):
            again = function(*inputs)
        run_backward([(edge_to(again), dy)])
        return [tensor.grad for tensor in inputs]

    node = new_node("checkpoint", backward, [edge_to(t) for t in tensors], 1, kind=Recomputed)
    node.inner_leaves = leaves
    watch_constants(node, tensors)
    result = wrap(value.data, node=node)       # without the node of `value`, whose graph is freed
    mark_alike(result, value)
    return result


def _leaf_like(t: Tensor) -> Tensor:
    """A leaf with the array of t."""
    leaf = Tensor(t.data, requires_grad=t.requires_grad)
    mark_alike(leaf, t)
    return leaf
