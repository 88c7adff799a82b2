"""How much memory a model takes at its peak, found without running it.

    with init.without_weights():
        model = create_model("vit_base_patch16_224")
    peak = peak_memory(model, batch_size=32)
    peak.training, peak.inference               # bytes of all arrays that are alive at the worst moment

What is alive when is decided by the model's code and by the autograd engine: which names still refer to an array, which
backward has saved it, which gradients wait for others. So both run as they are, on arrays that are `Blank`: they have a
shape, a layout and a lifetime, and no memory. An `Account` adds up the bytes of those that live. Only the ops do not
run: its facts (facts.py) say what shape comes out, what it saves for its backward, and what it needs while it works and
then gives back.

A training step is the second of its kind, with the moments of AdamW in place and no gradients from before. Counted are
arrays, as `tracemalloc` counts them. A process needs more: Python and its libraries, some 100 MiB; blocks that stay in
the cache; and what the allocator keeps and cannot use again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchvit import ops
from scratchvit.costs.blanks import BLANKS, Blank, Ledger, as_blanks, broadcast_zero, layout, layouts
from scratchvit.costs.counting import bind, configured_shape, follow, standing_in
from scratchvit.facts import Bytes, Facts, ask, facts_of, order_of, saved
from scratchvit.models.interface import config_of, detects, generates
from scratchvit.nn import Module
from scratchvit.recording import no_grad
from scratchvit.signature import differentiable_parameters, inputs_of
from scratchvit.tensor import Tensor

MOMENTS = 2     # of AdamW: arrays like the weights


@dataclass(frozen=True)
class PeakMemory:
    """Bytes at the worst moment, for a batch. Weights, gradients and moments are parts of training."""

    weights: int            # parameters and buffers: all there is before images come
    gradients: int
    moments: int            # of AdamW
    training: int           # a whole step
    inference: int          # a forward without a graph
    batch_size: int
    worst: str              # where training has its peak: "blocks.11.mlp.act: backward of gelu"
    kept: dict[str, int]    # by module path: what the graph holds when the forward is done, and backward begins

    @property
    def activations(self) -> int:
        """What training takes beyond weights and moments at its peak: images, activations, gradients by then."""
        return self.training - self.weights - self.moments


def peak_memory(model: Module, image_shape: Sequence[int] | None = None, batch_size: int = 1) -> PeakMemory:
    """What training and inference with batches of that size take. Nothing is computed; the model stays as it is.

    image_shape: as for `cost`. Raises what `cost` raises.
    """
    image_shape = configured_shape(model) if image_shape is None else image_shape
    parameters = list(model.parameters())
    dtype = next((parameter.dtype for parameter in parameters), np.dtype(np.float32))
    images = broadcast_zero((batch_size, *image_shape), dtype)
    weights = sum(x.data.nbytes for x in (*parameters, *(buffer for _, buffer in model.named_buffers())))
    learned = sum(x.data.nbytes for x in parameters if x.requires_grad)
    inference, training = Account(images.nbytes), Account(images.nbytes)
    with no_grad(), standing_in(model, inference.call, training=False, device=BLANKS):
        model(Tensor(images))
    gradients = [parameter.grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        with standing_in(model, training.call, training=True, device=BLANKS):
            kept = _step(model, images, training)
    finally:
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
    return PeakMemory(
        weights, learned, MOMENTS * learned, weights + MOMENTS * learned + training.peak, weights + inference.peak,
        batch_size, training.worst, kept,
    )


def _step(model: Any, images: np.ndarray, account: Account) -> dict[str, int]:
    """A step but for the optimiser's part, which needs nothing new. What the graph holds in the middle, by module."""
    if detects(config_of(model)):
        loss = _of_all_boxes(model(Tensor(images)))
    else:
        labels = np.zeros(len(images), np.int64)
        if generates(model):     # iGPT learns the images themselves
            labels = model.tokens(images)
        loss = ops.cross_entropy(model(Tensor(images)), labels)
    kept = dict(+account.by_path)
    loss.backward(account.new(loss.shape, loss.dtype))
    return kept


