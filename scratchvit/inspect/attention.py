"""Where a Transformer looks: the probabilities of its attention, read out while it computes.

    maps = attention_maps(model, images)        # (layers, B, heads, N, N), each row a distribution over N tokens
    flow = rollout(maps)                        # (B, N, N), the layers multiplied up
    heat = class_attention(flow, prefix, grid)  # (B, rows, columns), what the classifier's input took from each patch
"""

from __future__ import annotations

import numpy as np

from scratchvit import ops
from scratchvit.backend import asarray, asnumpy
from scratchvit.errors import ScratchvitError
from scratchvit.nn import Module, evaluating


def attention_maps(model: Module, images: np.ndarray) -> np.ndarray:
    """Every layer's attention probabilities (layers, B, heads, N, N) for images (B, C, H, W), in evaluation mode.

    [l, b, h, i, j] is how much token i takes from token j; the sum over j is 1. Raises ScratchvitError for a model
    that has no attention, or whose layers see different numbers of tokens.
    """
    with evaluating(model), ops.record_attention() as recorded:
        model(asarray(images))
    shapes = {tuple(p.shape) for p in recorded}
    if len(shapes) != 1 or len(next(iter(shapes))) != 4:
        found = ", ".join(map(str, sorted(shapes))) or "none at all"
        raise ScratchvitError(
            f"{type(model).__name__}: attention maps need layers that all attend over the same tokens, "
            f"(B, heads, N, N); found: {found}"
        )
    return np.stack([asnumpy(p) for p in recorded])


def rollout(maps: np.ndarray) -> np.ndarray:
    """Attention rollout (Abnar & Zuidema 2020, arXiv 2005.00928, eq. 1): maps (L, B, heads, N, N) → (B, N, N).

    A block adds what attention brings to what was there, so information flows with Â = (A + I) / 2, A the mean over
    heads; from the first layer to the last it flows with the product

        R_1 = Â_1,    R_l = Â_l R_{l-1}.

    [b, i, j] is how much of token i at the end came from token j at the start, as far as attention tells; the rows
    are distributions again.
    """
    layers = (maps.mean(axis=2) + np.eye(maps.shape[-1], dtype=maps.dtype)) / 2     # (L, B, N, N)
    flow = layers[0]
    for layer in layers[1:]:
        flow = layer @ flow
    return flow


def class_attention(attention: np.ndarray, num_prefix_tokens: int, grid_size: tuple[int, int]) -> np.ndarray:
    """What the classifier's input took from each patch: attention (B, N, N) → (B, rows, columns).

    With a class token, its row; without one, the mean over all rows, which is the attention that a patch received.
    """
    row = attention[:, 0] if num_prefix_tokens else attention.mean(axis=1)          # (B, N)
    return row[:, num_prefix_tokens:].reshape(-1, *grid_size)
