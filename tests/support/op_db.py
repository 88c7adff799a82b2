"""PyTorch's own samples of its operators (`op_db`), given to the ops of the project.

`op_db` is what PyTorch tests itself with: for each operator, calls that a person wrote to reach its corners, and calls
that must raise. A `Peer` says which op of ours answers to which of theirs, and how the arguments are named there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchvit import ops
from scratchvit.tensor import Tensor, _edge_to, _run_backward
from tests.support.margins import FACTOR, rounding, ulps
from tests.support.one_op import cotangents
from tests.support.seeds import moved

MOST_SAMPLES = 120      # of an op: every n-th of PyTorch's, max_pool2d has 1,440


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
            args = (*args[:fixed], args[fixed] if len(args) == fixed + 1 and _is_list(args[fixed]) else args[fixed:])
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


def _is_list(x: Any) -> bool:
    return isinstance(x, list | tuple)


def _is_tensor(x: Any) -> bool:
    return hasattr(x, "detach")


# --- arguments that are called or meant otherwise --------------------------------------------------------------------


def _no(*names: str) -> Callable[[dict[str, Any]], None]:
    """Refuses samples in which one of these is a tensor."""

    def prepare(named: dict[str, Any]) -> None:
        for name in names:
            if _is_tensor(named.get(name)):
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


def _layer_norm(named: dict[str, Any]) -> None:
    shape = named.pop("normalized_shape")
    if len(shape) != 1:
        raise Unsupported("normalized_shape of several axes")
    named.setdefault("eps", 1e-5)


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


def _loss(named: dict[str, Any]) -> None:
    if named.get("weight") is not None and named["weight"].requires_grad:
        named["weight"] = named["weight"].detach()


def _images(named: dict[str, Any], axes: int) -> None:
    if named["x"].ndim == axes + 1:
        raise Unsupported("an input without batch")


def _interpolate(named: dict[str, Any]) -> None:
    named["align_corners"] = bool(named.get("align_corners"))


def _getitem(named: dict[str, Any]) -> None:
    index = named["index"]
    for i in index if isinstance(index, tuple) else (index,):
        if _is_tensor(i) and str(i.dtype) == "torch.uint8":
            raise Unsupported("a mask of uint8")


def _einsum(op: Any, x: Any, equation: str, operands: Any = ()) -> Any:
    return op(equation, *x)


def _reduction(named: dict[str, Any]) -> None:
    if named.get("dim") is not None and _is_list(named["dim"]) and not named["dim"]:
        raise Unsupported("dim ()")


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
    Peer("clip", "clamp", "input=x min max", prepare=_no("min", "max")),
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
           prepare=lambda named, d=d: _images(named, d)) for d in (2, 3)),
    # --- losses
    Peer("cross_entropy", "nn.functional.cross_entropy",
         "input=x target weight size_average!None ignore_index reduce!None reduction label_smoothing", prepare=_loss),
    Peer("kl_div", "nn.functional.kl_div", f"input=x target {REDUCE} log_target"),
    Peer("binary_cross_entropy", "nn.functional.binary_cross_entropy", f"input=x target weight {REDUCE}",
         prepare=_loss),
    Peer("binary_cross_entropy_with_logits", "nn.functional.binary_cross_entropy_with_logits",
         f"input=x target weight {REDUCE} pos_weight", prepare=_loss),
    Peer("l1_loss", "nn.functional.l1_loss", f"input=x target {REDUCE}"),
    Peer("mse_loss", "nn.functional.mse_loss", f"input=x target {REDUCE}"),
    Peer("smooth_l1_loss", "nn.functional.smooth_l1_loss", f"input=x target {REDUCE} beta"),
    # --- norms
    Peer("layer_norm", "nn.functional.layer_norm", "input=x normalized_shape weight bias eps", prepare=_layer_norm),
    Peer("group_norm", "nn.functional.group_norm", "input=x num_groups weight bias eps"),
    Peer("batch_norm", "nn.functional.batch_norm",
         "input=x running_mean running_var weight bias training momentum eps"),
    # --- pooling, resizing, padding
    *(Peer(f"max_pool{d}d", f"nn.functional.max_pool{d}d",
           "input=x kernel_size stride padding dilation ceil_mode return_indices~",
           prepare=lambda named, d=d: _images(named, d)) for d in (2, 3)),
    *(Peer(f"avg_pool{d}d", f"nn.functional.avg_pool{d}d",
           "input=x kernel_size stride padding ceil_mode count_include_pad divisor_override!None",
           prepare=lambda named, d=d: _images(named, d)) for d in (2, 3)),
    *(Peer("interpolate", "nn.functional.interpolate",
           "input=x size scale_factor mode align_corners recompute_scale_factor!None|False antialias", variant,
           prepare=_interpolate)
      for variant in ("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear")),
    *(Peer("pad", "nn.functional.pad", "input=x pad mode value", variant)
      for variant in ("constant", "reflect", "replicate", "replicate_negative", "circular")),
    # --- reductions
    *(Peer(name, theirs, "input=x dim keepdim dtype!None", prepare=_reduction)
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
]  # fmt: skip

WITHOUT_A_PEER = {
    "dropout": "draws other masks", "drop_path": "not in PyTorch", "sigmoid_focal_loss": "not in PyTorch",
    "frozen_batch_norm": "not in PyTorch", "weight_standardization": "not in PyTorch",
}


# --- samples ----------------------------------------------------------------------------------------------------------


@dataclass
class Sample:
    """A call: PyTorch's function with its arguments, and ours (or why there is none)."""

    peer: Peer
    text: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    named: dict[str, Any] | None
    unsupported: str = ""

    @property
    def is_complex(self) -> bool:
        return any(isinstance(x, complex) for x in (*self.args, *self.kwargs.values()))

    @functools.cached_property
    def differentiable(self) -> list[Any]:
        """The tensors that require a gradient, each once."""
        found: dict[int, Any] = {}
        mapped((self.args, self.kwargs), lambda t: found.setdefault(id(t), t) if t.requires_grad else t)
        return list(found.values())


