"""Which op of the project answers to which of PyTorch's operators, for the comparison with PyTorch's own samples.

`op_db` is what PyTorch tests itself with: for each operator, calls that a person wrote to reach its corners, and calls
that must raise. A `Peer` says which op of ours answers to which of theirs, and how the arguments are named there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchvit import ops


class Unsupported(Exception):
    """An argument that the project's op does not have."""


@dataclass(frozen=True)
class Peer:
    """An op of ours and PyTorch's operator of the same meaning.

    parameters: PyTorch's, in order: "name" where ours has the same, "name=ours" where it is called otherwise, and
        "name!default" where ours does not have it, so that only samples with the default can be compared, and "name~"
        where it does not matter.
    prepare: changes the named arguments, or raises Unsupported.
    call: takes the named arguments where the op cannot be called with names alone.
    """

    ours: str
    theirs: str
    parameters: str
    variant: str = ""
    prepare: Callable[[dict[str, Any]], None] = lambda named: None
    call: Callable[..., Any] | None = None

    def __str__(self) -> str:
        return "-".join(filter(None, (self.ours, self.theirs.removeprefix("nn.functional."), self.variant)))

    def ours_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Our op's named arguments for a call of theirs, tensors as they are."""
        names = self.parameters.split()
        rest = next((name for name in names if name.startswith("*")), None)
        if rest is not None:
            fixed = names.index(rest)
            args = (*args[:fixed], args[fixed] if len(args) == fixed + 1 and is_list(args[fixed]) else args[fixed:])
        given = dict(zip((re.match(r"[*]?(\w+)", name)[1] for name in names), args)) | kwargs
        named = {}
        for name in names:
            theirs, _, ours = name.lstrip("*").partition("=")
            theirs, dropped, defaults = theirs.partition("!")
            is_ignored = theirs.endswith("~")
            theirs = theirs.rstrip("~")
            if theirs not in given:
                continue
            value = given.pop(theirs)
            if dropped and str(value) not in defaults.split("|"):
                raise Unsupported(theirs)
            if not dropped and not is_ignored:
                named[ours or theirs] = value
        if given:
            raise Unsupported(", ".join(given))
        self.prepare(named)
        return named

    def run(self, named: dict[str, Any]) -> Any:
        op = getattr(ops, self.ours)
        return op(**named) if self.call is None else self.call(op, **named)


def is_list(x: Any) -> bool:
    return isinstance(x, list | tuple)


def is_tensor(x: Any) -> bool:
    return hasattr(x, "detach")


# --- arguments that are called or meant otherwise --------------------------------------------------------------------


def _no(*names: str) -> Callable[[dict[str, Any]], None]:
    """Refuses samples in which one of these is a tensor."""

    def prepare(named: dict[str, Any]) -> None:
        for name in names:
            if is_tensor(named.get(name)):
                raise Unsupported(f"{name} as a tensor")

    return prepare


def _attention(named: dict[str, Any]) -> None:
    q, k, v = named["q"], named["k"], named["v"]
    mask = named.pop("attn_mask", None)
    if named.get("dropout", 0):
        raise Unsupported("dropout, since the masks drawn differ")
    if named.pop("is_causal", False):
        mask = np.tril(np.ones((q.shape[-2], k.shape[-2]), bool))
    if mask is not None:
        is_bool = str(mask.dtype).removeprefix("torch.") == "bool"
        named["mask" if is_bool else "bias"] = mask
    if not q.shape[:-2] == k.shape[:-2] == v.shape[:-2]:
        raise Unsupported("leading axes that broadcast")


def _unbiased(named: dict[str, Any]) -> None:
    if "unbiased" in named:
        named["correction"] = int(named.pop("unbiased"))
    if named.get("correction", 1) is None:
        raise Unsupported("correction None")


def _prelu(named: dict[str, Any]) -> None:
    if named["weight"].numel() != 1:
        raise Unsupported("a weight for each channel")


def _one_slope(op: Any, x: Any, weight: Any) -> Any:
    return op(x, ops.reshape(weight, (1,)))


def _with_batch(axes: int) -> Callable[..., Any]:
    """PyTorch takes a single image too."""

    def call(op: Any, x: Any, **options: Any) -> Any:
        return op(x[None], **options)[0] if x.ndim == axes + 1 else op(x, **options)

    return call


def _interpolate(named: dict[str, Any]) -> None:
    named["align_corners"] = bool(named.get("align_corners"))


def _getitem(named: dict[str, Any]) -> None:
    index = named["index"]
    for i in index if isinstance(index, tuple) else (index,):
        if is_tensor(i) and str(i.dtype) == "torch.uint8":
            raise Unsupported("a mask of uint8")


def _einsum(op: Any, x: Any, equation: str, operands: Any = ()) -> Any:
    return op(equation, *x)


REDUCE = "size_average!None reduce!None reduction"
UNARY = (
    "neg abs exp log sqrt sin cos tanh sigmoid erf nn.functional.silu=silu nn.functional.relu=relu "
    "nn.functional.gelu=gelu"
)

