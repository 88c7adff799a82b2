"""Distillation: a student learns a teacher's answers beside the truth (DeiT, Touvron et al., arXiv 2012.12877, §4).

A teacher's answer to a picture says more than its label: which other classes come near, and what is left of the object
in this crop. A CNN as the teacher hands down its inductive bias as well.

    paper   here              shape
    Z_s     logits            (B, C), or with the distillation token a pair of them: (class head, distillation head)
    Z_t     teacher_logits    (B, C), constant
    y       target            (B,) classes, or (B, C) soft targets, as MixUp and CutMix make them
    y_t                       (B,) the teacher's likeliest classes
    ψ, τ, λ softmax, temperature, weight

With a pair, the class head answers to the truth and the distillation head to the teacher; a single head to both.

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
from scratchvit.models.checks import check_classifies
from scratchvit.models.vit import pair
from scratchvit.ops.attention import log_probabilities
from scratchvit.recording import no_grad
from scratchvit.tensor import Tensor
from scratchvit.training.checkpoint import is_checkpoint, model_from_checkpoint
from scratchvit.weights import model_from_weights
from scratchvit.weights.preprocess import preprocessing_for

Logits: TypeAlias = Tensor | tuple[Tensor, Tensor]


def soft_distillation(
    logits: Logits, target: Any, teacher_logits: Any, weight: float = 0.1, temperature: float = 3.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """(1 - λ) CE(ψ(Z_s), y) + λ τ² KL(ψ(Z_s / τ), ψ(Z_t / τ)): eq. 2, with the paper's λ and τ.

    Direction: in the paper the truth stands second, in CE and in KL, so KL is that of the student from the teacher,

        KL = Σ_c p_c (log p_c - log q_c),   p = ψ(Z_t / τ) the teacher's, q = ψ(Z_s / τ) the student's,

    as in Hinton et al. (arXiv 1503.02531) and in the authors' code; its gradient in Z_s / τ is q - p.

    Reduction: the mean over the batch of the sum over the classes, for CE and KL alike. Only then are the two in the
    same unit (nats a picture), λ is a share, and τ² makes up for the gradient, which τ makes smaller by about τ². The
    authors' code divides KL by all B·C entries instead: its distillation term is this one divided by the number of
    classes C, a thousandth on ImageNet, so a λ from there has another meaning.

    label_smoothing is for the truth only. Returns a number.
    Raises ScratchvitError when λ or τ is out of range, or the teacher's classes are not the student's.
    """
    if not (0 <= weight <= 1 and temperature > 0):
        raise ScratchvitError(
            f"distillation needs a weight λ in [0, 1] and a temperature τ > 0, not {weight} and {temperature}"
        )
    to_truth, to_teacher, Z_t = _heads(logits, teacher_logits)
    log_p = log_probabilities(Z_t / temperature, 1)
    log_q = ops.log_softmax(to_teacher / temperature, dim=1)
    divergence = ops.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    truth = ops.cross_entropy(to_truth, target, label_smoothing=label_smoothing)
    return truth * (1 - weight) + divergence * (weight * temperature**2)


def hard_distillation(
    logits: Logits, target: Any, teacher_logits: Any, weight: float = 0.5, label_smoothing: float = 0.0
) -> Tensor:
    """½ CE(ψ(Z_s), y) + ½ CE(ψ(Z_s), y_t) with y_t = argmax Z_t: eq. 3, whose second ½ is `weight` here.

    The teacher's decision counts like a label: no τ to tune, and the paper's best choice. Means over the batch.
    label_smoothing is for the truth only, as in the paper. Returns a number.
    Raises ScratchvitError when the weight is out of range, or the teacher's classes are not the student's.
    """
    if not 0 <= weight <= 1:
        raise ScratchvitError(f"distillation needs a weight in [0, 1], not {weight}")
    to_truth, to_teacher, Z_t = _heads(logits, teacher_logits)
    truth = ops.cross_entropy(to_truth, target, label_smoothing=label_smoothing)
    return truth * (1 - weight) + ops.cross_entropy(to_teacher, Z_t.argmax(axis=1)) * weight


def _heads(logits: Logits, teacher_logits: Any) -> tuple[Tensor, Tensor, Array]:
    """(what answers to the truth, what answers to the teacher, the teacher's logits as a plain array)."""
    to_truth, to_teacher = logits if isinstance(logits, tuple) else (logits, logits)
    Z_t = asarray(teacher_logits.data if isinstance(teacher_logits, Tensor) else teacher_logits)
    if Z_t.shape != to_teacher.shape:
        raise ScratchvitError(
            f"the teacher answers with {Z_t.shape}, the student with {to_teacher.shape} (pictures, classes): "
            "a teacher tells the same classes apart as its student"
        )
    return to_truth, to_teacher, Z_t


class Teacher:
    """A trained model that is shown the student's own pictures, as they were cropped, recoloured and mixed for it.

    model: goes into evaluation mode and stays in it; it is asked without recording, so its answers are constants.
    mean, std (C,): with which the teacher's pictures were normalised; student_mean, student_std (C,): the student's.

    The student's x = (pixel - μ_s) / σ_s becomes the teacher's x σ_s/σ_t + (μ_s - μ_t)/σ_t, and is resized (bicubic,
    antialiased) if the teacher's img_size is another.
    """

    def __init__(
        self, model: Any, *, mean: Sequence[float], std: Sequence[float],
        student_mean: Sequence[float], student_std: Sequence[float],
    ):
        channels = {len(values) for values in (mean, std, student_mean, student_std)}
        if channels != {model.config.in_chans}:
            raise ScratchvitError(
                f"the teacher takes pictures of {model.config.in_chans} channels, normalised by {len(mean)} means; the "
                f"student's have {len(student_mean)}: take a teacher for the same channels"
            )
        self.model = model.eval()
        self.img_size = pair(model.config.img_size)
        self._scale = np.array(student_std) / np.array(std)
        self._shift = (np.array(student_mean) - np.array(mean)) / np.array(std)

    @classmethod
    def load(cls, path: str | Path, about: Mapping[str, Any], model: str | None = None) -> Teacher:
        """From a run's checkpoint (its averaged weights, where there are any) or from anybody's file of weights.

        about: the student's data as a `Checkpoint` says it: {"classes", "mean", "std", …}.
        model: of a file of weights, its name in `list_models`; without it, the config.json beside the file says it.
        Raises ScratchvitError for a file that cannot be read, and for a teacher of other classes or channels.
        """
        classes, channels = list(about["classes"]), len(about["mean"])
        net: Any
        if is_checkpoint(path):
            if model is not None:
                raise ScratchvitError(f"{path} says itself which model it is of: leave the teacher's name out")
            net, checkpoint = model_from_checkpoint(path)
            check_classifies(checkpoint.model_name, net.config)
            mean, std = checkpoint.data["mean"], checkpoint.data["std"]
            if (known := list(checkpoint.data["classes"])) != classes:
                raise ScratchvitError(
                    f"{path} learned the classes {_listed(known)}, the student is to learn {_listed(classes)}: "
                    "take a teacher of the same classes in the same order"
                )
        else:
            net, name = model_from_weights(path, model, in_chans=channels)
            check_classifies(name, net.config)
            expected = preprocessing_for(name, path, in_chans=channels).to_timm()
            mean, std = expected["mean"], expected["std"]
        if net.config.num_classes != len(classes):
            raise ScratchvitError(
                f"{path} tells {net.config.num_classes} classes apart, the student's data has {len(classes)}: "
                "take a teacher that was trained on them"
            )
        return cls(net, mean=mean, std=std, student_mean=about["mean"], student_std=about["std"])

    def __call__(self, images: Any) -> Array:
        """images (B, C, H, W) as the student sees them, an array or a Tensor → logits (B, classes), a plain array."""
        x = images.data if isinstance(images, Tensor) else asarray(images)
        scale, shift = (asarray(values, x.dtype).reshape(-1, 1, 1) for values in (self._scale, self._shift))
        with no_grad():
            x = Tensor(x * scale + shift)
            if x.shape[2:] != self.img_size:
                x = ops.interpolate(x, self.img_size, mode="bicubic", antialias=True)
            return self.model(x).data

    def table(self, batches: Iterable[Any]) -> np.ndarray:
        """Its logits of a whole data set, asked for once: (N, classes) on the host, rows in the order of the batches.

        batches: (images, labels, …) in the order of the data set, as an evaluation's `Loader` gives them. It is of use
        only where a picture is the same in every epoch: without augmentation and mixing. A batch of pictures `indices`
        then needs `table[indices]` instead of the teacher. Made before the first step and always in the same batches,
        since a matrix product of other rows may round otherwise: so a resumed run reads the same bits.
        """
        return np.concatenate([asnumpy(self(images)) for images, *_ in batches])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 5 else f"{', '.join(names[:5])}, … ({len(names)})"
