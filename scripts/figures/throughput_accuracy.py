"""Throughput against accuracy: small versions of nine models, each trained from scratch for as long.

As DeiT's first figure (arXiv 2012.12877) has it for models trained to the end on ImageNet. Here each gets as much
time, four minutes of a core on Fashion-MNIST, so a model that is twice as fast sees twice as many images. First all
are timed, in turn, and the times are written down: a figure that is stopped goes on with the same numbers.

    OMP_NUM_THREADS=1 python scripts/figures/throughput_accuracy.py --data-dir FOLDER   # 9 runs, about 45 minutes
    python scripts/figures/throughput_accuracy.py --quick                               # digits, a few seconds

writes docs/figures/throughput_accuracy.csv and .png. Times are CPU time of all threads.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from experiment import COLOURS, RESNET, RESNET_10, VIT, VIT_D64, Run, carry_out, macs, main, parse, write_csv
from labels import label_in_column

import scratchvit as sv
from scratchvit import backend
from scratchvit.data import load
from scratchvit.errors import ScratchvitError
from scratchvit.files import write_atomically
from scratchvit.inspect.figures import GRID, INK, sheet
from scratchvit.training import TrainConfig

# Of about as many multiply-adds each, 12 to 21 million for an image of 28×28; but ten times that for its pixels.
MEAN_OF_TOKENS = {"class_token": False, "global_pool": "avg"}
PIXELS = {
    "embed_dim": 32, "depth": 4, "num_heads": 1, "mlp_ratio": 2.0, "pos_embed": "sincos", "weight_init": "xavier",
    **MEAN_OF_TOKENS,
}
SWIN = {
    "patch_size": 2, "embed_dim": 32, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "window_size": 7, "mlp_ratio": 2.0,
    "weight_init": "xavier",
}
PYRAMID = {"embed_dim": 32, "depths": (1, 2, 2), "num_heads": 1}
MVIT = {**PYRAMID, "patch_kernel": (1, 3, 3), "patch_stride": (1, 2, 2), "stride_kv": (1, 4, 4)}
MVIT_V2 = {**PYRAMID, "patch_kernel": (3, 3), "patch_stride": (2, 2), "stride_kv": (4, 4)}

#   name               model, sizes                                                            colour
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "ResNet-10":       (RESNET, RESNET_10,                                                        1),
    "ViT/4":           (VIT, {**VIT_D64, **MEAN_OF_TOKENS},                                       0),
    "hybrid R+ViT/4":  ("vit_tiny_r_s16_p8_224", {**VIT_D64, **MEAN_OF_TOKENS, "patch_size": 1},  0),
    "pixels":          ("pixel_transformer_tiny", PIXELS,                                         5),
    "pixels of 14×14": ("pixel_transformer_tiny", {**PIXELS, "img_size": 14},                     5),
    "Swin":            ("swin_tiny_patch4_window7_224", SWIN,                                     2),
    "Swin V2":         ("swinv2_tiny_window8_256", SWIN,                                          2),
    "MViT":            ("mvit_v1_b_image", MVIT,                                                  3),
    "MViTv2":          ("mvitv2_tiny", MVIT_V2,                                                   3),
}
SECONDS, EPOCHS = 240, 5        # of a core for every model's training alone, in so many pieces
ROUNDS = 5                      # in which every model is timed in turn
REGIME = TrainConfig(
    val_fraction=0.02, epochs=EPOCHS, batch_size=64, lr=2e-3, weight_decay=0.05, warmup_epochs=1, flip=True,
    crop_padding=1, label_smoothing=0.1, ema_decay=0.99,
)
QUICK = REGIME.replace(epochs=2, epoch_images=320, batch_size=32, flip=False, crop_padding=0, ema_decay=0.9)


def configs(data: str, data_dir: str | None, image_shape: tuple[int, int, int], quick: bool) -> dict[str, TrainConfig]:
    """What each model is trained by, but for the number of images."""
    regime = (QUICK if quick else REGIME).replace(data=data, data_dir=data_dir)
    made = {}
    for name, (model, sizes, _) in MODELS.items():
        side = sizes.get("img_size", 28) * image_shape[0] // 28         # as the sizes were chosen for 28×28
        made[name] = regime.replace(model=model, model_args={**sizes, "img_size": side})
    return made


def timing(config: TrainConfig, channels: int, classes: int) -> tuple[Callable[[], float], Callable[[], float]]:
    """Two functions that each make a step on a batch of noise, in training and in inference: images a second."""
    model = sv.create_model(config.model, in_chans=channels, num_classes=classes, **config.model_args)
    optimizer = sv.optim.AdamW(model.parameters(), lr=1e-6)
    rng, side, size = np.random.default_rng(0), config.model_args["img_size"], config.batch_size
    x = rng.standard_normal((size, channels, side, side), dtype=np.float32)
    y = rng.integers(0, classes, size)

    def training() -> float:
        model.train()
        start = process_time()
        optimizer.zero_grad()
        sv.ops.cross_entropy(model(x), y).backward()
        optimizer.step()
        return size / (process_time() - start)

    def inference() -> float:
        model.eval()
        start = process_time()
        with sv.no_grad():
            model(x)
        return size / (process_time() - start)

    return training, inference


def throughput(
    models: dict[str, TrainConfig], image_shape: tuple[int, int, int], classes: int, rounds: int
) -> dict[str, Any]:
    """What goes into the CSV for each model: its multiply-adds, and images a second, the median over rounds."""
    steps = {name: timing(config, image_shape[2], classes) for name, config in models.items()}
    speeds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in models}
    for turn in range(1 + rounds):
        for name, (training, inference) in steps.items():
            pair = training(), inference()
            if turn:                                    # the first is not counted
                for values, value in zip(speeds[name], pair):
                    values.append(value)
    return {
        name: {
            "macs_per_image": macs(models[name], image_shape, classes),
            "training_images_s": statistics.median(training), "training_min": min(training),
            "training_max": max(training), "inference_images_s": statistics.median(inference),
            "inference_min": min(inference), "inference_max": max(inference),
        }
        for name, (training, inference) in speeds.items()
    }


def written_down(path: Path, models: dict[str, TrainConfig], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured when the figure was begun; measured and written to path if that is now.

    Raises ScratchvitError for a file of other models.
    """
    settings = {name: [config.model, config.as_read_back().model_args] for name, config in models.items()}
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"models": settings, "throughput": measure()}, indent=2).encode())
    found = json.loads(path.read_text("utf-8"))
    if found["models"] != settings:
        raise ScratchvitError(f"{path} was measured with other models: name another --runs, or remove it")
    return found["throughput"]


