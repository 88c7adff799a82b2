"""`scratchvit train`: options → TrainConfig → the loop → pictures, and what to do next."""

from __future__ import annotations

import argparse
import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scratchvit import backend
from scratchvit.backend import asnumpy
from scratchvit.cli.options import Parser, add_fields
from scratchvit.cli.report import commands
from scratchvit.data import Normalize
from scratchvit.data.images import to_picture
from scratchvit.data.palette import histogram_bits
from scratchvit.errors import ScratchvitError
from scratchvit.inspect import draw_attention, draw_curves, first_of_each_class, shows_attention
from scratchvit.inspect.completions import draw_completions
from scratchvit.inspect.report import Run, write_report
from scratchvit.models import model_config
from scratchvit.models.igpt import IGPT
from scratchvit.recipes import list_recipes, load_recipe, recipe_for
from scratchvit.training import TrainConfig, read_config
from scratchvit.training.checkpoint import write_atomically
from scratchvit.training.loop import Result, Trainer, prepare
from scratchvit.training.setup import coarse_patches

ATTENTION_PICTURES = 10     # the first of each of the first classes

DESCRIPTION = """\
Train a model on pictures. Without options: a small ViT on scikit-learn's handwritten digits, in about a minute.

  scratchvit train
  scratchvit train --data fashion-mnist --download
  scratchvit train --recipe vit_cifar10 --data-dir cifar-10-batches-bin --epochs 50
  scratchvit train --data photos --img-size 96 --patch-size 8      # photos/train/<class>/*.jpg
  scratchvit train --resume runs/digits-vit_tiny_patch16_224-1     # goes on bit for bit

The values of a recipe (scratchvit/recipes/, a file each) are the defaults below; data sets known by name have one of
their own. The options of the model depend on the model: `scratchvit train --model NAME --help` shows those of NAME. A
model that is named has the sizes of its paper, but the recipe's img_size (and, a ViT, its patch_size); one that is not
named has the sizes of the recipe.
"""

# The options in the order of the help. A field of TrainConfig that is not here stands with the run.
GROUPS = {
    "data": ("data", "data_dir", "download", "val_fraction", "train_fraction", "epoch_images", "skip_bad"),
    "model": ("model", "init", "new_head"),
    "optimisation": (
        "epochs", "batch_size", "optimizer", "lr", "min_lr", "momentum", "clip_grad", "schedule", "warmup_epochs",
        "non_finite", "loss_scale",
    ),
    "regularisation": ("weight_decay", "regularisation", "label_smoothing", "ema_decay", "layer_decay"),
    "augmentation": (
        "crop_padding", "crop_scale", "flip", "augment", "color_jitter", "random_erasing",
        "mixup", "cutmix", "mix_prob", "mix_switch_prob", "mix_mode",
    ),
    "distillation": ("teacher", "teacher_model", "distill", "distill_weight", "distill_temperature"),
}  # fmt: skip
SIZES_OF_THE_DATA = {"img_size", "patch_size"}  # what a recipe says of them holds for other models of its family too
FROM_THE_DATA = {"in_chans", "num_classes"}     # no option of the model: the data decide


def train(argv: Sequence[str]) -> int:
    """Train, draw, and say where everything is."""
    config, folder, resume = parse(argv)
    trainer = prepare(config, folder, resume)
    with trainer.folder:        # until the last picture is drawn
        print(_begins(trainer), flush=True)
        result = trainer.run()
        print(
            f"\ntest accuracy {result.test_accuracy:.2%}, loss {result.test_loss:.4f}, with the weights of epoch "
            f"{result.best_epoch} of {result.epochs}; "
            f"{result.seconds:.0f} s at {result.images_per_second:,.0f} images/s"
        )
        if getattr(trainer.model, "generative", False):
            print(_bits_per_pixel(trainer, result))
        if result.skipped:
            print(f"{result.skipped} steps were left out, whose loss or gradient was not finite")
        print(_ends(trainer, _draw(trainer, result)))
    return 0


