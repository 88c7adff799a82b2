"""Sampling images from an iGPT, pixel by pixel, with a cache of keys and values.

Without the cache, pixel i would need a forward pass over i tokens, and an image of N pixels N²/2 tokens in all.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scratchvit.backend import Array, array_module, asarray
from scratchvit.errors import ScratchvitError
from scratchvit.models.igpt import IGPT
from scratchvit.nn import evaluating


def sample(
    model: IGPT, tokens: Any, temperature: float = 1.0, top_k: int | None = None, rng: np.random.Generator | None = None
) -> Array:
    """Complete images: from the first n pixels, tokens int (B, n), n ≥ 0, to all pixels, int64 (B, H·W), on the device.

    Each pixel is sampled from softmax(logits / temperature) over the top_k most probable colours, by default all.
    Temperature 0 always takes the most probable one. Random numbers come from rng, on the host; nothing is copied from
    the device. The mode of the model (training or evaluation) does not change.
    Raises ScratchvitError for a classifier, and for settings or tokens out of range.
    """
    if not model.generative:
        raise ScratchvitError("this iGPT is a classifier and generates no pixels: use one without num_classes")
    K, N = model.config.num_colors, model.num_tokens
    if not 0 <= temperature < math.inf:
        raise ScratchvitError(f"temperature must be finite and at least 0, not {temperature}")
    if top_k is not None and not 1 <= top_k <= K:
        raise ScratchvitError(f"top_k must be from 1 to {K}, the number of colours, not {top_k}")
    rng = rng or np.random.default_rng()
    inputs = model.after_start(tokens)                          # (B, 1 + n)
    B, given = len(inputs), inputs.shape[1] - 1
    pixels = array_module(inputs).empty((B, N), dtype=np.int64)
    pixels[:, :given] = inputs[:, 1:]
    caches = model.key_value_caches(B)
    with evaluating(model):
        for i in range(given, N):
            x = model.transformer(inputs, caches)[:, -1]        # (B, D): features for predicting pixel i
            pixels[:, i] = _draw(model.lm_head(x).data, temperature, top_k, rng)
            inputs = pixels[:, i : i + 1]                       # (B, 1)
    return pixels


def _draw(logits: Array, temperature: float, top_k: int | None, rng: np.random.Generator) -> Array:
    """Sample a colour for each row of logits (B, K): int64 (B,).

    The argmax after adding Gumbel noise to the logits is a sample from their softmax (Gumbel-max trick).
    """
    xp = array_module(logits)
    if temperature == 0:
        return logits.argmax(axis=1)
    scores = logits / temperature
    if top_k is not None:
        least = xp.sort(scores, axis=1)[:, -top_k, None]
        scores = xp.where(scores < least, -math.inf, scores)
    return (scores + asarray(rng.gumbel(size=scores.shape), scores.dtype)).argmax(axis=1)
