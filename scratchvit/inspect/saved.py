"""What each op saves for its backward, and what it needs while it works and then gives back.

A rule gets the arguments of a call by name, in which arrays are blanks, and the outputs. That the rules say the truth
is tested against the closures of real runs (tests/test_memory.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scratchvit import backend
from scratchvit.inspect.blanks import Blank
from scratchvit.ops.attention import LARGE_MATRIX

# --- the rules: what an op saves for its backward -------------------------------------------------------------------
#
# The blanks among arguments and outputs that the closure refers to, and numbers of bytes for what it keeps beside them.

Saved = list[Any]


def nothing(arguments: dict[str, Any], outputs: tuple[Any, ...]) -> Saved:
    """For an op whose backward needs shapes alone."""
    return []


def _inputs(*names: str) -> Callable[[dict[str, Any], tuple[Any, ...]], Saved]:
    return lambda arguments, outputs: [arguments[name] for name in names if isinstance(arguments.get(name), Blank)]


def _output(arguments: dict[str, Any], outputs: tuple[Any, ...]) -> Saved:
    return list(outputs)


def _rows(x: Blank) -> Any:
    """x, or a copy where its entries do not lie row by row, for an op that flattens its input."""
    return x if x.layout.flags.c_contiguous else x.nbytes


def _one_like_x(arguments: dict[str, Any], outputs: tuple[Any, ...]) -> Saved:
    return [arguments["x"].nbytes]


def _norm(arguments: dict[str, Any], outputs: tuple[Any, ...]) -> Saved:
    """x, the scale, and a mean and a deviation for each row."""
    x = arguments["x"]
    return [_rows(x), *_inputs("weight")(arguments, outputs), 2 * x.nbytes // x.shape[-1]]


def _channel_norm(arguments: dict[str, Any], outputs: tuple[Any, ...]) -> Saved:
    return [_rows(arguments["x"]), *_inputs("weight")(arguments, outputs)]


def _attention(arguments: dict[str, Any], outputs: tuple[Any, ...]) -> Saved:
    """Everything that came and went, and the probabilities, or for attention in blocks a number for each query."""
    q, mask = arguments["q"], arguments.get("mask")
    queries, entries, in_blocks = _scores(arguments)
    kept = 2 * queries if in_blocks else entries
    saved = [*_inputs("q", "k", "v", "bias")(arguments, outputs), *outputs, kept * q.dtype.itemsize]
    if mask is not None:
        saved.append(mask.size)
    if arguments.get("dropout") and not in_blocks:
        saved.append(entries)
    return saved


def _scores(arguments: dict[str, Any]) -> tuple[int, int, bool]:
    """Of attention: queries, entries of all matrices, and whether it works without the matrices."""
    q, k, blocks = arguments["q"], arguments["k"], arguments.get("blocks")
    queries = q.size // q.shape[-1]
    if blocks is None:
        blocks = q.shape[-2] * k.shape[-2] > LARGE_MATRIX
    return queries, queries * k.shape[-2], blocks


SAVED: dict[str, Callable[[dict[str, Any], tuple[Any, ...]], Saved]] = {
    **dict.fromkeys(("abs", "clip", "cos", "erf", "log", "pow", "sin"), _inputs("x")),
    **dict.fromkeys(("exp", "relu", "sigmoid", "softmax", "log_softmax", "sqrt", "tanh"), _output),
    **dict.fromkeys(("mul", "matmul", "maximum", "minimum"), _inputs("x", "y")),
    **dict.fromkeys(("max", "min"), lambda arguments, outputs: [arguments["x"], *outputs]),
    **dict.fromkeys(("conv2d", "conv3d"), _inputs("x", "weight")),
    **dict.fromkeys(("batch_norm", "group_norm"), _channel_norm),
    **dict.fromkeys(("max_pool2d", "max_pool3d"), lambda arguments, outputs: [outputs[0].size]),
    **dict.fromkeys(("cross_entropy", "gelu", "var", "mse_loss", "l1_loss", "smooth_l1_loss"), _one_like_x),
    "sigmoid_focal_loss": lambda arguments, outputs: [
        *_inputs("x", "target")(arguments, outputs), *_one_like_x(arguments, outputs),
    ],
    "attention": _attention,
    "div": lambda arguments, outputs: [*outputs, *_inputs("y")(arguments, outputs)],
    "dropout": lambda arguments, outputs: [arguments["x"].size],
    "drop_path": lambda arguments, outputs: [len(arguments["x"])],
    "einsum": lambda arguments, outputs: list(arguments["operands"]),
    "layer_norm": _norm,
    "linear": lambda arguments, outputs: [_rows(arguments["x"]), arguments["weight"]],
    "prelu": lambda arguments, outputs: [arguments["x"].nbytes, arguments["weight"]],
    "silu": lambda arguments, outputs: [arguments["x"], arguments["x"].nbytes],
    "weight_standardization": lambda arguments, outputs: [arguments["weight"]],
    "where": lambda arguments, outputs: [arguments["condition"].size],
}

# Ops whose value is another view of their input, and ops whose backward gives dy, or a view of it.
VIEWS = ("permute", "transpose", "expand", "split", "unbind", "flip")
PASSING_ON = ("reshape", "permute", "transpose", "flip", "pad", "concatenate", "stack", "sum", "mean")


# --- the rules: what an op needs while it works ---------------------------------------------------------------------


@dataclass(frozen=True)
class Workspace:
    """Bytes beside what goes in, comes out and is saved. Blocks that stay in the cache are not counted."""

    forward: int = 0
    backward: int = 0


def no_workspace(arguments: dict[str, Any], outputs: tuple[Any, ...]) -> Workspace:
    """For an op that works in what it gives, or in the cache."""
    return Workspace()


def _kernels(arguments: dict[str, Any], outputs: tuple[Any, ...]) -> Workspace:
    """Filters laid out to meet the columns, and in backward also turned about; 1×1 ones lie right already."""
    weight = arguments["weight"]
    laid_out = weight.nbytes if max(weight.shape[2:]) > 1 else 0
    return Workspace(laid_out, 2 * laid_out)


def _derivative(arguments: dict[str, Any], outputs: tuple[Any, ...]) -> Workspace:
    """GELU's, also where nobody asks for it; and two blocks in each thread, beside which small models are little."""
    nbytes = arguments["x"].nbytes
    return Workspace(forward=nbytes + min(nbytes, 2 * backend.BLOCK_BYTES * backend.cpu_threads()))


def _score_gradients(arguments: dict[str, Any], outputs: tuple[Any, ...]) -> Workspace:
    """Those of whole images, in every thread: with many tokens, or many windows, that is no longer little."""
    q = arguments["q"]
    _, entries, in_blocks = _scores(arguments)
    image = entries * q.dtype.itemsize // max(1, len(q))
    return Workspace(backward=0 if in_blocks else image * min(len(q), backend.cpu_threads()))


WORKSPACE: dict[str, Callable[[dict[str, Any], tuple[Any, ...]], Workspace]] = {
    **dict.fromkeys(("conv2d", "conv3d"), _kernels),
    "attention": _score_gradients,
    "cross_entropy": lambda arguments, outputs: Workspace(arguments["x"].nbytes, arguments["x"].nbytes * 5 // 4),
    "embedding": lambda arguments, outputs: Workspace(backward=2 * outputs[0].nbytes + 3 * arguments["weight"].nbytes),
    "gelu": _derivative,
}
