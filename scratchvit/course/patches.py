"""Chapter 3: an image as rows of patches, in NumPy."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray


def patch_rows(images: NDArray[Any], P: int) -> NDArray[Any]:
    """The patches of images (B, C, H, W), whose sides P divides: a row for each, (B, N, C·P·P), in reading order."""
    B, C, H, W = images.shape
    x = images.reshape(B, C, H // P, P, W // P, P)      # each side: which patch, which pixel of it
    x = x.transpose(0, 2, 4, 1, 3, 5)                   # (B, H/P, W/P, C, P, P)
    return x.reshape(B, -1, C * P * P)                  # (B, N, C·P·P)
