"""The autograd graph that ops record, and the backward pass through it, from a loss to the leaves.

*The graph* of z = x·y + x, node by node. The forward pass makes the nodes, each with an edge for every input:

>>> from scratchvit import Tensor
>>> x, y = Tensor(2.0, requires_grad=True), Tensor(3.0, requires_grad=True)
>>> z = x * y + x
>>> add, _ = z._edge
>>> (mul, _), (leaf, _) = add.edges
>>> add.name, mul.name, leaf is x, [leaf is y for leaf, _ in mul.edges]
('add', 'mul', True, [False, True])

*The order.* The backward pass visits nodes in topological order: every node after all of its consumers. A node is ready
when all its consumers have sent their part of its gradient. Its gradient is then complete, and any ready node may be
next. There always is one, because the graph has no cycles. Here:

    ready    dy     sends                          x.grad    y.grad    mul still waits for
             1      (the start: dz/dz, to add)     –         –         1 consumer
    add      1      1 to mul, 1 to x               1         –         0: ready
    mul      1      1·y = 3 to x, 1·x = 2 to y     4         2

>>> z.backward()
>>> x.grad.item(), y.grad.item()
(4.0, 2.0)

*Memory.* A node refers to its inputs only, not to the Tensor it made or to its consumers, and a leaf refers to no node.
So references go in one direction, from the loss to the leaves, without cycles. When the loss is deleted, reference
counting frees every node and what its closure saved at once, without Python's garbage collector. `backward()` frees
each node as soon as it has been used.

>>> import weakref
>>> z = x * y + x
>>> closure = weakref.ref(z._edge[0].edges[0][0].backward)      # the closure of mul, which saved x and y
>>> del z
>>> closure() is None
True

*Accumulating in place.* If a tensor is used several times, its gradients are summed, and a sum in place saves an array.
It is only allowed into a *fresh* array: one that the current call of a backward has made and that nothing else refers
to. The product dy·y returned by mul is fresh. The gradients returned by add are not: both are the same array, dy
itself. With z = (x + y) + x, a sum in place would give a wrong gradient:

>>> import numpy as np
>>> dy = np.ones(1)
>>> x_grad = to_inner_add = dy          # the outer add sends dy to x and to the inner add
>>> x_grad += to_inner_add              # the inner add sends it to x too: 1 + 1 = 2 is written into dy
>>> to_inner_add                        # the inner add also sends it to y, which gets 2 instead of 1
array([2.])

`_is_fresh` finds out which gradients are fresh, and `_sum` adds them: on the CPU each as it comes; on a GPU, where the
number of operations bounds the speed, up to 16 in one. The engine cannot see which arrays a closure has saved, so the
backward of an op must never return a saved array (see `op` in tensor.py). A leaf owns its `grad`, which is a copy if
the gradient was not fresh, so accumulating into it is safe too.

*Complete gradients.* The gradient of a leaf is complete when all edges to it have been followed, which for the last
layers is early in the backward pass. `telling` tells it at once, so that it can be sent to other processes meanwhile:

>>> from scratchvit.graph import telling
>>> order = []
>>> z = (x * y) * Tensor(5.0, requires_grad=True)
>>> with telling(lambda leaf: order.append(leaf.item())):
...     z.backward()
>>> order
[5.0, 2.0, 3.0]
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

from scratchvit.backend import Array, asarray, backend_of
from scratchvit.errors import WrongState
from scratchvit.recording import setting
from scratchvit.signature import takes_need

AT_ONCE = 16        # gradients that a GPU adds in one operation
_SEVERAL = (tuple, list)        # a tuple: isinstance takes three times as long for tuple | list

Gradients: TypeAlias = Sequence[Array | None]
"""Of all outputs of a node, or of all its inputs; None where none has arrived, or is needed."""

Arrived: TypeAlias = list[tuple[Array, bool]]
"""Gradients that have arrived for an output of a node, each with whether it is fresh."""


def _cannot(arrays: Sequence[Array], out: Array | None) -> None:
    """What `add_up` is without the ops."""


add_up: Callable[[Sequence[Array], Array | None], Array | None] = _cannot
"""Adds up to AT_ONCE arrays on a GPU, in the second argument or a new array; None if it cannot. ops/ sets it."""

Watched: TypeAlias = tuple["Version", int, tuple[int, ...]]


class Version:
    """How often an array was changed in place. The Tensors that share its memory share this object."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


