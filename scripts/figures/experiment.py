"""What the figures share: a list of runs, carried out one by one, a CSV of what came of them, and a picture.

Every run has a folder of its own, as `scratchvit train` leaves it, with a result.json once it is done. A script that is
stopped goes on where it was, in the middle of an epoch, when it is started again with the same --runs. The CSV is
written after each run, and a run whose row is in it, with the same settings, is not made again. So a figure of many
hours can be made in several days, and on several machines.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import hashlib
import json
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import scratchvit as sv
from scratchvit.costs.counting import cost
from scratchvit.errors import ScratchvitError
from scratchvit.files import write_atomically
from scratchvit.inspect.figures import INK
from scratchvit.training import ClassificationTask, TrainConfig, TrainingLoop, read_config

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
    """One run of a figure: its settings, and the columns of the CSV that say which one it is.

    task: for data that no name stands for, a task with its own `load_data`.
    """

    config: TrainConfig
    columns: dict[str, Any]
    task: type[ClassificationTask] = ClassificationTask

    @property
    def name(self) -> str:
        """The name of its folder."""
        return "-".join(str(value).replace(" ", "_") for value in self.columns.values())


def parse(doc: str | None, data: str = "fashion-mnist") -> argparse.Namespace:
    """The options that every figure has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=data, help="a named data set, or a folder of pictures (default: %(default)s)")
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
    return list(_each(runs, folder, jobs))


def _each(runs: Sequence[Run], folder: Path, jobs: int) -> Iterator[dict[str, Any]]:
    """The rows of the runs, each as soon as it and those before it are done."""
    folders = [folder / run.name for run in runs]
    if jobs == 1:
        yield from map(_carry_out, runs, folders)
        return
    os.environ["OMP_NUM_THREADS"] = "1"         # for the processes that are about to start
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context) as pool:
        yield from pool.map(_carry_out, runs, folders)


def carry_on(runs: Sequence[Run], folder: Path, jobs: int, path: Path) -> list[dict[str, Any]]:
    """As `carry_out`, but a run whose row is in the CSV `path` is not made, and the CSV is written after each run.

    Rows have a column more, `settings`: a run with other settings than those of its row is made again.
    """
    rows = recorded(runs, path)
    left = [place for place, row in enumerate(rows) if "test_accuracy" not in row]
    for place, row in zip(left, _each([runs[place] for place in left], folder, jobs)):
        rows[place] |= row
        write_csv([row for row in rows if "test_accuracy" in row], path)
    return rows


def recorded(runs: Sequence[Run], path: Path) -> list[dict[str, Any]]:
    """The rows of the runs in the CSV `path`; those that are not there have no results yet."""
    known: list[dict[str, str]] = []
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            known = list(csv.DictReader(file))
    rows = []
    for run in runs:
        named = {**run.columns, "settings": settings(run.config)}
        same = [row for row in known if all(row[column] == str(value) for column, value in named.items())]
        rows.append(named | {name: json.loads(row[name]) for row in same[:1] for name in RESULTS})
    return rows


def settings(config: TrainConfig) -> str:
    """Eight hexadecimal digits that change with every setting, but not with the folders of data and teacher."""
    values = asdict(config.as_read_back())
    teacher = config.teacher and Path(config.teacher).name
    values |= {"data": Path(config.data).name, "data_dir": None, "teacher": teacher}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _carry_out(run: Run, folder: Path) -> dict[str, Any]:
    done = folder / "result.json"
    if done.exists():
        if read_config(folder) != run.config.as_read_back():
            raise ScratchvitError(f"{folder} was made with other settings: name another --runs, or remove it")
    else:
        print(f"\n{folder}", flush=True)
        loop = TrainingLoop(run.task(run.config), run.config, folder, resume=(folder / "config.json").exists())
        with loop.folder:
            result = loop.run()
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


def growth(ax: Any, rows: Sequence[dict[str, Any]], names: Iterable[str]) -> None:
    """Draw test accuracy against the number of training images, a line for each model: mean and ends of the seeds."""
    for colour, name in zip(COLOURS, names):
        points = grouped((row for row in rows if row["model"] == name), "images")
        middle = [sum(values) / len(values) for values in points.values()]
        spread = [
            [mean - min(values) for mean, values in zip(middle, points.values())],
            [max(values) - mean for mean, values in zip(middle, points.values())],
        ]
        ax.errorbar(points.keys(), middle, spread, color=colour, marker="o", linewidth=1.8, capsize=3, label=name)
    ax.set_xscale("log")
    ax.set_xticks([row["images"] for row in rows], [f"{row['images']:,}" for row in rows])
    ax.minorticks_off()
    ax.set_ylabel("test accuracy, %", color=INK)
    ax.grid(axis="y", color="#dddddd", linewidth=0.7)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(colors=INK, length=0)
    ax.legend(frameon=False)


def main(figure: Callable[[], None]) -> None:
    """Run a figure's script; bad input is one sentence."""
    try:
        figure()
    except ScratchvitError as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit("stopped; started again, it goes on") from None