def _of_all_boxes(outputs: dict[str, Any]) -> Tensor:
    """A loss of all classes and boxes of a detector, each of its own object: matching them would need their values."""
    losses = []
    for layer in (outputs, *outputs["aux_outputs"]):
        logits, boxes = layer["pred_logits"], layer["pred_boxes"]
        losses.append(ops.cross_entropy(logits.transpose(1, 2), np.zeros(boxes.shape[:2], np.int64)))
        losses.append(ops.l1_loss(boxes, np.zeros(boxes.shape, boxes.dtype)))
    return sum(losses[1:], losses[0])


# --- running without computing ----------------------------------------------------------------------------------------


class Account(Ledger):
    """Runs the ops of a model on blanks, and keeps the ledger of them."""

    def call(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], path: str
    ) -> tuple[Any, Callable[..., Any]]:
        """What an op would give for these arguments, which may be blanks, and its backward."""
        name, facts = function.__name__, facts_of(function)
        self.path, self.doing = path, f"forward of {name}"
        value, _ = follow(function, args, kwargs, path)
        bound = bind(function, as_blanks(args), as_blanks(kwargs))
        blanks = bound.arguments
        differentiable = inputs_of(differentiable_parameters(function), bound.args, bound.kwargs)
        arguments = {key: layouts(x) for key, x in blanks.items()}
        results = value if isinstance(value, tuple) else (value,)
        order = ask(facts.order, arguments, function=function)
        outputs = self._views(facts, function, blanks, arguments) or tuple(
            self.new(y.shape, y.dtype, order) if y.dtype.kind == "f" else y for y in results
        )
        out = layouts(outputs if isinstance(value, tuple) else outputs[0])
        workspace = ask(facts.workspace, arguments, out=out)
        self.need(workspace.forward)
        known = {id(layouts(x)): x for x in (*_blanks_in(blanks.values()), *outputs)}
        kept = [
            known[id(x)] if id(x) in known else self.new((_bytes(x),), np.uint8)
            for x in saved(function, arguments, out)
        ]
        # The closure must not keep what the op did not save: of its inputs it keeps the layouts.
        inputs = [Blank(x.layout, None, None) if isinstance(x, Blank) else x for x in differentiable]
        passes_on = [
            isinstance(x, Blank) and ask(facts.passes_on, arguments, given=x.layout, out=out)
            for x in differentiable
        ]

        def backward(dy: Any, need: list[bool]) -> list[Any]:
            self.path, self.doing = path, f"backward of {name}"
            dys = [g for g in dy if g is not None] if isinstance(dy, tuple) else [dy]
            gradients = [
                self._gradient(x, dys[0], passed) if wanted else None
                for x, passed, wanted in zip(inputs, passes_on, need)
            ]
            self.need(workspace.backward)
            kept.clear()                # and until here they lived
            return gradients

        return outputs if isinstance(value, tuple) else outputs[0], backward

    def _views(
        self, facts: Facts, function: Callable[..., Any], blanks: dict[str, Any], arguments: dict[str, Any]
    ) -> tuple[Blank, ...]:
        """What an op gives that only looks at its first argument in another way; () for any other."""
        x = next(iter(blanks.values()))
        if not (isinstance(x, Blank) and ask(facts.view, arguments)):
            return ()
        seen = function(**arguments)[0]
        return tuple(Blank(y, x.owner, self) for y in (seen if isinstance(seen, tuple) else (seen,)))

    def _gradient(self, x: Blank, dy: Blank, passed_on: bool) -> Blank:
        """What a backward gives for the input x: dy or a view of it where the op passes it on, else a new array."""
        if not passed_on:
            return self.new(x.shape, x.dtype, order_of(x.layout))
        return dy if x.shape == dy.shape else Blank(layout(x.shape, x.dtype), dy.owner, self)


def _blanks_in(arguments: Any) -> Iterator[Blank]:
    for x in arguments:
        if isinstance(x, list | tuple):
            yield from _blanks_in(x)
        elif isinstance(x, Blank):
            yield x


def _bytes(x: Any) -> int:
    """Of what is saved and no blank: arrays of the op's own making, indices and masks."""
    return x if isinstance(x, Bytes) else x.nbytes
