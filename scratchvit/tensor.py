"""The autograd engine: a Tensor is an array that remembers how it was computed, so that gradients can be computed.

Read this file first, or before it learn/engine.py, the same engine in 100 lines. An *op* is a function on plain arrays
that returns its value and a `backward` closure:

    @op
    def square(x: Array):
        def backward(dy):
            return 2 * x * dy
        return x * x, backward

Calling `square(t)` with a Tensor runs the function on its array and attaches a `Node` to the result: the closure, and
edges to the nodes of its inputs. `loss.backward()` follows these edges from the loss to the leaves. Every closure
computes the gradients of its inputs from the gradient of its value. This is reverse-mode differentiation.

    value      x ──► square ──► y ──► sum ──► loss          closures are made in the forward pass,
    gradient   dx ◄─ backward ◄─ dy ◄─ backward ◄─ 1        and called in topological order in the backward pass

For example, z = x·y + x at x = 2, y = 3 makes two nodes: mul, with edges to x and y; then add, with edges to mul and x.
In the backward pass, add comes first and sends dz = 1 to mul and to x. Then mul sends 1·y = 3 to x and 1·x = 2 to y.
graph.py goes through this node by node, and explains when gradients may be summed in place.

>>> x, y = Tensor(2.0, requires_grad=True), Tensor(3.0, requires_grad=True)
>>> z = x * y + x
>>> z.backward()
>>> x.grad.item(), y.grad.item()        # x is used twice: 3 + 1
(4.0, 2.0)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, overload

import numpy as np

from scratchvit import casting, dtypes
from scratchvit.backend import Array, array_module, asarray, asnumpy, broadcasts_to, is_array
from scratchvit.errors import ScratchvitError, WrongIndex, WrongState, WrongType, WrongValue, explained, in_the_family
from scratchvit.facts import Facts
from scratchvit.graph import Node, Version, new_node, run_backward
from scratchvit.recording import is_recording, mode
from scratchvit.signature import constant_parameters, differentiable_parameters, inputs_of

OPS: dict[str, Callable[..., Tensor]] = {}
"""The ops of scratchvit.ops by name, which the operators and methods of Tensor call. Filled by scratchvit/ops."""


class Tensor:
    """An array with a gradient.

    data: an array, a list or a number; it is moved to the device in use. Python floats become float32.
    requires_grad: whether `backward()` adds a gradient, an array like `data`, to `.grad`.
    dtype: the dtype of the array; that of `data` if not given.
    Raises TypeError for requires_grad with integers or bool.
    """

    __slots__ = ("__weakref__", "_edge", "_half", "_version", "data", "grad", "requires_grad")
    __array_ufunc__ = None                  # so that `array * tensor` calls Tensor.__rmul__ instead of NumPy's loop

    def __init__(self, data: Any, requires_grad: bool = False, dtype: Any = None):
        self.data: Array = asarray(data.data if isinstance(data, Tensor) else data, dtype)
        if requires_grad and not dtypes.is_float(self.data.dtype):
            raise WrongType(f"only floating-point tensors can require gradients, not {self.data.dtype}")
        self.requires_grad = requires_grad
        self.grad: Array | None = None
        self._edge: tuple[Node, int] | None = None      # (node, output index); None for a leaf
        self._version: Version | None = None        # made when it is first asked for

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of every axis."""
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the entries, a NumPy dtype also on the GPU."""
        return self.data.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """The number of entries."""
        return self.data.size

    @property
    def T(self) -> Tensor:
        """The last two axes exchanged."""
        return OPS["transpose"](self, -1, -2)

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array on the host, without a graph. On the GPU this waits for the device."""
        return asnumpy(self.data)

    def item(self) -> float:
        """The value of a Tensor with one entry, as a Python number. On the GPU this waits for the device."""
        return self.data.item()

    def detach(self) -> Tensor:
        """A Tensor with the same array, without a graph. Changing it in place changes this one too."""
        detached = Tensor(self.data)
        detached._version = version_of_alias(self)
        casting.mark_alike(detached, self)
        return detached

    @property
    def version(self) -> Version:
        """How often the array was changed in place, as a counter that all its aliases share."""
        if self._version is None:
            self._version = Version()
        return self._version

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise WrongType("a Tensor is not converted to an array implicitly: use .numpy(), which waits for the device")

    def __array_function__(self, function: Callable[..., Any], *args: Any) -> Any:
        raise WrongType(
            f"{function.__module__}.{function.__name__} was given a Tensor: use .numpy(), or a function of "
            "scratchvit.ops, which computes gradients"
        )

    def __float__(self) -> float:
        return float(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __eq__(self, other: object) -> bool:
        raise WrongType('"==" would compare Tensors by identity: write `a is b`, or compare `.numpy()`')

    __hash__ = object.__hash__

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if self._edge is not None:
            raise WrongState(
                f"a result (of the op {self._edge[0].name!r}) cannot be deep-copied, because the copy would be cut off "
                "from the leaves: copy the leaves, or `detach()` it first"
            )
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.data, copied.requires_grad, copied._edge, copied._version = (
            self.data.copy(), self.requires_grad, None, None
        )
        copied.grad = None if self.grad is None else self.grad.copy()
        casting.mark_alike(copied, self)
        return copied

    def __len__(self) -> int:
        return len(self.data)

    def __bool__(self) -> bool:
        raise WrongType("the truth value of a Tensor is not defined: use `.item()` or `.numpy()`")

    def __repr__(self) -> str:
        suffix = ", requires_grad=True" if self.requires_grad else ""
        if self._edge is not None:
            suffix = f", op={self._edge[0].name}"
        values = np.array2string(self.numpy(), precision=4, separator=", ", prefix="Tensor(", threshold=20)
        return f"Tensor({values}, shape={self.shape}, dtype={self.dtype}{suffix})"

    def backward(self, gradient: Any = None) -> None:
        """Add d(self)/d(leaf) to `.grad` of every leaf that requires a gradient, and free the graph.

        gradient: the cotangent, an array of this tensor's shape; 1 by default for a tensor with one entry.
        Raises RuntimeError if the graph was already used (compute the loss again, or add the losses and call backward()
        once), and if a leaf was changed in place since then, by an optimiser's step or by `+=`; ValueError for a
        gradient of another shape. If an op's backward raises, no leaf keeps a part of its gradient: `.grad` is None
        again, or NaN where the part had been added to an earlier gradient.
        """
        if not self.requires_grad:
            raise WrongState("backward() on a tensor that does not depend on anything that requires a gradient")
        if gradient is None:
            if self.size != 1:
                raise WrongState(
                    f"backward() of a tensor of shape {self.shape} needs a gradient of that shape: give one, or reduce "
                    "the tensor to a number by .sum() or .mean()"
                )
            gradient = array_module(self.data).ones_like(self.data)
        else:
            gradient = Tensor(gradient, dtype=self.dtype).data
            if gradient.shape != self.shape:
                raise WrongValue(f"backward(): gradient has shape {gradient.shape}, but the tensor has {self.shape}")
        run_backward([(edge_to(self), gradient)])

    # Operators look up their op by name when they are called, since ops/ imports this file and not vice versa.
    def _op(name: str) -> Callable[..., Tensor]:  # type: ignore[misc]
        return lambda self, *args, **kwargs: OPS[name](self, *args, **kwargs)

    def _operator(name: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:  # type: ignore[misc]
        return lambda self, other: OPS[name](self, other), lambda self, other: OPS[name](other, self)

    __add__, __radd__ = _operator("add")
    __sub__, __rsub__ = _operator("sub")
    __mul__, __rmul__ = _operator("mul")
    __truediv__, __rtruediv__ = _operator("div")
    __matmul__, __rmatmul__ = _operator("matmul")
    __pow__, __neg__, __abs__, __getitem__ = _op("pow"), _op("neg"), _op("abs"), _op("getitem")
    exp, log, sqrt, tanh, sigmoid, clip = _op("exp"), _op("log"), _op("sqrt"), _op("tanh"), _op("sigmoid"), _op("clip")
    sum, mean, var, max, min = _op("sum"), _op("mean"), _op("var"), _op("max"), _op("min")
    transpose, unbind, split, pad, softmax = _op("transpose"), _op("unbind"), _op("split"), _op("pad"), _op("softmax")

    def reshape(self, *shape: Any) -> Tensor:
        """The same entries in another shape: `t.reshape(2, -1)` or `t.reshape((2, -1))`."""
        return OPS["reshape"](self, shape[0] if len(shape) == 1 else shape)

    def permute(self, *dims: Any) -> Tensor:
        """A view with the axes in another order: `t.permute(0, 2, 1)` or `t.permute((0, 2, 1))`."""
        return OPS["permute"](self, dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims)

    def expand(self, *shape: Any) -> Tensor:
        """Broadcast to a shape; -1 keeps an axis as it is: `t.expand(B, -1, -1)` or `t.expand((B, -1, -1))`."""
        return OPS["expand"](self, shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)

    def flatten(self, start: int = 0) -> Tensor:
        """All axes from `start` on made one. Raises IndexError if there is no such axis."""
        if not -max(1, self.ndim) <= start < max(1, self.ndim):
            raise WrongIndex(f"flatten: start {start} is not an axis of a Tensor of shape {self.shape}")
        return OPS["reshape"](self, (*self.shape[:start], math.prod(self.shape[start:])))

    def __iter__(self) -> Iterator[Tensor]:
        return iter(OPS["unbind"](self, 0))

    # --- in place: only for leaves, and only while nothing is recorded ---

    def _in_place(symbol: str, ufunc: str) -> Callable[[Tensor, Any], Tensor]:  # type: ignore[misc]
        def change(self: Tensor, other: Any) -> Tensor:
            """`with no_grad(): p -= lr * p.grad` changes the leaf p in place. Anywhere else it is an error."""
            self._must_be_changeable(f"{symbol}=", f"x = x {symbol} …")
            operand = other if isinstance(other, int | float) else Tensor(other, dtype=self.dtype).data
            shape = getattr(operand, "shape", ())
            if not broadcasts_to(shape, self.shape):
                raise WrongValue(f"{symbol}=: an operand of shape {shape} does not broadcast to {self.shape}")
            getattr(array_module(self.data), ufunc)(self.data, operand, out=self.data)
            self.mark_changed()
            return self

        return change

    __iadd__, __isub__ = _in_place("+", "add"), _in_place("-", "subtract")
    __imul__, __itruediv__ = _in_place("*", "multiply"), _in_place("/", "divide")
    __ipow__ = _in_place("**", "power")

    def __setitem__(self, index: Any, values: Any) -> None:
        self._must_be_changeable("assigning to entries", "ops.where, or ops.concatenate")
        self.data[_unwrap(index)] = _unwrap(values)
        self.mark_changed()

    def overwrite(self, values: Any) -> None:
        """Overwrite the values in place, with an array of the same shape or a number.

        Afterwards, backward() through a graph that used the old values is an error. Raises RuntimeError for a result of
        ops.
        """
        if self._edge is not None:
            raise WrongState(f"only leaves can be overwritten, not a result of the op {self._edge[0].name!r}")
        self.data[...] = asarray(values, self.dtype)
        self.mark_changed()

    def mark_changed(self) -> None:
        """Note that `data` was changed in place. backward() through a graph that used the old values is an error."""
        self.version.count += 1

    def _must_be_changeable(self, what: str, instead: str) -> None:
        if self._edge is not None or is_recording():
            raise WrongState(
                f"{what} changes a Tensor in place, which is only allowed for leaves and under no_grad(), since the "
                f"gradient would be lost: use {instead}"
            )


# --- ops --------------------------------------------------------------------------------------------------------------


P = ParamSpec("P")
_new = object.__new__       # without the __init__ of Tensor, which takes what users give
_NUMBER, _SEQUENCE = (int, float), (list, tuple)        # tuples: isinstance takes three times as long for int | float


@overload
def op(function: Callable[P, Any]) -> Callable[P, Tensor]: ...


@overload
def op(
    *, takes: str = "floats", autocast: str | None = None, half_on_gpu: bool | Callable[..., bool] = False,
    facts: Facts | None = None, gives: type[Tensor] = Tensor,
) -> Callable[[Callable[P, Any]], Callable[P, Tensor]]: ...


def op(
    function: Callable[..., Any] | None = None, *, takes: str = "floats", autocast: str | None = None,
    half_on_gpu: bool | Callable[..., bool] = False, facts: Facts | None = None, gives: type[Tensor] = Tensor,
) -> Callable[..., Any]:
    """Turn a function on plain arrays into a differentiable op on Tensors.

    The function takes arrays and returns `(value, backward)`. Its parameters that are annotated `Array`,
    `Array | None` or `Sequence[Array]` are differentiable. `backward(dy)` returns one gradient for each of them, in the
    order of the signature; a single gradient needs no tuple. If `backward` has a second parameter named `need`, it gets
    a bool for each of these inputs, whether its gradient is needed; for the others it may return None. An op that
    returns a tuple of arrays gets a tuple of cotangents, with None for unused outputs.

    `backward` must return new arrays, `dy`, or views of `dy`, and never a saved array, since the engine may add to it
    in place.

    takes: the dtypes that the op accepts: "floats", "any", "numbers" or "sums" (see dtypes.py).
    autocast: what becomes of dtypes inside `autocast`, if it does not follow from `takes`: "casts", "follows", "sums"
        or "loss" (see casting.py).
    half_on_gpu: whether the function computes on 16-bit arrays on a GPU, by kernels that sum in float32; or a function
        of its arguments that says so. Otherwise it is given float32 there too, inside `autocast`.
    facts: the shape of the value, what is saved, and multiply-adds (see facts.py). They are used to compute costs; ops
        of scratchvit.ops must have them.
    gives: the class of the results; see `Extremes` in ops/reduce.py.
    The op raises TypeError for dtypes that it does not accept, and for a Tensor that requires a gradient as an argument
    that is not differentiable.
    Raises TypeError for a function without a differentiable parameter, ValueError for an unknown value of takes or
    autocast.
    """
    if function is None:
        return functools.partial(
            op, takes=takes, autocast=autocast, half_on_gpu=half_on_gpu, facts=facts, gives=gives
        )
    if takes not in dtypes.TAKES:
        raise WrongValue(f"op {function.__name__!r}: takes must be one of {', '.join(dtypes.TAKES)}, not {takes!r}")
    rule = casting.rule_of(function.__name__, takes, autocast)
    slots = differentiable_parameters(function)
    if not slots:
        raise WrongType(
            f"op {function.__name__!r} has no parameter annotated Array, so there is nothing to differentiate"
        )
    if facts is not None:
        function.facts = facts      # type: ignore[attr-defined]    # `wraps` below copies it to the op
    elif str(function.__module__).startswith("scratchvit.ops"):
        raise WrongType(f"op {function.__name__!r} has no facts: declare it with @op(facts=…), see facts.py")
    name, constants = function.__name__, constant_parameters(function)
    takes_inputs_only = not constants and not any(slot.is_sequence or slot.takes_rest for slot in slots)

    @functools.wraps(function)
    def apply(*args: Any, **kwargs: Any) -> Any:
        no_grads, stand_in, half = mode.get()
        direct = takes_inputs_only and len(args) == len(slots)
        inputs: Sequence[Any] = args if direct else inputs_of(slots, args, kwargs)
        taken = _arrays_and_edges(inputs, no_grads) if direct and half is None else None
        call, named, narrowed = function, kwargs, None
        if taken is not None:
            plain, edges = taken        # as in x + y, by far the most common call: there is nothing to convert
        else:
            edges = [None if no_grads else edge_to(x) for x in inputs]
            if constants and not no_grads:
                _refuse_lost_gradients(name, constants, args, kwargs)
            narrowed = None if half is None else casting.narrow(rule, slots, args, kwargs, half, facts, half_on_gpu)
            if narrowed is not None:
                args, kwargs = tuple(narrowed.args), narrowed.kwargs
            plain = [*map(_unwrap, args)]
            named = {key: _unwrap(arg) for key, arg in kwargs.items()} if kwargs else kwargs
            if not _have_one_regular_dtype(plain if direct else inputs):
                if not no_grads and any(isinstance(x, _SEQUENCE) and _requires_grad(x) for x in inputs):
                    raise WrongType(f"{name}: Tensors in a list would get no gradient: give ops.stack(list)")
                accepts = takes if narrowed is None or not narrowed.by_kernels else "any"
                call, plain, named = dtypes.settle(function, accepts, slots, plain, named)
            if narrowed is not None:
                call = narrowed.wrapped(call)
        try:
            if stand_in is not None:
                value, backward = stand_in(call, plain, named)
            else:
                value, backward = call(*plain, **named) if named else call(*plain)
        except (AttributeError, IndexError, OverflowError, TypeError, ValueError) as error:
            is_ours = isinstance(error, AttributeError) and all(x is None or hasattr(x, "dtype") for x in inputs)
            if is_ours or isinstance(error, ScratchvitError):
                raise
            if str(error).startswith(name):         # of the op itself
                raise in_the_family(error).with_traceback(error.__traceback__) from None
            raise explained(error, name, inputs) from error
        is_tuple = isinstance(value, tuple)
        node = new_node(name, backward, edges, len(value) if is_tuple else 1, is_tuple) if any(edges) else None
        if is_tuple:
            outputs = [wrap(v, gives, node, index) for index, v in enumerate(value)]
        else:
            outputs = [wrap(value, gives, node)]
        if narrowed is not None:
            narrowed.mark(outputs)
        if node is None:
            for output in outputs:
                if output.data.base is not None:
                    _share_version(output, inputs)
        elif not all(edges):
            watch_constants(node, inputs)
        return tuple(outputs) if is_tuple else outputs[0]

    apply.takes, apply.autocast = takes, rule       # type: ignore[attr-defined]
    return apply


def _arrays_and_edges(inputs: Sequence[Any], no_grads: int) -> tuple[list[Any], list[Any]] | None:
    """The arrays of inputs and the edges to them, if all are numbers or Tensors of one regular dtype; else None."""
    arrays, edges, dtype = [], [], None
    for x in inputs:
        if isinstance(x, Tensor):
            array = x.data
            found = array.dtype
            if found is not dtype:
                if dtype is not None or found not in dtypes.REGULAR:
                    return None
                dtype = found
            arrays.append(array)
            edges.append((x._edge or (x, x.version.count)) if x.requires_grad and not no_grads else None)
        elif type(x) in _NUMBER:
            arrays.append(x)
            edges.append(None)
        else:
            return None
    return arrays, edges


def _have_one_regular_dtype(inputs: Sequence[Any]) -> bool:
    """Whether all arrays are float32 or all are float64, so that none is converted. Python numbers are ignored."""
    dtype = None
    for x in inputs:
        found = getattr(x, "dtype", None)
        if found is None:
            if x is not None and not isinstance(x, _NUMBER):
                return False    # a list
        elif found is not dtype:
            if dtype is not None or found not in dtypes.REGULAR:
                return False    # a dtype that differs from the others; integers or float16
            dtype = found
    return True


def _refuse_lost_gradients(
    name: str, constants: Sequence[tuple[int, str]], args: Sequence[Any], kwargs: dict[str, Any]
) -> None:
    """Raise TypeError if a Tensor that requires a gradient is passed as a constant: it would silently get none."""
    for position, parameter in constants:
        given = args[position] if position < len(args) else kwargs.get(parameter)
        if _requires_grad(given):
            raise WrongType(
                f"{name}: {parameter} requires a gradient, but {name} is not differentiable with respect to it: "
                f"pass {parameter}.detach(), or a plain number or array"
            )


def _requires_grad(given: Any) -> bool:
    if isinstance(given, Tensor):
        return given.requires_grad
    return isinstance(given, _SEQUENCE) and any(map(_requires_grad, given))


def edge_to(x: Any) -> Any:
    """The edge along which x's gradient is sent (see Node); None if x needs no gradient."""
    return (x._edge or (x, x.version.count)) if isinstance(x, Tensor) and x.requires_grad else None


def watch_constants(node: Node, inputs: Sequence[Any]) -> None:
    """Let backward() notice if an input that needs no gradient is changed in place: the op may have saved it."""
    for x, edge in zip(inputs, node.edges):
        if edge is None and isinstance(x, Tensor):
            version = x.version
            node.watched += ((version, version.count, x.data.shape),)


def version_of_alias(x: Tensor) -> Version:
    """The version for a Tensor that shares the memory of x and has no graph.

    A result of an op cannot be changed in place itself, but its alias can: the op's node watches it.
    """
    if x._edge is None:
        return x.version
    version, node = Version(), x._edge[0]
    node.watched += ((version, 0, x.shape),)
    return version


def _share_version(output: Tensor, inputs: Sequence[Any]) -> None:
    """Give a result without a graph the version of the input of which it is a view, if it is one."""
    base = output.data.base
    for x in inputs:
        if isinstance(x, Tensor) and (x.data is base or x.data.base is base):
            output._version = version_of_alias(x)
            return


def _unwrap(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.data
    if isinstance(x, np.generic):
        return x.item()         # NumPy's scalars promote float32 arrays; Python's do not
    if isinstance(x, _SEQUENCE):
        return type(x)(map(_unwrap, x))
    return x


def wrap(value: Any, kind: type[Tensor] = Tensor, node: Node | None = None, index: int = 0) -> Tensor:
    """A Tensor of what an op computed: the output with this index of its node, which is None if nothing is recorded."""
    if type(value) is not np.ndarray and (isinstance(value, np.generic) or not is_array(value)):
        value = asarray(value)      # of NumPy's full reductions, which give scalars; arrays stay on their device
    tensor = _new(kind)
    tensor.data, tensor.grad, tensor._version = value, None, None
    tensor.requires_grad, tensor._edge = node is not None, None if node is None else (node, index)
    return tensor
