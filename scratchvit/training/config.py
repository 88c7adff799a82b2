"""Every setting of a training run, once: the command line, `config.json` and the loop all read these fields.

`RunConfig` is what every run has, `TrainConfig` what a classifier's has beside; a detector's is in `detection.config`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from scratchvit.backend import default_device
from scratchvit.data.randaugment import LEVELS
from scratchvit.options import option


@dataclass(frozen=True)
class RunConfig:
    """What is chosen in every run. Model options (sizes, drop rates) are fields of the model's own configuration."""

    command: ClassVar[str] = ""     # of `scratchvit`, that makes and resumes such a run: its kind, in config.json too

    data: str = option("", "where the pictures come from")
    val_fraction: float = option(0.1, "share of the training images kept for validation, if the data bring none")
    skip_bad: bool = option(False, "leave out, and name, pictures that do not decode when a run begins")

    model: str = option("", "a name from `scratchvit models`")
    model_args: dict[str, Any] = field(default_factory=dict)    # from the model's own options: --embed-dim, …
    init: str | None = option(None, "file of weights to begin with: timm's, torchvision's, Hugging Face's, a run's, …")
    new_head: bool = option(False, "with --init: leave the file's head out, for other classes than its own")

    epochs: int = option(20, "passes over the training images, each followed by a validation")
    batch_size: int = option(64, "images in a step")
    optimizer: str = option("adamw", "how gradients become steps", ("adamw", "adam", "sgd"))
    lr: float = option(1e-3, "learning rate after the warm-up")
    min_lr: float = option(1e-5, "learning rate at the end")
    weight_decay: float = option(0.05, "decay of matrices; norms, biases, positions and tokens have none")
    momentum: float = option(0.9, "of SGD")
    clip_grad: float = option(1.0, "largest norm of all gradients together; 0: no limit")
    schedule: str = option("cosine", "how the learning rate falls", ("cosine", "linear", "step", "constant"))
    warmup_epochs: float = option(2.0, "epochs in which the learning rate rises to lr, at most half of them")
    ema_decay: float = option(0.0, "decay of the averaged weights that are evaluated and saved; 0: off")
    layer_decay: float = option(1.0, "each layer's learning rate, as a share of the next one's; 1: all alike")

    non_finite: str = option(
        "stop", "a step whose loss or gradient is infinite or NaN: end the run, or leave the step out", ("stop", "skip")
    )
    loss_scale: float = option(
        0.0, "factor of the loss on the way back, which adapts itself; for float16, of no use in float32; 0: none"
    )
    workers: int = option(0, "processes that read and augment pictures; 0: a thread beside the training")
    seed: int = option(0, "of weights, split, order, augmentation and dropout")
    device: str = option(default_device(), "where to compute", ("cpu", "gpu"))
    save_every: int = option(0, "steps between checkpoints within an epoch; 0: at its end only")

    def replace(self, **changes: Any) -> Self:
        """The same with some fields changed."""
        return dataclasses.replace(self, **changes)

    def as_read_back(self) -> Self:
        """The same as it comes out of config.json, where (8, 12) is [8, 12]: what settings are compared in."""
        return type(self)(**json.loads(json.dumps(dataclasses.asdict(self))))


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """A run that trains a classifier, or a model that learns the images themselves."""

    command: ClassVar[str] = "train"

    data: str = option("digits", "digits, mnist, fashion-mnist, cifar10, cifar100, or the folder of an image folder")
    data_dir: str | None = option(None, "where the files of a named data set are")
    download: bool = option(False, "fetch a named data set that is not there (needs pooch)")
    train_fraction: float = option(1.0, "share of the training images that is used, class by class")
    epoch_images: int = option(0, "training images in an epoch, which then may hold several passes; 0: all, once")

    model: str = option("vit_tiny_patch16_224", "a name from `scratchvit models`")

    label_smoothing: float = option(0.0, "share of the target that is spread over all classes")
    regularisation: float = option(0.0, "dropout and stochastic depth at once, as in the augreg paper: 0.1")

    crop_padding: int = option(0, "pixels by which training images are shifted at random")
    crop_scale: float = option(0.0, "least share of an original that a random crop keeps (Inception's 0.05); 0: off")
    flip: bool = option(False, "mirror training images at random")
    augment: str = option("none", "the augreg paper's levels of RandAugment and MixUp", tuple(LEVELS))
    color_jitter: float = option(0.0, "change brightness, contrast and saturation by up to this share")
    random_erasing: float = option(0.0, "share of the pictures in which a box is overwritten with noise")
    mixup: float = option(0.0, "α of MixUp, two pictures laid over each other; 0: as `augment` says")
    cutmix: float = option(0.0, "α of CutMix, a box of one picture in another; 0: off")
    mix_prob: float = option(1.0, "share of the mixtures that are mixed at all")
    mix_switch_prob: float = option(0.5, "share of CutMix where both have an α")
    mix_mode: str = option("batch", "what is mixed alike: a batch, a pair, or nothing", ("batch", "pair", "elem"))

    teacher: str | None = option(None, "run or file of weights whose answers are learned beside the labels")
    teacher_model: str | None = option(None, "of a teacher's file of weights: its name, if no config.json says it")
    distill: str = option("hard", "learn the teacher's decision, or its softened probabilities", ("hard", "soft"))
    distill_weight: float | None = option(None, "the teacher's share of the loss; by default 0.5 hard, 0.1 soft")
    distill_temperature: float = option(3.0, "τ by which logits are divided, for soft")
