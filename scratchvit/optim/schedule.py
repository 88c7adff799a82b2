"""Learning rate schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scratchvit.errors import ScratchvitError


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step: a linear warm-up, then one of four schedules.

    Step s of a warm-up of W steps has the learning rate lr · (s + 1)/W, as in PyTorch's
    `LinearLR(1 / W, total_iters=W - 1)`. (timm uses s/W, so its first step has the learning rate 0.)
    With t from 0 to 1 over the steps after the warm-up:
    cosine    min_lr + (lr - min_lr) (1 + cos πt) / 2    (Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5)
    linear    lr + (min_lr - lr) t
    step      a tenth after each third, not below min_lr (He et al. 2015, arXiv 1512.03385 §3.4)
    constant  lr
    """

    kind: str
    lr: float
    total_steps: int
    warmup_steps: int = 0
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("cosine", "linear", "step", "constant"):
            raise ScratchvitError(f"there is no schedule {self.kind!r}: use cosine, linear, step or constant")
        if not 0 <= self.warmup_steps <= self.total_steps:
            raise ScratchvitError(
                f"a warm-up of {self.warmup_steps} steps does not fit into {self.total_steps} steps: use a shorter one"
            )

    def at(self, step: int) -> float:
        """The learning rate of a step; steps are counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        t = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        if self.kind == "cosine":
            return self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * t)) / 2
        if self.kind == "linear":
            return self.lr + (self.min_lr - self.lr) * t
        if self.kind == "step":
            return max(self.min_lr, self.lr * 0.1 ** min(2, int(3 * t)))
        return self.lr