def parse(argv: Sequence[str]) -> tuple[TrainConfig, Path, bool]:
    """What the options ask for: the configuration, the run's folder, and whether the run there goes on."""
    base = _base(argv)
    model_defaults = model_config(base.model, **base.model_args)
    model_fields = [name for name in vars(model_defaults) if name not in FROM_THE_DATA]
    shown = vars(model_defaults) | {"img_size": base.model_args.get("img_size", "the data's own; a folder's: 224")}
    grouped = {name for names in GROUPS.values() for name in (*names, "model_args")}

    parser = Parser(prog="scratchvit train", usage="scratchvit train [options]", description=DESCRIPTION)
    parser.add_argument("--recipe", metavar="NAME", choices=list_recipes(), default=argparse.SUPPRESS, help=(
        f"what stands where no option says otherwise: {', '.join(list_recipes())}"
    ))  # fmt: skip
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        add_fields(group, TrainConfig, names, vars(base))
        if title == "model":
            add_fields(group, type(model_defaults), model_fields, shown, prefix="model.")
    run = parser.add_argument_group("run")
    add_fields(run, TrainConfig, [name for name in vars(base) if name not in grouped], vars(base))
    run.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/DATA-MODEL-N, a new one)")
    run.add_argument("--resume", metavar="DIR", help="go on with the run in DIR; --epochs may grow")

    given = vars(parser.parse_strictly(argv))
    out, resume, recipe = given.pop("out"), given.pop("resume"), given.pop("recipe", None)
    if resume and out:
        parser.error("--resume goes on in the run's own folder: leave out --out")
    if resume and recipe:
        parser.error("--resume goes on with the run's own settings: leave out --recipe")
    model_args = {name: given.pop(f"model.{name}") for name in model_fields if f"model.{name}" in given}
    if isinstance(model_args.get("img_size"), tuple):
        parser.error("--img-size: pictures are brought to squares, so give one number")
    config = base.replace(**given, model_args={**base.model_args, **model_args})
    return config, Path(resume or out or _new_run_folder(config)), bool(resume)


def _base(argv: Sequence[str]) -> TrainConfig:
    """What stands where no option says otherwise: the run to be resumed, --recipe, or that for --data and --model."""
    first = Parser(prog="scratchvit train", add_help=False)
    first.add_argument("--recipe")
    first.add_argument("--data", default="digits")
    first.add_argument("--model")
    first.add_argument("--resume")
    chosen = first.parse_known_args(argv)[0]
    if chosen.resume:
        return read_config(Path(chosen.resume))
    recipe = load_recipe(chosen.recipe) if chosen.recipe else recipe_for(chosen.data)
    if chosen.model is None:
        return recipe
    same_family = type(model_config(chosen.model)) is type(model_config(recipe.model))
    sizes = SIZES_OF_THE_DATA if same_family else {"img_size"}
    kept = {name: value for name, value in recipe.model_args.items() if name in sizes}
    return recipe.replace(model=chosen.model, model_args=kept)


def _new_run_folder(config: TrainConfig) -> Path:
    name = f"{Path(config.data).resolve().name}-{config.model}"
    return next(path for n in itertools.count(1) if not (path := Path("runs", f"{name}-{n}")).exists())


def _begins(trainer: Trainer) -> str:
    """What is going to be trained on what, where."""
    config, splits = trainer.config, trainer.data.splits
    model: Any = trainer.model
    sizes = ", ".join(f"{len(getattr(splits, part)):,} {part}" for part in ("train", "val", "test"))
    tokens = f", {model.num_tokens} tokens" if hasattr(model, "num_tokens") else ""
    height, width, channels = trainer.about["image_shape"]
    rows = [
        ("data", f"{config.data}: {sizes}; {height}×{width}×{channels}, {len(trainer.about['classes'])} classes"),
        *(("", note) for note in splits.notes),
        *(("left out", text) for text in splits.skipped),
        ("model", f"{config.model}: {model.num_parameters():,} parameters{tokens}"),
        ("warning", coarse_patches(trainer.model) if not _sizes_of_the_recipe(config) else ""),
        ("begins", f"with {config.init}" if trainer.loaded else ""),
        *(("", line) for line in str(trainer.loaded or "").splitlines()),
        ("sizes", ", ".join(f"{name} {value}" for name, value in config.model_args.items())),
        ("steps", f"{config.epochs} epochs of {len(trainer.loader)}, {config.batch_size} images each; "
                  f"{config.optimizer}, lr {config.lr:g}, {config.schedule}"),
        ("regime", ", ".join(_regime(config))),
        ("teacher", f"{config.teacher}, {config.distill} distillation" if config.teacher else ""),
        ("device", f"{config.device}" + (f", {backend.cpu_threads()} threads" if config.device == "cpu" else "")),
        ("folder", str(trainer.folder.path)),
    ]  # fmt: skip
    return "\n".join(f"{name:<8}  {text}" for name, text in rows if text)


