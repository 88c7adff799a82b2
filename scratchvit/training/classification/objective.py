"""What a step learns from: mixed pictures and a teacher where the run asks for them, else the labels alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from scratchvit import ops
from scratchvit.backend import asarray
from scratchvit.data.mixing import Mix
from scratchvit.data.randaugment import LEVELS
from scratchvit.errors import ScratchvitError
from scratchvit.models.interface import DistillableModel, generates
from scratchvit.tensor import Tensor
from scratchvit.training.classification.distill import Teacher, hard_distillation, soft_distillation
from scratchvit.training.config import TrainConfig

_MIXING = 2     # beside the loader's uses of the seed: order 0, augmentation 1


def make_mix(config: TrainConfig, num_classes: int) -> Mix | None:
    """What lays two pictures of a batch over each other, if the run asks for it."""
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
    """(images, labels) of a step → its loss, and the logits that its accuracy is counted on.

    Its chance comes from (seed, step) alone, so a resumed run mixes the same pictures.
    Raises ScratchvitError for settings out of range, and for a teacher of other classes.
    """

    def __init__(self, config: TrainConfig, model: Any, about: Mapping[str, Any]):
        self.config = config
        if generates(model) and (config.teacher or _mixes(config)):
            raise ScratchvitError(
                f"{config.model} learns the pixels of images, not their classes: mixup, cutmix, an augment level that "
                "mixes, and a teacher are of no use to it; leave them out"
            )
        self.mix = make_mix(config, model.config.num_classes)
        self.teacher = Teacher.load(config.teacher, about, config.teacher_model) if config.teacher else None
        if self.teacher and isinstance(model, DistillableModel):
            model.distilled_training = True     # a head for the truth, and one for the teacher
        self._answers: np.ndarray | None = None     # the teacher's, to every picture of the training split

    def ask_once(self, batches: Iterable[Any]) -> None:
        """Where pictures are the same in every epoch, so are the teacher's answers. batches: as for `Teacher.table`."""
        if self.teacher:
            self._answers = self.teacher.table(batches)

    def __call__(
        self, model: Any, images: np.ndarray, labels: np.ndarray, indices: np.ndarray, step: int
    ) -> tuple[Tensor, Tensor]:
        """images (B, C, H, W), labels and places in the data set (B,) → mean loss, and logits (B, num_classes).

        Of a generative model, with its tokens (B, N) for labels, logits (B, K, N).
        """
        x, target, smoothing = asarray(images), asarray(labels), self.config.label_smoothing
        if self.mix:
            rng = np.random.default_rng(np.random.SeedSequence(self.config.seed, spawn_key=(_MIXING, step)))
            x, target = self.mix(x, target, rng)
            smoothing = 0.0     # it is in the targets
        answers = model(Tensor(x))
        if self.teacher is None:
            loss = ops.cross_entropy(answers, target, label_smoothing=smoothing)
        else:
            teacher_logits = self.teacher(x) if self._answers is None else self._answers[indices]
            loss = self._distill(answers, target, teacher_logits, smoothing)
        return loss, (answers[0] + answers[1]) / 2 if isinstance(answers, tuple) else answers

    def _distill(self, answers: Any, target: Any, teacher_logits: Any, smoothing: float) -> Tensor:
        config = self.config
        given = {} if config.distill_weight is None else {"weight": config.distill_weight}
        if config.distill == "soft":
            return soft_distillation(
                answers, target, teacher_logits, temperature=config.distill_temperature, label_smoothing=smoothing,
                **given,
            )
        return hard_distillation(answers, target, teacher_logits, label_smoothing=smoothing, **given)