Edge: TypeAlias = tuple[Any, int]
"""(node, output index) for an input made by an op, (Tensor, its version) for a leaf."""


class Node:
    """One call of an op in the graph: its backward, and an edge for every input, None if it needs no gradient.

    Nodes refer to neither their value nor their consumers, so there are no reference cycles.

    `watched` has an entry (version, count, shape) for every array that the backward may need and that can be changed in
    place: inputs without a gradient, and what `detach()` returned for an output.
    """

    __slots__ = ("backward", "edges", "gives_tuple", "name", "outputs", "watched")

    inner_leaves: Sequence[Edge] = ()       # see Recomputed

    name: str
    backward: Callable[..., Any] | None     # None after use, which frees what it saved
    edges: Sequence[Any]
    outputs: int
    gives_tuple: bool                       # the op returned a tuple, perhaps of one, and its backward is given one
    watched: tuple[Watched, ...]


_new = object.__new__


def new_node(
    name: str, backward: Callable[..., Any], edges: Sequence[Any], outputs: int, gives_tuple: bool = False,
    kind: type[Any] = Node,
) -> Any:
    """A Node, or one of a subclass. (Every op makes one, and calling a function is quicker than calling a class.)"""
    node = _new(kind)
    node.name, node.backward = name, backward
    node.edges = edges
    node.outputs, node.gives_tuple = outputs, gives_tuple
    node.watched = ()
    return node


class Recomputed(Node):
    """A node whose backward computes a graph of its own and goes back through it (see checkpoint.py).

    inner_leaves: the edges to leaves of that graph, one for each use.
    """

    __slots__ = ("inner_leaves",)


def run_backward(roots: Sequence[tuple[Any, Array]]) -> None:
    """Propagate gradients from the roots, pairs (edge, gradient), to the leaves, in topological order.

    Takes linear time in the size of the graph, without recursion. Raises RuntimeError as `Tensor.backward` does, and
    for an op whose backward returns a wrong number of gradients, or a gradient of a wrong shape or dtype.
    """
    waiting = _count_consumers([edge for edge, _ in roots])
    outer = _reached.get()
    if outer is not None:               # a checkpoint goes back through its own graph within that of the whole
        _send_back(roots, waiting, outer, None)
        return
    reached: Reached = {}
    tell = _tell.get()
    with setting(_reached, reached):
        try:
            _send_back(roots, waiting, reached, tell and _Uses(roots, tell))
        except BaseException:
            _take_back(reached)
            raise


Reached: TypeAlias = dict[weakref.ref, bool]
"""Leaves that a backward has reached, and whether they had a gradient before. Weak, since those of a checkpoint's own
graph are dropped when it is done."""

_reached: ContextVar[Reached | None] = ContextVar("reached", default=None)


@contextmanager
def telling(tell: Callable[[Any], None]) -> Iterator[None]:
    """Context manager in which `backward` calls tell(leaf) once for every leaf that it reaches, as soon as the leaf's
    gradient is complete, in this thread. `leaf.grad` may be None, if no op sent a gradient.

    If tell raises an exception, so does `backward`, and no leaf keeps its gradient.
    """
    with setting(_tell, tell):
        yield


_tell: ContextVar[Callable[[Any], None] | None] = ContextVar("tell", default=None)


