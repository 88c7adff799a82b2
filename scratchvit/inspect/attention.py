"""Attention maps of a Transformer, recorded during a forward pass, and attention rollout.

    maps = attention_maps(model, images)        # (layers, B, heads, N, N), each row a distribution over N tokens
    flow = rollout(maps)                        # (B, N, N), the layers multiplied up
    heat = class_attention(flow, prefix, grid)  # (B, rows, columns), attention of the classifier's input to each patch
    far = attention_distance(maps, prefix, grid, patch)     # (layers, heads), in pixels
"""

from __future__ import annotations

import numpy as np

from scratchvit import ops
from scratchvit.backend import asarray, asnumpy
from scratchvit.errors import ScratchvitError
from scratchvit.nn import Module, evaluating


def attention_maps(model: Module, images: np.ndarray) -> np.ndarray:
    """The attention probabilities of all layers (layers, B, heads, N, N) for images (B, C, H, W), in evaluation mode.

    [l, b, h, i, j] is the attention of token i to token j; the sum over j is 1. Raises ScratchvitError for a model
    without attention, or whose layers have different numbers of tokens.
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

    A block adds the output of attention to its input, so information flows with Â = (A + I) / 2, where A is the mean
    over heads; from the first layer to the last it flows with the product

        R_1 = Â_1,    R_l = Â_l R_{l-1}.

    [b, i, j] estimates how much of token i in the last layer comes from token j of the input. Rows sum to 1.
    """
    layers = (maps.mean(axis=2) + np.eye(maps.shape[-1], dtype=maps.dtype)) / 2     # (L, B, N, N)
    flow = layers[0]
    for layer in layers[1:]:
        flow = layer @ flow
    return flow


def class_attention(attention: np.ndarray, num_prefix_tokens: int, grid_size: tuple[int, int]) -> np.ndarray:
    """The attention of the classifier's input to each patch: attention (B, N, N) → (B, rows, columns).

    With a class token this is its row; without one, the mean over all rows, the attention that each patch receives.
    """
    row = attention[:, 0] if num_prefix_tokens else attention.mean(axis=1)          # (B, N)
    return row[:, num_prefix_tokens:].reshape(-1, *grid_size)


def attention_distance(
    maps: np.ndarray, num_prefix_tokens: int, grid_size: tuple[int, int], patch_size: tuple[float, float]
) -> np.ndarray:
    """How far each head looks, in pixels (layers, heads): the attention distance of ViT (2010.11929, §4.5, Figure 7).

    It is the mean of the distances between the centres of two patches i and j, weighted by the attention of i to j,
    over all i. maps (layers, B, heads, N, N); patch_size (height, width) in pixels. Class and distillation tokens have
    no place and are left out: what a patch attends to among the patches is divided by its sum.
    """
    cells = np.indices(grid_size).reshape(2, -1).T * np.array(patch_size, np.float64)           # (patches, 2)
    apart = np.linalg.norm(cells[:, None] - cells, axis=-1)                                     # (patches, patches)
    among = maps[..., num_prefix_tokens:, num_prefix_tokens:].astype(np.float64)
    far = (among * apart).sum(axis=-1) / among.sum(axis=-1)
    return far.mean(axis=(1, 3))
