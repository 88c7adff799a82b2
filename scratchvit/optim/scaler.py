"""Dynamic loss scaling, which keeps small gradients from underflowing in float16."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from scratchvit.errors import ScratchvitError
from scratchvit.kernels import updates
from scratchvit.nn.module import Parameter
from scratchvit.optim.gradients import contiguous_gradients
from scratchvit.replay import numbers
from scratchvit.tensor import Tensor

LOSS_SCALE = 2.0**16        # the initial factor, as PyTorch's
_LARGEST = float(np.finfo(np.float32).max)


class LossScaler:
    """Dynamic loss scaling: the loss is multiplied by a factor, and the gradients are divided by it before the step.

    float16 has no numbers between 0 and 6e-8, where many gradients are. The factor prevents their underflow. Since the
    largest gradients must not overflow, the factor is adapted (Micikevicius et al., ICLR 2018, arXiv 1710.03740, §3.2):
    it is halved after a step that overflowed, which is skipped, and doubled after `growth_interval` consecutive steps
    without overflow. Same as `torch.amp.GradScaler`.

        scaler.scale(loss).backward()
        scaler.unscale(parameters)                      # before clipping
        finite = bool(xp.isfinite(grad_norm(parameters)))
        if finite:
            optimizer.step()
        scaler.update(finite)

    The factor is a Python number, so only `finite` is copied from the device in a step.
    Raises ScratchvitError for a factor or an interval that is not positive, and for a factor that overflows float32.
    """

    def __init__(self, factor: float = LOSS_SCALE, growth_interval: int = 2000):
        with np.errstate(over="ignore"):
            self.factor = float(np.float32(factor))
        if not 0 < self.factor < np.inf:
            raise ScratchvitError(f"the loss scale must be positive and in the range of float32, not {factor}")
        if growth_interval < 1:
            raise ScratchvitError(f"growth_interval must be at least 1, not {growth_interval}")
        self.growth_interval = growth_interval
        self.clean_steps = 0        # consecutive steps without overflow with this factor

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the factor; call backward() on the result."""
        return loss * numbers(lambda: np.asarray(self.factor), (), loss.dtype)

    def unscale(self, params: Iterable[Parameter]) -> None:
        """Divide all gradients by the factor, in place. Raises ScratchvitError for parameters in float16."""
        gradients = contiguous_gradients(params)
        if any(g.dtype.itemsize < 4 for g in gradients):
            raise ScratchvitError(
                "loss scaling needs parameters in float32: divided in float16, the gradients would underflow again"
            )
        if gradients:
            updates.scale(gradients, numbers(lambda: np.asarray(1 / self.factor), (), gradients[0].dtype))

    def update(self, finite: bool) -> None:
        """Adapt the factor. finite: whether all gradients of this step were finite."""
        if not finite:
            self.factor, self.clean_steps = self.factor / 2, 0
            return
        self.clean_steps += 1
        if self.clean_steps == self.growth_interval:
            self.clean_steps = 0
            if 2 * self.factor <= _LARGEST:
                self.factor *= 2

    def state_dict(self) -> dict[str, Any]:
        """The state as Python numbers: {"factor", "clean_steps"}."""
        return {"factor": self.factor, "clean_steps": self.clean_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state."""
        self.factor, self.clean_steps = state["factor"], state["clean_steps"]