class _Uses:
    """Counts down the edges to each leaf, and tells when there are no more."""

    def __init__(self, roots: Sequence[tuple[Edge, Array]], tell: Callable[[Any], None]) -> None:
        self.tell = tell
        _, leaves = reachable([edge for edge, _ in roots])
        self.left = Counter(id(leaf) for leaf, _ in leaves)         # the graph keeps the leaves, so ids are unique

    def followed(self, leaf: Any) -> None:
        """An edge to a leaf was followed."""
        key = id(leaf)
        self.left[key] -= 1
        if not self.left[key]:
            self.tell(leaf)


def _take_back(reached: Reached) -> None:
    """After an error: a part of a gradient looks like a gradient, so no leaf keeps one."""
    for reference, had_gradient in reached.items():
        leaf = reference()
        if leaf is not None and had_gradient:
            leaf.grad[...] = float("nan")
        elif leaf is not None:
            leaf.grad = None


def _send_back(
    roots: Sequence[tuple[Any, Array]], waiting: dict[Node, int], reached: Reached, uses: _Uses | None
) -> None:
    """Send gradients from the roots to the leaves. waiting: how many gradients will be sent to each node."""
    ready: list[tuple[Node, Gradients]] = []        # nodes, and the gradient of each output
    arrived: dict[Node, list[Arrived]] = {}         # for each output of a node that waits for more gradients
    leaves: set[Any] = set()                        # those in `reached`: to ask there takes longer

    def send(edges: Sequence[Any], gradients: Gradients, incoming: Gradients) -> None:
        for edge, gradient in zip(edges, gradients):
            if edge is None:
                continue
            node, index = edge
            if not isinstance(node, Node):
                if gradient is not None:
                    if node not in leaves:
                        leaves.add(node)
                        reached.setdefault(weakref.ref(node), node.grad is not None)
                    _accumulate_leaf(node, gradient, gradients, incoming)
                if uses is not None:
                    uses.followed(node)
                continue
            left = waiting[node] = waiting[node] - 1
            if node not in arrived:
                if not left and node.outputs == 1:          # it has one consumer, as most have
                    ready.append((node, (gradient,)))
                    continue
                arrived[node] = [[] for _ in range(node.outputs)]
            if gradient is not None:
                of_output = arrived[node][index]
                of_output.append((gradient, bool(of_output or left) and _is_fresh(gradient, gradients, incoming)))
                if len(of_output) > 1 and len(of_output) == (AT_ONCE if backend_of(gradient).has_cuda else 2):
                    of_output[:] = [(_sum(of_output), True)]
            if not left:
                ready.append((node, [_sum(of_output) if of_output else None for of_output in arrived.pop(node)]))

    for edge, gradient in roots:
        send((edge,), (gradient,), (gradient,))     # as if the caller had been given it too, so it is never fresh
    while ready:
        node, incoming = ready.pop()                # any ready node: see the top of this file
        send(node.edges, _apply_backward(node, incoming), incoming)
        if uses is not None:
            for leaf, _ in node.inner_leaves:
                uses.followed(leaf)
        node.edges = ()


def _count_consumers(roots: Sequence[tuple[Any, int]]) -> dict[Node, int]:
    """The number of edges that lead to each node that can be reached from the roots.

    Raises RuntimeError, before any gradient is changed, for a graph that was already used, and for a leaf that was
    changed in place after an op had used its old values.
    """
    waiting: dict[Node, int] = {}
    stack: list[Sequence[Any]] = [roots]        # edges of a node
    while stack:
        for edge in stack.pop():
            if edge is None:
                continue
            target, version = edge
            if not isinstance(target, Node):
                if target._version.count != version:
                    raise _changed(target.shape)
            elif target in waiting:
                waiting[target] += 1
            else:
                waiting[target] = 1
                if target.backward is None:
                    raise WrongState(
                        f"backward() reached the op {target.name!r}, whose graph was already used and freed: "
                        "compute the loss again, or add the losses and call backward() once"
                    )
                for counter, count, shape in target.watched:
                    if counter.count != count:
                        raise _changed(shape)
                stack.append(target.edges)
    return waiting


