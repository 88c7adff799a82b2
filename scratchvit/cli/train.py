"""`scratchvit train`: trains a classifier or an iGPT, and writes a report and pictures."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from scratchvit import progress
from scratchvit.cli._bugs import bugs_reported
from scratchvit.cli._options import command_line
from scratchvit.cli._output import note_result
from scratchvit.cli._run_command import (
    TrainingCommand,
    changed_settings,
    describe_device,
    describe_precision,
    describe_ranks,
    describe_resuming,
    describe_settings,
    describe_steps,
    files_and_commands,
)
from scratchvit.cli._text import filled, labelled_lines
from scratchvit.data import Normalize, list_datasets
from scratchvit.data.images import to_picture
from scratchvit.errors import ScratchvitError
from scratchvit.files import counted, printable, write_atomically
from scratchvit.inspect import draw_attention, draw_curves, first_of_each_class, shows_attention
from scratchvit.inspect.completions import draw_completions
from scratchvit.models.checks import check_classifies
from scratchvit.models.igpt import IGPT
from scratchvit.models.interface import TokenModel, config_of, generates
from scratchvit.precision import computing_in
from scratchvit.recipes import Choice, choose, recipe_for
from scratchvit.reports.classification import Run, write_report
from scratchvit.reports.generative import bits_and_baseline
from scratchvit.training import ClassificationTask, Result, TrainConfig, TrainingLoop, prepare
from scratchvit.training.classification.task import coarse_patches
from scratchvit.training.estimate import seconds_of_training
from scratchvit.training.log import line_legend
from scratchvit.weights.export import can_export
from scratchvit.weights.published import downloaded_by_torchvision

ATTENTION_PICTURES = 10     # one of each of the first classes

DESCRIPTION = """\
Train a model on pictures. By default: a small ViT on scikit-learn's handwritten digits, which takes about a minute.

  scratchvit train
  scratchvit train --data photos
  scratchvit train --resume runs/NAME

