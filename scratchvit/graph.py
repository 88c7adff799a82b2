"""The graph that ops leave behind, and how gradients go back through it, from a loss to the leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from scratchvit.backend import Array, asarray
from scratchvit.signature import takes_need


class Node:
    """One application of an op in the graph: how to go back, and to where.

    An edge leads to what made an input, (node, output index), or to a leaf, (Tensor, its version), or nowhere (None)
    for an input that needs no gradient. Nodes know neither their value nor their successors, so there are no reference
    cycles.
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


def run_backward(roots: Sequence[tuple[Any, Array]]) -> None:
    """Send gradients from the roots, pairs of (edge, gradient), to the leaves. Linear in the graph, no recursion."""
    waiting = _count_consumers([edge for edge, _ in roots])
    arrived: dict[Node, list[_Sum]] = {}
    ready: list[Node] = []

    def send(edge: Any, gradient: Array, fresh: bool) -> None:
        node, index = edge
        if not isinstance(node, Node):
            _accumulate_leaf(node, gradient, fresh)
            return
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
            if isinstance(edge[0], Node):
                waiting[edge[0]] -= 1
                if waiting[edge[0]] == 0:
                    ready.append(edge[0])
        node.edges = ()


def _count_consumers(roots: Sequence[tuple[Any, int]]) -> dict[Node, int]:
    """For every node that edges to the roots reach: how many edges lead to it.

    Raises RuntimeError, before any gradient is touched, for what would make them wrong: a graph that was used already,
    and a leaf that was changed in place after an op had used its old values.
    """
    waiting: dict[Node, int] = {}
    stack: list[Node] = []

    def visit(edge: Any, count: int) -> None:
        target, version = edge
        if not isinstance(target, Node):
            if target._version != version:
                raise RuntimeError(
                    f"backward() came to a leaf of shape {target.shape} that was changed in place after the loss was "
                    "computed (by an optimiser's step, or by +=), so that its gradient would be wrong: go back first "
                    "and change it then, or compute the loss again"
                )
        elif target not in waiting:
            waiting[target] = count
            stack.append(target)
        else:
            waiting[target] += count

    for edge in roots:
        visit(edge, 0)
    while stack:
        node = stack.pop()
        if node.backward is None:
            raise RuntimeError(
                f"backward() came to the op {node.name!r}, whose graph was already used and freed; "
                "compute the loss again, or add the losses and call backward() once"
            )
        for edge in node.edges:
            if edge is not None:
                visit(edge, 1)
    return waiting


def reachable(edges: Sequence[Any]) -> tuple[list[Node], list[tuple[Any, int]]]:
    """All nodes that the edges lead to, and the edges to leaves, each leaf with its version when it was used."""
    nodes: dict[Node, None] = {}
    leaves: list[tuple[Any, int]] = []
    stack = list(edges)
    while stack:
        edge = stack.pop()
        if edge is None or edge[0] in nodes:
            continue
        if isinstance(edge[0], Node):
            nodes[edge[0]] = None
            stack.extend(edge[0].edges)
        else:
            leaves.append(edge)
    return list(nodes), leaves


def _apply_backward(node: Node, incoming: list[Array | None]) -> list[tuple[Any, Array | None, bool]]:
    """Call a node's closure once, free it, and give for each wanted gradient (edge, gradient, is it a new array)."""
    backward, node.backward = node.backward, None
    assert backward is not None
    wanted = [edge for edge in node.edges if edge is not None]
    if all(dy is None for dy in incoming):
        return [(edge, None, False) for edge in wanted]
    dy = tuple(incoming) if node.gives_tuple else incoming[0]
    if takes_need(backward):
        gradients = backward(dy, need=[edge is not None for edge in node.edges])
    else:
        gradients = backward(dy)
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


def _accumulate_leaf(leaf: Any, gradient: Array, fresh: bool) -> None:
    if gradient.shape != leaf.shape or gradient.dtype != leaf.dtype:
        raise RuntimeError(
            f"a backward gave a gradient {gradient.shape} {gradient.dtype} for a tensor {leaf.shape} {leaf.dtype}; if "
            "the dtypes differ, a float64 or integer array met float32 on the way: convert it with astype()"
        )
    if leaf.grad is None:
        leaf.grad = asarray(gradient if fresh else gradient.copy())
    else:
        leaf.grad += gradient
