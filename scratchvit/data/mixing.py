"""MixUp and CutMix: mix two images of a batch, and their labels in the same ratio.

    MixUp    x̃ = λ x_i + (1 - λ) x_j          (Zhang et al., ICLR 2018, arXiv 1710.09412)
    CutMix   x̃ = M ⊙ x_i + (1 - M) ⊙ x_j      (Yun et al., ICCV 2019, arXiv 1905.04899, eq. 1)
    both     ỹ = λ y_i + (1 - λ) y_j,   λ ~ Beta(α, α)

M is 0 inside a box whose sides are √(1 - λ) times those of the image, and 1 outside. MixUp has λ in place of M. So both
are one formula with a weight for every pixel, and one batch can contain both.

Conventions are timm's: the partner of x_i is x_j with j = B - 1 - i (the batch reversed). A box is clipped at the
border of the image, and λ in the target is then the fraction of pixels that remain of x_i, not the λ that was drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scratchvit.backend import CPU, Array, array_module, asarray, backend_of
from scratchvit.errors import ScratchvitError


@dataclass(frozen=True)
class Mix:
    """images (B, C, H, W), labels (B,) → mixed images, targets (B, num_classes) in float32 whose rows sum to 1.

    Called with a batch and its `np.random.Generator`. The random numbers are drawn on the host; the mixing is done on
    the device in use, without copying anything back. The input images are not changed. B may be odd: the middle image
    is mixed with itself.
    Raises ScratchvitError for settings out of range and, on the CPU, for labels out of range (on a GPU the check would
    have to wait for the device).
    """

    num_classes: int
    mixup_alpha: float = 0.0        # α of MixUp; 0: no MixUp. Small α: λ near 0 or 1; α = 1: λ uniform
    cutmix_alpha: float = 0.0       # α of CutMix; 0: no CutMix
    prob: float = 1.0               # probability of mixing
    switch_prob: float = 0.5        # probability of CutMix instead of MixUp, if both have an α
    mode: str = "batch"             # λ and box are drawn once per "batch", per "pair" (i, j), or per "elem" (image)
    label_smoothing: float = 0.0    # ε: the label gets 1 - ε, and ε is spread over all classes (arXiv 1512.00567)

    def __post_init__(self) -> None:
        alphas = self.mixup_alpha, self.cutmix_alpha
        if not (min(alphas) >= 0 and 0 < max(alphas) < float("inf")):
            raise ScratchvitError(
                f"mixup_alpha and cutmix_alpha must not be negative, and one of them positive, not {alphas[0]} and "
                f"{alphas[1]}: without mixing, leave Mix out"
            )
        for name in ("prob", "switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ScratchvitError(f"{name} is a probability, from 0 to 1, not {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise ScratchvitError(f"label_smoothing must lie in [0, 1), not {self.label_smoothing}")
        if self.mode not in ("batch", "pair", "elem"):
            raise ScratchvitError(f'Mix: mode must be "batch", "pair" or "elem", not {self.mode!r}')
        if self.num_classes < 1:
            raise ScratchvitError(f"num_classes must be positive, not {self.num_classes}")

    def __call__(self, images: Any, labels: Any, rng: np.random.Generator) -> tuple[Array, Array]:
        x, y = asarray(images), asarray(labels)
        xp = array_module(x)
        B, _, H, W = x.shape
        if backend_of(y) is CPU and not ((y >= 0) & (y < self.num_classes)).all():
            raise ScratchvitError(
                f"labels {y.min()}…{y.max()} are not all among the {self.num_classes} classes "
                f"0…{self.num_classes - 1}: correct them, or set num_classes to match"
            )
        share, around, boxes = self._draw(B, (H, W), rng)           # (n,), (n,), (n, 4); n is B, or 1 for the batch

        top, bottom, left, right = asarray(boxes).T.reshape(4, -1, 1, 1, 1)
        row, column = xp.arange(H).reshape(-1, 1), xp.arange(W)
        outside = (row < top) | (row >= bottom) | (column < left) | (column >= right)       # (n, 1, H, W)
        weight = asarray(around, x.dtype).reshape(-1, 1, 1, 1) * outside
        mixed = x * weight
        mixed += x[::-1] * (1 - weight)

        q = (y.reshape(-1, 1) == xp.arange(self.num_classes)).astype(np.float32)            # (B, num_classes)
        q = q * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes
        own = asarray(share, np.float32).reshape(-1, 1)
        return mixed, q * own + q[::-1] * (1 - own)

    def _draw(
        self, batch_size: int, size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """(λ of the targets (n,), weight of an image outside its box (n,), boxes (n, 4): top, bottom, left, right).

        With MixUp a box is empty.
        """
        n = {"batch": 1, "pair": (batch_size + 1) // 2, "elem": batch_size}[self.mode]
        switch = self.switch_prob if self.mixup_alpha and self.cutmix_alpha else float(self.cutmix_alpha > 0)
        is_cut = rng.random(n) < switch
        alpha = np.where(is_cut, self.cutmix_alpha, self.mixup_alpha)
        lam = np.where(rng.random(n) < self.prob, rng.beta(alpha, alpha), 1.0)

        centres = rng.integers(0, size, (n, 2))                                             # (y, x)
        sides = (size * np.sqrt(1 - lam)[:, None]).astype(int) * is_cut[:, None]
        first = np.clip(centres - sides // 2, 0, size)
        last = np.clip(centres + (sides + 1) // 2, 0, size)
        cut_out = (last - first).prod(axis=1) / (size[0] * size[1])

        boxes = np.stack([first, last], axis=2).reshape(n, 4)
        drawn = np.where(is_cut, 1 - cut_out, lam), np.where(is_cut, 1.0, lam), boxes
        if self.mode != "pair":
            return drawn
        # Row B - 1 - i shares the draws of row i; the middle row of an odd batch is its own partner.
        share, around, boxes = (np.concatenate([half, half[: batch_size // 2][::-1]]) for half in drawn)
        return share, around, boxes
