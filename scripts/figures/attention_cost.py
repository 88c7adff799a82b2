"""What attention costs as images grow: time and memory, measured, beside what counting says.

Of an image of side s, n patches a side make n² tokens, and attention compares each with each: s⁴ numbers where the
keys are all tokens (pixels, ViT), or a fixed share of them (MViTv2, whose keys are pooled by a fixed stride). Windows
(Swin) compare each token with as many others whatever the side: s². All else in these models is s², but for MViTv2's
relative positions: written behind queries and keys (models/mvit_v2.py), they are a number for each row and column of
the keys, s³ in all, and make attention's multiply-adds s⁵ in the end.

One image goes through each model and back, with the weights' gradients. Exponents are slopes of straight lines through
the three largest sides on logarithmic scales; "counts" are the same slopes of what `inspect.cost` counts there: a model
in which s⁴ is still the smaller part has one between 2 and 4. Dashed is attention without its matrix
(`kernels/attention_blocks.py`): as many multiply-adds, but memory of s². Windows are too small for it to matter.

    python scripts/figures/attention_cost.py            # docs/figures/attention_cost.csv, …_exponents.csv and .png
    python scripts/figures/attention_cost.py --quick    # tiny models, a few seconds

Times are CPU time of one thread: other programs on the machine count little. Memory is what NumPy told `tracemalloc`,
beyond the weights and their gradients.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl
from experiment import COLOURS, main, write_csv
from labels import label_points

import scratchvit as sv
from scratchvit import backend
from scratchvit.costs.counting import Cost, cost
from scratchvit.inspect.figures import GRID, INK, sheet
from scratchvit.plain import plain_forms
from scratchvit.recording import replace_ops


@dataclass(frozen=True)
class Subject:
    """A model, the image sides that it is measured at, and what its costs grow with in the end: powers of the side."""

    model: str
    sides: tuple[int, ...]
    entries: int                        # of attention
    macs: int                           # multiply-adds
    rest: int = 2                       # numbers in all that is kept for the way back but attention's entries
    ways: tuple[str, ...] = ("matrix", "blocks")
    quick: dict[str, Any] | None = None
    quick_sides: tuple[int, ...] = (32, 64, 128)


# The pixel Transformer and ViT-Ti are one Transformer, with patches of 1 and 16: as many tokens at 1/16 of the side.
# Swin's windows of 7 divide all four maps at 224 and its multiples; at 112 the last map is padded.
MODELS = {
    "pixels": Subject(
        "pixel_transformer_tiny", (7, 14, 28, 42, 56), entries=4, macs=4,
        quick={"embed_dim": 32, "depth": 2, "num_heads": 1}, quick_sides=(4, 8, 16),
    ),
    "ViT-Ti/16": Subject(
        "vit_tiny_patch16_224", (112, 224, 448, 672, 896), entries=4, macs=4,
        quick={"embed_dim": 32, "depth": 2, "num_heads": 1},
    ),
    "MViTv2-T": Subject(
        "mvitv2_tiny", (112, 224, 448, 672), entries=4, macs=5, rest=3, quick={"embed_dim": 8, "depths": (1, 1)}
    ),
    "Swin-T": Subject(
        "swin_tiny_patch4_window7_224", (112, 224, 448, 672, 896), entries=2, macs=2, ways=("matrix",),
        quick={"embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4},
    ),
}
FITTED = 3          # sides: the largest
SECONDS = 2.0       # that a side is measured for, at least three times

# column → what is drawn
QUANTITIES = {
    "step_ms": "forward and backward, whole model, ms",
    "step_MiB": "peak memory of forward and backward, MiB",
    "attention_ms": "of which in attention, ms",
    "attention_MiB": "kept by attention for the way back, MiB",
}


class AttentionMeter:
    """Stands in for every op (`replace_ops`): attention goes the way it is told, and its time and memory are summed.

    Memory: of what each call leaves allocated, that is, its result and what its backward needs beyond q, k and v.
    """

    def __init__(self, way: str):
        self.blocks = way == "blocks"
        self.seconds, self.kept = 0.0, 0

    def __call__(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        if function.__name__ != "attention":
            return function(*args, **kwargs)
        allocated = tracemalloc.get_traced_memory()[0]
        with plain_forms(not self.blocks):      # of the forms of attention, only the plain one stores the matrix
            (y, backward), seconds = timed(lambda: function(*args, **{**kwargs, "blocks": self.blocks}))
        self.seconds += seconds
        self.kept += tracemalloc.get_traced_memory()[0] - allocated

        def timed_backward(dy: Any, need: Any) -> Any:
            gradients, seconds = timed(lambda: backward(dy, need))
            self.seconds += seconds
            return gradients

        return y, timed_backward


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and its CPU seconds."""
    start = time.process_time()
    value = function()
    return value, time.process_time() - start


