"""Weight initialisation: float32 NumPy arrays drawn on the host, so that a seed gives the same model on any device."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from scratchvit.errors import WrongValue

_drawing = True


def is_drawing() -> bool:
    """Whether initial weights are drawn: False inside `without_weights`."""
    return _drawing


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Context manager in which models are created with shapes but without weights, for counting parameters and costs.

    Initialisers then return a single zero, broadcast to the shape (a view with stride 0), and `Parameter.assign` does
    nothing. Creating ViT-H/14 takes milliseconds instead of seconds and 2.5 GB.
    """
    global _drawing
    before, _drawing = _drawing, False
    try:
        yield
    finally:
        _drawing = before


def _initialiser(draw: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    @functools.wraps(draw)
    def values(shape: tuple[int, ...], *args: Any, **kwargs: Any) -> np.ndarray:
        return draw(shape, *args, **kwargs) if _drawing else np.broadcast_to(np.float32(0), shape)

    return values


@_initialiser
def uniform(shape: tuple[int, ...], rng: np.random.Generator, bound: float) -> np.ndarray:
    """Draw float32 from a uniform distribution on [-bound, bound); any shape."""
    return (rng.random(shape, dtype=np.float32) * 2 - 1) * np.float32(bound)


@_initialiser
def normal(shape: tuple[int, ...], rng: np.random.Generator, std: float) -> np.ndarray:
    """Draw float32 from a normal distribution with mean 0 and standard deviation std; any shape."""
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(std)


@_initialiser
def trunc_normal(shape: tuple[int, ...], rng: np.random.Generator, std: float = 0.02, limit: float = 2.0) -> np.ndarray:
    """Draw float32 from a truncated normal distribution with mean 0 and standard deviation std; any shape.

    Values beyond ±limit are drawn again. The limit is absolute, not a multiple of std, as in timm.
    """
    values = normal(shape, rng, std)
    while (beyond := np.abs(values) > limit).any():
        values[beyond] = normal((int(beyond.sum()),), rng, std)
    return values


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight of shape (out, in) or (out, in, *kernel): inputs per output, outputs per input."""
    taps = math.prod(shape[2:])
    return shape[1] * taps, shape[0] * taps


@_initialiser
def kaiming_uniform(shape: tuple[int, ...], rng: np.random.Generator, a: float = 0.0) -> np.ndarray:
    """He initialisation, uniform: preserves the variance in the forward pass through leaky ReLUs of slope a.

    Uniform within ±√(6 / ((1 + a²) fan_in)) (He et al. 2015, arXiv 1502.01852, eq. 15).
    shape: (out, in) or (out, in, *kernel).
    """
    return uniform(shape, rng, math.sqrt(6 / ((1 + a * a) * fans(shape)[0])))


@_initialiser
def kaiming_normal(shape: tuple[int, ...], rng: np.random.Generator, mode: str = "fan_out") -> np.ndarray:
    """He initialisation, normal: preserves the variance through ReLU.

    Standard deviation √(2 / fan) (He et al. 2015, arXiv 1502.01852, eq. 10 and 14). shape: (out, in) or
    (out, in, *kernel).  mode: "fan_in" for the forward pass, "fan_out" for the backward pass.
    Raises ValueError for another mode.
    """
    if mode not in ("fan_in", "fan_out"):
        raise WrongValue(f'mode must be "fan_in" or "fan_out", not {mode!r}')
    return normal(shape, rng, math.sqrt(2 / fans(shape)[mode == "fan_out"]))


@_initialiser
def xavier_uniform(shape: tuple[int, ...], rng: np.random.Generator, gain: float = 1.0) -> np.ndarray:
    """Xavier initialisation, uniform: a compromise that preserves the variance in the forward and backward pass.

    Uniform within ±gain · √(6 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 16).
    shape: (out, in) or (out, in, *kernel).
    """
    return uniform(shape, rng, gain * math.sqrt(6 / sum(fans(shape))))


@_initialiser
def xavier_normal(shape: tuple[int, ...], rng: np.random.Generator, gain: float = 1.0) -> np.ndarray:
    """Xavier initialisation, normal, with standard deviation gain · √(2 / (fan_in + fan_out)).

    shape: (out, in) or (out, in, *kernel).
    """
    return normal(shape, rng, gain * math.sqrt(2 / sum(fans(shape))))
