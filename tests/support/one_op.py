"""A function of Tensors, run forward and backward under random cotangents: values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from scratchvit.backend import asarray, asnumpy
from scratchvit.graph import run_backward
from scratchvit.tensor import Tensor, edge_to
from tests.support.seeds import seeded


def forward_and_backward(
    fn: Callable[..., Any], arrays: list[np.ndarray], wanted: list[bool] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of fn; its inputs with gradients of the wanted ones (None: all) under fixed random cotangents."""
    inputs = [Tensor(array, requires_grad=want) for array, want in zip(arrays, wanted or [True] * len(arrays))]
    outputs = fn(*inputs)
    outputs = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    run_backward([(edge_to(y), asarray(v)) for y, v in zip(outputs, cotangents(outputs)) if y.requires_grad])
    return outputs, inputs


def run(
    fn: Callable[..., Any], arrays: list[np.ndarray], wanted: list[bool] | None = None
) -> dict[str, list[Any]]:
    """The values and gradients of `forward_and_backward` on the host."""
    outputs, inputs = forward_and_backward(fn, arrays, wanted)
    return {
        "value": [y.numpy() for y in outputs],
        "gradient": [None if t.grad is None else asnumpy(t.grad) for t in inputs],
    }


def cotangents(outputs: Any) -> list[np.ndarray]:
    """A read-only random cotangent for every output, the same numbers in every dtype."""
    rng = seeded(1)
    result = []
    for y in outputs:
        dtype = str(y.dtype).removeprefix("torch.")
        result.append(np.asarray(rng.standard_normal(tuple(y.shape))).astype(np.float32).astype(dtype))
        result[-1].flags.writeable = False
    return result
