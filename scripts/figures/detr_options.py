"""What lets a small DETR converge: the paper's model, and each remedy alone, on as many images.

DETR needs 500 epochs of COCO (Carion et al. 2020, Figure 4 of DAB-DETR has the curves of its successors). Here all
models have the same sizes, begin from nothing, and differ in one thing from the row that is named:

    DETR                the paper's, arXiv 2005.12872
    focal loss          DETR; classes by sigmoids, arXiv 1708.02002
    groups of queries   DETR; five sets of queries in training, Group DETR, arXiv 2207.13085
    denoising           DETR; noised objects as queries, DN-DETR, arXiv 2203.01305
    anchors             DETR; boxes as queries, moved from layer to layer, DAB-DETR, arXiv 2201.12329
    two stages          anchors; they are the encoder's best boxes, Deformable DETR, arXiv 2010.04159
    recipe              two stages, denoising and focal loss: what `scratchvit detect-train` does

    OMP_NUM_THREADS=1 python scripts/figures/detr_options.py                    # scenes: 7 runs, less than an hour
    OMP_NUM_THREADS=1 python scripts/figures/detr_options.py --data BCCD        # a folder: the folder's recipe
    python scripts/figures/detr_options.py --quick                              # scenes, half a minute

writes docs/figures/detr_options_DATA.csv and .png: AP50 and box losses on val, and the test figures of each best epoch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from experiment import COLOURS, main, write_csv

from scratchvit.detection.config import DetectConfig
from scratchvit.detection.task import train_detector
from scratchvit.errors import ScratchvitError
from scratchvit.files import write_atomically
from scratchvit.inspect.figures import GRID, INK, read_metrics, sheet
from scratchvit.recipes import recipe_for
from scratchvit.training.folder import read_config

RECIPE = {"two_stage": True, "denoising": 3}

#   name                 model, what is not as in the paper
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "DETR":              ("detr_tiny",      {}),
    "focal loss":        ("detr_tiny",      {"focal": True}),
    "groups of queries": ("detr_tiny",      {"query_groups": 5}),
    "denoising":         ("detr_tiny",      {"denoising": 3}),
    "anchors":           ("dab_detr_tiny",  {"focal": False}),
    "two stages":        ("dab_detr_tiny",  {"focal": False, "two_stage": True}),
    "recipe":            ("dab_detr_tiny",  RECIPE),
}
EPOCHS = {"scenes": 6}      # of 2,000 images
FOLDER_EPOCHS = 12
# Of --quick.
TINY = {"channels": (8, 16, 32, 64), "hidden_dim": 32, "nheads": 2, "dim_feedforward": 32, "dec_layers": 2}


def config_of(name: str, data: str, quick: bool) -> DetectConfig:
    """The recipe of the data with another model; its regime, and so its number of images, is the same for all."""
    model, changes = OPTIONS[name]
    recipe = recipe_for(data, DetectConfig)
    kept = {key: value for key, value in recipe.model_args.items() if key not in RECIPE}
    config = recipe.replace(        # averaged weights would lag behind in so few steps
        model=model, model_args={**kept, **changes}, epochs=EPOCHS.get(data, FOLDER_EPOCHS), ema_decay=0.0,
    )
    if quick:
        config = config.replace(model_args={**config.model_args, **TINY}, epochs=1, epoch_images=16)
    return config


def carried_out(name: str, config: DetectConfig, folder: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """The row of the CSV and metrics.csv of a run, which is made or gone on with if it is not done."""
    done = folder / "result.json"
    if not done.exists():
        print(f"\n{folder}", flush=True)
        result = train_detector(config, folder, resume=(folder / "config.json").exists())
        figures = {figure: getattr(result.test, figure) for figure in ("AP", "AP50", "AP75")}
        rest = {"best_epoch": result.best_epoch, "seconds": result.seconds, "parameters": result.parameters}
        write_atomically(done, json.dumps({**figures, **rest}, indent=2).encode())
    elif read_config(folder, DetectConfig) != config.as_read_back():
        raise ScratchvitError(f"{folder} was made with other settings: name another --runs, or remove it")
    return {"option": name, **json.loads(done.read_text("utf-8"))}, read_metrics(folder / "metrics.csv")


def figure() -> None:
    """Make the runs, then CSV and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="scenes", help="or a folder of pictures with boxes (default: %(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/figures"), help="where the runs are (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/figures"), help="of CSV and picture (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a small version, on few scenes, in half a minute")
    args = parser.parse_args()
    what = f"detr_options_{Path(args.data).name.lower()}"
    if args.quick:
        args.runs, args.out = args.runs / "quick", args.out / "quick"
    rows, curves = [], {}
    for name in OPTIONS:
        folder = args.runs / what / name.replace(" ", "_")
        row, curves[name] = carried_out(name, config_of(name, args.data, args.quick), folder)
        rows.append(row)
    write_csv(rows, args.out / f"{what}.csv")
    draw(curves, args.out / f"{what}.png")
    print(args.out / f"{what}.png")


def draw(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    """AP50, and the GIoU loss of the last layer's matched boxes, on the validation images over the epochs."""
    with sheet(path, 1, 2, size=(12, 4.4)) as axes:
        for ax, column, title in zip(axes[0], ("AP50", "val_loss_giou"), ("AP50 on val", "1 - GIoU of matched boxes")):
            for (name, rows), colour in zip(curves.items(), [INK, *COLOURS]):
                epochs, values = [row["epoch"] for row in rows], [row[column] for row in rows]
                ax.plot(epochs, values, "o-", color=colour, markersize=3, label=f"{name}, {values[-1]:.3f}")
            ax.set_xlabel("epoch", color=INK)
            ax.set_ylabel(title, color=INK)
            ax.grid(color=GRID, linewidth=0.7)
            ax.spines[["top", "right", "left"]].set_visible(False)
            ax.tick_params(colors=INK, length=0)
            ax.legend(frameon=False, labelcolor=INK, fontsize=8)


if __name__ == "__main__":
    main(figure)
