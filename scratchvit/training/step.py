"""The second half of a training step: from the loss to updated weights. Steps that are not finite are skipped.

    backward (with a scaled loss, then unscaled gradients) → finite? → clip → optimizer.step() → ema.update()

A skipped step does not change weights, moments or averages, and the running statistics of batch norms, which its
forward has already updated, are restored. It still counts as a step: the learning rate schedule and the random numbers
advance.

non_finite  if the loss or a gradient is infinite or NaN: "stop" ends the run, "skip" skips the step. With loss scaling,
            steps whose scaled gradients overflow are always skipped, because this is how the scale is found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from scratchvit import optim
from scratchvit.backend import Array, array_module, current
from scratchvit.kernels import updates
from scratchvit.kernels.total_norm import note_finite
from scratchvit.nn import Module
from scratchvit.replay import Replay
from scratchvit.tensor import Tensor
from scratchvit.training.config import RunConfig
from scratchvit.training.diagnose import first_non_finite, first_non_finite_gradient, is_finite

# After so many skipped steps in a row (not counting overflows from loss scaling), a run is not expected to recover.
MAX_SKIPPED = 10


class NotFinite(Exception):
    """The run must end because a number is not finite. The message says which, and in which layer."""


class NoLoss(Exception):
    """The loss cannot be computed because outputs of the model are not finite. The message says which."""


Compute: TypeAlias = Callable[..., tuple[Tensor, Any]]


class LearningStep:
    """Performs the training steps of a run, and counts the skipped ones.

    On a GPU, a step that depends on arrays alone is captured and replayed (replay.py): by one launch or, if the host
    reads whether it is finite before weights change, by two. log: is told if that is not possible.
    """

    def __init__(
        self, config: RunConfig, model: Module, optimizer: optim.Optimizer, ema: optim.EMA | None,
        log: Callable[[str], None] = print,
    ):
        self.config, self.model, self.optimizer, self.ema = config, model, optimizer, ema
        self.log = log
        scale = config.loss_scale or (optim.LOSS_SCALE if config.precision == "fp16" else 0)
        self.scaler = optim.LossScaler(scale) if scale else None
        self.may_skip = config.non_finite == "skip" or self.scaler is not None
        self.skipped = 0            # skipped steps in this epoch
        self._in_a_row = 0          # consecutive skipped steps, not counting overflows from loss scaling
        self._finite = current().xp.ones((), dtype=bool)    # whether losses and gradients were, since it was last read
        self._buffers: dict[str, Array] = {}
        self._replays = _Replays(self) if config.replay and current().has_cuda else None

    def __call__(
        self, compute: Compute, arrays: Sequence[Array], images: Array, lr: float, look: bool,
        inputs: Mapping[str, Any] = MappingProxyType({}),
    ) -> Any:
        """Compute the loss, differentiate it and update the weights. Returns None if the step was skipped.

        compute: compute(*arrays) returns the loss, a Tensor (), and what this returns. arrays: none for a step that
        cannot be replayed. look: read whether loss and gradients are finite, which waits for a GPU. If steps may be
        skipped, every step reads it. images, inputs: arguments of the model, to find the first layer that is not
        finite. Raises NotFinite if the run must end; this step has then changed nothing.
        """
        self.compute, self.optimizer.lr = compute, lr
        if self.may_skip:
            self._keep_buffers()
        parts = self._replays if self._replays and arrays else self
        if not (look or self.may_skip):
            return parts.learn(*arrays)

        loss, noted, norm = parts.differentiate(*arrays)
        finite = bool(self._finite)
        self._finite.fill(True)
        if not finite:
            overflow = self.scaler is not None and self.scaler.factor > 1 and is_finite(loss.data)
            self._skip(overflow, lambda: self._where(loss, images, inputs))
        if self.scaler:
            self.scaler.update(finite)
        if not finite:
            return None
        parts.update(norm)
        self._in_a_row = 0
        return noted

    @property
    def held(self) -> int:
        """Bytes of the GPU's memory that captured steps have taken, beside that of CuPy's own pool."""
        return self._replays.learn.held if self._replays else 0

    # --- the parts of a step: they read nothing from the device, so they can be captured ---

    def learn(self, *arrays: Array) -> Any:
        """A whole step. Returns what `compute` gave to be returned."""
        _, noted, norm = self.differentiate(*arrays)
        self.update(norm)
        return noted

    def differentiate(self, *arrays: Array) -> tuple[Tensor, Any, Array]:
        """The loss, what to return, and the norm of the gradients, which are those of the parameters from now on."""
        self.optimizer.zero_grad()
        loss, noted = self.compute(*arrays)
        parameters = list(self.model.parameters())
        (self.scaler.scale(loss) if self.scaler else loss).backward()
        if self.scaler:
            self.scaler.unscale(parameters)
        norm = optim.grad_norm(parameters)
        note_finite(self._finite, norm, loss.data)
        return loss, noted, norm

    def update(self, norm: Array) -> None:
        """Clip the gradients, whose norm this is, and update weights and averages."""
        clip = self.config.clip_grad
        self.optimizer.step(optim.clip_factor(norm, clip) if clip else None)
        if self.ema:
            self.ema.update()

    # --- steps that are skipped ---

    def _keep_buffers(self) -> None:
        """Copy the buffers as they are before the step."""
        buffers = {name: buffer.data for name, buffer in self.model.named_buffers()}
        if not self._buffers:
            self._buffers = {name: array_module(array).empty_like(array) for name, array in buffers.items()}
        updates.copy([(self._buffers[name], array) for name, array in buffers.items()])

    def skip(self, why: NoLoss, images: Array, inputs: Mapping[str, Any]) -> None:
        """Skip a step whose loss cannot be computed. Raises NotFinite if the run must end."""
        self._skip(False, lambda: f"{why}; {first_non_finite(self.model, images, inputs)}")

    def _skip(self, overflow: bool, where: Callable[[], str]) -> None:
        """Restore the buffers, or raise NotFinite. overflow: whether the cause is the scale of the loss."""
        if not overflow:
            self._in_a_row += 1
            if self.config.non_finite == "stop":
                raise NotFinite(where())
            if self._in_a_row == MAX_SKIPPED:
                raise NotFinite(f"{MAX_SKIPPED} steps in a row were skipped; in the last of them {where()}")
        for name, buffer in self.model.named_buffers():
            buffer.overwrite(self._buffers[name])
        self.skipped += 1

    def _where(self, loss: Tensor, images: Array, inputs: Mapping[str, Any]) -> str:
        if is_finite(loss.data):
            return f"the loss is finite but its gradient is not; {first_non_finite_gradient(self.model)}"
        return f"the loss is not finite; {first_non_finite(self.model, images, inputs)}"

    def state_dict(self) -> dict[str, Any]:
        """The numbers of skipped steps and the state of the loss scaler, as Python numbers."""
        scaler = self.scaler.state_dict() if self.scaler else None
        return {"skipped": self.skipped, "skipped_in_a_row": self._in_a_row, "scaler": scaler}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state."""
        self.skipped, self._in_a_row = state["skipped"], state["skipped_in_a_row"]
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])


class _Replays:
    """The parts of a step, captured and replayed."""

    def __init__(self, step: LearningStep):
        def failed(error: Exception) -> None:
            step.log(f"       steps cannot be replayed, so each operation is started by itself: {error}")

        self.step = step
        self.learn = Replay(step.learn, failed)
        self._differentiate = Replay(self._with_gradients, failed, beside=self.learn)
        self._update = Replay(step.update, failed, beside=self.learn)

    def differentiate(self, *arrays: Array) -> tuple[Tensor, Any, Array]:
        *result, gradients = self._differentiate(*arrays)
        # Whatever was captured last has left its own arrays as gradients.
        for parameter, gradient in zip(self.step.model.parameters(), gradients):
            parameter.grad = gradient
        return tuple(result)

    def _with_gradients(self, *arrays: Array) -> tuple[Any, ...]:
        return *self.step.differentiate(*arrays), [parameter.grad for parameter in self.step.model.parameters()]

    def update(self, norm: Array) -> None:
        # The gradients lie where the captured update reads them only if they were computed by a replay.
        if self._differentiate.was_replayed:
            self._update(norm, key=self._differentiate.replayed)
        else:
            self.step.update(norm)
