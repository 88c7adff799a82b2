"""MixUp and CutMix: two pictures in one, and a target that says how much of each.

    MixUp    x̃ = λ x_i + (1 - λ) x_j          (Zhang et al., ICLR 2018, arXiv 1710.09412)
    CutMix   x̃ = M ⊙ x_i + (1 - M) ⊙ x_j      (Yun et al., ICCV 2019, arXiv 1905.04899, eq. 1)
    both     ỹ = λ y_i + (1 - λ) y_j,   λ ~ Beta(α, α)

M is 0 in a box whose sides are √(1 - λ) of the picture's, and 1 around it. MixUp is the same with λ everywhere instead
of M; so both are one formula with a weight for every pixel, and one batch may hold both.

With timm's conventions: x_j is x_i's mirror image in the batch, j = B - 1 - i; a box is cut off at the picture's border
and λ in the target is then the share of the pixels that are left of x_i, not the one that was drawn.
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

    Called with a batch and its `np.random.Generator`, from which a few numbers for each mixture are drawn on the host;
    the mixing is done on the device in use, and nothing is read back. The images given are left as they are. Any B will
    do: a picture that is its own mirror image stays itself.
    Raises ScratchvitError for settings out of range, and on the CPU for labels that are (a GPU would have to be waited
    for).
    """

    num_classes: int
    mixup_alpha: float = 0.0        # α of MixUp; 0: no MixUp. Small: λ near 0 or 1, 1: uniform
    cutmix_alpha: float = 0.0       # α of CutMix; 0: no CutMix
    prob: float = 1.0               # of mixing at all
    switch_prob: float = 0.5        # of CutMix instead of MixUp, where both have an α
    mode: str = "batch"             # what shares its draws: the "batch", a "pair" (i, j), or nothing: each "elem"ent
    label_smoothing: float = 0.0    # ε: a label counts 1 - ε, and ε is spread over all classes (arXiv 1512.00567)

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
            raise ScratchvitError(f'the mode of mixing is "batch", "pair" or "elem", not {self.mode!r}')
        if self.num_classes < 1:
            raise ScratchvitError(f"num_classes must be positive, not {self.num_classes}")

    def __call__(self, images: Any, labels: Any, rng: np.random.Generator) -> tuple[Array, Array]:
        x, y = asarray(images), asarray(labels)
        xp = array_module(x)
        B, _, H, W = x.shape
        if backend_of(y) is CPU and not ((y >= 0) & (y < self.num_classes)).all():
            raise ScratchvitError(
                f"labels {y.min()}…{y.max()} are not all among the {self.num_classes} classes "
                f"0…{self.num_classes - 1}: mend them, or set num_classes to match"
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
        """(λ of the targets (n,), weight of a picture outside its box (n,), boxes (n, 4): top, bottom, left, right).

        Without CutMix a box is empty.
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
        # Row B - 1 - i draws what row i does; an odd batch's middle row is its own partner.
        share, around, boxes = (np.concatenate([half, half[: batch_size // 2][::-1]]) for half in drawn)
        return share, around, boxes