photos has a folder for each class: photos/train/<class>/*.jpg, or photos/<class>/*.jpg. A resumed run continues bit
for bit.

The defaults below are those of a recipe (scratchvit/recipes/, one file each). Data sets known by name have their own
recipe. For your own pictures, the model and the number of epochs depend on how many pictures there are, and how large.
The options of the model depend on the model: `scratchvit train --model NAME --help` lists those of NAME. Without
--model, sizes are those of the recipe. With --model, they are those of the model's paper, except img_size (and a ViT's
patch_size), which stay those of the recipe.
"""

# The options in the order of the help. Fields of TrainConfig that are not listed are in the group "run".
GROUPS = {
    "data": ("data", "data_dir", "download", "val_fraction", "train_fraction", "epoch_images", "skip_bad"),
    "model": ("model", "init", "entry", "new_head"),
    "optimisation": (
        "epochs", "batch_size", "accumulate", "optimizer", "lr", "lr_scaling", "lr_base_batch", "min_lr", "momentum",
        "clip_grad", "schedule", "warmup_epochs", "non_finite", "precision", "loss_scale",
    ),
    "regularisation": ("weight_decay", "regularisation", "label_smoothing", "ema_decay", "layer_decay"),
    "augmentation": (
        "crop_padding", "crop_scale", "flip", "augment", "color_jitter", "random_erasing",
        "mixup", "cutmix", "mix_prob", "mix_switch_prob", "mix_mode",
    ),
    "distillation": ("teacher", "teacher_model", "teacher_entry", "distill", "distill_weight", "distill_temperature"),
}
SIZES_OF_THE_DATA = {"img_size", "patch_size"}  # a recipe's values apply to other models of its family too
FROM_THE_DATA = {"in_chans", "num_classes"}     # determined by the data, so not options


def _no_square(config: TrainConfig) -> str | None:
    is_square = not isinstance(config.model_args.get("img_size"), tuple)
    return None if is_square else "--img-size: pictures are resized to squares, so give one number"


COMMAND = TrainingCommand(
    TrainConfig, DESCRIPTION, GROUPS, check_classifies, FROM_THE_DATA, SIZES_OF_THE_DATA,
    shown={"img_size": "the data's own; a folder's: 224"}, refuses=_no_square,
)


def train(argv: Sequence[str]) -> int:
    """Train a model, write pictures of the run, and print where everything is."""
    config, folder, resume, ranks = COMMAND.on_ranks(argv)
    loop = prepare(config, folder, resume, ranks=ranks)
    is_first = ranks.rank == 0
    where = folder if is_first else None        # of a traceback: only rank 0 writes to the run's folder
    with loop.folder, bugs_reported(where, argv=[COMMAND.kind.command, *argv]):  # until the last picture is written
        choice = _choice(loop) if is_first else None
        about_ranks = describe_ranks(config, ranks)
        if is_first:
            print(_start_summary(loop, choice, about_ranks), flush=True)
        result = loop.run()
        if not is_first:
            return 0
        part, _ = loop.task.data.splits.held_out
        measured = result.predictions.meter
        print()
        print(filled(
            f"{part} accuracy {measured.accuracy:.2%}, loss {measured.loss:.4f}, with the weights of epoch "
            f"{result.best_epoch} of {result.epochs}; "
            f"trained for {progress.duration(result.seconds)} at {result.images_per_second:,.0f} images/s"
        ))
        if part == "val":
            print(filled("there is no test split; as the epoch was chosen by the val pictures, new ones may be harder"))
        bits = _bits(loop, result) if generates(loop.model) else None
        if bits:
            print(filled(_bits_per_pixel(loop, *bits)))
        if result.skipped:
            print(f"{counted(result.skipped, 'step')} skipped, because the loss or gradient was not finite")
        print(_end_summary(loop, _write_pictures(loop, result, bits), choice))
    note_result(
        run=folder, checkpoint=loop.folder.best, test_accuracy=result.test_accuracy, test_loss=result.test_loss,
        val_accuracy=result.val_accuracy, val_loss=result.val_loss,
        best_epoch=result.best_epoch, epochs=result.epochs, seconds=result.seconds,
    )
    return 0


def _start_summary(
    loop: TrainingLoop[ClassificationTask], choice: Choice | None, about_ranks: Sequence[tuple[str, str]]
) -> str:
    """The data, model, settings, device and folder of a run, as text."""
    config, splits = loop.task.config, loop.task.data.splits
    model: Any = loop.model
    sizes = ", ".join(f"{len(getattr(splits, part)):,} {part}" for part in ("train", "val", "test"))
    files = splits.inventory.lines() if splits.inventory else []
    tokens = f", {model.num_tokens} tokens" if isinstance(model, TokenModel) else ""
    height, width, channels = loop.about["image_shape"]
    teacher = loop.task.objective.teacher
    shape = f"{height}×{width}×{channels}, {counted(len(loop.about['classes']), 'class', 'classes')}"
    rows = [
        ("data", f"{printable(config.data)}: {sizes}; {shape}"),
        *(("files" if number == 0 else "", line) for number, line in enumerate(files)),
        *(("", printable(note)) for note in splits.notes),
        *(("left out", printable(text)) for text in splits.skipped),
        ("model", f"{config.model}: {model.num_parameters():,} parameters{tokens}"),
        ("warning", coarse_patches(loop.model) if not _sizes_of_the_recipe(config) else ""),
        ("weights", f"initialised from {config.init}" if loop.loaded else ""),
        *(("", line) for line in str(loop.loaded or "").splitlines()),
        *(_reasons(loop, choice) if choice and not loop.step else ()),
        ("sizes", describe_settings(config.model_args)),
        ("resumed", describe_resuming(loop)),
        ("steps", describe_steps(config, len(loop.loader))),
        ("settings", changed_settings(config, [*GROUPS["regularisation"], *GROUPS["augmentation"]])),
        ("teacher", f"{config.teacher}, {config.distill} distillation" if config.teacher else ""),
        *(("", line) for line in str((teacher and teacher.report) or "").splitlines()),
        ("device", describe_device(config)),
        *about_ranks,
        ("precision", describe_precision(config)),
        ("folder", str(loop.folder.path)),
        ("epochs", line_legend(loop.task.legend)),
    ]
    return labelled_lines(rows)


def _choice(loop: TrainingLoop[ClassificationTask]) -> Choice | None:
    """The settings that suit the folder's pictures, if this run has their model and sizes; None for other runs."""
    config = loop.task.config
    if config.data in list_datasets() or config.init:
        return None
    choice = choose(config.data)
    is_chosen = (config.model, config.model_args) == (choice.config.model, choice.config.model_args)
    return choice if is_chosen else None


def _reasons(loop: TrainingLoop[ClassificationTask], choice: Choice) -> list[tuple[str, str]]:
    """Why this model, how long it will take, and what to try next."""
    config, splits = loop.task.config, loop.task.data.splits
    time = ""
    if loop.ranks.size == 1:        # what several take together is not measured
        with computing_in(config.precision):
            seconds = seconds_of_training(
                config.model, loop.model_args, config.batch_size, config.epochs, splits.train, splits.val
            )
        time = f"about {progress.duration(seconds)} on this machine"
    side = loop.about["image_shape"][0]
    return [
        ("chosen", choice.about_model),
        ("", choice.about_epochs if config.epochs == choice.config.epochs else ""),
        ("time", time),
        ("or try", f"longer training, --epochs {3 * config.epochs}; more detail, --img-size {2 * side}; or pretrained "
                   "weights, which help most if there are few pictures (a command is printed at the end)"),
    ]


def _fine_tuning(data: str) -> str:
    """The command that fine-tunes pretrained weights: those of torchvision on this machine, if there are any."""
    weights, model = downloaded_by_torchvision() or ("FILE", "NAME")
    words = ["--recipe", "finetune_pictures", "--data", data, "--init", str(weights), "--model", model]
    return command_line(["scratchvit", "train", *words])


def _sizes_of_the_recipe(config: TrainConfig) -> bool:
    """Whether the image and patch size are those of the recipe for these data, whose accuracy is known."""
    recipe_args = recipe_for(config.data, TrainConfig, config.model).model_args
    return "patch_size" in recipe_args and all(
        config.model_args.get(name) == recipe_args.get(name) for name in SIZES_OF_THE_DATA
    )


def _bits(loop: TrainingLoop[ClassificationTask], result: Result) -> tuple[float, float]:
    """The test loss of a generative model in bits per pixel, and that of a baseline, which reads all the data."""
    splits = loop.task.data.splits
    return bits_and_baseline(loop.model, splits, splits.held_out[1], result.predictions.meter.loss)


def _bits_per_pixel(loop: TrainingLoop[ClassificationTask], bits: float, baseline: float) -> str:
    """Bits per pixel of a generative model and of a baseline, as text."""
    model: Any = loop.model
    return (
        f"{bits:.3f} bits per pixel, with {len(model.palette.data)} colours; {baseline:.3f} for a baseline that only "
        "uses the frequencies of the colours at each position"
    )


def _write_pictures(
    loop: TrainingLoop[ClassificationTask], result: Result, bits: tuple[float, float] | None
) -> dict[str, str]:
    """Write the report, a test picture to try `predict` on, and pictures of the run: {file: description}."""
    folder, (part, held_out) = loop.folder.path, loop.task.data.splits.held_out
    chosen = first_of_each_class(held_out.labels, ATTENTION_PICTURES)
    pictures, labels = held_out.images(chosen), held_out.labels[chosen]
    drawn = {}
    try:
        run = Run(
            folder, loop.task.config, loop.history, loop.task.data, loop.model, result.best_epoch,
            result.predictions, bits,
        )
        names = [printable(name) for name in run.names]
        png = io.BytesIO()
        to_picture(pictures[-1]).save(png, format="png")
        write_atomically(folder / "sample.png", png.getvalue())
        write_report(dataclasses.replace(run, commands=next_commands(run)), folder / "report.html")
        drawn["report.html"] = "the whole run on one page: open it in a browser"
        drawn["sample.png"] = f"a {part} picture, of class {names[labels[-1]]}"
        draw_curves(loop.folder.metrics, folder / "curves.png")
        drawn["curves.png"] = "loss and accuracy over the epochs"
        if shows_attention(loop.model):
            normalize = Normalize(loop.task.data.mean, loop.task.data.std)
            draw_attention(loop.model, pictures, normalize, labels, names, folder / "attention.png")
            drawn["attention.png"] = f"attention maps of {part} pictures"
        if isinstance(loop.model, IGPT) and loop.model.generative:
            draw_completions(loop.model, pictures, folder / "complete.png", np.random.default_rng(0))
            drawn["complete.png"] = f"{part} pictures, and completions of their upper halves"
    except ScratchvitError as error:
        print(f"no pictures: {error}")
    return drawn


def next_commands(run: Run) -> dict[str, str]:
    """Command lines about a run, for its report: {what it does: command line}."""
    folder, sample = str(run.path), run.path / "sample.png"
    uses = {}
    if generates(run.model):
        uses = {
            "Complete the upper halves of pictures:": ["complete", folder],
            "Find the layer whose features classify best (linear probe):": ["probe", folder],
        }
    elif run.model is not None:
        picture = str(sample) if sample.exists() else "picture.png"
        uses = {"Classify pictures, of the run or your own:": ["predict", folder, picture]}
        if can_export(config_of(run.model)):
            uses["Export the model to timm:"] = ["export", folder, "--out", str(run.path / "timm")]
    if run.model is not None:
        uses["Evaluate it again, or on other data (--data):"] = ["eval", folder]
    return COMMAND.lines(run.config, run.path, run.finished, uses)


def _end_summary(
    loop: TrainingLoop[ClassificationTask], pictures: dict[str, str], choice: Choice | None
) -> str:
    """The files of the run, and commands to try next, as text."""
    folder = loop.folder
    sample = folder.path / "sample.png"
    generative = generates(loop.model)
    commands = [
        f"scratchvit predict {folder.path} {sample}" if sample.name in pictures and not generative else "",
        *(f"scratchvit {what} {folder.path}" for what in (("complete", "probe") if generative else ("play",))),
        f"scratchvit eval {folder.path}",
        f"scratchvit train --resume {folder.path} --epochs {2 * loop.config.epochs}",
        _fine_tuning(loop.config.data) if choice else "",
        "scratchvit train --help",
    ]
    return files_and_commands(folder, "loss and accuracy", pictures, commands)
