"""Initial weights: float32 NumPy arrays drawn on the host, so that a seed gives the same model on every device."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_drawing = True


def is_drawing() -> bool:
    """Whether initial weights are really drawn; not inside `without_weights`."""
    return _drawing


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Models created inside have the right shapes and no weights: good for counting, not for computing.

    An initialiser then gives one zero, broadcast to its shape (a view with stride 0), and `Parameter.assign` does
    nothing. ViT-H/14 takes milliseconds instead of seconds and 2.5 GB.
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
    """Uniform in [-bound, bound): float32 of any shape."""
    return (rng.random(shape, dtype=np.float32) * 2 - 1) * np.float32(bound)


@_initialiser
def normal(shape: tuple[int, ...], rng: np.random.Generator, std: float) -> np.ndarray:
    """Normal with mean 0 and deviation std: float32 of any shape."""
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(std)


@_initialiser
def trunc_normal(shape: tuple[int, ...], rng: np.random.Generator, std: float = 0.02, limit: float = 2.0) -> np.ndarray:
    """Normal with mean 0 and deviation std, float32 of any shape.

    Values beyond ±limit are drawn again: an absolute limit, as in timm.
    """
    values = normal(shape, rng, std)
    while (beyond := np.abs(values) > limit).any():
        values[beyond] = normal((int(beyond.sum()),), rng, std)
    return values


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """How many inputs an output sees, and outputs an input reaches: weight (out, in) or (out, in, *kernel)."""
    taps = math.prod(shape[2:])
    return shape[1] * taps, shape[0] * taps


@_initialiser
def kaiming_uniform(shape: tuple[int, ...], rng: np.random.Generator, a: float = 0.0) -> np.ndarray:
    """Keeps the variance forward through leaky ReLU of slope a (He et al. 2015, arXiv 1502.01852, eq. 15).

    Uniform within ±√(6 / ((1 + a²) fan_in)).
    shape: of a weight, (out, in) or (out, in, *kernel).
    """
    return uniform(shape, rng, math.sqrt(6 / ((1 + a * a) * fans(shape)[0])))


@_initialiser
def kaiming_normal(shape: tuple[int, ...], rng: np.random.Generator, mode: str = "fan_out") -> np.ndarray:
    """Keeps the variance through ReLU, with a normal distribution (He et al. 2015, arXiv 1502.01852, eq. 10 and 14).

    shape: of a weight, (out, in) or (out, in, *kernel).  mode: "fan_in" forward, "fan_out" backward.
    Raises ValueError for another mode.
    """
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f'mode must be "fan_in" or "fan_out", not {mode!r}')
    return normal(shape, rng, math.sqrt(2 / fans(shape)[mode == "fan_out"]))


@_initialiser
def xavier_uniform(shape: tuple[int, ...], rng: np.random.Generator, gain: float = 1.0) -> np.ndarray:
    """Keeps the variance forward and backward through a linear layer (Glorot & Bengio 2010, eq. 16).

    Uniform within ±gain · √(6 / (fan_in + fan_out)).
    shape: of a weight, (out, in) or (out, in, *kernel).
    """
    return uniform(shape, rng, gain * math.sqrt(6 / sum(fans(shape))))


@_initialiser
def xavier_normal(shape: tuple[int, ...], rng: np.random.Generator, gain: float = 1.0) -> np.ndarray:
    """As xavier_uniform, with a normal distribution of deviation gain · √(2 / (fan_in + fan_out)).

    shape: of a weight, (out, in) or (out, in, *kernel).
    """
    return normal(shape, rng, gain * math.sqrt(2 / sum(fans(shape))))
