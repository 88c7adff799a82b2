"""Loss scaling: gradients too small for float16, carried through it at a larger size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from scratchvit.backend import array_module
from scratchvit.errors import ScratchvitError
from scratchvit.nn.module import Parameter
from scratchvit.optim.blocks import apply
from scratchvit.optim.optimizers import flat_gradients
from scratchvit.tensor import Tensor

_LARGEST = float(np.finfo(np.float32).max)


class LossScaler:
    """A factor on the loss, and by the chain rule on every gradient, that is taken out again before the step.

    float16 has no number between 0 and 6e-8, and many gradients lie there: times the factor they survive the way back.
    The largest must not overflow instead, so the factor feels its way (Micikevicius et al., ICLR 2018, arXiv
    1710.03740, §3.2): halved after a step that overflowed, which is left out, and doubled after `growth_interval` steps
    in a row that did not. It does what `torch.amp.GradScaler` does.

        scaler.scale(loss).backward()
        scaler.unscale(parameters)                      # before clipping
        finite = bool(xp.isfinite(grad_norm(parameters)))
        if finite:
            optimizer.step()
        scaler.update(finite)

    The factor is a plain number: all that a step reads from the device is `finite`.
    Raises ScratchvitError for a factor or an interval that is not positive, and a factor beyond float32.
    """

    def __init__(self, factor: float = 2.0**16, growth_interval: int = 2000):
        with np.errstate(over="ignore"):
            self.factor = float(np.float32(factor))
        if not 0 < self.factor < np.inf:
            raise ScratchvitError(f"the factor of a loss must be positive and within float32, not {factor}")
        if growth_interval < 1:
            raise ScratchvitError(f"a factor grows after at least 1 clean step, not {growth_interval}")
        self.growth_interval = growth_interval
        self.clean_steps = 0        # in a row, at this factor

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the factor: what backward() is called on."""
        return loss * self.factor

    def unscale(self, params: Iterable[Parameter]) -> None:
        """Divide all gradients by the factor, in place. They must be of float32 or float64 parameters."""
        gradients = flat_gradients(params)
        if any(g.dtype.itemsize < 4 for g in gradients):
            raise ScratchvitError(
                "loss scaling needs parameters in float32: divided in float16, the gradients would vanish after all"
            )
        inverse = 1 / self.factor
        apply(lambda g: array_module(g).multiply(g, inverse, out=g), [(g,) for g in gradients])

    def update(self, finite: bool) -> None:
        """Note whether this step's gradients were all finite, and move the factor."""
        if not finite:
            self.factor, self.clean_steps = self.factor / 2, 0
            return
        self.clean_steps += 1
        if self.clean_steps == self.growth_interval:
            self.clean_steps = 0
            if 2 * self.factor <= _LARGEST:
                self.factor *= 2

    def state_dict(self) -> dict[str, Any]:
        """{"factor", "clean_steps"}: plain numbers."""
        return {"factor": self.factor, "clean_steps": self.clean_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.factor, self.clean_steps = state["factor"], state["clean_steps"]