def measure(model: sv.nn.Module, x: np.ndarray, way: str, seconds: float) -> dict[str, Any]:
    """Columns of the CSV for one image x (1, C, H, W): medians of at least 3 passes that together take `seconds`."""
    label = np.zeros(1, dtype=np.int64)

    def step() -> tuple[float, float, AttentionMeter]:
        meter = AttentionMeter(way)
        with replace_ops(meter):
            loss, forward = timed(lambda: sv.ops.cross_entropy(model(x), label))
            _, back = timed(loss.backward)
        return forward, back, meter

    step()                              # fills caches, and makes the arrays of the weights' gradients
    passes: list[tuple[float, float, AttentionMeter]] = []
    while len(passes) < 3 or sum(forward + back for forward, back, _ in passes) < seconds:
        passes.append(step())
    totals = [1e3 * (forward + back) for forward, back, _ in passes]

    with tracing() as peak:
        meter = step()[2]
        step_peak = peak()
    with tracing() as peak, sv.no_grad(), replace_ops(AttentionMeter(way)):
        model(x)
        inference_peak = peak()
    return {
        "passes": len(passes),
        "forward_ms": 1e3 * statistics.median(forward for forward, _, _ in passes),
        "step_ms": statistics.median(totals), "step_ms_min": min(totals), "step_ms_max": max(totals),
        "attention_ms": 1e3 * statistics.median(meter.seconds for _, _, meter in passes),
        "step_MiB": step_peak / 2**20, "inference_MiB": inference_peak / 2**20, "attention_MiB": meter.kept / 2**20,
    }


class tracing:
    """Inside, memory is traced; gives a function that says the largest sum so far, from zero at the beginning."""

    def __enter__(self) -> Callable[[], int]:
        gc.collect()
        tracemalloc.start()
        return lambda: tracemalloc.get_traced_memory()[1]

    def __exit__(self, *_: object) -> None:
        tracemalloc.stop()


def counts(found: Cost, way: str) -> dict[str, int]:
    """What theory says of a model: multiply-adds, and the numbers that attention keeps."""
    attention = [layer for layer in found.layers if layer.op == "attention"]
    results = sum(math.prod(layer.outputs[0]) for layer in attention)
    queries = sum(math.prod(layer.outputs[0][:-1]) for layer in attention)
    return {
        "macs": found.macs, "attention_macs": sum(layer.macs for layer in attention),
        "attention_entries": found.attention_entries,
        "attention_kept": results + (queries if way == "blocks" else found.attention_entries),
    }


def rows_of(name: str, subject: Subject, quick: bool) -> Iterator[dict[str, Any]]:
    """A row of the CSV for each side and each way."""
    for side in subject.quick_sides if quick else subject.sides:
        options = (subject.quick or {}) if quick else {}
        model = sv.create_model(subject.model, img_size=side, num_classes=10, **options)
        found = cost(model)
        x = np.random.default_rng(0).standard_normal((1, 3, side, side), dtype=np.float32)
        for way in subject.ways:
            row = {"model": name, "side": side, "tokens": found.tokens, "attention": way, **counts(found, way)}
            yield {**row, **measure(model, x, way, 0.0 if quick else SECONDS)}


def slope(sides: list[int], values: list[float]) -> float:
    """p of values ≈ c · sideᵖ, by least squares on logarithms, over the largest sides."""
    return float(np.polyfit(np.log(sides[-FITTED:]), np.log(values[-FITTED:]), 1)[0])


