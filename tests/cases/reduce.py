"""Rows for scratchvit/ops/reduce.py."""

from scratchvit import ops

from .case import Case, apart

CASES = [
    Case("sum", ((2, 3, 4),), ops.sum, lambda torch, x: torch.sum(x)),
    Case("sum", ((2, 3, 4),), lambda x: ops.sum(x, dim=(0, -1)), lambda torch, x: torch.sum(x, dim=(0, -1)), "dims"),
    Case("sum", ((2, 3, 4),), lambda x: x.sum(1, keepdim=True), lambda torch, x: x.sum(1, keepdim=True), "keepdim"),
    Case("mean", ((2, 3, 4),), ops.mean, lambda torch, x: torch.mean(x)),
    Case("mean", ((2, 3, 4),), lambda x: ops.mean(x, dim=1), lambda torch, x: torch.mean(x, dim=1), "dim"),
    Case("var", ((2, 3, 4),), ops.var, lambda torch, x: torch.var(x)),
    Case("var", ((2, 3, 4),), lambda x: ops.var(x, dim=(1, 2), correction=0, keepdim=True),
         lambda torch, x: torch.var(x, dim=(1, 2), correction=0, keepdim=True), "dims"),
    Case("max", apart((2, 3, 4)), ops.max, lambda torch, x: torch.amax(x)),
    Case("max", apart((2, 3, 4)), lambda x: ops.max(x, dim=(0, 2)), lambda torch, x: torch.amax(x, dim=(0, 2)), "dims"),
    Case("min", apart((2, 3, 4)), lambda x: ops.min(x, dim=1, keepdim=True),
         lambda torch, x: torch.amin(x, dim=1, keepdim=True)),
]
