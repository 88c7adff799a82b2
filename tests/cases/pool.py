"""Rows for scratchvit/ops/pool.py."""

import numpy as np

from scratchvit import ops

from .case import Case, apart


def _row(name, note, inputs, *args, **options):
    if "max" in name and not callable(inputs):
        inputs = apart(inputs)
    elif not callable(inputs):
        inputs = (inputs,)
    return Case(
        name, inputs, lambda x: getattr(ops, name)(x, *args, **options),
        lambda torch, x: getattr(torch.nn.functional, name)(x, *args, **options), note,
    )


CASES = [
    _row("max_pool2d", "", (2, 3, 4, 6), 2),
    _row("max_pool2d", "ResNet's", (1, 2, 7, 6), 3, stride=2, padding=1),
    _row("max_pool2d", "by axis, dilation", (1, 2, 6, 7), (2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1)),
    _row("max_pool2d", "ceil_mode", (1, 2, 6, 8), 3, stride=2, ceil_mode=True),
    _row("max_pool2d", "ceil_mode with padding", (1, 2, 5, 6), 3, stride=3, padding=1, ceil_mode=True),
    _row("max_pool3d", "", (1, 2, 4, 4, 5), 2),
    _row("max_pool3d", "stride and padding", (1, 2, 3, 5, 4), (2, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
    _row("avg_pool2d", "", (2, 3, 4, 6), 2),
    _row("avg_pool2d", "padding", (1, 2, 5, 6), 3, stride=2, padding=1),
    _row("avg_pool2d", "padding not counted", (1, 2, 5, 6), 3, stride=2, padding=1, count_include_pad=False),
    _row("avg_pool2d", "ceil_mode", (1, 2, 6, 8), (3, 2), stride=(2, 3), padding=1, ceil_mode=True),
    _row("avg_pool2d", "ceil_mode, padding not counted", (1, 2, 6, 8), 3, stride=2, padding=1, ceil_mode=True,
         count_include_pad=False),
    _row("avg_pool2d", "the whole picture", (2, 2, 3, 4), (3, 4)),
    _row("avg_pool3d", "", (1, 2, 4, 4, 5), 2),
    _row("avg_pool3d", "padding not counted", (1, 1, 3, 5, 4), (2, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1),
         count_include_pad=False),
]


def _ties(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.integers(0, 2, (2, 2, 6, 6)).astype(float)]


TIES = [_row("max_pool2d", "ties", _ties, 3, stride=2, padding=1), _row("max_pool2d", "ties, 2x2", _ties, 2)]
"""For the comparison with PyTorch alone: at a tie there is no derivative to check against a difference."""
