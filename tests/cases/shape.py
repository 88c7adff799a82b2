"""Rows for scratchvit/ops/shape.py."""

import numpy as np

from scratchvit import ops

from .case import Case

_rows = np.array([2, 0, 2, 2, 1])
_columns = np.array([[0, 3, 3], [1, 1, -1], [0, 0, 0]])
_mask = np.arange(12).reshape(3, 4) % 3 == 0


def _windows(torch, x, window):
    (B, h, w, D), (M, N) = x.shape, window
    return x.reshape(B, h // M, M, w // N, N, D).transpose(2, 3).reshape(-1, M * N, D)


def _map(windows, window, size):
    (h, w), (M, N) = size, window
    return windows.reshape(-1, h // M, w // N, M, N, windows.shape[-1]).transpose(2, 3).reshape(-1, h, w, 3)


def _rolled(torch, x, shift, size):
    """x with its upper left part of this size rolled."""
    part = torch.roll(x[:, : size[0], : size[1]], shift, (1, 2))
    upper = torch.cat([part, x[:, : size[0], size[1] :]], 2)
    return torch.cat([upper, x[:, size[0] :]], 1)


CASES = [
    Case("reshape", ((2, 3, 4),), lambda x: x.reshape(4, -1), lambda torch, x: x.reshape(4, -1)),
    Case("to_float32", ((2, 3, 4),), ops.to_float32, lambda torch, x: x.clone()),
    Case("permute", ((2, 3, 4),), lambda x: x.permute((2, 0, 1)), lambda torch, x: x.permute(2, 0, 1)),
    Case("transpose", ((2, 3, 4),), lambda x: x.transpose(0, -1), lambda torch, x: x.transpose(0, -1)),
    Case("expand", ((3, 1),), lambda x: ops.expand(x, (2, 3, 4)), lambda torch, x: x.expand(2, 3, 4)),
    Case("expand", ((3, 1),), lambda x: ops.expand(x, (2, -1, 4)), lambda torch, x: x.expand(2, -1, 4), "-1"),
    Case("concatenate", ((2, 3), (0,), (1, 3)), lambda *xs: ops.concatenate(xs), lambda torch, *xs: torch.cat(xs),
         "one of them empty"),
    Case("concatenate", ((2, 3), (2, 1), (2, 4)), lambda *xs: ops.concatenate(xs, dim=-1),
         lambda torch, *xs: torch.concatenate(xs, dim=-1)),
    Case("stack", ((2, 3), (2, 3)), lambda *xs: ops.stack(xs, dim=1), lambda torch, *xs: torch.stack(xs, dim=1)),
    Case("split", ((2, 7),), lambda x: ops.split(x, 3, dim=1), lambda torch, x: torch.split(x, 3, dim=1)),
    Case("split", ((7, 2),), lambda x: ops.split(x, [1, 4, 2])[1], lambda torch, x: torch.split(x, [1, 4, 2])[1],
         "one part used"),
    Case("unbind", ((2, 3, 4),), lambda x: ops.unbind(x, 1), lambda torch, x: torch.unbind(x, 1)),
    Case("unbind", ((2, 3, 4),), lambda x: x.permute((1, 2, 0)).unbind()[0] * 2,
         lambda torch, x: x.permute(1, 2, 0).unbind()[0] * 2, "of a permuted array"),
    Case("pad", ((2, 3, 4),), lambda x: ops.pad(x, (1, 0, 2, 1), value=3),
         lambda torch, x: torch.nn.functional.pad(x, (1, 0, 2, 1), value=3)),
    Case("pad", ((2, 5, 4),), lambda x: ops.pad(x, (-1, 2, 1, -2)),
         lambda torch, x: torch.nn.functional.pad(x, (-1, 2, 1, -2)), "negative"),
    *(
        Case("pad", (shape,), lambda x, pad=pad, mode=mode: ops.pad(x, pad, mode=mode),
             lambda torch, x, pad=pad, mode=mode: torch.nn.functional.pad(x, pad, mode=mode), f"{mode}, {pad}")
        for mode in ("reflect", "replicate", "circular")
        for shape, pad in (
            ((2, 3, 4), (2, 1)), ((2, 3, 4), (-1, 2)), ((1, 2, 3, 4), (1, 3, 2, 0)),
            ((1, 1, 3, 2, 4), (0, 2, 1, 1, 1, -1)),
        )
    ),
    Case("roll", ((3, 4),), lambda x: ops.roll(x, 5), lambda torch, x: torch.roll(x, 5), "all axes as one"),
    Case("roll", ((3, 4),), lambda x: ops.roll(x, (1, -2), (0, 1)), lambda torch, x: torch.roll(x, (1, -2), (0, 1))),
    Case("roll", ((3, 4),), lambda x: ops.roll(x, 3, 1), lambda torch, x: torch.roll(x, 3, 1), "one axis"),
    Case("window_partition", ((2, 4, 6, 3),), lambda x: ops.window_partition(x, (2, 3)),
         lambda torch, x: _windows(torch, x, (2, 3))),
    Case("window_partition", ((2, 6, 4, 3),), lambda x: ops.window_partition(x, (3, 2), (1, 1)),
         lambda torch, x: _windows(torch, torch.roll(x, (-1, -1), (1, 2)), (3, 2)), "rolled"),
    Case("window_partition", ((2, 6, 4, 3),), lambda x: ops.window_partition(x, (3, 2), (2, 1), (5, 3)),
         lambda torch, x: _windows(torch, _rolled(torch, x, (-2, -1), (5, 3)), (3, 2)), "a part rolled"),
    Case("window_reverse", ((8, 6, 3),), lambda x: ops.window_reverse(x, (2, 3), (4, 6)),
         lambda torch, x: _map(x, (2, 3), (4, 6))),
    Case("window_reverse", ((8, 6, 3),), lambda x: ops.window_reverse(x, (3, 2), (6, 4), (2, 1), (5, 3)),
         lambda torch, x: _rolled(torch, _map(x, (3, 2), (6, 4)), (2, 1), (5, 3)), "a part rolled"),
    Case("flip", ((3, 4),), lambda x: ops.flip(x, (0, 1)), lambda torch, x: torch.flip(x, (0, 1))),
    Case("getitem", ((3, 4, 2),), lambda x: x[1:, ..., None, 0], lambda torch, x: x[1:, ..., None, 0]),
    Case("getitem", ((3, 4),), lambda x: x[_rows], lambda torch, x: x[torch.as_tensor(_rows)], "repeated rows"),
    Case("getitem", ((3, 4),), lambda x: x[:, [1, 1, -1]], lambda torch, x: x[:, [1, 1, -1]], "list"),
    Case("getitem", ((3, 4),), lambda x: x[_rows, 1], lambda torch, x: x[torch.as_tensor(_rows), 1], "array and int"),
    Case("getitem", ((3, 4),), lambda x: x[_mask], lambda torch, x: x[torch.as_tensor(_mask)], "mask"),
    Case("getitem", ((2, 3, 4),), lambda x: x[0, :, [0, 1]], lambda torch, x: x[0, :, [0, 1]],
         "an integer and an array apart"),
    Case("getitem", ((2, 3, 4),), lambda x: x[[0, 1], :, [3, 1]], lambda torch, x: x[[0, 1], :, [3, 1]],
         "arrays apart"),
    Case("getitem", ((2, 3, 4),), lambda x: x[None, 1, ..., [0, 3]], lambda torch, x: x[None, 1, ..., [0, 3]],
         "all kinds"),
    Case("getitem", ((2, 3, 4),), lambda x: x[:, []], lambda torch, x: x[:, []], "an empty list"),
    Case("gather", ((3, 4),), lambda x: ops.gather(x, 1, _columns % 4),
         lambda torch, x: torch.gather(x, 1, torch.as_tensor(_columns % 4))),
    Case("gather", ((4, 3, 2),), lambda x: ops.gather(x, 0, (_columns % 4)[:, :2, None]),
         lambda torch, x: torch.gather(x, 0, torch.as_tensor(_columns % 4)[:, :2, None]), "smaller index"),
    Case("embedding", ((3, 4),), lambda w: ops.embedding(np.abs(_columns) % 3, w),
         lambda torch, w: torch.nn.functional.embedding(torch.as_tensor(np.abs(_columns) % 3), w)),
]