def samples(peer: Peer, dtype: str) -> Iterator[Sample]:
    """PyTorch's sample and reference inputs of a dtype, not more than MOST_SAMPLES."""
    import torch

    info = _info(peer)
    torch.manual_seed(moved(0))
    found = [*info.sample_inputs("cpu", getattr(torch, dtype), requires_grad=True)]
    if info.reference_inputs_func is not None:
        # Some cannot be made with gradients: conditions and bounds that are integers would require one too.
        wants = peer.theirs not in ("where", "clamp")
        found += info.reference_inputs_func(info, "cpu", getattr(torch, dtype), requires_grad=wants)
    for given in found[:: -(-len(found) // MOST_SAMPLES)]:
        sample = _sample(peer, info.op, given)
        if not sample.is_complex:
            yield sample


def wrong_calls(peer: Peer) -> Iterator[Sample]:
    """PyTorch's calls that must raise."""
    info = _info(peer)
    if info.error_inputs_func is None:
        return
    for wrong in info.error_inputs("cpu"):
        yield _sample(peer, info.op, wrong.sample_input)


def _info(peer: Peer) -> Any:
    from torch.testing._internal.common_methods_invocations import op_db

    return next(info for info in op_db if (info.name, info.variant_test_name) == (peer.theirs, peer.variant))


def _sample(peer: Peer, function: Callable[..., Any], given: Any) -> Sample:
    args = (given.input, *given.args)
    sample = Sample(peer, _text(peer, args, given.kwargs), function, args, given.kwargs, None)
    try:
        sample.named = peer.ours_of(args, dict(given.kwargs))
    except Unsupported as reason:
        sample.unsupported = str(reason)
    return sample


def _text(peer: Peer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    parts = [*map(_short, args), *(f"{name}={_short(value)}" for name, value in kwargs.items())]
    return f"{peer.ours}({', '.join(parts)})"


def _short(x: Any) -> str:
    if _is_tensor(x):
        return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"
    if _is_list(x):
        return f"[{', '.join(map(_short, x))}]"
    return repr(x)


def mapped(x: Any, tensor: Callable[[Any], Any]) -> Any:
    """x with `tensor` called on every tensor of PyTorch's in it."""
    if _is_tensor(x):
        return tensor(x)
    if isinstance(x, list | tuple):
        return type(x)(mapped(element, tensor) for element in x)
    if isinstance(x, dict):
        return {name: mapped(value, tensor) for name, value in x.items()}
    return x


Layout = Callable[[np.ndarray], np.ndarray]


def ours(sample: Sample, layout: Layout = np.array) -> dict[str, Any]:
    """Our values, and the gradients of the tensors that require one, by their numbers in the sample."""
    leaves: dict[int, list[Tensor]] = {}

    def tensor(t: Any) -> Any:
        array = layout(t.detach().resolve_neg().numpy())
        if not t.requires_grad:
            return Tensor(array) if array.dtype.kind == "f" else array
        leaves.setdefault(id(t), []).append(Tensor(array, requires_grad=True))
        return leaves[id(t)][-1]

    outputs = sample.peer.run(mapped(sample.named, tensor))
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    roots = [(_edge_to(y), v) for y, v in zip(outputs, cotangents(outputs)) if y.requires_grad]
    if roots:
        _run_backward(roots)
    gradients = {}
    for number, t in enumerate(sample.differentiable):
        for leaf in leaves.get(id(t), ()):
            gradient = np.zeros(leaf.shape, leaf.dtype) if leaf.grad is None else leaf.grad
            gradients[f"gradient {number}"] = gradients.get(f"gradient {number}", 0) + gradient
    return {f"value {number}": y.numpy() for number, y in enumerate(outputs)} | gradients


def theirs(sample: Sample, in_float64: bool = False) -> dict[str, np.ndarray]:
    """PyTorch's, computed in the dtypes of the sample or in float64."""
    import torch

    leaves: dict[int, list[Any]] = {}

    def tensor(t: Any) -> Any:
        copy = t.detach().clone()
        copy = copy.double() if in_float64 and copy.is_floating_point() else copy
        if not t.requires_grad:
            return copy
        leaves.setdefault(id(t), []).append(copy.requires_grad_())
        return copy

    outputs = sample.function(*mapped(sample.args, tensor), **mapped(sample.kwargs, tensor))
    outputs = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    outputs = [y for y in outputs if y.is_floating_point()]             # not the places of a maximum
    pairs = [(y, torch.from_numpy(v.copy())) for y, v in zip(outputs, cotangents(outputs)) if y.requires_grad]
    if pairs:
        torch.autograd.backward(*zip(*pairs))
    gradients = {}
    for number, t in enumerate(sample.differentiable):
        grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves[id(t)]]
        gradients[f"gradient {number}"] = sum(grads[1:], grads[0]).numpy()
    return {f"value {number}": y.detach().numpy() for number, y in enumerate(outputs)} | gradients


def differences(sample: Sample, layout: Layout = np.array) -> dict[str, str]:
    """What differs from PyTorch beyond rounding: {"value 0": "shape (2,), PyTorch's (1, 2)", …}.

    PyTorch computes in float64. Where numbers are too large or small for float32, its own float32 is as good. An op of
    ours that raises differs in "raises".
    """
    with np.errstate(all="ignore"):
        try:
            found = ours(sample, layout)
        except Exception as error:
            return {"raises": f"{type(error).__name__}: {error}"}
        exact, same = theirs(sample, in_float64=True), theirs(sample)
        dtypes = {name: array.dtype.type for name, array in same.items()}
        # What `rounding` allows at least; only where that is too little, it is asked.
        bounds = {name: ulps(array, FACTOR / 4, dtypes[name]) for name, array in exact.items()}
        result = _beyond(sample, found, exact, same, bounds)
        if result:
            least = min(dtypes.values(), key=lambda dtype: np.finfo(dtype).precision)
            bounds = rounding(lambda: ours(sample), dtype=least, samples=1)
            result = _beyond(sample, found, exact, same, bounds)
    return result


def _beyond(sample, found, exact, same, bounds) -> dict[str, str]:
    result = {}
    for name, array in found.items():
        ignore = _where_nan(sample, name)
        verdicts = [_difference(array, other[name], bounds[name], ignore) for other in (exact, same)]
        if array.dtype != same[name].dtype:
            verdicts = [f"dtype {array.dtype}, PyTorch's {same[name].dtype}"]
        if all(verdicts):
            result[name] = verdicts[0]
    return result


def _where_nan(sample: Sample, name: str) -> Any:
    """The gradient at a NaN is whatever it is."""
    if name.startswith("value"):
        return False
    return np.isnan(sample.differentiable[int(name.split()[1])].detach().numpy())


def _difference(found: np.ndarray, expected: np.ndarray, bound: float, ignore: Any) -> str:
    if found.shape != expected.shape:
        return f"shape {found.shape}, PyTorch's {expected.shape}"
    finite = np.isfinite(found) & np.isfinite(expected)
    unlike = ~(finite | (found == expected) | (np.isnan(found) & np.isnan(expected)) | ignore)
    if unlike.any():
        return f"{found[unlike][0]} at {unlike.sum()} of {unlike.size} places, PyTorch's {expected[unlike][0]}"
    apart = np.abs(np.subtract(found, expected, where=finite, out=np.zeros(found.shape)))
    apart = np.where(ignore, 0, apart)
    worst = float(apart.max(initial=0))
    return "" if worst <= bound else f"{worst:.2e} apart, {bound:.2e} is allowed"
