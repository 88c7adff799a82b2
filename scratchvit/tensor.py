"""The autograd engine: a Tensor is an array that remembers how to find its gradient.

Read this file first. An *op* is a function on plain arrays that returns its value and a `backward` closure:

    @op
    def square(x: Array):
        def backward(dy):
            return 2 * x * dy
        return x * x, backward

Calling `square(t)` with a Tensor unwraps it, runs the function, and hangs a `Node` on the result: the closure, and the
edges to the nodes of its inputs. `loss.backward()` walks those edges from the loss to the leaves and lets every closure
turn the gradient of its value into the gradients of its inputs. That is all of reverse-mode differentiation.

    value      x ──► square ──► y ──► sum ──► loss          closures are made on the way down,
    gradient   dx ◄─ backward ◄─ dy ◄─ backward ◄─ 1        and called on the way up
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from scratchvit import random
from scratchvit.backend import Array, array_module, asarray, asnumpy, is_array

OPS: dict[str, Callable[..., Any]] = {}
"""Every op by its name, filled by the `@op` decorator."""


class Node:
    """One application of an op in the graph: how to go back, and to where.

    An edge leads to the (node, output index) that made an input, or to the leaf Tensor itself, or nowhere (None) for an
    input that needs no gradient. Nodes know neither their value nor their successors, so there are no reference cycles.
    """

    __slots__ = ("backward", "edges", "gives_tuple", "name", "outputs")

    def __init__(
        self, name: str, backward: Callable[..., Any], edges: tuple[Any, ...], outputs: int, gives_tuple: bool = False
    ):
        self.name = name
        self.backward: Callable[..., Any] | None = backward     # None once used: what it saved is freed
        self.edges = edges
        self.outputs = outputs
        self.gives_tuple = gives_tuple      # the op returned a tuple, perhaps of one, and its backward is given one


class Tensor:
    """An array with a gradient.

    data: an array on the device in use (lists, scalars and arrays are taken there; Python floats become float32).
    requires_grad: whether `backward()` shall leave a gradient in `.grad`, an array like `data`.
    """

    __slots__ = ("__weakref__", "_edge", "data", "grad", "requires_grad")
    __array_ufunc__ = None                  # so that `array * tensor` asks Tensor.__rmul__ and does not loop over it

    def __init__(self, data: Any, requires_grad: bool = False, dtype: Any = None):
        self.data: Array = asarray(data.data if isinstance(data, Tensor) else data, dtype)
        if requires_grad and self.data.dtype.kind != "f":
            raise TypeError(f"only floating-point tensors can require gradients, not {self.data.dtype}")
        self.requires_grad = requires_grad
        self.grad: Array | None = None
        self._edge: tuple[Node, int] | None = None      # (node, output index); None for a leaf

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)
    T = property(lambda self: self.transpose(-1, -2))

    def numpy(self) -> np.ndarray:
        """The values on the host, without history."""
        return asnumpy(self.data)

    def item(self) -> float:
        """The one value, as a Python number. On the GPU this waits for the device."""
        return self.data.item()

    def detach(self) -> Tensor:
        """The same array without history."""
        return Tensor(self.data)

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("a Tensor does not turn into an array by itself: take .numpy(), which waits for the device")

    def __len__(self) -> int:
        return len(self.data)

    def __bool__(self) -> bool:
        raise TypeError("the truth of a Tensor is not defined; compare `.item()` or `.numpy()`")

    def __repr__(self) -> str:
        suffix = ", requires_grad=True" if self.requires_grad else ""
        if self._edge is not None:
            suffix = f", op={self._edge[0].name}"
        values = np.array2string(self.numpy(), precision=4, separator=", ", prefix="Tensor(", threshold=20)
        return f"Tensor({values}, shape={self.shape}, dtype={self.dtype}{suffix})"

    def backward(self, gradient: Any = None) -> None:
        """Add d(self)/d(leaf) to `.grad` of every leaf that requires a gradient, and free the graph on the way.

        gradient: the cotangent, an array of this tensor's shape; may be left out for a single number (1 is meant).
        Raises RuntimeError when the graph was already used: build it anew, or add the losses and go back once.
        """
        if not self.requires_grad:
            raise RuntimeError("backward() on a tensor that does not depend on anything that requires a gradient")
        if gradient is None:
            if self.size != 1:
                raise RuntimeError(f"backward() of a tensor of shape {self.shape} needs a gradient of that shape")
            gradient = array_module(self.data).ones_like(self.data)
        else:
            gradient = Tensor(gradient, dtype=self.dtype).data
            if gradient.shape != self.shape:
                raise ValueError(f"backward(): gradient has shape {gradient.shape}, the tensor {self.shape}")
        _run_backward([(self._edge or self, gradient)])

    # Operators are ops looked up by name when called, since ops/ imports this file and not the other way round.
    def _op(name: str, swapped: bool = False) -> Callable[..., Any]:  # type: ignore[misc]
        if swapped:
            return lambda self, other: OPS[name](other, self)
        return lambda self, *args, **kwargs: OPS[name](self, *args, **kwargs)

    __add__, __radd__ = _op("add"), _op("add", swapped=True)
    __sub__, __rsub__ = _op("sub"), _op("sub", swapped=True)
    __mul__, __rmul__ = _op("mul"), _op("mul", swapped=True)
    __truediv__, __rtruediv__ = _op("div"), _op("div", swapped=True)
    __matmul__, __rmatmul__ = _op("matmul"), _op("matmul", swapped=True)
    __pow__, __neg__, __abs__, __getitem__ = _op("pow"), _op("neg"), _op("abs"), _op("getitem")
    exp, log, sqrt, tanh, sigmoid, clip = _op("exp"), _op("log"), _op("sqrt"), _op("tanh"), _op("sigmoid"), _op("clip")
    sum, mean, var, max, min = _op("sum"), _op("mean"), _op("var"), _op("max"), _op("min")
    transpose, permute, unbind, split, pad = _op("transpose"), _op("permute"), _op("unbind"), _op("split"), _op("pad")
    softmax, expand = _op("softmax"), _op("expand")

    def reshape(self, *shape: Any) -> Tensor:
        """The same values in another shape: `t.reshape(2, -1)` or `t.reshape((2, -1))`."""
        return OPS["reshape"](self, shape[0] if len(shape) == 1 else shape)

    def flatten(self, start: int = 0) -> Tensor:
        """All axes from `start` on made one."""
        return OPS["reshape"](self, (*self.shape[:start], math.prod(self.shape[start:])))

    def __iter__(self) -> Iterator[Tensor]:
        return iter(OPS["unbind"](self, 0))


# --- recording ------------------------------------------------------------------------------------------------------

_recording = True


def is_recording() -> bool:
    """Whether ops record how to go back, that is, no `no_grad` is in force."""
    return _recording


@contextlib.contextmanager
def _set_recording(value: bool) -> Iterator[None]:
    global _recording
    before, _recording = _recording, value
    try:
        yield
    finally:
        _recording = before


def no_grad() -> contextlib.AbstractContextManager[None]:
    """Inside `with no_grad():` ops record nothing, and keep nothing for a backward."""
    return _set_recording(False)


_stand_in: Callable[..., Any] | None = None


@contextlib.contextmanager
def replace_ops(stand_in: Callable[..., Any]) -> Iterator[None]:
    """Inside, `stand_in(function, args, kwargs)` gives (value, backward) where an op would have called its function.

    args and kwargs are plain arrays. This is how inspect/cost.py follows shapes through a model without computing.
    """
    global _stand_in
    before, _stand_in = _stand_in, stand_in
    try:
        yield
    finally:
        _stand_in = before


def op(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a differentiable operation of a function on plain arrays.

    The function takes arrays and returns `(value, backward)`, backward being a plain function. Its parameters annotated
    `Array`, `Array | None` or `Sequence[Array]` are the differentiable ones. `backward(dy)` returns one gradient for
    each of them, in the order of the signature (a single one needs no tuple). Where skipping is worth it, it takes a
    second argument, `need`: for each of those inputs, whether anybody wants its gradient; an unwanted one may be
    returned as None. An op that returns a tuple of arrays gets a tuple of cotangents, None for an unused output.

    What `backward` returns is new, or is `dy`, or a view of `dy`; never an array that was saved, since the engine may
    add to it in place.
    """
    array_slots = differentiable_parameters(function)
    if not array_slots:
        raise TypeError(f"op {function.__name__!r} has no parameter annotated Array, so nothing to differentiate")

    @functools.wraps(function)
    def apply(*args: Any, **kwargs: Any) -> Any:
        edges: list[Any] = []
        if _recording:
            for position, name, is_sequence, takes_rest in array_slots:
                inputs: Sequence[Any]
                if takes_rest:
                    inputs = args[position:]
                else:
                    given: Any = args[position] if position < len(args) else kwargs.get(name)
                    inputs = given if is_sequence else (given,)
                edges.extend(_edge_to(x) for x in inputs)
        plain = [_unwrap(arg) for arg in args]
        named = {key: _unwrap(arg) for key, arg in kwargs.items()}
        value, backward = function(*plain, **named) if _stand_in is None else _stand_in(function, plain, named)
        is_tuple = isinstance(value, tuple)
        outputs = [_wrap(v) for v in (value if is_tuple else (value,))]
        if any(edge is not None for edge in edges):
            node = Node(function.__name__, backward, tuple(edges), len(outputs), is_tuple)
            for index, output in enumerate(outputs):
                output.requires_grad = True
                output._edge = (node, index)
        return tuple(outputs) if is_tuple else outputs[0]

    OPS[function.__name__] = apply
    return apply


