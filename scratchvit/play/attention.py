"""Where a model's tokens lie and what they attend to, layer by layer, in a form that a page can draw.

Every layer has queries on one grid and keys on another, both laid over the whole picture:

    ViT, DeiT, hybrid   one grid of patches for both, after class and distillation tokens
    Swin, Swin V2       the map of a stage; a token attends to the tokens of its window
    MViT, MViTv2        a grid of queries, and a coarser one of pooled keys and values
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scratchvit import ops
from scratchvit.backend import asarray, asnumpy
from scratchvit.inspect.attention import class_attention, rollout
from scratchvit.inspect.swin import BlockWindows, bias_table, window_blocks
from scratchvit.models.interface import frames_of
from scratchvit.models.mvit import MViT
from scratchvit.models.mvit_v2 import MViTv2
from scratchvit.models.swin import SwinTransformer
from scratchvit.models.vit import VisionTransformer
from scratchvit.nn import Module, evaluating
from scratchvit.training.classification.evaluate import answers_of

MOST_SENT = 1 << 24         # numbers of an answer; of more, the mean over the heads is sent
MOST_RECORDED = 1 << 28     # numbers that are kept while the model computes: 1 GiB


@dataclass(frozen=True)
class Layer:
    """One layer with attention.

    name            for people: "block 3", "stage 2, block 1"
    heads           their number
    queries, keys   (rows, columns) of their grids
    prefix          number of tokens before those of the grids: class and distillation token
    windows         of a Swin
    """

    name: str
    heads: int
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    prefix: int = 0
    windows: BlockWindows | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the probabilities for one image: (heads, queries, keys), or of a Swin (windows, heads, N, N)."""
        if self.windows:
            windows, tokens = self.windows.places.shape
            return windows, self.heads, tokens, tokens
        return self.heads, self.prefix + math.prod(self.queries), self.prefix + math.prod(self.keys)

    def described(self) -> dict[str, Any]:
        """For the page: a dictionary that JSON can hold."""
        about: dict[str, Any] = {
            "name": self.name, "heads": self.heads, "queries": self.queries, "keys": self.keys, "prefix": self.prefix
        }
        if self.windows:
            about["windows"] = {
                "size": self.windows.window, "shift": self.windows.shift, "places": self.windows.places.tolist(),
                "kinds": self.windows.kinds.tolist(), "bias": packed(bias_table(self.windows)),
            }
        return about


def layers_of(model: Any) -> tuple[list[Layer], str]:
    """The layers of a model, and a sentence that says why there are none; "" if there are some."""
    layers: list[Layer]
    if isinstance(model, VisionTransformer):
        grid, heads = model.patch_embed.grid_size, model.config.num_heads
        layers = [
            Layer(f"block {number}", heads, grid, grid, model.num_prefix_tokens)
            for number in range(1, len(model.blocks) + 1)
        ]
    elif isinstance(model, SwinTransformer):
        heads_of = model.config.num_heads
        layers = [
            Layer(f"stage {b.stage}, block {b.number}", heads_of[b.stage - 1], b.size, b.size, windows=b)
            for b in window_blocks(model)
        ]
    elif isinstance(model, MViT | MViTv2):
        if frames_of(model.config) > 1:
            return [], "This model takes clips of several frames, whose attention this page does not draw."
        blocks = model.blocks if isinstance(model, MViT) else [b for stage in model.stages for b in stage.blocks]
        prefix = 1 if isinstance(model, MViT) else model.num_prefix_tokens
        scales = [block.attn.scale for block in blocks]
        layers = [
            Layer(f"block {number}", scale.num_heads, scale.q_size[-2:], scale.kv_size[-2:], prefix)
            for number, scale in enumerate(scales, start=1)
        ]
    else:
        return [], f"This model, a {type(model).__name__}, has no attention between patches."
    if numbers_of(layers) > MOST_RECORDED:
        gib = numbers_of(layers) * 4 / 2**30
        return [], f"The attention of this model is {gib:.1f} GiB for one image, more than this page keeps."
    return layers, ""


def numbers_of(layers: Sequence[Layer]) -> int:
    """How many attention probabilities the layers have for one image."""
    return sum(math.prod(layer.shape) for layer in layers)


def answer_and_attention(
    model: Module, image: NDArray[np.float32], layers: Sequence[Layer]
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """One forward pass in evaluation mode: image (C, H, W) → logits (classes,), and an array of `Layer.shape` each."""
    with evaluating(model):
        if not layers:
            return answers_of(model, asarray(image[None])).numpy()[0], []
        with ops.record_attention() as recorded:
            logits = answers_of(model, asarray(image[None])).numpy()[0]
    return logits, [asnumpy(p).reshape(layer.shape) for p, layer in zip(recorded, layers, strict=True)]


def tokens_of(model: Any, image: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The embeddings (N, D) of the patches of an image (C, H, W), before positions and blocks.

    None for other models than ViTs and Swins.
    """
    if not isinstance(model, VisionTransformer | SwinTransformer):
        return None
    embedded = model.patch_embed(asarray(image[None])).numpy()      # (1, N, D), of a Swin (1, h, w, D)
    return embedded.reshape(-1, embedded.shape[-1])


def packed(array: NDArray) -> dict[str, Any]:
    """An array for JSON: its shape, and its numbers as float16 (3 decimal digits) in base64."""
    return {"shape": array.shape, "float16": base64.b64encode(array.astype("<f2").tobytes()).decode()}


def attention_for_page(layers: Sequence[Layer], maps: Sequence[NDArray[np.float32]]) -> list[dict[str, Any]]:
    """The maps of each layer, packed: (heads, queries, keys), or of a Swin (windows, heads, N, N).

    If they are more than MOST_SENT numbers, the mean over the heads is in the place of the heads, with length 1.
    """
    mean = numbers_of(layers) > MOST_SENT
    return [packed(p.mean(axis=-3, keepdims=True) if mean else p) for p in maps]


def rollout_for_page(model: Any, maps: Sequence[NDArray[np.float32]]) -> dict[str, Any] | None:
    """Attention rollout of a ViT, {"tokens": (N, N), "classifier": (rows, columns)}; None for other models.

    It is not defined for windows, which are merged, nor for pooled keys.
    """
    if not maps or not isinstance(model, VisionTransformer):
        return None
    flow = rollout(np.stack(maps)[:, None])                         # (1, N, N)
    heat = class_attention(flow, model.num_prefix_tokens, model.patch_embed.grid_size)
    return {"tokens": packed(flow[0]), "classifier": packed(heat[0])}
