"""PyTorch's samples of an op, run here and there, and what differs beyond rounding."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchvit.graph import run_backward
from scratchvit.tensor import Tensor, edge_to
from tests.support.margins import FACTOR, rounding, ulps
from tests.support.one_op import cotangents
from tests.support.op_db import Peer, Unsupported, is_list, is_tensor
from tests.support.seeds import moved

MOST_SAMPLES = 120      # of an operator: every n-th of PyTorch's, max_pool2d has 1,440


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
    if is_tensor(x):
        return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"
    if is_list(x):
        return f"[{', '.join(map(_short, x))}]"
    return repr(x)


def mapped(x: Any, tensor: Callable[[Any], Any]) -> Any:
    """x with `tensor` called on every tensor of PyTorch's in it."""
    if is_tensor(x):
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
    roots = [(edge_to(y), v) for y, v in zip(outputs, cotangents(outputs)) if y.requires_grad]
    if roots:
        run_backward(roots)
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


def builtin_name(error: Exception) -> str:
    """The name of Python's own class of an error: "ValueError" for a `WrongValue`."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")


def differences(sample: Sample, layout: Layout = np.array) -> dict[str, str]:
    """What differs from PyTorch beyond rounding: {"value 0": "shape (2,), PyTorch's (1, 2)", …}.

    PyTorch computes in float64. Where numbers are too large or small for float32, its own float32 is as good. An op of
    ours that raises differs in "raises".
    """
    with np.errstate(all="ignore"):
        try:
            found = ours(sample, layout)
        except Exception as error:
            return {"raises": f"{builtin_name(error)}: {error}"}
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