def figure() -> None:
    """Time the models, make the runs, then CSV and picture."""
    args = parse(__doc__)
    backend.keep_freed_memory()
    splits = load(args.data, data_dir=args.data_dir, val_fraction=REGIME.val_fraction)
    shape, classes = splits.train.image_shape, len(splits.train.classes)
    models = configs(args.data, args.data_dir, shape, args.quick)
    folder = args.runs / f"throughput_accuracy-{args.data}"
    rounds = 1 if args.quick else ROUNDS
    speeds = written_down(folder / "throughput.json", models, lambda: throughput(models, shape, classes, rounds))
    made = []
    for name, config in models.items():
        if not args.quick:
            images = round(SECONDS * speeds[name]["training_images_s"] / EPOCHS)        # of an epoch
            config = config.replace(epoch_images=images)
        made += [Run(config.replace(seed=seed), {"model": name, "seed": seed}) for seed in range(args.seeds)]
    rows = [
        {**row, "images_seen": run.config.epochs * run.config.epoch_images, **speeds[row["model"]]}
        for run, row in zip(made, carry_out(made, folder, args.jobs))
    ]
    write_csv(rows, args.out / "throughput_accuracy.csv")
    draw(rows, args.out / "throughput_accuracy.png")
    print(args.out / "throughput_accuracy.png")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Test accuracy (mean over the seeds) against images a second, in inference and in training."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    titles = {"inference_images_s": "inference", "training_images_s": "training"}
    with sheet(path, 1, 2, size=(12, 4.6)) as axes:
        for ax, (column, title) in zip(axes[0], titles.items()):
            labels = []
            for name, (_, _, colour) in MODELS.items():
                own = [row for row in rows if row["model"] == name]
                x, values = own[0][column], [100 * row["test_accuracy"] for row in own]
                y = sum(values) / len(values)
                ax.plot([x] * len(values), values, "o", color=COLOURS[colour], alpha=0.4, markersize=5)
                ax.plot(x, y, "o", color=COLOURS[colour], markersize=8)
                labels.append((x, y, f"{name}, {y:.1f}", INK))
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            ax.xaxis.set_minor_locator(NullLocator())
            left, right = min(x for x, *_ in labels), max(x for x, *_ in labels)
            ax.set_xlim(left / (right / left) ** 0.06, right * (right / left) ** 0.06)
            ax.margins(y=0.12)
            ax.set_xlabel(f"images a second, {title}", color=INK)
            ax.set_ylabel("test accuracy, %", color=INK)
            ax.grid(color=GRID, linewidth=0.7)
            ax.spines[["top", "right", "left"]].set_visible(False)
            ax.tick_params(colors=INK, which="both", length=0)
            label_in_column(ax, labels)


if __name__ == "__main__":
    main(figure)
