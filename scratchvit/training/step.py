"""The second half of a step: from the loss to changed weights, or, where numbers are not finite, to none.

    backward (the loss scaled up, the gradients scaled down again) → finite? → clip → optimizer.step() → ema.update()

A step that is left out changes nothing but counts: weights, moments and averages stay, and the statistics of batch
norms, which its forward has already moved, are put back. Its place in the schedule and its random numbers are used up.

non_finite  what a loss or gradient that is infinite or NaN does: "stop" ends the run, "skip" leaves the step out. A
            gradient that overflows under loss scaling is no failure but how the factor is found: it is always left out.
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

# Steps left out in a row, for which no loss scaling is to blame, after which a run would not recover.
MAX_SKIPPED = 10


class NotFinite(Exception):
    """The run must end: the text says what is not finite, and where."""


class NoLoss(Exception):
    """The forward of a step came to numbers of which no loss can be computed: the text says which are not finite."""


class LearningStep:
    """Makes the steps of a run, and counts those left out."""

    def __init__(self, config: RunConfig, model: Module, optimizer: optim.Optimizer, ema: optim.EMA | None):
        self.config, self.model, self.optimizer, self.ema = config, model, optimizer, ema
        self.scaler = optim.LossScaler(config.loss_scale) if config.loss_scale else None
        self.may_leave_out = config.non_finite == "skip" or self.scaler is not None
        self.skipped = 0            # in this epoch
        self._in_a_row = 0          # left out, and not for the factor of the loss
        self._finite: Any = True    # whether all was, since it was last read
        self._buffers: dict[str, Array] = {}

    def begin(self) -> None:
        """Before the forward, which needs the room: forget old gradients, and remember what it moves."""
        self.optimizer.zero_grad()
        if self.may_leave_out:
            self._buffers = {name: buffer.data.copy() for name, buffer in self.model.named_buffers()}

    def __call__(
        self, loss: Tensor, images: Array, lr: float, look: bool, inputs: Mapping[str, Any] = MappingProxyType({})
    ) -> bool:
        """Make the step, and return whether it was made.

        look: read now whether all was finite, for which a GPU must be waited for; where steps may be left out, each is
        looked at. images, inputs: what the model was called with, to find where it began. Raises NotFinite where the
        run must end; nothing has been changed by this step then.
        """
        parameters = list(self.model.parameters())
        (self.scaler.scale(loss) if self.scaler else loss).backward()
        if self.scaler:
            self.scaler.unscale(parameters)
        norm = optim.grad_norm(parameters)
        isfinite = array_module(norm).isfinite
        self._finite = isfinite(norm) & isfinite(loss.data) & self._finite
        if look or self.may_leave_out:
            finite, self._finite = bool(self._finite), True
            if not finite:
                scaled_too_far = self.scaler is not None and self.scaler.factor > 1 and is_finite(loss.data)
                self._leave_out(scaled_too_far, lambda: self._where(loss, images, inputs))
            if self.scaler:
                self.scaler.update(finite)
            if not finite:
                return False
        if self.config.clip_grad:
            optim.clip_grad_norm(parameters, self.config.clip_grad, norm)
        self.optimizer.lr = lr
        self.optimizer.step()
        if self.ema:
            self.ema.update()
        self._in_a_row = 0
        return True

    def leave_out(self, why: NoLoss, images: Array, inputs: Mapping[str, Any]) -> None:
        """Instead of the step, where there is no loss. Raises NotFinite as a step does."""
        self._leave_out(False, lambda: f"{why}; {first_non_finite(self.model, images, inputs)}")

    def _leave_out(self, scaled_too_far: bool, where: Callable[[], str]) -> None:
        """Undo what the forward did, or raise NotFinite."""
        if not scaled_too_far:
            self._in_a_row += 1
            if self.config.non_finite == "stop":
                raise NotFinite(where())
            if self._in_a_row == MAX_SKIPPED:
                raise NotFinite(f"{MAX_SKIPPED} steps in a row had to be left out, at last {where()}")
        for name, buffer in self.model.named_buffers():
            buffer.overwrite(self._buffers[name])
        self.skipped += 1

    def _where(self, loss: Tensor, images: Array, inputs: Mapping[str, Any]) -> str:
        if is_finite(loss.data):
            return f"the loss is finite but its gradient is not; {first_non_finite_gradient(self.model)}"
        return f"the loss is not finite; {first_non_finite(self.model, images, inputs)}"

    def state_dict(self) -> dict[str, Any]:
        """Counts and the scaler's state: plain numbers."""
        scaler = self.scaler.state_dict() if self.scaler else None
        return {"skipped": self.skipped, "skipped_in_a_row": self._in_a_row, "scaler": scaler}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.skipped, self._in_a_row = state["skipped"], state["skipped_in_a_row"]
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
