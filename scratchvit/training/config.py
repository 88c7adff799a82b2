"""The settings of a training run, read by the command line, `config.json` and the training loop.

`RunConfig` has the settings of every run, `TrainConfig` adds those of a classifier; a detector's are in
`detection.config`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from scratchvit.backend import default_device, gpu_number
from scratchvit.data.randaugment import LEVELS
from scratchvit.options import option
from scratchvit.precision import OF_A_RUN


@dataclass(frozen=True)
class RunConfig:
    """The settings of every run. Model options (sizes, dropout rates) are fields of the model's own configuration."""

    command: ClassVar[str] = ""     # the command that starts and resumes such a run; saved in config.json

    data: str = option("", "the training data")
    val_fraction: float = option(
        0.1, "fraction of the training images used as validation split, if the data do not have one"
    )
    skip_bad: bool = option(False, "skip pictures that cannot be decoded, and list them when the run begins")

    model: str = option("", "name of the model, see `scratchvit models`")
    model_args: dict[str, Any] = field(default_factory=dict)    # from the model's own options: --embed-dim, …
    init: str | None = option(
        None, "file with pretrained weights to start from: timm's, torchvision's, Hugging Face's, a run's, …"
    )
    entry: str | None = option(
        None, "with --init: which weights of a file that has several, such as teacher or state_dict.model"
    )
    new_head: bool = option(False, "with --init: do not load the head, because the classes are different")

    epochs: int = option(20, "passes over the training images, each followed by validation")
    batch_size: int = option(64, "images per training step")
    accumulate: int = option(
        1, "compute the gradient of a step in so many parts of the batch, one after the other, in the memory of "
        "batch_size / accumulate images. It is the same gradient, except that batch norms use the statistics of a "
        "part, and that dropout draws other numbers"
    )
    sync_bn: bool = option(
        False, "with several processes, compute the statistics of batch norms over the images of all of them, as one "
        "process does; without it, each normalises by its own images. No effect on one process"
    )
    optimizer: str = option("adamw", "the optimiser", ("adamw", "adam", "sgd"))
    lr: float = option(1e-3, "learning rate after the warm-up")
    lr_scaling: str = option(
        "none", "multiply lr by batch_size / lr_base_batch, or by its square root. timm: linear for SGD, sqrt for Adam "
        "and AdamW", ("none", "linear", "sqrt"),
    )
    lr_base_batch: int = option(256, "with --lr-scaling: the batch size that lr is meant for")
    min_lr: float = option(1e-5, "learning rate at the end")
    weight_decay: float = option(
        0.05, "weight decay of matrices; not applied to norms, biases, positional embeddings and tokens"
    )
    momentum: float = option(0.9, "momentum of SGD")
    clip_grad: float = option(1.0, "largest norm of the gradient of all parameters; 0: no clipping")
    schedule: str = option(
        "cosine", "learning rate schedule after the warm-up", ("cosine", "linear", "step", "constant")
    )
    warmup_epochs: float = option(2.0, "epochs in which the learning rate rises to lr; at most half of all epochs")
    ema_decay: float = option(
        0.0, "decay of the exponential moving average (EMA) of the weights, which is evaluated and saved; 0: off"
    )
    layer_decay: float = option(1.0, "learning rate of each layer relative to the layer after it; 1: equal rates")

    non_finite: str = option(
        "stop", "if the loss or gradient of a step is infinite or NaN: stop the run, or skip the step", ("stop", "skip")
    )
    precision: str = option(
        "float32", "numbers of a step: float32; tf32, for products on GPUs; bf16 or fp16, activations in 16 bits",
        tuple(OF_A_RUN),
    )
    loss_scale: float = option(
        0.0, "initial factor of dynamic loss scaling; 0: off, and with fp16, which needs it, 65,536"
    )
    workers: int = option(0, "processes that read and augment pictures; 0: one thread in the training process")
    seed: int = option(0, "seed of weights, validation split, order, augmentation and dropout")
    device: str = option(default_device(), "device to train on: cpu, gpu, or gpu:1, the second GPU", check=gpu_number)
    replay: bool = option(
        True, "on a GPU, capture a training step as a CUDA graph and repeat it by one launch, where its shapes allow it"
    )
    shard_optimizer: bool = option(
        False, "divide the moments of the optimiser among the processes of the run: ZeRO stage 1. Each of N processes "
        "keeps 1/N of them; the steps are the same"
    )
    rank_timeout: float = option(
        300.0, "with several ranks (mpiexec): seconds that they wait for one that does not come, before the run ends"
    )
    timeline: bool = option(
        False, "write one step of every process, its ops and its exchange of gradients, as timeline.json for Perfetto"
    )
    save_every: int = option(0, "steps between checkpoints; 0: only at the end of each epoch")

    def replace(self, **changes: Any) -> Self:
        """A copy of this configuration with some fields changed."""
        return dataclasses.replace(self, **changes)

    def as_read_back(self) -> Self:
        """This configuration as read from config.json, where (8, 12) is [8, 12]; settings are compared in this form."""
        return type(self)(**json.loads(json.dumps(dataclasses.asdict(self))))


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """The settings of a run that trains a classifier, or a generative model of pixels."""

    command: ClassVar[str] = "train"

    data: str = option(
        "digits", "digits, mnist, fashion-mnist, cifar10, cifar100, a folder with pictures in train/<class>/ or "
        "<class>/, or a CSV file of file names and labels"
    )
    data_dir: str | None = option(None, "folder with the files of a named data set")
    download: bool = option(False, "download a named data set that is missing (needs pooch)")
    train_fraction: float = option(1.0, "fraction of the training images that is used, the same for every class")
    epoch_images: int = option(0, "images in an epoch, if not one pass over the training images; 0: one pass")

    model: str = option("vit_tiny_patch16_224", "name of the model, see `scratchvit models`")

    label_smoothing: float = option(0.0, "probability that is spread evenly over all classes in the target")
    regularisation: float = option(0.0, "rate of both dropout and stochastic depth; the augreg paper uses 0.1")

    crop_padding: int = option(0, "shift training images at random by up to this many pixels")
    crop_scale: float = option(0.0, "random resized crops: smallest area, as a fraction (Inception: 0.05); 0: off")
    flip: bool = option(False, "flip training images horizontally at random")
    augment: str = option("none", "RandAugment and MixUp at one of the augreg paper's levels", tuple(LEVELS))
    color_jitter: float = option(0.0, "largest relative change of brightness, contrast and saturation")
    random_erasing: float = option(0.0, "probability that a box of an image is replaced by noise")
    mixup: float = option(0.0, "α of MixUp, which blends two images; 0: the value of `augment`")
    cutmix: float = option(0.0, "α of CutMix, which pastes a box of one image into another; 0: off")
    mix_prob: float = option(1.0, "probability that MixUp or CutMix is applied")
    mix_switch_prob: float = option(0.5, "probability of CutMix instead of MixUp, if both are on")
    mix_mode: str = option(
        "batch", "draw the mixing ratio once per batch, per pair, or per image. With several processes, each mixes "
        "its own images with one another", ("batch", "pair", "elem")
    )

    teacher: str | None = option(None, "distillation: the run or the file of weights of the teacher")
    teacher_model: str | None = option(
        None, "name of the teacher's model, if its weights have no config.json that says it"
    )
    teacher_entry: str | None = option(
        None, "which weights of the teacher's file, if it has several, such as teacher or state_dict.model"
    )
    distill: str = option("hard", "distil the teacher's decision, or its softened probabilities", ("hard", "soft"))
    distill_weight: float | None = option(
        None, "weight of the teacher in the loss, from 0 to 1; none: 0.5 if hard, 0.1 if soft"
    )
    distill_temperature: float = option(3.0, "τ: temperature by which logits are divided, for soft distillation")
