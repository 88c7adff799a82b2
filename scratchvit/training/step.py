"""The second half of a training step: from the loss to updated weights. Steps that are not finite change nothing.

    backward (with a scaled loss, then unscaled gradients) → finite? → clip → optimizer.step() → ema.update()

With config.accumulate, the batch is cut into parts. Backward follows on each part, and gradients add up to those of the
batch, with the activations of a part in memory.

With several ranks, each has some images of the batch, and its loss is weighted by their share. Gradients are summed
over ranks during the backward pass of the last part (parallel/buckets.py), and so is the loss. What follows computes
the same on all ranks, bit for bit: so they all make a step, or all skip it.

Whether loss and gradients are finite is decided on the device (optim/decision.py), and what follows reads it there. So
a GPU is not waited for within a step, and the host learns how steps went when it looks. A step that is skipped does not
change weights, moments, averages or sums of the epoch, and the running statistics of batch norms, which its forward has
already updated, are restored. It still counts as a step: the learning rate schedule and the random numbers advance.

non_finite  if the loss or a gradient is infinite or NaN: "stop" ends the run, "skip" skips the step. With loss scaling,
            steps whose scaled gradients overflow are always skipped, because this is how the scale is found.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from scratchvit import optim, random
from scratchvit.backend import Array, array_module, asnumpy, current
from scratchvit.kernels import updates
from scratchvit.kernels.decision import GRADIENT, LOSS, Counts
from scratchvit.nn import Module
from scratchvit.parallel.buckets import Buckets
from scratchvit.parallel.communicator import ALONE
from scratchvit.parallel.share import share_of
from scratchvit.replay import MOST, NotContinued, Replay
from scratchvit.tensor import Tensor
from scratchvit.training.config import RunConfig
from scratchvit.training.diagnose import first_non_finite, first_non_finite_gradient

# After so many skipped steps in a row (not counting overflows from loss scaling), a run is not expected to recover.
MAX_SKIPPED = 10


class NotFinite(Exception):
    """The run must end because a number is not finite. The message says which, and in which layer."""


Compute: TypeAlias = Callable[..., tuple[Tensor, Any]]


class Learned(NamedTuple):
    """What a step has computed."""

    noted: list[Any]                    # what `compute` returned beside the loss, for each part of the batch
    gradients: list[Array | None]       # of the parameters


@dataclass(frozen=True)
class InHalves:
    """A loss for which the host has to decide something in the middle, such as the matching of a detector.

    forward     forward(*arrays) returns what the loss needs, and an array for the host
    decide      decide(that array on the host) returns arrays
    loss        loss(what it needs, *these arrays) returns the loss and what to note
    """

    forward: Callable[..., tuple[Any, Array]]
    decide: Callable[[Any], Sequence[Array]]
    loss: Compute


class LearningStep:
    """Performs the training steps of a run, and counts the skipped ones.

    On a GPU, a step that depends on arrays alone is captured, and replayed by one launch (replay.py); by two, if the
    host has to decide about the loss in the middle (InHalves). log: is told if that is not possible. note:
    note(noted, made) is called within every step, for each part of the batch; `noted` is what its loss was returned
    with, and made an array, bool (): whether the step was not skipped. It must read nothing from the device, and change
    its arrays in place. buckets: of the model's parameters, if there are several ranks; then nothing is captured.
    """

    def __init__(
        self, config: RunConfig, model: Module, optimizer: optim.Optimizer | optim.Sharded, ema: optim.EMA | None,
        log: Callable[[str], None] = print, note: Callable[[Any, Array], None] = lambda noted, made: None,
        buckets: Buckets | None = None,
    ):
        self.config, self.model, self.optimizer, self.ema = config, model, optimizer, ema
        self._parameters = list(model.parameters())
        self.log, self.note, self.buckets = log, note, buckets
        self.ranks = buckets.ranks if buckets else ALONE
        scale = config.loss_scale or (optim.LOSS_SCALE if config.precision == "fp16" else 0)
        self.scaler = optim.LossScaler(scale) if scale else None
        self.may_skip = config.non_finite == "skip" or self.scaler is not None
        self.decision = optim.Decision()
        self._buffers: dict[str, Array] = {}        # as they were before the step
        self._whole: Replay[Learned] | None = None
        self._first: Replay[tuple[Any, Array]] | None = None
        self._second: Replay[Learned] | None = None
        if config.replay and current().has_cuda and not buckets:
            self._whole = Replay(self.learn, self._failed, full=self._full)
            self._first = Replay(self.begin, self._failed, beside=self._whole, full=self._full)
            self._second = Replay(self.finish, self._failed, beside=self._whole, full=self._full)
            self._second.after = self._first

    def _failed(self, error: Exception) -> None:
        self.log(f"       steps cannot be replayed, so each operation is started by itself: {error}")

    def _full(self) -> None:
        self.log(f"       steps of {MOST} shapes are replayed; of others, each operation is started by itself")

    def __call__(
        self, compute: Compute | InHalves, arrays: Sequence[Array], images: Array, lr: float, look: bool,
        inputs: Mapping[str, Any] = MappingProxyType({}), whole: int | None = None,
    ) -> list[Any]:
        """Compute the loss, differentiate it and, if both are finite, update the weights. Returns what was noted.

        compute: compute(*arrays) returns the loss, a Tensor (), and what to note; or both in halves. arrays: none for a
        step that cannot be replayed; others have a row for each image, unless the loss is in halves. If the batch is
        cut into parts, compute is called for each: with its rows or, if there are no arrays, as compute(part=slice);
        losses are means over images, or are made so that their mean is that of the batch. look: see how the steps since
        the last look went, as `look` does, with images and inputs. whole: the number of images of all ranks, of which
        these are the share of this one; None: these are all.
        """
        self.whole = len(images) if whole is None else whole
        self.optimizer.lr, self.parts = lr, parts_of(self.whole, self.config, self.ranks.rank, self.ranks.size)
        if isinstance(compute, InHalves):
            try:
                learned = self._learn_in_halves(compute, arrays)
            except NotContinued:    # so from now on, nothing is replayed
                learned = self._learn_in_halves(compute, arrays)
        else:
            self.compute = compute
            learned = (self._whole if self._whole and arrays else self.learn)(*arrays)
        if look:
            # Those of the model are of the step that was captured last, if this one was replayed.
            for parameter, gradient in zip(self._parameters, learned.gradients):
                parameter.grad = gradient
            self.look(images, inputs)
        return learned.noted

    def _learn_in_halves(self, halves: InHalves, arrays: Sequence[Array]) -> Learned:
        self.halves = halves
        kept, asked = (self._first or self.begin)(*arrays)
        self.compute = functools.partial(halves.loss, kept)
        try:
            return (self._second or self.finish)(*halves.decide(asnumpy(asked)))
        finally:
            del self.compute        # with what was kept, whose memory the first half of the next step may use

    @property
    def held(self) -> int:
        """Bytes of the GPU's memory that captured steps have taken, beside that of CuPy's own pool."""
        return self._whole.held if self._whole else 0

    # --- the parts of a step: they read nothing from the device, so they can be captured ---

    def learn(self, *arrays: Array) -> Learned:
        """A whole step."""
        self._keep_buffers()
        return self.finish(*arrays)

    def begin(self, *arrays: Array) -> tuple[Any, Array]:
        """The first half of a step in halves."""
        self._keep_buffers()
        with self._as_in_one_process(slice(0, self.parts[-1].stop)):
            return self.halves.forward(*arrays)

    def finish(self, *arrays: Array) -> Learned:
        """A step from the loss on, or from the second half of the loss."""
        loss, noted, norm = self.differentiate(*arrays)
        self.update(loss, noted, norm)
        return Learned(noted, [parameter.grad for parameter in self._parameters])

    def differentiate(self, *arrays: Array) -> tuple[Array, list[Any], Array]:
        """The loss, what to note, and the norm of the gradients, which are those of the parameters from now on."""
        self.optimizer.zero_grad()
        losses, noted = [], []
        for part in self.parts:
            loss, of_part = self._loss_of(part, arrays)
            with self.buckets.overlapping() if self.buckets and part is self.parts[-1] else contextlib.nullcontext():
                (self.scaler.scale(loss) if self.scaler else loss).backward()
            losses.append(loss.data)
            noted.append(of_part)
        total = sum(losses[1:], start=losses[0])
        if self.buckets:
            total, = self.buckets.finish(total)
        sharded = self.optimizer if isinstance(self.optimizer, optim.Sharded) else None
        own = sharded.pieces if sharded else self._parameters
        if self.scaler:
            self.scaler.unscale(own)
        return total, noted, sharded.grad_norm() if sharded else optim.grad_norm(own)

    def _loss_of(self, part: slice, arrays: Sequence[Array]) -> tuple[Tensor, Any]:
        """What a part adds to the loss of the batch, and what to note."""
        with self._as_in_one_process(part):
            if len(self.parts) == 1:
                loss, noted = self.compute(*arrays)
            else:
                rows = [array[part] for array in arrays]
                loss, noted = self.compute(*rows) if rows else self.compute(part=part)
        share = (part.stop - part.start) / self.whole
        return loss if share == 1 else loss * share, noted

    def _as_in_one_process(self, part: slice) -> contextlib.AbstractContextManager[None]:
        """In it, a part of this rank's images draws the random numbers that it would get in the whole batch."""
        if self.ranks.size == 1:
            return contextlib.nullcontext()
        start = share_of(self.whole, self.ranks.rank, self.ranks.size).start
        return random.part_of_batch(slice(start + part.start, start + part.stop), self.whole)

    def update(self, loss: Array, noted: Sequence[Any], norm: Array) -> None:
        """Decide about the step; if it is made, clip the gradients and update weights, averages and what is noted."""
        decision, clip = self.decision, self.config.clip_grad
        decision.judge(norm, loss, self.scaler)
        self._restore_buffers()
        self.optimizer.step(optim.clip_factor(norm, clip) if clip else None, decision)
        if self.ema:
            self.ema.update(decision.made)
        if self.scaler:
            self.scaler.update(decision.made)
        for of_part in noted:
            self.note(of_part, decision.made)

    def _keep_buffers(self) -> None:
        """Copy the buffers as they are before the step, if it may be skipped."""
        if not self.may_skip:
            return
        buffers = {name: buffer.data for name, buffer in self.model.named_buffers()}
        if not self._buffers:
            self._buffers = {name: array_module(array).empty_like(array) for name, array in buffers.items()}
        updates.copy([(self._buffers[name], array) for name, array in buffers.items()])

    def _restore_buffers(self) -> None:
        """If the step is skipped, set the buffers to what they were before it."""
        if self.may_skip:
            rows = [(buffer.data, self._buffers[name]) for name, buffer in self.model.named_buffers()]
            updates.copy(rows, when=self.decision.skipped)

    # --- how steps went ---

    def look(self, images: Array | None = None, inputs: Mapping[str, Any] = MappingProxyType({})) -> None:
        """See how the steps since the last look went. On a GPU this waits for the device.

        images, inputs: arguments of the model in the last step, to find the first layer that is not finite. Raises
        NotFinite if the run must end; the steps to blame have changed nothing.
        """
        counts = self.decision.read()
        stops = self.config.non_finite == "stop"
        if not (counts.longest >= MAX_SKIPPED or (stops and counts.bad)):
            return
        if counts.last == LOSS and images is not None:
            where = f"the loss is not finite; {first_non_finite(self.model, images, inputs, self.ranks)}"
        elif counts.last == GRADIENT:
            first = first_non_finite_gradient(self.model, self.ranks)
            where = f"the loss is finite but its gradient is not; {first}"
        else:
            where = _what_was(counts)
        in_a_row = f"{counts.longest} steps in a row were skipped; in the last of them "
        raise NotFinite(where if stops else in_a_row + where)

    @property
    def skipped(self) -> int:
        """The number of skipped steps in this epoch. On a GPU, reading it waits for the device."""
        return self.decision.read().skipped

    def begin_epoch(self) -> None:
        """Count skipped steps from 0."""
        self.decision.change(skipped=0)

    def state_dict(self) -> dict[str, Any]:
        """The numbers of skipped steps and the state of the loss scaler, as Python numbers."""
        counts = self.decision.read()
        scaler = self.scaler.state_dict() if self.scaler else None
        return {"skipped": counts.skipped, "skipped_in_a_row": counts.in_a_row, "scaler": scaler}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state."""
        in_a_row = state["skipped_in_a_row"]
        self.decision.change(skipped=state["skipped"], in_a_row=in_a_row, longest=in_a_row)
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])


def parts_of(whole: int, config: RunConfig, rank: int = 0, size: int = 1) -> list[slice]:
    """The parts of a batch of `whole` images: of equal size, or some with an image less.

    None is larger than in a batch of config.batch_size. With several ranks, the parts of this rank's images: as many on
    all of them, which may need an image more.
    """
    share = share_of(whole, rank, size)
    largest = -(-config.batch_size // (size * config.accumulate))
    count = min(-(-whole // (size * largest)), whole // size)
    images = share.stop - share.start
    ends = [images * (i + 1) // count for i in range(count)]
    return [slice(start, stop) for start, stop in zip([0, *ends], ends)]


def _what_was(counts: Counts) -> str:
    """What was not finite in the last bad step, whose images and gradients are gone."""
    what = "the loss was not finite" if counts.kind == LOSS else "the loss was finite but its gradient was not"
    return f"{what}; that step is past, so it cannot be told in which layer this began"
