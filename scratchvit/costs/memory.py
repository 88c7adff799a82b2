"""The peak memory of a model in training and inference, found without running it.

    with init.without_weights():
        model = create_model("vit_base_patch16_224")
    peak = peak_memory(model, batch_size=32)
    peak.training, peak.inference               # bytes of all arrays that exist at the peak

How long an array exists depends on the code of the model and on the autograd engine: which names still refer to it,
which backward has saved it, which gradients are not complete yet. So both run unchanged, but on `Blank` arrays, which
have a shape, a layout and a lifetime but no memory. An `Account` adds up the bytes of existing blanks. Only the ops are
not run: their facts (facts.py) give the shape of the output, what is saved for the backward, and temporary memory.

The training step is not the first one: the moments of AdamW exist, and old gradients have been freed. Only arrays are
counted, as by `tracemalloc`.

With a precision of 16 bits, the blanks stand for arrays on a GPU, where `autocast` stores 16-bit numbers (on the CPU
they would be float32, only rounded), and the weights have shadows. Ops whose kernels take 16 bits are given and save
such arrays; others are given float32, and may save that. The copy of the images in 16 bits is not counted. Facts are
those of the CPU's kernels, as always: activations are within 30 % of what `measured.py` measures on tests/fakegpu
(tests/fakegpu/test_measured_memory.py). A ResNet needs more than is predicted, since a GPU makes all columns of a
convolution at once.

A process needs more memory: Python and its libraries, about 100 MiB; blocks that stay in the cache; and memory that the
allocator holds but cannot reuse.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchvit.backend import Backend
from scratchvit.costs.blanks import (
    BLANKS,
    GPU_BLANKS,
    Blank,
    GpuBlank,
    Ledger,
    as_blanks,
    broadcast_zero,
    layout,
    layouts,
)
from scratchvit.costs.counting import bind, configured_shape, follow, standing_in
from scratchvit.costs.step import training_loss
from scratchvit.facts import Bytes, Facts, ask, facts_of, order_of, saved
from scratchvit.models.interface import PixelModel
from scratchvit.nn import Module
from scratchvit.precision import OF_A_RUN, autocast
from scratchvit.recording import no_grad
from scratchvit.signature import differentiable_parameters, inputs_of
from scratchvit.tensor import Tensor

MOMENTS = 2     # number of AdamW's moments, arrays of the size of the weights


@dataclass(frozen=True)
class PeakMemory:
    """Peak memory for a batch, in bytes. `training` includes weights, gradients and moments."""

    weights: int            # parameters and buffers
    gradients: int
    moments: int            # AdamW's moments
    training: int           # peak of a whole step
    inference: int          # peak of a forward pass without a graph
    batch_size: int
    shadows: int            # 16-bit copies of weights, part of training and inference
    worst: str              # where the peak of training is: "blocks.11.mlp.act: backward of gelu"
    kept: dict[str, int]    # bytes saved in the graph between forward and backward, by module path

    @property
    def activations(self) -> int:
        """Memory at the peak of training without weights and moments: images, activations, gradients so far."""
        return self.training - self.weights - self.moments - self.shadows


def peak_memory(
    model: Module, image_shape: Sequence[int] | None = None, batch_size: int = 1, precision: str = "float32"
) -> PeakMemory:
    """The peak memory of training and inference with a batch size. Nothing is computed; the model is not changed.

    image_shape: as for `cost`. precision: that of a run; with "bf16" and "fp16", the memory of a GPU that stores 16-bit
    numbers. Raises the errors of `cost`.
    """
    if OF_A_RUN[precision] != "float32":
        with _on_a_gpu(model) as shadows:
            found = _peaks(model, image_shape, batch_size, GPU_BLANKS, "float16")       # as many bytes as bfloat16
        return dataclasses.replace(
            found, training=found.training + shadows[0], inference=found.inference + shadows[0], shadows=shadows[0]
        )
    return _peaks(model, image_shape, batch_size, BLANKS, "float32")


def bytes_of_shadows(model: Module) -> int:
    """The bytes of the 16-bit copies that the model's parameters have (shadow.py)."""
    return sum(2 * x.size for x in model.parameters() if x.shadows is not None)


@contextlib.contextmanager
def _on_a_gpu(model: Module) -> Iterator[list[int]]:
    """Context manager in which the model's arrays are blanks of a GPU; yields a list that gets the shadows' bytes."""
    tensors = [*model.parameters(), *(buffer for _, buffer in model.named_buffers())]
    if isinstance(model, PixelModel):
        tensors = [x for x in tensors if x is not model.palette]    # pixels are looked up in it, which blanks cannot be
    before = [(x, x.data, getattr(x, "shadows", None)) for x in tensors]
    shadows: list[int] = []
    try:
        for x, data, _ in before:
            x.data = as_blanks(data, GpuBlank)
            if hasattr(x, "shadows"):
                x.shadows = None
        yield shadows
        shadows.append(bytes_of_shadows(model))
    finally:
        for x, data, shadow in before:
            x.data = data
            if hasattr(x, "shadows"):
                x.shadows = shadow


