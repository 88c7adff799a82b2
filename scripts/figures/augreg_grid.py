"""The augreg grid: augmentation × regularisation × model size (Steiner et al., arXiv 2106.10270, Figure 4).

The paper's claims: on little data, the right augmentation and regularisation are worth as much as ten times the data;
augmentation helps more than regularisation does; a model that is too small for its data is harmed by both. Here two
small ViTs see a thirtieth of Fashion-MNIST's training images, each of them many times over.

    python scripts/figures/augreg_grid.py --data-dir FOLDER         # docs/figures/augreg_grid.csv and .png
    python scripts/figures/augreg_grid.py --quick                   # digits, half a minute: does the script work?
"""

from __future__ import annotations

import numpy as np
from experiment import VIT, VIT_D32, VIT_D64, Run, carry_out, grouped, main, parse, write_csv

from scratchvit.data import LEVELS
from scratchvit.inspect.figures import INK, sheet
from scratchvit.training import TrainConfig

POOLED = {"class_token": False, "global_pool": "avg"}
MODELS = {"ViT, D 32, 4 layers": {**VIT_D32, **POOLED}, "ViT, D 64, 6 layers": {**VIT_D64, **POOLED}}
REGULARISATION = (0.0, 0.1)
REGIME = TrainConfig(
    model=VIT, val_fraction=0.05, train_fraction=1 / 30, epoch_images=9_000, epochs=8, batch_size=64, lr=2e-3,
    weight_decay=0.05, warmup_epochs=1, flip=True, ema_decay=0.99,
)
QUICK = REGIME.replace(train_fraction=1.0, epoch_images=6_000, epochs=2, flip=False, ema_decay=0.9)


def runs(data: str, data_dir: str | None, seeds: int, quick: bool) -> list[Run]:
    """Every model under every level, without and with dropout and stochastic depth of 0.1."""
    models = {"ViT, D 32, 4 layers": {**VIT_D32, **POOLED, "img_size": 16}} if quick else MODELS
    levels = ("none", "light1") if quick else tuple(LEVELS)
    regime = (QUICK if quick else REGIME).replace(data=data, data_dir=data_dir)
    return [
        Run(
            regime.replace(model_args=sizes, regularisation=rate, augment=level, seed=seed),
            {"model": name, "regularisation": rate, "augment": level, "seed": seed},
        )
        for name, sizes in models.items()
        for rate in REGULARISATION
        for level in levels
        for seed in range(seeds)
    ]


def figure() -> None:
    """Make the runs, then CSV and picture."""
    args = parse(__doc__)
    rows = carry_out(
        runs(args.data, args.data_dir, args.seeds, args.quick), args.runs / f"augreg_grid-{args.data}", args.jobs
    )
    write_csv(rows, args.out / "augreg_grid.csv")
    accuracy = grouped(rows, "model", "regularisation", "augment")
    models = list(dict.fromkeys(row["model"] for row in rows))
    levels = list(dict.fromkeys(row["augment"] for row in rows))
    with sheet(args.out / "augreg_grid.png", len(models), 1, size=(7, 0.6 + 1.3 * len(models))) as axes:
        for ax, name in zip(axes[:, 0], models):
            grid = np.array([[np.mean(accuracy[name, rate, level]) for level in levels] for rate in REGULARISATION])
            ax.imshow(grid, cmap="viridis", aspect="auto")
            for (row, column), value in np.ndenumerate(grid):
                colour = "black" if value > (grid.min() + grid.max()) / 2 else "white"
                ax.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour)
            ax.set_xticks(range(len(levels)), levels)
            ax.set_yticks(range(len(REGULARISATION)), [f"regularisation {rate:g}" for rate in REGULARISATION])
            ax.set_title(f"{name}: test accuracy, %", loc="left", color=INK, fontsize=10)
            ax.tick_params(colors=INK, length=0)
            ax.spines[:].set_visible(False)
    print(args.out / "augreg_grid.png")


if __name__ == "__main__":
    main(figure)