def differentiable_parameters(function: Callable[..., Any]) -> list[tuple[int, str, bool, bool]]:
    """(position, name, is it a sequence of arrays, does it take all that is left) of an op's function, in order."""
    one, many = ("Array", Array, "Array | None", Array | None), ("Sequence[Array]", Sequence[Array])
    return [
        (position, name, parameter.annotation in many, parameter.kind is parameter.VAR_POSITIONAL)
        for position, (name, parameter) in enumerate(inspect.signature(function).parameters.items())
        if parameter.annotation in (*one, *many)
    ]


def _edge_to(x: Any) -> Any:
    """Where x's gradient goes: see Node."""
    return (x._edge or x) if isinstance(x, Tensor) and x.requires_grad else None


def _unwrap(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.data
    if isinstance(x, np.generic):
        return x.item()         # NumPy's scalars promote float32 arrays; Python's do not
    if isinstance(x, list | tuple):
        return type(x)(_unwrap(element) for element in x)
    return x


def _wrap(value: Any) -> Tensor:
    tensor = Tensor.__new__(Tensor)
    # NumPy's full reductions give scalars. Arrays stay on the device that they were computed on.
    tensor.data = value if is_array(value) and not isinstance(value, np.generic) else asarray(value)
    tensor.requires_grad, tensor.grad, tensor._edge = False, None, None
    return tensor


# --- going back -----------------------------------------------------------------------------------------------------


def _run_backward(roots: Sequence[tuple[Any, Array]]) -> None:
    """Send gradients from the roots, pairs of (edge, gradient), to the leaves. Linear in the graph, no recursion."""
    waiting = _count_consumers([edge[0] for edge, _ in roots if not isinstance(edge, Tensor)])
    arrived: dict[Node, list[_Sum]] = {}
    ready: list[Node] = []

    def send(edge: Any, gradient: Array, fresh: bool) -> None:
        if isinstance(edge, Tensor):
            _accumulate_leaf(edge, gradient, fresh)
            return
        node, index = edge
        if node not in arrived:
            arrived[node] = [_Sum() for _ in range(node.outputs)]
        arrived[node][index].add(gradient, fresh)

    for edge, gradient in roots:
        send(edge, gradient, fresh=False)
    ready.extend(node for node, count in waiting.items() if count == 0)
    while ready:
        node = ready.pop()
        incoming = [total.value for total in arrived.pop(node, ())]
        for edge, gradient, fresh in _apply_backward(node, incoming):
            if gradient is not None:
                send(edge, gradient, fresh)
            if not isinstance(edge, Tensor):
                waiting[edge[0]] -= 1
                if waiting[edge[0]] == 0:
                    ready.append(edge[0])
        node.edges = ()


def _count_consumers(roots: list[Node]) -> dict[Node, int]:
    """For every node that the roots reach: how many edges lead to it."""
    waiting = dict.fromkeys(roots, 0)
    stack = list(waiting)
    while stack:
        node = stack.pop()
        if node.backward is None:
            raise RuntimeError(
                f"backward() came to the op {node.name!r}, whose graph was already used and freed; "
                "compute the loss again, or add the losses and call backward() once"
            )
        for edge in node.edges:
            if edge is not None and not isinstance(edge, Tensor):
                if edge[0] not in waiting:
                    waiting[edge[0]] = 0
                    stack.append(edge[0])
                waiting[edge[0]] += 1
    return waiting


def _apply_backward(node: Node, incoming: list[Array | None]) -> list[tuple[Any, Array | None, bool]]:
    """Call a node's closure once, free it, and give for each wanted gradient (edge, gradient, is it a new array)."""
    backward, node.backward = node.backward, None
    assert backward is not None
    wanted = [edge for edge in node.edges if edge is not None]
    if all(dy is None for dy in incoming):
        return [(edge, None, False) for edge in wanted]
    if node.gives_tuple:
        arguments: list[Any] = [tuple(incoming)]
    else:
        arguments = [incoming[0]]
    if _takes_need(backward):
        arguments.append([edge is not None for edge in node.edges])
    gradients = backward(*arguments)
    if not isinstance(gradients, tuple | list):
        gradients = (gradients,)
    if len(gradients) != len(node.edges):
        raise RuntimeError(f"op {node.name!r}: backward gave {len(gradients)} gradients for {len(node.edges)} inputs")
    owners = [id(_owner(g)) for g in (*gradients, *incoming) if g is not None]
    return [
        (edge, g, g is not None and owners.count(id(_owner(g))) == 1 and _is_whole(g))
        for edge, g in zip(node.edges, gradients)
        if edge is not None
    ]


def _is_whole(array: Array) -> bool:
    """Whether the array looks at all of its memory once, and may write there (NumPy's broadcast_to forbids it)."""
    return _owner(array).size == array.size and getattr(array.flags, "writeable", True)


def _owner(array: Array) -> Array:
    """The array whose memory this one looks at: itself, or what it is a view of."""
    return array if array.base is None else array.base


def _takes_need(backward: Callable[..., Any]) -> bool:
    return backward.__code__.co_argcount == 2


class _Sum:
    """Gradients that meet at one output. Adds in place only into an array that nobody else holds."""

    __slots__ = ("fresh", "value")

    def __init__(self) -> None:
        self.value: Array | None = None
        self.fresh = False

    def add(self, gradient: Array, fresh: bool) -> None:
        if self.value is None:
            self.value, self.fresh = gradient, fresh
        elif self.fresh:
            self.value += gradient
        elif fresh:
            gradient += self.value
            self.value, self.fresh = gradient, True
        else:
            self.value, self.fresh = self.value + gradient, True


def _accumulate_leaf(leaf: Tensor, gradient: Array, fresh: bool) -> None:
    if gradient.shape != leaf.shape or gradient.dtype != leaf.dtype:
        raise RuntimeError(
            f"a backward gave a gradient {gradient.shape} {gradient.dtype} for a tensor {leaf.shape} {leaf.dtype}; if "
            "the dtypes differ, a float64 or integer array met float32 on the way: convert it with astype()"
        )
    if leaf.grad is None:
        leaf.grad = asarray(gradient if fresh else gradient.copy())
    else:
        leaf.grad += gradient


# --- recomputing instead of remembering -----------------------------------------------------------------------------


def checkpoint(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function(*tensors)`, keeping only its inputs: what lies between is computed again when gradients are wanted.

    Memory for time (Chen et al. 2016, arXiv 1604.06174). Dropout draws the same masks again. Parameters that the
    function uses get their gradients as usual. It returns one Tensor; other tensors than `tensors` and parameters it
    must not use; running statistics inside (BatchNorm) are updated twice.
    """
    if not _recording:
        return function(*tensors)
    with random.recorded() as draws:
        value = function(*(Tensor(t.data, requires_grad=t.requires_grad) for t in tensors))
    if not value.requires_grad:
        return value

    arrays = [t.data for t in tensors]
    wants = [t.requires_grad for t in tensors]

    def backward(dy: Array) -> list[Array | None]:
        inputs = [Tensor(array, requires_grad=want) for array, want in zip(arrays, wants)]
        with _set_recording(True), random.replayed(draws):
            again = function(*inputs)
        _run_backward([(_edge_to(again), dy)])
        return [tensor.grad for tensor in inputs]

    result = _wrap(value.data)      # without the node of `value`: its graph dies here
    result.requires_grad = True
    result._edge = (Node("checkpoint", backward, tuple(_edge_to(t) for t in tensors), 1), 0)
    return result
