"""Distillation: a student learns from labels and a teacher's predictions (DeiT, Touvron et al., arXiv 2012.12877, §4).

A teacher's prediction contains more than the label: which other classes are similar, and what is visible in this crop.
From a CNN the student also learns its inductive bias.

    paper   here              shape
    Z_s     logits            (B, C), or with the distillation token a pair of them: (class head, distillation head)
    Z_t     teacher_logits    (B, C), constant
    y       target            (B,) classes, or (B, C) soft targets, as MixUp and CutMix make them
    y_t                       (B,) the teacher's most probable classes
    ψ, τ, λ softmax, temperature, weight

With a pair, the class head has the loss of the labels and the distillation head that of the teacher. A single head has
both.

    teacher = Teacher.load("runs/cifar10-resnet18-1", about)
    loss = hard_distillation(model(images), labels, teacher(images))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from scratchvit import ops
from scratchvit.backend import Array, asarray, asnumpy
from scratchvit.errors import ScratchvitError
from scratchvit.files import listed
from scratchvit.models.checks import check_classifies
from scratchvit.models.vit import pair
from scratchvit.ops.attention import log_probabilities
from scratchvit.recording import no_grad
from scratchvit.tensor import Tensor
from scratchvit.training.checkpoint import is_checkpoint, model_from_checkpoint
from scratchvit.weights.fit import LoadReport
from scratchvit.weights.load import open_model
from scratchvit.weights.preprocess import preprocessing_for

Logits: TypeAlias = Tensor | tuple[Tensor, Tensor]


def soft_distillation(
    logits: Logits, target: Any, teacher_logits: Any, weight: float = 0.1, temperature: float = 3.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """(1 - λ) CE(ψ(Z_s), y) + λ τ² KL(ψ(Z_s / τ), ψ(Z_t / τ)): eq. 2, with the paper's λ and τ.

    Direction: the paper writes the target second, in CE and in KL. So KL is the divergence of the student from the
    teacher,

        KL = Σ_c p_c (log p_c - log q_c),   p = ψ(Z_t / τ) the teacher's, q = ψ(Z_s / τ) the student's,

    as in Hinton et al. (arXiv 1503.02531) and in the authors' code. Its gradient with respect to Z_s / τ is q - p.

    Reduction: the sum over the classes, mean over the batch, for both CE and KL. Then both are in the same unit (nats
    per image), λ is the fraction of the teacher, and the factor τ² compensates for gradients that τ makes smaller by
    about τ². The authors' code divides KL by all B·C entries instead. Its distillation term is that of this function
    divided by the number of classes C, 1000 on ImageNet, so its values of λ cannot be compared with those used here.

    label_smoothing applies to the labels only. Returns a Tensor ().
    Raises ScratchvitError if λ or τ is out of range, or if teacher and student have different numbers of classes.
    """
    if not (0 <= weight <= 1 and temperature > 0):
        raise ScratchvitError(
            f"distillation needs a weight λ in [0, 1] and a temperature τ > 0, not {weight} and {temperature}"
        )
    class_logits, distill_logits, Z_t = _heads(logits, teacher_logits)
    log_p = log_probabilities(Z_t / temperature, 1)
    log_q = ops.log_softmax(distill_logits / temperature, dim=1)
    divergence = ops.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    label_loss = ops.cross_entropy(class_logits, target, label_smoothing=label_smoothing)
    return label_loss * (1 - weight) + divergence * (weight * temperature**2)


def hard_distillation(
    logits: Logits, target: Any, teacher_logits: Any, weight: float = 0.5, label_smoothing: float = 0.0
) -> Tensor:
    """½ CE(ψ(Z_s), y) + ½ CE(ψ(Z_s), y_t) with y_t = argmax Z_t: eq. 3, where `weight` is the second ½.

    The class that the teacher predicts is used like a label. There is no τ to choose, and the paper reports the best
    results with this loss. Means over the batch. label_smoothing applies to the labels only, as in the paper.
    Returns a Tensor (). Raises ScratchvitError if the weight is out of range, or if teacher and student have different
    numbers of classes.
    """
    if not 0 <= weight <= 1:
        raise ScratchvitError(f"distillation needs a weight in [0, 1], not {weight}")
    class_logits, distill_logits, Z_t = _heads(logits, teacher_logits)
    label_loss = ops.cross_entropy(class_logits, target, label_smoothing=label_smoothing)
    return label_loss * (1 - weight) + ops.cross_entropy(distill_logits, Z_t.argmax(axis=1)) * weight


def _heads(logits: Logits, teacher_logits: Any) -> tuple[Tensor, Tensor, Array]:
    """The logits of the class head and of the distillation head, and those of the teacher as a plain array."""
    class_logits, distill_logits = logits if isinstance(logits, tuple) else (logits, logits)
    Z_t = asarray(teacher_logits.data if isinstance(teacher_logits, Tensor) else teacher_logits)
    if Z_t.shape != distill_logits.shape:
        raise ScratchvitError(
            f"the teacher's logits have shape {Z_t.shape}, the student's {distill_logits.shape} (images, classes): use "
            "a teacher with the same classes"
        )
    return class_logits, distill_logits, Z_t


class Teacher:
    """A trained model that predicts classes for the images of a student, after their augmentation.

    model: is set to evaluation mode; its forward is not recorded, so its logits have no gradients.
    mean, std (C,): normalisation of the teacher's images; student_mean, student_std (C,): that of the student's.
    report: how its weights were loaded, if they are not those of a run.

    An image of the student, x = (pixel - μ_s) / σ_s, is converted to x σ_s/σ_t + (μ_s - μ_t)/σ_t for the teacher, and
    resized (bicubic, antialiased) if the teacher has another img_size.
    """

    def __init__(
        self, model: Any, *, mean: Sequence[float], std: Sequence[float],
        student_mean: Sequence[float], student_std: Sequence[float], report: LoadReport | None = None,
    ):
        channels = {len(values) for values in (mean, std, student_mean, student_std)}
        if channels != {model.config.in_chans}:
            raise ScratchvitError(
                f"the teacher takes images of {model.config.in_chans} channels, normalised by {len(mean)} means; the "
                f"student's have {len(student_mean)}: use a teacher for the same channels"
            )
        self.model = model.eval()
        self.report = report
        self.img_size = pair(model.config.img_size)
        self._scale = np.array(student_std) / np.array(std)
        self._shift = (np.array(student_mean) - np.array(mean)) / np.array(std)

    @classmethod
    def load(
        cls, path: str | Path, about: Mapping[str, Any], model: str | None = None, entry: str | None = None
    ) -> Teacher:
        """Load a teacher from the checkpoint of a run (its averaged weights, if any) or from third-party weights.

        about: description of the student's data, as in a `Checkpoint`: {"classes", "mean", "std", …}.
        model: for third-party weights, name of the model; by default it is read from the config.json in their folder.
        entry: which weights of a file that has several; for a checkpoint, "model" or "ema".
        Raises ScratchvitError for a file that cannot be read, and for a teacher with other classes or channels.
        """
        classes, channels = list(about["classes"]), len(about["mean"])
        net: Any
        report = None
        if is_checkpoint(path):
            if model is not None:
                raise ScratchvitError(f"{path} is a checkpoint and says which model it is: leave out its name")
            net, checkpoint = model_from_checkpoint(path, entry=entry)
            check_classifies(checkpoint.model_name, net.config)
            mean, std = checkpoint.data["mean"], checkpoint.data["std"]
            if (known := list(checkpoint.data["classes"])) != classes:
                raise ScratchvitError(
                    f"{path} was trained on the classes {listed(known, 5)}, the student has {listed(classes, 5)}: use "
                    "a teacher with the same classes in the same order"
                )
        else:
            net, name, report = open_model(path, model, entry=entry, in_chans=channels)
            check_classifies(name, net.config)
            expected = preprocessing_for(name, path, in_chans=channels, owner=report.owner).to_timm()
            mean, std = expected["mean"], expected["std"]
        if net.config.num_classes != len(classes):
            raise ScratchvitError(
                f"{path} has {net.config.num_classes} classes, the student's data have {len(classes)}: use a teacher "
                "that was trained on the same classes"
            )
        return cls(net, mean=mean, std=std, student_mean=about["mean"], student_std=about["std"], report=report)

    def __call__(self, images: Any) -> Array:
        """The logits (B, classes), a plain array, for images (B, C, H, W) of the student, an array or a Tensor."""
        x = images.data if isinstance(images, Tensor) else asarray(images)
        scale, shift = (asarray(values, x.dtype).reshape(-1, 1, 1) for values in (self._scale, self._shift))
        with no_grad():
            x = Tensor(x * scale + shift)
            if x.shape[2:] != self.img_size:
                x = ops.interpolate(x, self.img_size, mode="bicubic", antialias=True)
            return self.model(x).data

    def table(self, batches: Iterable[Any]) -> np.ndarray:
        """The logits for a whole data set: (N, classes) on the host, rows in the order of the batches.

        batches: (images, labels, …) in the order of the data set, from a `Loader` without shuffling.
        Without augmentation and mixing, images are the same in every epoch, so `table[indices]` replaces the teacher.
        Always compute it in batches of the same size: matrix products of other shapes may be rounded differently, and
        a resumed run must have the same bits.
        """
        return np.concatenate([asnumpy(self(images)) for images, *_ in batches])
