"""What the figures share: a list of runs, carried out one by one, a CSV of what came of them, and a picture.

Every run has a folder of its own, as `scratchvit train` leaves it, with a result.json once it is done. A script that is
stopped goes on where it was, in the middle of an epoch, when it is started again with the same --runs.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import json
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scratchvit as sv
from scratchvit.costs.counting import cost
from scratchvit.data import list_datasets
from scratchvit.errors import ScratchvitError
from scratchvit.files import write_atomically
from scratchvit.training import TrainConfig, read_config, train

# A ViT that a CPU can train many times over, and the smallest ResNet of basic blocks, about as costly an image.
# Positions are fixed and matrices drawn by their width, which little data wants (scratchvit/recipes/vit_digits.py).
VIT, RESNET = "vit_tiny_patch16_224", "resnet18"
VIT_D64 = {
    "patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 2, "mlp_ratio": 2.0, "pos_embed": "sincos",
    "weight_init": "xavier",
}
VIT_D32 = {**VIT_D64, "embed_dim": 32, "depth": 4, "num_heads": 1}
RESNET_10 = {"layers": (1, 1, 1, 1)}

RESULTS = ("test_accuracy", "test_loss", "val_accuracy", "best_epoch", "parameters", "seconds")
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")    # P. Tol's "bright"


@dataclass(frozen=True)
class Run:
    """One run of a figure: its settings, and the columns of the CSV that say which one it is."""

    config: TrainConfig
    columns: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return "-".join(str(value).replace(" ", "_") for value in self.columns.values())


def parse(doc: str | None) -> argparse.Namespace:
    """The options that every figure has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist", choices=list_datasets(), help="(default: %(default)s)")
    parser.add_argument("--data-dir", help="where the files of a named data set are")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each kind: other weights, order and subset")
    parser.add_argument("--runs", type=Path, default=Path("runs/figures"), help="where the runs are (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/figures"), help="of CSV and picture (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one core (default: 1, on all)")
    parser.add_argument("--quick", action="store_true", help="a small version, on the digits, in half a minute")
    args = parser.parse_args()
    if min(args.seeds, args.jobs) < 1:
        parser.error("--seeds and --jobs are at least 1")
    if args.quick:
        args.data, args.data_dir = "digits", None
        args.runs, args.out = args.runs / "quick", args.out / "quick"
    return args


def macs(config: TrainConfig, image_shape: tuple[int, int, int], classes: int) -> int:
    """Multiply-adds of the model's forward pass over one image of that shape (H, W, C)."""
    sizes = {"img_size": image_shape[0], "in_chans": image_shape[2], "num_classes": classes}
    return cost(sv.create_model(config.model, **{**sizes, **config.model_args})).macs


def carry_out(runs: Sequence[Run], folder: Path, jobs: int = 1) -> list[dict[str, Any]]:
    """Make every run that is not done yet; rows of the CSV in the order of the runs.

    Raises ScratchvitError, as `train` does, and where a folder holds a run with other settings.
    """
    if jobs == 1:
        return [_carry_out(run, folder / run.name) for run in runs]
    os.environ["OMP_NUM_THREADS"] = "1"         # for the processes that are about to start
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context) as pool:
        return list(pool.map(_carry_out, runs, [folder / run.name for run in runs]))


def _carry_out(run: Run, folder: Path) -> dict[str, Any]:
    done = folder / "result.json"
    if done.exists():
        if read_config(folder) != run.config.as_read_back():
            raise ScratchvitError(f"{folder} was made with other settings: name another --runs, or remove it")
    else:
        print(f"\n{folder}", flush=True)
        result = train(run.config, folder, resume=(folder / "config.json").exists())
        values = {name: getattr(result, name) for name in RESULTS}
        write_atomically(done, json.dumps(values, indent=2).encode())
    return {**run.columns, **json.loads(done.read_text("utf-8"))}


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Rows with the same columns; accuracies as shares, 0 … 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()} for row in rows)
    print(f"\n{path}")


def grouped(rows: Iterable[dict[str, Any]], *columns: str) -> dict[Any, list[float]]:
    """Test accuracies in per cent of the rows that agree in these columns: over the seeds."""
    groups: dict[Any, list[float]] = defaultdict(list)
    for row in rows:
        key = tuple(row[column] for column in columns)
        groups[key[0] if len(key) == 1 else key].append(100 * row["test_accuracy"])
    return dict(groups)


def main(figure: Callable[[], None]) -> None:
    """Run a figure's script; bad input is one sentence."""
    try:
        figure()
    except ScratchvitError as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit("stopped; started again, it goes on") from None