def _sizes_of_the_recipe(config: TrainConfig) -> bool:
    """Whether images are cut as in the recipe for these data, which was measured."""
    measured = recipe_for(config.data).model_args
    return "patch_size" in measured and all(
        config.model_args.get(name) == measured.get(name) for name in SIZES_OF_THE_DATA
    )


def _regime(config: TrainConfig) -> list[str]:
    """What is done to pictures and weights, beyond the plain loss."""
    names = [name for title in ("regularisation", "augmentation") for name in GROUPS[title]]
    plain = TrainConfig()
    chosen = {name: getattr(config, name) for name in names if getattr(config, name) != getattr(plain, name)}
    return [name if value is True else f"{name} {value}" for name, value in chosen.items()]


def _bits_per_pixel(trainer: Trainer, result: Result) -> str:
    """The loss of a model of pixels as the field counts it, and what it must be compared with."""
    model: Any = trainer.model
    splits, palette = trainer.data.splits, asnumpy(model.palette.data)
    baseline = histogram_bits(splits.train, splits.test, palette)
    return (
        f"{result.test_loss / math.log(2):.3f} bits per pixel, of {len(palette)} colours; {baseline:.3f} for who knows "
        "only how often each position has each colour"
    )


def _draw(trainer: Trainer, result: Result) -> dict[str, str]:
    """Write the report, a test picture to try `predict` on, and the run's pictures: {file: what it shows}."""
    folder, test, classes = trainer.folder.path, trainer.data.splits.test, trainer.about["classes"]
    chosen = first_of_each_class(test.labels, ATTENTION_PICTURES)
    pictures, labels = test.images(chosen), test.labels[chosen]
    drawn = {}
    try:
        run = Run(
            folder, trainer.config, trainer.history, trainer.data, trainer.model, result.best_epoch,
            result.test_predictions, commands=commands(trainer.config, folder, parse),
        )  # fmt: skip
        write_report(run, folder / "report.html")
        drawn["report.html"] = "all about it on one page: open it in a browser"
        png = io.BytesIO()
        to_picture(pictures[-1]).save(png, format="png")
        write_atomically(folder / "sample.png", png.getvalue())
        drawn["sample.png"] = f"a test picture, of class {classes[labels[-1]]}"
        draw_curves(trainer.folder.metrics, folder / "curves.png")
        drawn["curves.png"] = "loss and accuracy over the epochs"
        if shows_attention(trainer.model):
            normalize = Normalize(trainer.data.mean, trainer.data.std)
            draw_attention(trainer.model, pictures, normalize, labels, run.names, folder / "attention.png")
            drawn["attention.png"] = "where the model looks, on test pictures"
        if isinstance(trainer.model, IGPT) and trainer.model.generative:
            draw_completions(trainer.model, pictures, folder / "complete.png", np.random.default_rng(0))
            drawn["complete.png"] = "test pictures, and how the model goes on from their upper halves"
    except ScratchvitError as error:
        print(f"no pictures: {error}")
    return drawn


def _ends(trainer: Trainer, pictures: dict[str, str]) -> str:
    """Where everything is, and what to try next."""
    folder = trainer.folder
    files = {
        folder.best.name: "the weights that did best on the validation pictures",
        folder.last.name: "all that --resume goes on from",
        folder.metrics.name: "loss and accuracy of every epoch",
        folder.config.name: "every setting",
        **pictures,
    }
    if trainer.events.folder.exists():
        files[trainer.events.folder.name] = f"loss and accuracy again: tensorboard --logdir {folder.path.parent}"
    sample = folder.path / "sample.png"
    generative = getattr(trainer.model, "generative", False)
    commands = [
        f"scratchvit predict {sample} --checkpoint {folder.best}" if sample.name in pictures and not generative else "",
        *([f"scratchvit {what} {folder.best}" for what in ("complete", "probe")] if generative else []),
        f"scratchvit eval --checkpoint {folder.best}",
        "scratchvit train --data fashion-mnist --download",
        "scratchvit train --help",
    ]
    return "\n".join([
        f"\n{folder.path} holds",
        *(f"  {name:<18}{what}" for name, what in files.items()),
        "\ntry next",
        *(f"  {command}" for command in commands if command),
    ])  # fmt: skip