def _changed(shape: tuple[int, ...]) -> WrongState:
    return WrongState(
        f"backward() reached a leaf of shape {shape} that was changed in place after the loss was computed (by an "
        "optimiser's step, or by +=), so its gradient would be wrong: call backward() before changing it, or compute "
        "the loss again"
    )


def reachable(edges: Sequence[Any]) -> tuple[list[Node], list[Edge]]:
    """All nodes that can be reached from the edges, and all edges to leaves, those inside of checkpoints too."""
    nodes: dict[Node, None] = {}
    leaves: list[Edge] = []
    stack = list(edges)
    while stack:
        edge = stack.pop()
        if edge is None or edge[0] in nodes:
            continue
        if isinstance(edge[0], Node):
            nodes[edge[0]] = None
            stack.extend(edge[0].edges)
            leaves.extend(edge[0].inner_leaves)
        else:
            leaves.append(edge)
    return list(nodes), leaves


def _apply_backward(node: Node, incoming: Gradients) -> Gradients:
    """Call a node's backward and free it. Returns a gradient for every edge, None where none is needed.

    incoming: the gradient of every output. If none has arrived at any, the backward is not called.
    """
    backward, node.backward = node.backward, None
    assert backward is not None
    dy = tuple(incoming) if node.gives_tuple else incoming[0]
    if dy is None or (node.gives_tuple and all(gradient is None for gradient in incoming)):
        return [None] * len(node.edges)
    if takes_need(backward):
        gradients = backward(dy, need=[edge is not None for edge in node.edges])
    else:
        gradients = backward(dy)
    if not isinstance(gradients, _SEVERAL):
        gradients = (gradients,)
    if len(gradients) != len(node.edges):
        raise WrongState(
            f"op {node.name!r}: its backward returned {len(gradients)} gradients for {len(node.edges)} inputs"
        )
    return gradients


def _sum(arrived: Arrived) -> Array:
    """The sum of gradients; of several, it is written to the first that is fresh, or to a new array."""
    if len(arrived) == 1:
        return arrived[0][0]
    gradients = [gradient for gradient, _ in arrived]
    place = next((number for number, (_, is_fresh) in enumerate(arrived) if is_fresh), None)
    total = None if place is None else gradients[place]
    if len(gradients) > 2 and (found := add_up(gradients, total)) is not None:
        return found
    others = [gradient for number, gradient in enumerate(gradients) if number != (place or 0)]
    if total is None:
        total = gradients[0] + others.pop(0)
    for gradient in others:
        total += gradient
    return total


def _is_fresh(gradient: Array, gradients: Gradients, incoming: Gradients) -> bool:
    """Whether a gradient can be added to in place: it covers the whole of its memory, and nothing else is in there.

    gradients: all that a call of a backward has returned, of which this is one. incoming: all that it was given.
    """
    owner = _owner(gradient)
    if owner.size != gradient.size or not getattr(gradient.flags, "writeable", True):   # NumPy's broadcast_to
        return False
    return sum(_owner(other) is owner for other in (*gradients, *incoming) if other is not None) == 1


def _owner(array: Array) -> Array:
    """The array that owns the memory: the array itself, or the base of a view."""
    return array if array.base is None else array.base


def _accumulate_leaf(leaf: Any, gradient: Array, gradients: Gradients, incoming: Gradients) -> None:
    data = leaf.data
    if gradient.shape != data.shape or gradient.dtype != data.dtype:
        raise WrongState(
            f"a backward returned a gradient {gradient.shape} {gradient.dtype} for a tensor {data.shape} {data.dtype}; "
            "if the dtypes differ, a float64 or integer array was combined with float32: convert it with astype()"
        )
    if leaf.grad is None:
        leaf.grad = asarray(gradient if _is_fresh(gradient, gradients, incoming) else gradient.copy())
    else:
        leaf.grad += gradient
