"""Pictures drawn by an iGPT, pixel by pixel. The keys and values of the pixels so far are kept; a step adds one.

Without them pixel i would cost a forward over i tokens, and a picture of N pixels N²/2 of them.
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
    """Go on with pictures: the first n pixels, tokens int (B, n), n ≥ 0 → all of them, int64 (B, H·W), on the device.

    A pixel at a time, drawn from what the model says: softmax(logits / temperature) of the top_k likeliest colours, all
    of them by default. Temperature 0 takes the likeliest. Chance is the rng's, NumPy's, on the host; nothing is read
    back from the device. The model stays in the mode in which it was.
    Raises ScratchvitError for a model that learned classes, and for settings or tokens out of range.
    """
    if not model.generative:
        raise ScratchvitError("this iGPT tells classes apart and draws no pixels: take one without num_classes")
    K, N = model.config.num_colors, model.num_tokens
    if not 0 <= temperature < math.inf:
        raise ScratchvitError(f"temperature must be a number from 0 up, not {temperature}")
    if top_k is not None and not 1 <= top_k <= K:
        raise ScratchvitError(f"top_k is a number of colours, 1 … {K}, not {top_k}")
    rng = rng or np.random.default_rng()
    inputs = model.after_start(tokens)                          # (B, 1 + n)
    B, given = len(inputs), inputs.shape[1] - 1
    pixels = array_module(inputs).empty((B, N), dtype=np.int64)
    pixels[:, :given] = inputs[:, 1:]
    caches = model.key_value_caches(B)
    with evaluating(model):
        for i in range(given, N):
            x = model.transformer(inputs, caches)[:, -1]        # (B, D): what is known when pixel i is drawn
            pixels[:, i] = _draw(model.lm_head(x).data, temperature, top_k, rng)
            inputs = pixels[:, i : i + 1]                       # (B, 1)
    return pixels


def _draw(logits: Array, temperature: float, top_k: int | None, rng: np.random.Generator) -> Array:
    """A colour for each row of logits (B, K): int64 (B,).

    The place of the largest logit, after each had a Gumbel number added, is a draw from their softmax (Gumbel-max).
    """
    xp = array_module(logits)
    if temperature == 0:
        return logits.argmax(axis=1)
    scores = logits / temperature
    if top_k is not None:
        least = xp.sort(scores, axis=1)[:, -top_k, None]
        scores = xp.where(scores < least, -math.inf, scores)
    return (scores + asarray(rng.gumbel(size=scores.shape), scores.dtype)).argmax(axis=1)
