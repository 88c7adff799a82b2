"""Whether a step is made or skipped, decided without the host."""

from __future__ import annotations

from scratchvit.backend import Array, asnumpy, current
from scratchvit.kernels import decision
from scratchvit.kernels.decision import Counts
from scratchvit.optim.scaler import LossScaler


class Decision:
    """Whether a step changes anything: only if its loss and its gradients are finite. The device decides, and counts.

        decision.judge(grad_norm(parameters), loss.data)
        optimizer.step(decision=decision)
        ema.update(decision.made)                       # and so on: see kernels/updates.py
        …
        decision.read()                                 # how the steps since then went. On a GPU, only this waits

    made, skipped: bool (), arrays on the device, of the step that was judged last.
    """

    def __init__(self) -> None:
        xp = current().xp
        self.made, self.skipped = xp.ones((), dtype=bool), xp.zeros((), dtype=bool)
        self._counts = xp.zeros(len(Counts._fields), dtype="int64")

    @property
    def unmade(self) -> Array:
        """int64 (): skipped steps that the optimiser has counted, and has not yet taken back."""
        return self._counts[-1:].reshape(())

    def judge(self, norm: Array, loss: Array, scaler: LossScaler | None = None) -> None:
        """Decide about a step with this norm of all gradients and this loss, 0-d arrays. scaler: that of the loss."""
        decision.judge(norm, loss, scaler.state if scaler else None, self.made, self.skipped, self._counts)

    def read(self) -> Counts:
        """How the steps went, as Python numbers. On a GPU this waits for the device."""
        return Counts(*asnumpy(self._counts).tolist())

    def change(self, **numbers: int) -> None:
        """Set some of the counts."""
        for name, number in numbers.items():
            self._counts[Counts._fields.index(name)] = number
