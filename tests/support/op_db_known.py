"""Where the project's ops differ from PyTorch's, with the reason for each: what is meant, and what is being mended.

An entry of either list must still be true: one that no sample needs fails the test, so that mended faults leave it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

UNSUPPORTED = {
    "*": {"dtype": "x is converted with astype()", "out": "ops return new arrays"},
    "add": {"alpha": "written x + alpha * y"},
    "sub": {"alpha": "written x - alpha * y"},
    "pow": {"exponent as a tensor": "written exp(y * log(x))"},
    "prelu": {"a weight for each channel": "no model here has one"},
    "attention": {
        "dropout, since the masks drawn differ": "tested by its law in test_op_values.py",
        "leading axes that broadcast": "no model here needs it",
    },
    "avg_pool2d": {"divisor_override": "no model here needs it"},
    "avg_pool3d": {"divisor_override": "no model here needs it"},
    "interpolate": {"recompute_scale_factor": "written with size"},
    "var": {"correction None": "correction has a default"},
}
"""{op: {argument that ours does not have: the reason}}; "*" stands for every op."""


@dataclass(frozen=True)
class Known:
    """An op that differs from PyTorch in some samples.

    samples: a regular expression that those samples' texts match, "conv2d(float32[2, 4, 6, 6], …)".
    differs: one that what differs matches, "value 0: shape (2,), PyTorch's (1, 2)".
    always: whether one sample at least differs at every run; roundings may happen to agree.
    """

    op: str
    samples: str
    differs: str
    reason: str
    dtypes: tuple[str, ...] = ("float32", "float64")
    always: bool = True

    def explains(self, op: str, dtype: str, sample: str, difference: str) -> bool:
        return (
            op == self.op and dtype in self.dtypes and bool(re.search(self.samples, sample))
            and bool(re.search(self.differs, difference))
        )


DEGENERATE = "a gradient that is 0 but for rounding: of the terms, not of their sum, which is all that is perturbed"
NUMBERS = "a plain number is an operand too, as in NumPy"

DIFFERENT = [
    Known("tanh", "", "gradient", "1 - y² has the rounding of y, which is near 1", always=False),
    Known("maximum", r"\[9\]", "gradient", "what is compared is NaN, and no order has a gradient there"),
    Known("minimum", r"\[9\]", "gradient", "as maximum"),
    Known("attention", "is_causal", "gradient",
          "a query that sees one key: PyTorch's gradient is 0, ours 0 but for rounding", always=False),
    Known("einsum", "'iji->j'", "raises: ValueError: einsum: .* occurs twice", "diagonals are not supported"),
    Known("layer_norm", r"\[[12]\]", "gradient", DEGENERATE, always=False),
    Known("group_norm", r"\[1, 2\]", "gradient", DEGENERATE, always=False),
    Known("batch_norm", r"\[2, 1\]", "gradient", DEGENERATE, always=False),
    Known("interpolate", r"\[2, 3, 345, 456\], \[270, 270\]", "apart",
          "positions up to 456 lose that many roundings before their fraction is taken, in both", ("float64",)),
    Known("batch_norm", r"batch_norm\(float\d+\[0\]", "raises: ValueError: batch_norm: x must be",
          "an axis of channels is needed, even of nothing"),
    Known("gather", r"\[5\], 0, uint8\[2, 0\]", "raises: ValueError: gather: index of shape",
          "an index with other axes is wrong, even if it is empty"),
    Known("gather", r"gather\(float\d+\[\], 0, int64\[1\]", "raises: ValueError: gather: index of shape",
          "an index with other axes is wrong, even for a number"),
]
"""Differences that are meant, or that are PyTorch's."""

BEING_MENDED: list[Known] = []
"""Faults of ours that are known. Remove an entry when its fault is mended."""

WRONG_CALLS = [
    Known("maximum", r"maximum\((int64\[3\], 2|2, int64\[3\])", "silent", NUMBERS),
    Known("minimum", r"minimum\((int64\[3\], 2|2, int64\[3\])", "silent", NUMBERS),
    Known("pow", r"pow\(2, 3\)", "silent", NUMBERS),
    Known("conv3d", "stride=2, padding='same'", "silent", "a feature here: see sliding.same_padding"),
    Known("max_pool3d", r"max_pool3d\(float32\[0, 1, 2, 10\]", "silent", "of no channels, the result is empty"),
    Known("max", r"\[1, 1, 1, 1, 1, 1", "number of dimensions", "NumPy cannot make an array of 65 axes"),
    Known("min", r"\[1, 1, 1, 1, 1, 1", "number of dimensions", "as max"),
]
"""Calls that raise in PyTorch, and here do not, or not in a sentence of ours."""

WRONG_CALLS_BEING_MENDED: list[Known] = []
"""The same, to be removed when they are mended."""
