"""Means of named numbers over the images of an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scratchvit.backend import array_module, is_array
from scratchvit.kernels import updates
from scratchvit.tensor import Tensor


@dataclass
class Means:
    """Running sums of named numbers over images; one of them is "loss". They stay on the device until they are read."""

    sums: dict[str, Any] = field(default_factory=dict)
    images: int = 0

    def add(self, means: Mapping[str, Any], images: int) -> None:
        """Add a batch: {name: mean over its images, a number or Tensor ()}, and the number of its images."""
        rows = []
        for name, value in means.items():
            number, total = value.data if isinstance(value, Tensor) else value, self.sums.get(name, 0.0)
            if not is_array(number):
                self.sums[name] = total + number * images
                continue
            if not is_array(total):
                self.sums[name] = total = array_module(number).full((), total, dtype=number.dtype)
            rows.append((total, number))
        updates.accumulate(rows, images)
        self.images += images

    def read(self) -> Means:
        """A copy with Python floats. On the GPU this waits for the device."""
        return Means({name: float(value) for name, value in self.sums.items()}, self.images)

    def columns(self, prefix: str) -> dict[str, float]:
        """{prefix + name: mean over the images}."""
        return {prefix + name: float(value) / self.images for name, value in self.sums.items()}

    def shown(self) -> dict[str, str]:
        """What the progress bar shows."""
        return {"loss": f"{self.loss:.4f}"}

    loss = property(lambda self: float(self.sums.get("loss", 0.0)) / max(1, self.images), doc="mean of the loss")
