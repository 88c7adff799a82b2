"""How much memory a model takes at its peak, found without running it.

    with init.without_weights():
        model = create_model("vit_base_patch16_224")
    peak = peak_memory(model, batch_size=32)
    peak.training, peak.inference               # bytes of all arrays that are alive at the worst moment

What is alive when is decided by the model's code and by the autograd engine: which names still refer to an array, which
backward has saved it, which gradients wait for others. So both run as they are, on arrays that are `Blank`: they have a
shape, a layout and a lifetime, and no memory. An `Account` adds up the bytes of those that live. Only the ops do not
run: shapes.py says what shape comes out, and saved.py what each saves for its backward, and what it needs while it
works and then gives back.

A training step is the second of its kind, with the moments of AdamW in place and no gradients from before. Counted are
arrays, as `tracemalloc` counts them. A process needs more: Python and its libraries, some 100 MiB; blocks that stay in
the cache; and what the allocator keeps and cannot use again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchvit import ops
from scratchvit.backend import is_array
from scratchvit.inspect.blanks import BLANKS, Blank, as_blanks, layout
from scratchvit.inspect.cost import configured_shape, follow, signature_of, standing_in
from scratchvit.inspect.saved import PASSING_ON, SAVED, VIEWS, WORKSPACE, no_workspace, nothing
from scratchvit.inspect.shapes import blank
from scratchvit.nn import Module
from scratchvit.recording import no_grad
from scratchvit.tensor import Tensor, differentiable_parameters

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
    images = blank((batch_size, *image_shape), dtype)
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
    )  # fmt: skip


def _step(model: Any, images: np.ndarray, account: Account) -> dict[str, int]:
    """A step but for the optimiser's part, which needs nothing new. What the graph holds in the middle, by module."""
    if getattr(getattr(model, "config", None), "detects", False):
        loss = _of_all_boxes(model(Tensor(images)))
    else:
        labels = np.zeros(len(images), np.int64)
        if getattr(model, "generative", False):     # iGPT learns the images themselves
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


class Account:
    """Adds up the bytes of the blanks that live: `live` now, `peak` at the worst moment, which was at `worst`."""

    def __init__(self, live: int = 0):
        self.live = self.peak = live
        self.by_path: Counter[str] = Counter()      # what lives, by the module that made it
        self.path = self.doing = self.worst = ""

    def new(self, shape: Sequence[int], dtype: Any, like: Blank | None = None) -> Blank:
        """An array of its own memory; its axes lie in memory as those of `like`, where there is one."""
        return Blank(layout(shape, dtype, like), None, self)

    def need(self, nbytes: int) -> None:
        """So much is needed for a moment, beside what lives."""
        if self.live + nbytes > self.peak:
            self.peak, self.worst = self.live + nbytes, f"{self.path or 'the model'}: {self.doing}"

    def call(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], path: str
    ) -> tuple[Any, Callable[..., Any]]:
        """What an op would give for these arguments, which may be blanks, and its backward."""
        name = function.__name__
        self.path, self.doing = path, f"forward of {name}"
        value, _ = follow(function, args, kwargs, path)
        arguments = signature_of(function).bind(*as_blanks(args), **as_blanks(kwargs)).arguments
        results = value if isinstance(value, tuple) else (value,)
        outputs = self._views(function, arguments) or tuple(
            self.new(y.shape, y.dtype, _first(arguments)) if y.dtype.kind == "f" else y for y in results
        )
        workspace = WORKSPACE.get(name, no_workspace)(arguments, outputs)
        self.need(workspace.forward)
        saved = [
            self.new((x,), np.uint8) if isinstance(x, int) else x
            for x in SAVED.get(name, nothing)(arguments, outputs)
        ]
        # The closure must not keep what the op did not save: of its inputs it keeps the layouts.
        inputs = [
            Blank(x.layout, None, None) if isinstance(x, Blank) else x for x in differentiable(function, arguments)
        ]

        def backward(dy: Any, need: list[bool]) -> list[Any]:
            self.path, self.doing = path, f"backward of {name}"
            dys = [g for g in dy if g is not None] if isinstance(dy, tuple) else [dy]
            gradients = [self._gradient(name, x, dys[0]) if wanted else None for x, wanted in zip(inputs, need)]
            self.need(workspace.backward)
            saved.clear()               # and until here they lived
            return gradients

        return outputs if isinstance(value, tuple) else outputs[0], backward

    def _views(self, function: Callable[..., Any], arguments: dict[str, Any]) -> tuple[Blank, ...]:
        """What an op gives that only looks at its input in another way; () for any other."""
        name, (x, *_) = function.__name__, arguments.values()
        if not isinstance(x, Blank):
            return ()
        if name in ("dropout", "drop_path") and not (arguments.get("training", True) and arguments.get("p", 0.5)):
            return (x,)
        if name == "reshape":
            try:
                layouts: Any = np.reshape(x.layout, arguments["shape"], copy=False)
            except ValueError:              # the entries lie so that it must copy them
                return ()
        elif name in VIEWS or (name == "getitem" and not _picks(arguments["index"])):
            layouts = function(x.layout, *list(arguments.values())[1:])[0]
        else:
            return ()
        return tuple(Blank(y, x.owner, self) for y in (layouts if isinstance(layouts, tuple) else (layouts,)))

    def _gradient(self, name: str, x: Blank, dy: Blank) -> Blank:
        """What a backward gives for the input x: dy or a view of it where the op passes it on, else a new array."""
        if name == "add" and x.shape == dy.shape:
            return dy
        if name in PASSING_ON:
            return Blank(layout(x.shape, x.dtype), dy.owner, self)
        return self.new(x.shape, x.dtype, x)


def differentiable(function: Callable[..., Any], arguments: dict[str, Any]) -> Iterator[Any]:
    """The inputs that may get a gradient, in the order of their edges (see `op`)."""
    for slot in differentiable_parameters(function):
        value = arguments.get(slot.name)
        if slot.is_sequence or slot.takes_rest:
            yield from value or ()
        else:
            yield value


def _first(arguments: dict[str, Any]) -> Blank | None:
    return next((x for x in arguments.values() if isinstance(x, Blank)), None)


def _picks(index: Any) -> bool:
    return any(is_array(i) or isinstance(i, list) for i in (index if isinstance(index, tuple) else (index,)))
