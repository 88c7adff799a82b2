"""Rows for scratchvit/ops/conv.py."""

import warnings

from scratchvit import ops

from .case import Case


def _row(name, note, x, weight, bias=True, **options):
    inputs = (x, weight, weight[:1]) if bias else (x, weight)

    def theirs(torch, *tensors):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using padding='same' with even kernel")      # it copies the input
            return getattr(torch.nn.functional, name)(*tensors, **options)

    return Case(name, inputs, lambda *tensors: getattr(ops, name)(*tensors, **options), theirs, note)


CASES = [
    _row("conv2d", "", (2, 3, 5, 6), (4, 3, 3, 3)),
    _row("conv2d", "without bias", (2, 3, 5, 4), (2, 3, 2, 3), bias=False),
    _row("conv2d", "stride and padding", (2, 2, 6, 5), (3, 2, 3, 3), stride=2, padding=1),
    _row("conv2d", "stride and padding by axis", (1, 2, 6, 7), (3, 2, 3, 2), stride=(1, 3), padding=(2, 0)),
    _row("conv2d", "more padding than kernel", (1, 2, 3, 3), (2, 2, 2, 2), padding=2),
    _row("conv2d", "dilation", (1, 2, 6, 7), (3, 2, 3, 2), padding=1, dilation=2),
    _row("conv2d", "dilation by axis with stride", (1, 2, 7, 7), (2, 2, 2, 3), stride=2, dilation=(3, 1)),
    _row("conv2d", "1x1", (2, 3, 4, 4), (5, 3, 1, 1)),
    _row("conv2d", "1x1, stride 2", (2, 3, 5, 4), (2, 3, 1, 1), stride=2),
    _row("conv2d", "patches", (2, 3, 4, 6), (5, 3, 2, 3), stride=(2, 3)),
    _row("conv2d", "patches with a remainder", (2, 2, 5, 7), (3, 2, 2, 2), stride=2),
    _row("conv2d", "same", (2, 2, 4, 5), (3, 2, 3, 3), padding="same"),
    _row("conv2d", "same, even kernel and dilation", (1, 2, 5, 6), (2, 2, 2, 4), padding="same", dilation=(1, 2)),
    _row("conv2d", "valid", (1, 2, 4, 5), (3, 2, 3, 3), padding="valid"),
    _row("conv2d", "groups", (2, 4, 5, 5), (6, 2, 3, 3), padding=1, groups=2),
    _row("conv2d", "groups, stride and dilation", (1, 4, 7, 7), (2, 2, 2, 2), stride=2, padding=1, dilation=2,
         groups=2),
    _row("conv2d", "depth-wise", (2, 3, 5, 4), (3, 1, 3, 3), padding=1, groups=3),
    _row("conv2d", "depth-wise, stride 2", (2, 3, 5, 6), (3, 1, 3, 3), stride=2, padding=1, groups=3),
    _row("conv2d", "depth-wise, two filters, dilation", (1, 2, 6, 5), (4, 1, 2, 3), bias=False, dilation=2, groups=2),
    _row("conv2d", "a map of one pixel", (2, 3, 1, 1), (2, 3, 3, 3), padding=1),
    _row("conv2d", "a map smaller than the kernel", (2, 2, 2, 1), (3, 2, 5, 3), padding=(2, 1)),
    _row("conv2d", "a map smaller than the kernel, stride and dilation", (2, 2, 2, 3), (3, 2, 3, 3), stride=2,
         padding=(2, 4), dilation=(2, 3)),
    _row("conv2d", "depth-wise, a map of one row", (1, 2, 1, 3), (2, 1, 3, 3), padding=1, groups=2),
    _row("conv2d", "depth-wise, more padding than kernel", (1, 2, 3, 4), (2, 1, 2, 3), padding=(3, 2), groups=2),
    _row("conv2d", "depth-wise, two filters, stride and padding", (2, 2, 5, 6), (4, 1, 3, 2), stride=(2, 1), padding=1,
         groups=2),
    _row("conv2d", "depth-wise, a stride beyond the kernel", (1, 2, 7, 9), (2, 1, 3, 3), stride=4, padding=1, groups=2),
    _row("conv2d", "depth-wise, same, even kernel", (1, 2, 5, 6), (2, 1, 2, 4), padding="same", groups=2),
    # 16 channels and 8 taps in a row of the kernel: enough for the rows of the kernel to share their columns.
    _row("conv2d", "deep", (1, 16, 3, 4), (2, 16, 3, 8), padding=(1, 3)),
    _row("conv2d", "deep, stride and groups", (1, 32, 3, 4), (2, 16, 3, 8), stride=2, padding=(1, 3), groups=2),
    _row("conv2d", "deep, stride and dilation", (1, 16, 5, 4), (1, 16, 3, 8), stride=(2, 1), padding=(3, 6),
         dilation=(3, 2)),
    _row("conv2d", "deep, more padding than kernel", (1, 16, 2, 5), (2, 16, 2, 8), padding=(4, 3)),
    _row("conv3d", "", (1, 2, 3, 4, 4), (3, 2, 2, 3, 3)),
    _row("conv3d", "stride and padding", (1, 2, 4, 5, 4), (2, 2, 3, 3, 3), stride=(1, 2, 2), padding=(1, 1, 0)),
    _row("conv3d", "deep", (1, 8, 3, 3, 4), (2, 8, 2, 4, 4), stride=(1, 2, 1), padding=(1, 1, 2)),
    _row("conv3d", "patches", (2, 1, 4, 4, 5), (3, 1, 2, 2, 2), stride=2),
    _row("conv3d", "depth-wise, stride 1", (2, 2, 2, 3, 4), (2, 1, 3, 3, 3), padding=1, groups=2),
    _row("conv3d", "depth-wise, no extent in time", (1, 2, 3, 4, 4), (2, 1, 1, 3, 3), stride=(1, 2, 2),
         padding=(0, 1, 1), groups=2),
    _row("conv3d", "depth-wise", (1, 2, 3, 4, 4), (2, 1, 3, 3, 3), stride=(1, 2, 2), padding=1, groups=2),
]
