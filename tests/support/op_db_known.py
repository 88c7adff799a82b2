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
    "clip": {"min as a tensor": "bounds are constants", "max as a tensor": "bounds are constants"},
    "prelu": {"a weight for each channel": "no model here has one"},
    "attention": {
        "dropout, since the masks drawn differ": "tested by its law in test_op_values.py",
        "leading axes that broadcast": "no model here needs it",
    },
    "avg_pool2d": {"divisor_override": "no model here needs it"},
    "avg_pool3d": {"divisor_override": "no model here needs it"},
    "layer_norm": {"normalized_shape of several axes": "written with reshape"},
    "interpolate": {"recompute_scale_factor": "written with size"},
    "sum": {"dim ()": "B4 of the notes: no axis is no axis here, all of them in PyTorch"},
    "mean": {"dim ()": "B4, as sum"},
    "max": {"dim ()": "B4, as sum"},
    "min": {"dim ()": "B4, as sum"},
    "var": {"dim ()": "B4, as sum", "correction None": "correction has a default"},
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
    Known("einsum", "'iji->j'", "raises: ValueError: einsum: .* stands twice", "diagonals are not supported"),
    Known("layer_norm", r"\[[12]\]", "gradient", DEGENERATE, always=False),
    Known("group_norm", r"\[1, 2\]", "gradient", DEGENERATE, always=False),
    Known("batch_norm", r"\[2, 1\]", "gradient", DEGENERATE, always=False),
    Known("interpolate", r"\[2, 3, 345, 456\], \[270, 270\]", "apart",
          "positions up to 456 lose that many roundings before their fraction is taken, in both", ("float64",)),
    Known("gather", r"\[5\], 0, uint8\[2, 0\]", "raises: ValueError: gather: index of shape",
          "an index with other axes is wrong, even if it is empty"),
    Known("gather", r"gather\(float\d+\[\], 0, int64\[1\]", "raises: ValueError: gather: index of shape",
          "an index with other axes is wrong, even for a number"),
]  # fmt: skip
"""Differences that are meant, or that are PyTorch's."""

BEING_MENDED = [
    Known("where", r"where\(int64\[10, 1\]", "dtype float64", "B14: integers beside float32", ("float32",)),
    Known("where", r"where\(-?\d.*, bool.*, -?\d", "dtype float64", "B14: two numbers make float64"),
    Known("prelu", r"prelu\(float\d+\[\]", "raises: RuntimeError", "B7: a single number gets the shape (1,)"),
    Known("prelu", r"\[256\]", "gradient 0", "B7: the slope at exactly 0"),
    Known("softmax", r"\[5, 0, 0\]", "raises: ValueError: zero-size", "C5"),
    Known("log_softmax", r"\[5, 0, 0\]", "raises: ValueError: zero-size", "C5"),
    Known("cross_entropy", r"cross_entropy\((float\d+\[.*\]), \1", "gradient 1", "A5: soft targets"),
    Known("batch_norm", r"batch_norm\(float\d+\[0\]", "raises: IndexError", "C5"),
]  # fmt: skip
"""Faults of ours, by their numbers in the list of faults of issue 13. Remove an entry when its fault is mended."""

WRONG_CALLS = [
    Known("maximum", r"maximum\((int64\[3\], 2|2, int64\[3\])", "silent", NUMBERS),
    Known("minimum", r"minimum\((int64\[3\], 2|2, int64\[3\])", "silent", NUMBERS),
    Known("pow", r"pow\(2, 3\)", "silent", NUMBERS),
    Known("conv3d", "stride=2, padding='same'", "silent", "a feature here: see windows.same_padding"),
    Known("max_pool3d", r"max_pool3d\(float32\[0, 1, 2, 10\]", "silent", "of no channels, the result is empty"),
    Known("max", r"\[1, 1, 1, 1, 1, 1", "number of dimensions", "NumPy cannot make an array of 65 axes"),
    Known("min", r"\[1, 1, 1, 1, 1, 1", "number of dimensions", "as max"),
]  # fmt: skip
"""Calls that raise in PyTorch, and here do not, or not in a sentence of ours."""

WRONG_CALLS_BEING_MENDED = [
    Known("neg", "bool", "TypeError: The numpy boolean negative", "C3"),
    Known("maximum", r"maximum\(2, 3\)", "expected an array or a Tensor", "C3"),
    Known("minimum", r"minimum\(2, 3\)", "expected an array or a Tensor", "C3"),
    Known("group_norm", r"group_norm\(float32\[1\], 1", "not enough values to unpack", "C3"),
    Known("max", r"\[5, 0, 5\]", "zero-size array", "C3"),
    Known("min", r"\[5, 0, 5\]", "zero-size array", "C3"),
    Known("max", r"\[0, (0|-4)\]", "duplicate value in 'axis'", "C3"),
    Known("min", r"\[0, (0|-4)\]", "duplicate value in 'axis'", "C3"),
]  # fmt: skip
"""The same, to be removed when they are mended."""