PEERS: list[Peer] = [
    # --- of single numbers
    *(Peer(theirs.rpartition("=")[2], theirs.partition("=")[0], "input=x inplace!False approximate")
      for theirs in UNARY.split()),
    *(Peer(name, name, "input=x other=y alpha!1") for name in ("add", "sub", "mul", "maximum", "minimum")),
    Peer("div", "div", "input=x other=y rounding_mode!None", "no_rounding_mode"),
    Peer("pow", "pow", "input=x exponent", prepare=_no("exponent")),
    Peer("where", "where", "input=x condition other=y"),
    Peer("clip", "clamp", "input=x min max"),
    Peer("prelu", "nn.functional.prelu", "input=x weight", prepare=_prelu, call=_one_slope),
    # --- softmax, attention
    *(Peer(name, name, "input=x dim dtype!None") for name in ("softmax", "log_softmax")),
    Peer("attention", "nn.functional.scaled_dot_product_attention",
         "query=q key=k value=v attn_mask dropout_p=dropout is_causal scale enable_gqa!False", prepare=_attention),
    # --- products
    Peer("matmul", "matmul", "input=x other=y"),
    Peer("linear", "nn.functional.linear", "input=x weight bias"),
    Peer("einsum", "einsum", "x equation", call=_einsum),
    *(Peer(f"conv{d}d", f"nn.functional.conv{d}d", "input=x weight bias stride padding dilation groups",
           call=_with_batch(d)) for d in (2, 3)),
    # --- losses
    Peer("cross_entropy", "nn.functional.cross_entropy",
         "input=x target weight size_average!None ignore_index reduce!None reduction label_smoothing"),
    Peer("kl_div", "nn.functional.kl_div", f"input=x target {REDUCE} log_target"),
    Peer("binary_cross_entropy", "nn.functional.binary_cross_entropy", f"input=x target weight {REDUCE}"),
    Peer("binary_cross_entropy_with_logits", "nn.functional.binary_cross_entropy_with_logits",
         f"input=x target weight {REDUCE} pos_weight"),
    Peer("l1_loss", "nn.functional.l1_loss", f"input=x target {REDUCE}"),
    Peer("mse_loss", "nn.functional.mse_loss", f"input=x target {REDUCE}"),
    Peer("smooth_l1_loss", "nn.functional.smooth_l1_loss", f"input=x target {REDUCE} beta"),
    # --- norms
    Peer("layer_norm", "nn.functional.layer_norm", "input=x normalized_shape weight bias eps"),
    Peer("group_norm", "nn.functional.group_norm", "input=x num_groups weight bias eps"),
    Peer("batch_norm", "nn.functional.batch_norm",
         "input=x running_mean running_var weight bias training momentum eps"),
    # --- pooling, resizing, padding
    *(Peer(f"max_pool{d}d", f"nn.functional.max_pool{d}d",
           "input=x kernel_size stride padding dilation ceil_mode return_indices~",
           call=_with_batch(d)) for d in (2, 3)),
    *(Peer(f"avg_pool{d}d", f"nn.functional.avg_pool{d}d",
           "input=x kernel_size stride padding ceil_mode count_include_pad divisor_override!None",
           call=_with_batch(d)) for d in (2, 3)),
    *(Peer("interpolate", "nn.functional.interpolate",
           "input=x size scale_factor mode align_corners recompute_scale_factor!None|False antialias", variant,
           prepare=_interpolate)
      for variant in ("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear")),
    *(Peer("pad", "nn.functional.pad", "input=x pad mode value", variant)
      for variant in ("constant", "reflect", "replicate", "replicate_negative", "circular")),
    # --- reductions
    *(Peer(name, theirs, "input=x dim keepdim dtype!None")
      for name, theirs in (("sum", "sum"), ("mean", "mean"), ("max", "amax"), ("min", "amin"))),
    Peer("var", "var", "input=x dim unbiased keepdim correction", prepare=_unbiased),
    Peer("var", "var", "input=x unbiased", "unbiased", prepare=_unbiased),
    # --- shapes and indices
    Peer("reshape", "reshape", "input=x *shape"),
    Peer("reshape", "view", "input=x *shape"),
    Peer("permute", "permute", "input=x *dims"),
    Peer("transpose", "transpose", "input=x dim0 dim1"),
    Peer("expand", "expand", "input=x *shape"),
    Peer("concatenate", "cat", "tensors dim"),
    Peer("stack", "stack", "tensors dim"),
    Peer("split", "split", "input=x split_size dim"),
    Peer("split", "split", "input=x split_size dim", "list_args"),
    Peer("split", "split_with_sizes", "input=x split_sizes=split_size dim"),
    Peer("unbind", "unbind", "input=x dim"),
    Peer("roll", "roll", "input=x shifts dims"),
    Peer("flip", "flip", "input=x *dims"),
    Peer("getitem", "__getitem__", "input=x index", prepare=_getitem),
    Peer("gather", "gather", "input=x dim index sparse_grad!False"),
    Peer("embedding", "nn.functional.embedding",
         "weight index padding_idx!None max_norm!None norm_type!2.0 scale_grad_by_freq!False sparse!False"),
]

WITHOUT_A_PEER = {
    "dropout": "draws other masks", "drop_path": "not in PyTorch", "sigmoid_focal_loss": "not in PyTorch",
    "frozen_batch_norm": "not in PyTorch", "weight_standardization": "not in PyTorch",
    "window_partition": "not in PyTorch", "window_reverse": "not in PyTorch", "add_layer_norm": "not in PyTorch",
    "linear_gelu": "not in PyTorch", "linear_parts": "not in PyTorch",
    "to_float32": "Tensor.float() converts float64 and integers too",
}
