"""Does the loader keep up? Pictures a second that it makes, and the share of a training loop spent waiting for it.

    python scripts/bench_loader.py --data fashion-mnist --data-dir FOLDER
    python scripts/bench_loader.py --data FOLDER --img-size 32 --crop-scale 0.3      # JPEGs, decoded for every epoch
    python scripts/bench_loader.py --data FOLDER --img-size 32 --record     # also writes the rows of docs/benchmarks.md

The augmentation is heavy: shifts by 4 pixels (or crops from the originals), mirroring, RandAugment(2, 15), erasing. The
data goes through `TrainingData.train_loader`, as in `scratchvit train`. Two ViTs learn from it: one with patch 4, D 128
and 6 layers, small enough to train on a CPU, and one with 16 tokens, D 64 and 2 layers, about the smallest that is of
any use: a loader that keeps up with it keeps up with any. Beside the median stand the least and the most of the
repeats. Waiting counts from the second batch of an epoch on; the first one nobody could have made ahead.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import scratchvit as sv
from scratchvit import backend, threads
from scratchvit.data import Loader
from scratchvit.training import TrainConfig
from scratchvit.training.classification.data import load_data
from scripts import records

Step = Callable[[np.ndarray, np.ndarray], Any]
MODELS = {      # tokens a side (None: patches of 4), D, layers, heads
    "patch 4, D 128, 6 layers": (None, 128, 6, 4),
    "16 tokens, D 64, 2 layers": (4, 64, 2, 2),
}


def main() -> None:
    """Measure and print a row for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist", help="as for `scratchvit train`")
    parser.add_argument("--data-dir")
    parser.add_argument("--img-size", type=int, help="side of the pictures; by default the data's own")
    parser.add_argument("--crop-scale", type=float, default=0.0, help="random resized crops instead of shifts")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--batches", type=int, default=24, help="in one measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--record", action="store_true", help="write the result into docs/benchmarks.md")
    args = parser.parse_args()
    backend.keep_freed_memory()

    config = TrainConfig(
        data=args.data, data_dir=args.data_dir, batch_size=args.batch, epoch_images=args.batch * args.batches,
        crop_padding=0 if args.crop_scale else 4, crop_scale=args.crop_scale, flip=True, augment="medium1",
        random_erasing=0.25, model_args={"img_size": args.img_size} if args.img_size else {},
    )
    data = load_data(config)
    height, width, channels = data.splits.train.image_shape
    print(
        f"{config.data}: {height}×{width}×{channels}, batches of {args.batch}, a model of {threads.cpu_threads()} "
        f"thread(s), {threads.cpu_cores()} core(s); median (least … most) of {args.repeats} repeats"
    )
    heads = ("workers", "loader alone, pictures/s", *(f"{name}: pictures/s, waiting" for name in MODELS))
    print("  ".join(heads), flush=True)
    rows = []
    for workers in args.workers:
        loader = data.train_loader(config.replace(workers=workers))
        measure(loader, nothing)        # starts the workers
        alone = [measure(loader, nothing)[0] for _ in range(args.repeats)]
        cells, training = [str(workers), spread(alone, ",.0f")], {}
        for name, size in MODELS.items():
            step = training_step(size, data.splits.train)
            measure(loader, step)
            rates, waiting = zip(*(measure(loader, step) for _ in range(args.repeats)))
            cells.append(f"{spread(rates, ',.0f')}, {spread(waiting, '.1%')}")
            training[name] = {"rate": records.spread(rates, 0), "waiting": records.spread(waiting, 4)}
        loader.close()
        rows.append({"workers": workers, "alone": records.spread(alone, 0), "training": training})
        print("  ".join(cell.rjust(len(head)) for cell, head in zip(cells, heads)), flush=True)
    if args.record:
        records.add("loader", {
            "data": records.without_places(["--data", args.data])[1], "image": [height, width, channels], "rows": rows,
            **records.origin(records.command_line()),
        })


def nothing(images: np.ndarray, labels: np.ndarray) -> None:
    """A model that takes no time."""


def training_step(size: tuple[int | None, int, int, int], pictures: Any) -> Step:
    """A step of AdamW on a ViT."""
    tokens, width, depth, heads = size
    side = pictures.image_shape[0]
    model = sv.create_model(
        "vit_tiny_patch16_224", img_size=side, in_chans=pictures.image_shape[2],
        num_classes=len(pictures.classes), patch_size=side // tokens if tokens else 4,
        embed_dim=width, depth=depth, num_heads=heads,
    )
    optimizer = sv.optim.AdamW(model.parameters(), lr=1e-3)

    def step(images: np.ndarray, labels: np.ndarray) -> None:
        loss = sv.ops.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure(loader: Loader, step: Step) -> tuple[float, float]:
    """An epoch: pictures a second, and the share of the time spent waiting."""
    begun = time.perf_counter()
    for batch in loader:
        step(batch.images, batch.labels)
    seconds = time.perf_counter() - begun
    return loader.epoch_size / seconds, loader.waited / seconds


def spread(values: Sequence[float], form: str) -> str:
    """12 (11 … 14)"""
    return f"{statistics.median(values):{form}} ({min(values):{form}} … {max(values):{form}})"


if __name__ == "__main__":
    main()
