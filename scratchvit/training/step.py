"""The second half of a training step: from the loss to updated weights. Steps that are not finite are skipped.

    backward (with a scaled loss, then unscaled gradients) → finite? → clip → optimizer.step() → ema.update()

A skipped step does not change weights, moments or averages, and the running statistics of batch norms, which its
forward has already updated, are restored. It still counts as a step: the learning rate schedule and the random numbers
advance.

non_finite  if the loss or a gradient is infinite or NaN: "stop" ends the run, "skip" skips the step. With loss scaling,
            steps whose scaled gradients overflow are always skipped, because this is how the scale is found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from scratchvit import optim
from scratchvit.backend import Array, array_module
from scratchvit.nn import Module
from scratchvit.tensor import Tensor
from scratchvit.training.config import RunConfig
from scratchvit.training.diagnose import first_non_finite, first_non_finite_gradient, is_finite

# After so many skipped steps in a row (not counting overflows from loss scaling), a run is not expected to recover.
MAX_SKIPPED = 10


class NotFinite(Exception):
    """The run must end because a number is not finite. The message says which, and in which layer."""


class NoLoss(Exception):
    """The loss cannot be computed because outputs of the model are not finite. The message says which."""


class LearningStep:
    """Performs the training steps of a run, and counts the skipped ones."""

    def __init__(self, config: RunConfig, model: Module, optimizer: optim.Optimizer, ema: optim.EMA | None):
        self.config, self.model, self.optimizer, self.ema = config, model, optimizer, ema
        self.scaler = optim.LossScaler(config.loss_scale) if config.loss_scale else None
        self.may_skip = config.non_finite == "skip" or self.scaler is not None
        self.skipped = 0            # skipped steps in this epoch
        self._in_a_row = 0          # consecutive skipped steps, not counting overflows from loss scaling
        self._finite: Any = True    # whether losses and gradients were finite since this was last read
        self._buffers: dict[str, Array] = {}

    def begin(self) -> None:
        """Call before the forward: frees the old gradients, and copies the buffers if the step may be skipped."""
        self.optimizer.zero_grad()
        if self.may_skip:
            self._buffers = {name: buffer.data.copy() for name, buffer in self.model.named_buffers()}

    def __call__(
        self, loss: Tensor, images: Array, lr: float, look: bool, inputs: Mapping[str, Any] = MappingProxyType({})
    ) -> bool:
        """Backward and update. Returns False if the step was skipped.

        look: read whether loss and gradients are finite, which waits for a GPU. If steps may be skipped, every step
        reads it. images, inputs: arguments of the model, to find the first layer that is not finite. Raises NotFinite
        if the run must end; this step has then changed nothing.
        """
        parameters = list(self.model.parameters())
        (self.scaler.scale(loss) if self.scaler else loss).backward()
        if self.scaler:
            self.scaler.unscale(parameters)
        norm = optim.grad_norm(parameters)
        isfinite = array_module(norm).isfinite
        self._finite = isfinite(norm) & isfinite(loss.data) & self._finite
        if look or self.may_skip:
            finite, self._finite = bool(self._finite), True
            if not finite:
                overflow = self.scaler is not None and self.scaler.factor > 1 and is_finite(loss.data)
                self._skip(overflow, lambda: self._where(loss, images, inputs))
            if self.scaler:
                self.scaler.update(finite)
            if not finite:
                return False
        clip = self.config.clip_grad
        self.optimizer.lr = lr
        self.optimizer.step(optim.clip_factor(norm, clip) if clip else None)
        if self.ema:
            self.ema.update()
        self._in_a_row = 0
        return True

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
