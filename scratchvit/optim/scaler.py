"""Dynamic loss scaling, which keeps small gradients from underflowing in float16."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from scratchvit.backend import Array, asarray
from scratchvit.errors import ScratchvitError
from scratchvit.kernels import updates
from scratchvit.kernels.decision import adapt_scale
from scratchvit.optim.gradients import contiguous_gradients
from scratchvit.tensor import Tensor

LOSS_SCALE = 2.0**16        # the initial factor, as PyTorch's


class LossScaler:
    """Dynamic loss scaling: the loss is multiplied by a factor, and the gradients are divided by it before the step.

    float16 has no numbers between 0 and 6e-8, where many gradients are. The factor prevents their underflow. Since the
    largest gradients must not overflow, the factor is adapted (Micikevicius et al., ICLR 2018, arXiv 1710.03740, §3.2):
    it is halved after a step that overflowed, which is skipped, and doubled after `growth_interval` consecutive steps
    without overflow. Same as `torch.amp.GradScaler`.

        scaler.scale(loss).backward()
        scaler.unscale(parameters)                      # before clipping
        decision.judge(grad_norm(parameters), loss.data, scaler)
        optimizer.step(decision=decision)
        scaler.update(decision.made)

    The factor lies on the device, and nothing is copied from there in a step.
    Raises ScratchvitError for a factor or an interval that is not positive, and for a factor that overflows float32.
    """

    def __init__(self, factor: float = LOSS_SCALE, growth_interval: int = 2000):
        with np.errstate(over="ignore"):
            rounded = float(np.float32(factor))
        if not 0 < rounded < np.inf:
            raise ScratchvitError(f"the loss scale must be positive and in the range of float32, not {factor}")
        if growth_interval < 1:
            raise ScratchvitError(f"growth_interval must be at least 1, not {growth_interval}")
        self.growth_interval = growth_interval
        # The factor, its inverse, and the number of consecutive steps without overflow with this factor.
        self.state = asarray(np.array([rounded, 1 / rounded, 0]), np.float64)

    factor = property(lambda self: float(self.state[0]), doc="the factor; on a GPU, reading it waits for the device")
    clean_steps = property(lambda self: int(self.state[2]), doc="steps without overflow with this factor, likewise")

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the factor; call backward() on the result."""
        return loss * self.state[:1].reshape(()).astype(loss.dtype)

    def unscale(self, params: Iterable[Tensor]) -> None:
        """Divide all gradients by the factor, in place. Raises ScratchvitError for parameters in float16."""
        gradients = contiguous_gradients(params)
        if any(g.dtype.itemsize < 4 for g in gradients):
            raise ScratchvitError(
                "loss scaling needs parameters in float32: divided in float16, the gradients would underflow again"
            )
        if gradients:
            updates.scale(gradients, self.state[1:2].reshape(()).astype(gradients[0].dtype))

    def update(self, finite: bool | Array) -> None:
        """Adapt the factor. finite: whether all gradients of this step were finite; or an array of it, bool ()."""
        made = asarray(np.asarray(finite)) if isinstance(finite, bool) else finite
        adapt_scale(self.state, made, self.growth_interval)

    def state_dict(self) -> dict[str, Any]:
        """The state as Python numbers: {"factor", "clean_steps"}."""
        return {"factor": self.factor, "clean_steps": self.clean_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state."""
        self.state[...] = asarray(np.array([state["factor"], 1 / state["factor"], state["clean_steps"]]), np.float64)
