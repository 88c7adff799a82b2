"""Regularisation and augmentation of a ViT that sees few photographs many times (arXiv 2106.10270, Figure 4).

The lecture's claims: regularisation always helps; with augmentation it helps more. The grid of augreg_grid.py, 1,900
grey pictures 38 times over, does not show them. Here it is 1,000 photographs of CIFAR-10, 30 or 300 times over.

Hypothesis, written before the first run (1 December 2026). After 300 epochs dropout and stochastic depth of 0.1 gain 1
point or more without augmentation, medium1 gains 3 or more without regularisation, and regularisation gains more beside
medium1 than alone. After 30 epochs each of them gains less, and some of them lose.

    python scripts/figures/long_training.py --data FOLDER --seeds 3 --jobs 2    # CIFAR-10 as FOLDER/train/<class>/*.jpg
    python scripts/figures/long_training.py --quick                             # digits, half a minute
"""

from __future__ import annotations

import numpy as np
from experiment import COLOURS, VIT, VIT_D64, Run, carry_on, grouped, main, parse

from scratchvit.inspect.figures import INK, sheet
from scratchvit.training import TrainConfig

IMAGES = 1_000                          # of 45,000; 5,000 choose the best of the weights, after each tenth of a run
EPOCHS, LEVELS, RATES = (30, 300), ("none", "light1", "medium1"), (0.0, 0.1)
POOLED = {**VIT_D64, "class_token": False, "global_pool": "avg"}
REGIME = TrainConfig(
    model=VIT, model_args={**POOLED, "img_size": 32}, val_fraction=0.1, train_fraction=IMAGES / 45_000, batch_size=64,
    lr=1e-3, weight_decay=0.05, warmup_epochs=1, flip=True, crop_padding=4, ema_decay=0.99, epochs=10,
)
QUICK = REGIME.replace(
    model_args={**POOLED, "img_size": 16, "depth": 2}, train_fraction=1.0, flip=False, crop_padding=1, ema_decay=0.9,
    epochs=2, lr=3e-3,
)


def runs(data: str, data_dir: str | None, seeds: int, quick: bool) -> list[Run]:
    """Every level without and with regularisation, short and long; the seeds of one kind after those of another."""
    regime = (QUICK if quick else REGIME).replace(data=data, data_dir=data_dir)
    images, lengths, levels = (1_257, (1, 4), ("none", "medium1")) if quick else (IMAGES, EPOCHS, LEVELS)
    return [
        Run(
            regime.replace(
                epoch_images=length * images // regime.epochs, augment=level, regularisation=rate, seed=seed
            ),
            {"epochs": length, "augment": level, "regularisation": rate, "seed": seed},
        )
        for seed in range(seeds)
        for length in lengths
        for level in levels
        for rate in RATES
    ]


def figure() -> None:
    """Make the runs, then the picture."""
    args = parse(__doc__, data="cifar10")
    rows = carry_on(
        runs(args.data, args.data_dir, args.seeds, args.quick), args.runs / "long_training", args.jobs,
        args.out / "long_training.csv",
    )
    accuracy = grouped(rows, "epochs", "augment", "regularisation")
    lengths, levels = (list(dict.fromkeys(row[column] for row in rows)) for column in ("epochs", "augment"))
    with sheet(args.out / "long_training.png", 1, len(lengths), size=(7.5, 3.2)) as axes:
        for ax, length in zip(axes[0], lengths):
            for shift, (rate, colour) in zip((-0.08, 0.08), zip(RATES, COLOURS)):
                places = np.arange(len(levels)) + shift
                values = [accuracy[length, level, rate] for level in levels]
                means = [np.mean(each) for each in values]
                ax.plot(places, means, "-o", color=colour, label=f"regularisation {rate:g}")
                for place, each in zip(places, values):
                    ax.plot([place] * len(each), each, "_", color=colour, markersize=9)
            ax.set_xticks(range(len(levels)), levels)
            ax.set_title(f"{length} epochs", loc="left", color=INK, fontsize=10)
            ax.grid(axis="y", color="#dddddd", linewidth=0.7)
            ax.spines[["top", "right", "left"]].set_visible(False)
            ax.tick_params(colors=INK, length=0)
        axes[0, 0].set_ylabel("test accuracy, %", color=INK)
        axes[0, 0].legend(frameon=False)
    print(args.out / "long_training.png")


if __name__ == "__main__":
    main(figure)