def exponents(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The slope of every quantity for each model and way, that of its count (what is not counted has none), and the
    power that it grows with in the end.
    """
    counted = {"step_ms": "macs", "attention_ms": "attention_macs", "attention_MiB": "attention_kept"}
    found = []
    for name, way in dict.fromkeys((row["model"], row["attention"]) for row in rows):
        own = [row for row in rows if (row["model"], row["attention"]) == (name, way)]
        sides = [row["side"] for row in own]
        for quantity in QUANTITIES:
            count = counted.get(quantity)
            found.append({
                "model": name, "attention": way, "quantity": quantity, "sides": "-".join(map(str, sides[-FITTED:])),
                "fitted": slope(sides, [row[quantity] for row in own]),
                "counts": slope(sides, [row[count] for row in own]) if count else "",
                "in the end": in_the_end(MODELS[name], way, quantity),
            })
    return found


def in_the_end(subject: Subject, way: str, quantity: str) -> int:
    """The power of the side that a quantity grows with."""
    if quantity.endswith("ms"):
        return subject.macs
    if way == "matrix":
        return max(subject.entries, subject.rest)
    return 2 if quantity == "attention_MiB" else subject.rest       # of attention, its result


def draw(rows: list[dict[str, Any]], fits: list[dict[str, Any]], path: Path) -> None:
    """Every quantity against the side, on logarithmic scales: solid with attention's matrix, dashed without."""
    all_sides = sorted({row["side"] for row in rows})
    with sheet(path, 2, 2, size=(13, 8.4)) as axes:
        for ax, (quantity, title) in zip(axes.flat, QUANTITIES.items()):
            ends = []
            for fit in (fit for fit in fits if fit["quantity"] == quantity):
                own = [row for row in rows if (row["model"], row["attention"]) == (fit["model"], fit["attention"])]
                sides, values = [row["side"] for row in own], [row[quantity] for row in own]
                solid = fit["attention"] == "matrix"
                theory = f"counts {fit['counts']:.1f}" if fit["counts"] != "" else f"in the end {fit['in the end']}"
                label = f"{fit['model'] if solid else '    without the matrix'}: {fit['fitted']:.1f} ({theory})"
                colour = COLOURS[list(MODELS).index(fit["model"])]
                ax.plot(
                    sides, values, "o-" if solid else "o--", color=colour, linewidth=1.8 if solid else 1.2,
                    markersize=4 if solid else 3, label=label,
                )
                if solid:
                    beyond = max(side for side in all_sides if side < 2 * sides[-1])    # its neighbours' lines, too
                    ends.append((beyond, values[-1], fit["model"], colour))
            _finish(ax, all_sides, title)
            label_points(ax, ends)


def _finish(ax: Any, sides: list[int], title: str) -> None:
    ax.set(xscale="log", yscale="log")
    ax.set_xlim(sides[0] / 1.3, sides[-1] * 5)      # room for the names
    ax.margins(y=0.1)
    ticks = [side for side in sides if math.log2(side / sides[0]).is_integer()]
    ax.set_xticks(ticks, [str(side) for side in ticks])
    ax.minorticks_off()
    ax.set_title(title, loc="left", color=INK)
    ax.set_xlabel("side of the image, pixels", color=INK)
    ax.grid(color=GRID, linewidth=0.7)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(colors=INK, length=0)
    legend = ax.legend(
        frameon=False, fontsize=8, title="fitted exponent", title_fontsize=8, loc="upper left", bbox_to_anchor=(1, 1)
    )
    legend.get_title().set_color(INK)


def figure() -> None:
    """Measure, then CSVs and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"), help="of CSVs and picture (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny models, in a few seconds: does the script work?")
    args = parser.parse_args()
    out = args.out / "quick" if args.quick else args.out
    backend.keep_freed_memory()
    rows = []
    with threadpoolctl.threadpool_limits(1):
        for name, subject in MODELS.items():
            for row in rows_of(name, subject, args.quick):
                print("{model}, {side}, {attention}: {step_ms:.1f} ms, {step_MiB:.1f} MiB".format(**row), flush=True)
                rows.append(row)
    fits = exponents(rows)
    write_csv(rows, out / "attention_cost.csv")
    write_csv(fits, out / "attention_cost_exponents.csv")
    draw(rows, fits, out / "attention_cost.png")
    print(out / "attention_cost.png")


if __name__ == "__main__":
    main(figure)
