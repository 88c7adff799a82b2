"""Wrong backwards, made on purpose: what the gradient check and the error bounds of comparisons must catch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from scratchvit import graph
from scratchvit.backend import Array, array_module


def _permuted(g: Array) -> Array:
    """Transposed, or where that moves nothing, reversed."""
    transposed = g.swapaxes(-1, -2).reshape(g.shape) if g.ndim > 1 else g
    return transposed if (transposed != g).any() else g.reshape(-1)[::-1].reshape(g.shape)


BREAKAGES: dict[str, Callable[[Array], Array]] = {
    "scaled": lambda g: 1.01 * g,
    "flipped": lambda g: -g,
    "permuted": _permuted,
    # What a forgotten or doubled `- mean(g)`, as in softmax or a norm, leaves: the same amount everywhere.
    "a term missing": lambda g: g + 0.1 * array_module(g).abs(g).mean() if g.size else g,
    "first zeroed": lambda g: g * 0,
    "last zeroed": lambda g: g * 0,
}


def break_backward(name: str, breakage: str, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Break the backward of every op of that name from now on. Fills the list returned: did it change a gradient?"""
    changed: list[bool] = []
    sound, broken = graph._apply_backward, BREAKAGES[breakage]

    def apply_backward(node, incoming):
        gradients = list(sound(node, incoming))
        wanted = [i for i, edge in enumerate(node.edges) if edge is not None]
        # A row may apply its op twice in a row; two flipped signs would be none.
        if node.name != name or any(name == getattr(node.edges[i][0], "name", "") for i in wanted):
            return gradients
        for i in {"first zeroed": wanted[:1], "last zeroed": wanted[-1:]}.get(breakage, wanted):
            if gradients[i] is not None:
                sound_gradient, gradients[i] = gradients[i], broken(gradients[i])
                changed.append(not np.array_equal(sound_gradient, gradients[i]))
        return gradients

    monkeypatch.setattr(graph, "_apply_backward", apply_backward)
    return changed
