"""The exponential moving average (EMA) of a model's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from scratchvit.backend import Array
from scratchvit.errors import ScratchvitError
from scratchvit.kernels import updates
from scratchvit.nn.module import Module


class EMA:
    """Exponential moving average of a model's weights: a ← a + (1 - decay) (θ - a).

    It is often more accurate than the weights themselves (Polyak & Juditsky 1992). It starts from the current weights
    of the model and has no warm-up, as timm's `ModelEmaV3(exclude_buffers=True)`. Buffers are copied, since running
    statistics are averages already.
    Raises ScratchvitError for a decay outside [0, 1).
    """

    def __init__(self, model: Module, decay: float):
        if not 0 <= decay < 1:
            raise ScratchvitError(f"the decay of the moving average must be in [0, 1), not {decay}")
        self.model, self.decay = model, decay
        self._parameters, self._buffers = list(model.named_parameters()), list(model.named_buffers())
        self.averages = {name: tensor.data.copy() for name, tensor in self._tensors()}

    def __repr__(self) -> str:
        return f"EMA(decay={self.decay})  {len(self.averages)} averages"

    def _tensors(self) -> list[tuple[str, Any]]:
        return [*self._parameters, *self._buffers]

    def update(self, when: Array | None = None) -> None:
        """Update the average with the current weights. when: not if this is false, bool () on their device."""
        averages = self.averages
        parameters = [(averages[name], p.data) for name, p in self._parameters]
        updates.average(parameters, share=1 - self.decay, when=when)
        updates.copy([(averages[name], buffer.data) for name, buffer in self._buffers], when)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Context manager in which the model has the averaged weights; its own are restored afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, tensor in self._tensors():
            tensor.data, self.averages[name] = self.averages[name], tensor.data
            if getattr(tensor, "shadows", None):
                tensor.mark_changed()       # its shadows will be overwritten in place, also those that a graph saved

    def state_dict(self) -> dict[str, Any]:
        """A copy of the averages, {name of parameter or buffer: NumPy array}, in the format of the model's state."""
        with self.applied():
            return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load saved averages. Raises ScratchvitError if they do not fit the model."""
        with self.applied():
            self.model.load_state_dict(state)
