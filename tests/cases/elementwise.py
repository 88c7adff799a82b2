"""Rows for scratchvit/ops/elementwise.py."""

import numpy as np

from scratchvit import ops

from .case import Case, apart, away_from_zero, positive

_mask = np.arange(12).reshape(3, 4) % 3 == 0


def _unary(name, inputs=((3, 4),), theirs=None):
    return Case(name, inputs, getattr(ops, name), theirs or (lambda torch, x: getattr(torch, name)(x)))


CASES = [
    Case("add", ((3, 4), (4,)), lambda x, y: x + y, lambda torch, x, y: x + y),
    Case("add", ((2, 1, 4), (3, 1)), lambda x, y: x + y, lambda torch, x, y: x + y, "broadcast"),
    Case("add", ((3, 4),), lambda x: 2 + x + 1.5, lambda torch, x: 2 + x + 1.5, "scalar"),
    Case("sub", ((3, 4), (4,)), lambda x, y: x - y, lambda torch, x, y: x - y),
    Case("sub", ((3, 4),), lambda x: 2 - x, lambda torch, x: 2 - x, "scalar"),
    Case("mul", ((3, 4), (3, 1)), lambda x, y: x * y, lambda torch, x, y: x * y),
    Case("mul", ((3, 4),), lambda x: 3 * x * 0.5, lambda torch, x: 3 * x * 0.5, "scalar"),
    Case("mul", ((3, 4),), lambda x: x * x, lambda torch, x: x * x, "the same input twice"),
    Case("div", away_from_zero((3, 4), (4,)), lambda x, y: x / y, lambda torch, x, y: x / y),
    Case("div", away_from_zero((3, 4)), lambda x: 2 / x, lambda torch, x: 2 / x, "scalar"),
    Case("pow", positive((3, 4)), lambda x: x**2.5, lambda torch, x: x**2.5),
    _unary("neg"),
    _unary("abs", apart((3, 4))),
    Case("where", ((3, 4), (4,)), lambda x, y: ops.where(ops.asarray(_mask), x, y),
         lambda torch, x, y: torch.where(torch.as_tensor(_mask), x, y)),
    Case("clip", apart((3, 4)), lambda x: ops.clip(x, -0.1, 0.2), lambda torch, x: torch.clip(x, -0.1, 0.2)),
    Case("clip", apart((3, 4)), lambda x: ops.clip(x, max=0.1), lambda torch, x: torch.clip(x, max=0.1), "one side"),
    Case("maximum", apart((2, 20), (20,)), ops.maximum, lambda torch, x, y: torch.maximum(x, y)),
    Case("minimum", apart((2, 20), (20,)), ops.minimum, lambda torch, x, y: torch.minimum(x, y)),
    _unary("exp"),
    _unary("log", positive((3, 4))),
    _unary("sqrt", positive((3, 4))),
    _unary("sin"),
    _unary("cos"),
    _unary("tanh"),
    _unary("sigmoid"),
    _unary("erf"),
    _unary("relu", apart((3, 4))),
    Case("prelu", lambda rng: [*apart((3, 4))(rng), rng.standard_normal(1)], ops.prelu,
         lambda torch, x, weight: torch.nn.functional.prelu(x, weight)),
    _unary("silu", theirs=lambda torch, x: torch.nn.functional.silu(x)),
    _unary("gelu", theirs=lambda torch, x: torch.nn.functional.gelu(x)),
    Case("gelu", ((3, 4),), lambda x: ops.gelu(x, approximate="tanh"),
         lambda torch, x: torch.nn.functional.gelu(x, approximate="tanh"), "tanh"),
]
