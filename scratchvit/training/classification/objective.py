"""The loss of a classifier's training step: cross-entropy, with MixUp, CutMix and distillation if asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from scratchvit import ops
from scratchvit.backend import Array, asarray
from scratchvit.data.mixing import Mix
from scratchvit.data.randaugment import LEVELS
from scratchvit.errors import ScratchvitError
from scratchvit.models.interface import DistillableModel, generates
from scratchvit.parallel.communicator import ALONE, Communicator
from scratchvit.tensor import Tensor
from scratchvit.training.classification.distill import Teacher, hard_distillation, soft_distillation
from scratchvit.training.classification.evaluate import answers_of
from scratchvit.training.config import TrainConfig

_MIXING = 2     # key of the random numbers for mixing; the loader has 0 for the order and 1 for augmentation


def make_mix(config: TrainConfig, num_classes: int) -> Mix | None:
    """MixUp and CutMix according to the settings; None if both are off."""
    if not _mixes(config):
        return None
    mixup = config.mixup or LEVELS[config.augment].mixup_alpha
    return Mix(
        num_classes=num_classes, mixup_alpha=mixup, cutmix_alpha=config.cutmix,
        prob=config.mix_prob, switch_prob=config.mix_switch_prob, mode=config.mix_mode,
        label_smoothing=config.label_smoothing,
    )


def _mixes(config: TrainConfig) -> bool:
    return bool(config.mixup or LEVELS[config.augment].mixup_alpha or config.cutmix)


class Objective:
    """The loss of a training step, and the logits from which its accuracy is computed.

    Random numbers depend on (seed, step) only, so a resumed run mixes the same images.

    Of several processes (ranks), each mixes its images with one another: partners are not those of one process. Drawn
    once for the batch, the ratio and the box are the same in all of them, and in one process. Otherwise they depend on
    the rank too, so that no two processes draw alike.
    Raises ScratchvitError for settings out of range, and for a teacher with other classes.
    """

    def __init__(self, config: TrainConfig, model: Any, about: Mapping[str, Any], ranks: Communicator = ALONE):
        self.config = config
        if generates(model) and (config.teacher or _mixes(config)):
            raise ScratchvitError(
                f"{config.model} predicts pixels, not classes: leave out mixup, cutmix, augment levels with MixUp, and "
                "the teacher"
            )
        self.mix = make_mix(config, model.config.num_classes)
        self._of_rank = (ranks.rank,) if ranks.size > 1 and config.mix_mode != "batch" else ()
        self.teacher = (
            Teacher.load(config.teacher, about, config.teacher_model, config.teacher_entry) if config.teacher else None
        )
        if self.teacher and isinstance(model, DistillableModel):
            model.distilled_training = True     # returns the logits of the class head and of the distillation head
        self._teacher_logits: np.ndarray | None = None      # for all images of the training split

    def ask_once(self, batches: Iterable[Any], ranks: Communicator = ALONE) -> None:
        """Compute the teacher's logits for all images, if these are the same in every epoch. See `Teacher.table`.

        ranks: each computes them for its own batches. All get those of all, the first rank's first, because a shuffled
        epoch can give any image to any rank.
        """
        if self.teacher:
            self._teacher_logits = ranks.gather_rows(self.teacher.table(batches))

    def __call__(
        self, model: Any, images: np.ndarray, labels: np.ndarray, indices: np.ndarray, step: int
    ) -> tuple[Tensor, Tensor]:
        """The mean loss, and the logits (B, num_classes).

        images (B, C, H, W); labels (B,); indices (B,): of the images in the data set; step: its number, from 0.
        For a generative model, labels are its tokens (B, N), and the logits have shape (B, K, N).
        """
        return self.loss(model, *self.given(images, labels, indices, step))

    def given(self, images: Any, labels: Any, indices: np.ndarray, step: int) -> tuple[Array, ...]:
        """The arrays that `loss` depends on, on the device: images and targets, mixed, and logits of the teacher that
        were computed before. Arguments as above."""
        x, target = asarray(images), asarray(labels)
        if self.mix:
            seed = np.random.SeedSequence(self.config.seed, spawn_key=(_MIXING, step, *self._of_rank))
            x, target = self.mix(x, target, np.random.default_rng(seed))
        return (x, target) if self._teacher_logits is None else (x, target, asarray(self._teacher_logits[indices]))

    def loss(self, model: Any, x: Array, target: Array, teacher_logits: Array | None = None) -> tuple[Tensor, Tensor]:
        """The mean loss, and the logits, from what `given` returns. Reads nothing from the device."""
        smoothing = 0.0 if self.mix else self.config.label_smoothing        # mixed targets have it already
        logits = answers_of(model, x)
        if self.teacher is None:
            loss = ops.cross_entropy(logits, target, label_smoothing=smoothing)
        else:
            teacher_logits = self.teacher(x) if teacher_logits is None else teacher_logits
            loss = self._distill(logits, target, teacher_logits, smoothing)
        return loss, (logits[0] + logits[1]) / 2 if isinstance(logits, tuple) else logits

    def _distill(self, logits: Any, target: Any, teacher_logits: Any, smoothing: float) -> Tensor:
        config = self.config
        given = {} if config.distill_weight is None else {"weight": config.distill_weight}
        if config.distill == "soft":
            return soft_distillation(
                logits, target, teacher_logits, temperature=config.distill_temperature, label_smoothing=smoothing,
                **given,
            )
        return hard_distillation(logits, target, teacher_logits, label_smoothing=smoothing, **given)
