"""The autograd engine in under 100 lines, on single numbers. tensor.py and graph.py are the same engine on arrays.

Reverse-mode automatic differentiation (here in the form of micrograd) rests on three ideas:

1. An op is a function that returns its value and `backward`, a closure that keeps what it needs. Given dy, the gradient
   of the loss with respect to the value, it returns the gradient with respect to each input: the chain rule of one op.
2. Calling an op leaves a Node: `backward`, and an edge to the parent of each input. Nodes know their parents only, not
   their Value nor its consumers. So there are no reference cycles, and dropping the loss frees the graph.
3. Gradients go back in topological order: a node is ready when all its consumers have sent their share. Shares are
   added, since a value that is used twice affects the loss in two ways.

>>> x, y = Value(2.0), Value(3.0)
>>> z = x * y + x                   # two nodes: mul, with edges to x and y; add, with edges to mul and x
>>> z.backward()                    # add sends 1 to mul and to x; then mul sends 1·3 to x and 1·2 to y
>>> x.grad, y.grad
(4.0, 2.0)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


class Node:
    """One application of an op. edges: for each input the node that made it, or the Value itself if it is a leaf."""

    def __init__(self, backward: Callable[[float], tuple[float, ...]], edges: list[Node | Value]):
        self.backward, self.edges = backward, edges


class Value:
    """A number. `backward()` adds the gradient of a result to `grad` of every leaf that the result depends on."""

    def __init__(self, data: float, node: Node | None = None):
        self.data, self.grad, self.node = data, 0.0, node       # node: what made it; None for a leaf

    def __add__(self, other: Value | float) -> Value:
        return add(self, other)

    def __mul__(self, other: Value | float) -> Value:
        return mul(self, other)

    def backward(self) -> None:
        root = self.node or self
        waiting = count_consumers(root)         # for each node and leaf: consumers that have not sent their share yet
        gradients = {root: 1.0}                 # the sum of the shares that have arrived
        ready = [root]
        while ready:                            # a loop, not recursion: a chain may be of any length
            node = ready.pop()                  # any ready one will do: nothing more can arrive there
            dy = gradients.pop(node)
            if isinstance(node, Value):
                node.grad += dy
                continue
            for edge, dx in zip(node.edges, node.backward(dy)):
                gradients[edge] = gradients[edge] + dx if edge in gradients else dx
                waiting[edge] -= 1
                if waiting[edge] == 0:
                    ready.append(edge)


def count_consumers(root: Node | Value) -> dict[Node | Value, int]:
    """How many edges lead to each node and leaf that the root depends on."""
    count, stack = {root: 0}, [root]
    while stack:
        node = stack.pop()
        for edge in node.edges if isinstance(node, Node) else ():
            if edge not in count:
                stack.append(edge)
            count[edge] = count.get(edge, 0) + 1
    return count


def op(function: Callable[..., Any]) -> Callable[..., Value]:
    """Make an op on Values of a function on floats that returns (value, backward). A float counts as a leaf."""

    def apply(*inputs: Value | float) -> Value:
        values = [x if isinstance(x, Value) else Value(x) for x in inputs]
        y, backward = function(*(x.data for x in values))
        return Value(y, Node(backward, [x.node or x for x in values]))

    return apply


@op
def add(x: float, y: float) -> Any:
    return x + y, lambda dy: (dy, dy)


@op
def mul(x: float, y: float) -> Any:
    return x * y, lambda dy: (dy * y, dy * x)


@op
def tanh(x: float) -> Any:
    y = math.tanh(x)
    return y, lambda dy: (dy * (1 - y * y),)
