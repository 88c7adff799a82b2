"""Resizing and padding against PyTorch over grids of sizes and options, more than op_db has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from scratchvit import ops
from scratchvit.tensor import Tensor
from tests.support.margins import agree, assert_close, ulps
from tests.support.one_op import cotangents, run
from tests.support.seeds import seeded

pytestmark = pytest.mark.parity

MODES = {
    "nearest": (1, 2, 3), "nearest-exact": (1, 2, 3), "linear": (1,), "bilinear": (2,), "bicubic": (2,),
    "trilinear": (3,),
}
FACTORS = (0.5, 0.77, 1.0, 14.1 / 14, 1.7, 2.0, 2.6, 3.0)


def resizings(mode: str, axes: int) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
    rng = seeded(axes)
    for number in range(60):
        shape = (2, 1, *map(int, rng.integers(1, 9, axes)))
        options: dict[str, Any] = {"mode": mode}
        if number % 2:
            options["size"] = tuple(map(int, rng.integers(1, 14, axes)))
        else:
            options["scale_factor"] = tuple(float(f) for f in rng.choice(FACTORS, axes))
        if not mode.startswith("nearest"):
            options["align_corners"] = number % 3 == 0
        if mode in ("bilinear", "bicubic"):
            options["antialias"] = number % 4 == 1
        yield shape, options


def theirs(function: Callable[..., Any], x: np.ndarray) -> dict[str, list[Any]] | None:
    """PyTorch's value and gradient; None where it raises."""
    import torch

    leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    try:
        y = function(leaf)
    except (RuntimeError, ValueError):
        return None
    y.backward(torch.tensor(cotangents([y])[0]))
    return {"value": [y], "gradient": [leaf.grad]}


def keeps_a_size(shape: tuple[int, ...], factors: tuple[float, ...]) -> bool:
    return any(factor != 1 and int(n * factor) == n for n, factor in zip(shape[2:], factors))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("mode", "axes"), [(mode, axes) for mode in MODES for axes in MODES[mode]])
def test_resizing(mode, axes, dtype) -> None:
    torch = pytest.importorskip("torch")
    compared = 0
    for number, (shape, options) in enumerate(resizings(mode, axes)):
        factors = options.get("scale_factor", ())
        if mode in ("nearest", "bicubic") and keeps_a_size(shape, factors):
            continue        # PyTorch's value and its gradient are of different functions there
        x = seeded(number).standard_normal(shape).astype(dtype)
        asked = {name: value for name, value in options.items() if value is not False}
        expected = theirs(lambda t, asked=asked: torch.nn.functional.interpolate(t, **asked), x)
        if expected is None:
            with pytest.raises(ValueError, match=r"^interpolate: "):
                ops.interpolate(Tensor(x), **options)
            continue
        agree(lambda x=x, options=options: run(lambda t: ops.interpolate(t, **options), [x]), expected,
              f"{shape} {options}", dtype=dtype, samples=1)
        compared += 1
    assert compared > 30


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 5, 4), (1, 2, 4, 3, 5)], ids=str)
def test_padding(mode, shape) -> None:
    torch = pytest.importorskip("torch")
    rng, axes, compared = seeded(0), max(1, len(shape) - 2), 0
    for number in range(150):
        pad = tuple(int(n) for n in rng.integers(-2, 4, 2 * axes))
        pairs = zip(shape[::-1], pad[::2], pad[1::2])
        if mode == "circular" and any(n + min(0, a) + min(0, b) < max(a, b) for n, a, b in pairs):
            continue                            # PyTorch copies from memory that it has not written yet
        x = seeded(number).standard_normal(shape)
        expected = theirs(lambda t, pad=pad: torch.nn.functional.pad(t, pad, mode=mode), x)
        if expected is None:
            with pytest.raises(ValueError, match=r"^pad: "):
                ops.pad(Tensor(x), pad, mode=mode)
        elif expected["value"][0].numel():      # PyTorch's gradient of nothing holds what was in memory
            found = run(lambda t, pad=pad: ops.pad(t, pad, mode=mode), [x])
            assert np.array_equal(found["value"][0], expected["value"][0].detach().numpy())
            assert_close(found["gradient"][0], expected["gradient"][0], ulps(expected["gradient"][0], 8, np.float64))
            compared += 1
    assert compared > 40


def test_infinite_pixels() -> None:
    """Where PyTorch multiplies them by a weight of 0 it has NaN; we leave them out."""
    torch = pytest.importorskip("torch")
    x = np.ones((1, 1, 4, 4), np.float32)
    x[0, 0, 1, 2] = np.inf
    for mode in ("nearest", "nearest-exact", "bilinear", "bicubic"):
        ours = ops.interpolate(Tensor(x), 9, mode=mode).numpy()
        theirs = torch.nn.functional.interpolate(torch.tensor(x), 9, mode=mode).numpy()
        assert not np.isfinite(theirs[~np.isfinite(ours)]).any()
        assert np.isnan(theirs[np.isfinite(ours) & ~np.isfinite(theirs)]).all()