def _peaks(
    model: Module, image_shape: Sequence[int] | None, batch_size: int, device: Backend, dtype: str
) -> PeakMemory:
    """`peak_memory` on a device of blanks, inside `autocast(dtype)`, without shadows."""
    image_shape = configured_shape(model) if image_shape is None else image_shape
    parameters = list(model.parameters())
    of_weights = next((parameter.dtype for parameter in parameters), np.dtype(np.float32))
    images: Any = broadcast_zero((batch_size, *image_shape), of_weights)
    if device is GPU_BLANKS and not isinstance(model, PixelModel):
        images = as_blanks(images, GpuBlank)
    weights = sum(x.data.nbytes for x in (*parameters, *(buffer for _, buffer in model.named_buffers())))
    learned = sum(x.data.nbytes for x in parameters if x.requires_grad)
    inference, training = (Account(images.nbytes, device.array_type) for _ in range(2))
    with no_grad(), autocast(dtype), standing_in(model, inference.call, training=False, device=device):
        model(Tensor(images))
    with autocast(dtype), standing_in(model, training.call, training=True, device=device):
        kept = _step(model, images, training)
    return PeakMemory(
        weights, learned, MOMENTS * learned, weights + MOMENTS * learned + training.peak, weights + inference.peak,
        batch_size, 0, training.worst, kept,
    )


def _step(model: Any, images: Any, account: Account) -> dict[str, int]:
    """Run forward and backward on blanks (the optimiser allocates nothing new). Returns PeakMemory.kept."""
    loss = training_loss(model, images)
    kept = dict(+account.by_path)
    loss.backward(account.new(loss.shape, loss.dtype))
    return kept


# --- running without computing ----------------------------------------------------------------------------------------


class Account(Ledger):
    """Runs the ops of a model on blanks and counts their memory."""

    def call(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], path: str
    ) -> tuple[Any, Callable[..., Any]]:
        """The value and backward of an op for these arguments, which may be blanks."""
        narrowed = getattr(function, "narrowed", None)     # inside autocast
        if narrowed is not None:
            function = function.__wrapped__                # type: ignore[attr-defined]
        name, facts = function.__name__, facts_of(function)
        self.path, self.doing = path, f"forward of {name}"
        value, _ = follow(function, args, kwargs, path)
        bound = bind(function, as_blanks(args, self.kind), as_blanks(kwargs, self.kind))
        blanks = bound.arguments
        differentiable = inputs_of(differentiable_parameters(function), bound.args, bound.kwargs)
        arguments = {key: layouts(x) for key, x in blanks.items()}
        results = value if isinstance(value, tuple) else (value,)
        order = ask(facts.order, arguments, function=function)
        outputs = self._views(facts, function, blanks, arguments) or tuple(
            self.new(y.shape, y.dtype, order) if y.dtype.kind == "f" else y for y in results
        )
        out = layouts(outputs if isinstance(value, tuple) else outputs[0])
        workspace = ask(facts.workspace, arguments, function=function, out=out)
        self.need(workspace.forward)
        known = {id(layouts(x)): x for x in (*_blanks_in(blanks.values()), *outputs)}
        kept = [
            known[id(x)] if id(x) in known else self.new((_bytes(x),), np.uint8)
            for x in saved(function, arguments, out)
        ]
        # The closure must not keep inputs alive that the op did not save: keep only their layouts.
        inputs = [self.kind(x.layout, None, None) if isinstance(x, Blank) else x for x in differentiable]
        passes_on = [
            isinstance(x, Blank) and ask(facts.passes_on, arguments, given=x.layout, out=out)
            for x in differentiable
        ]

        def backward(dy: Any, need: list[bool]) -> list[Any]:
            self.path, self.doing = path, f"backward of {name}"
            dys = [g for g in dy if g is not None] if isinstance(dy, tuple) else [dy]
            if narrowed is not None and not narrowed.by_kernels and not narrowed.moves:
                dys = [g.astype(np.float32, copy=False) for g in dys]
            gradients = [
                self._gradient(x, dys[0], passed) if wanted else None
                for x, passed, wanted in zip(inputs, passes_on, need)
            ]
            self.need(workspace.backward)
            kept.clear()                # saved arrays live until here
            if narrowed is not None:
                gradients = [
                    g if g is None or given is None else g.astype(given[0], copy=False)
                    for g, given in zip(gradients, narrowed.given)
                ]
            return gradients

        if narrowed is not None:
            outputs = tuple(
                y.astype(narrowed.half.dtype, copy=False) if isinstance(y, Blank) and narrowed.is_half(y) else y
                for y in outputs
            )
        return outputs if isinstance(value, tuple) else outputs[0], backward

    def _views(
        self, facts: Facts, function: Callable[..., Any], blanks: dict[str, Any], arguments: dict[str, Any]
    ) -> tuple[Blank, ...]:
        """The value of an op that returns views of its first argument; () for other ops."""
        x = next(iter(blanks.values()))
        if not (isinstance(x, Blank) and ask(facts.view, arguments)):
            return ()
        seen = function(**arguments)[0]
        return tuple(self.kind(y, x.owner, self) for y in (seen if isinstance(seen, tuple) else (seen,)))

    def _gradient(self, x: Blank, dy: Blank, passed_on: bool) -> Blank:
        """The gradient of the input x: dy or a view of it if the op passes it on, otherwise a new array."""
        if not passed_on:
            return self.new(x.shape, x.dtype, order_of(x.layout))
        return dy if x.shape == dy.shape else self.kind(layout(x.shape, x.dtype), dy.owner, self)


def _blanks_in(arguments: Any) -> Iterator[Blank]:
    for x in arguments:
        if isinstance(x, list | tuple):
            yield from _blanks_in(x)
        elif isinstance(x, Blank):
            yield x


def _bytes(x: Any) -> int:
    """The bytes of something saved that is not a blank: arrays made by the op itself, indices and masks."""
    return x if isinstance(x, Bytes) else x.nbytes
