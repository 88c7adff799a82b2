"""The table of speeds beside PyTorch: what `python scripts/bench.py --against torch` measures, one row after another.

    python scripts/bench.py --against torch                         # everything: about ten minutes on two cores
    python scripts/bench.py --against torch --only "ViT|chain"
    python scripts/bench.py --against torch --record                # also into docs/benchmarks.md, with the picture

Every row runs in a process of its own, or each side of it does. A ratio is our time ÷ PyTorch's. Targets are those of
issue 16; a row that misses one says by how much.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "speed.png"
CHAIN = 10_000          # additions
REPEATS = 12            # of short measurements, of which the minimum counts
RUNS = 2                # of the digits


@dataclass(frozen=True)
class Model:
    """A row that bench.py measures: its options, and the largest ratios wanted, of training and inference."""

    name: str
    options: tuple[str, ...]
    training: float
    inference: float | None


MODELS = (
    Model("ViT-Ti/16, 224², batch 32", ("--model", "vit_tiny_patch16_224", "--batch", "32"), 0.95, 0.95),
    Model(
        "ViT, width 192, 6 layers, patch 4, 32², batch 64",
        ("--model", "vit_tiny_patch16_224", "--img-size", "32", "--patch-size", "4", "--depth", "6", "--batch", "64"),
        0.90, 0.90,
    ),
    Model("Swin-T, 224², batch 8", ("--model", "swin_tiny_patch4_window7_224", "--batch", "8"), 0.95, 1.00),
    Model("MViTv2-T, 224², batch 8", ("--model", "mvitv2_tiny", "--batch", "8"), 1.10, 1.10),
    Model("ResNet-18, 224², batch 16", ("--model", "resnet18", "--batch", "16"), 1.20, 1.00),
    Model("DETR-R18, 256², batch 4", ("--model", "detr_resnet18", "--img-size", "256", "--batch", "4"), 1.10, None),
)
MEMORY = 0.8            # peak memory wanted, ours ÷ PyTorch's
PRODUCTS = 1.35         # a step wanted, ÷ its matrix products in NumPy


def main(only: str | None, record: bool) -> None:
    """Measure the rows whose names match, print them, and with `record` write them into docs/."""
    from scripts import records

    found = []
    for name, measure in rows().items():
        if only is None or re.search(only, name):
            one = {"row": name, **measure()}
            print(f"{name}\n" + "".join(f"    {line}\n" for line in lines(one)), flush=True)
            found.append(one)
    if not found:
        raise SystemExit(f"no row matches {only!r}: there are {'; '.join(rows())}")
    if record:
        for one in found:
            records.add("against", one)
        draw(records.read()["against"], PICTURE)


def rows() -> dict[str, Callable[[], dict[str, Any]]]:
    """{name of a row: what measures it}."""
    models = {model.name: lambda model=model: of_model(model) for model in MODELS}
    return {
        **models,
        "digits, the whole process of `scratchvit train`": of_digits,
        f"chain of {CHAIN:,} additions": of_chain,
        "import scratchvit": of_import,
    }


def of_model(model: Model) -> dict[str, Any]:
    """The record that bench.py writes in a process of its own, with the targets."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.json"
        command = [sys.executable, ROOT / "scripts" / "bench.py", *model.options, "--steps", "6", "--json", path]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        one = json.loads(path.read_text("utf-8"))
    return {
        **one, "targets": {"ratio": model.training, "inference_ratio": model.inference},
        "command": f"python scripts/bench.py {' '.join(model.options)} --steps 6",
    }


def of_digits() -> dict[str, Any]:
    """The digits from the start of the process to its end, beside the same run in PyTorch, in turn."""
    from scripts import records

    def seconds(*command: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            subprocess.run([sys.executable, *command, f"{folder}/run"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
            return time.perf_counter() - begun

    ours, theirs = zip(*(
        (seconds("-m", "scratchvit", "train", "--quiet", "--out"), seconds("scripts/digits_in_torch.py"))
        for _ in range(RUNS)
    ))
    return {
        "ratio": records.spread([a / b for a, b in zip(ours, theirs)], 3), "seconds": min(ours),
        "torch_seconds": min(theirs), "targets": {"ratio": 0.5}, **torch_version(),
        **records.origin("python scripts/bench.py --against torch --only digits"),
    }


def torch_version() -> dict[str, str]:
    """PyTorch's version, as records have it."""
    return {"torch_version": importlib.metadata.version("torch").partition("+")[0]}


def of_chain() -> dict[str, Any]:
    """An op's overhead: y = y + x repeated, for arrays of three numbers, and its backward."""
    from scripts import records

    seconds = {side: float(printed(f"print({side}_chain())")) for side in ("our", "torch")}
    ratio = seconds["our"] / seconds["torch"]
    return {
        "ratio": records.spread([ratio], 3), "seconds": seconds["our"], "torch_seconds": seconds["torch"],
        "targets": {"ratio": 1.0}, **torch_version(),
        **records.origin("python scripts/bench.py --against torch --only chain"),
    }


def printed(code: str) -> str:
    """What a new process prints that runs code with the functions of this file."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from scripts.bench_table import *; {code}"
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout


def our_chain() -> float:
    """CPU seconds of the chain, the least of several."""
    import numpy as np

    import scratchvit as sv

    x = sv.Tensor(np.ones(3, np.float32), requires_grad=True)
    return _chain(x, np.ones(3, np.float32))


def torch_chain() -> float:
    """CPU seconds of the chain in PyTorch, the least of several."""
    import torch

    torch.set_num_threads(1)
    return _chain(torch.ones(3, requires_grad=True), torch.ones(3))


def _chain(x: Any, gradient: Any) -> float:
    seconds = []
    for _ in range(REPEATS):
        begun = time.process_time()
        y = x
        for _ in range(CHAIN):
            y = y + x
        y.backward(gradient)
        seconds.append(time.process_time() - begun)
    return min(seconds)


def of_import() -> dict[str, Any]:
    """Seconds of the import beyond NumPy's own: the least of several processes."""
    from scripts import records

    def least(code: str) -> float:
        seconds = []
        for _ in range(REPEATS):
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
            seconds.append(time.perf_counter() - begun)
        return min(seconds)

    beyond = least("import numpy, scratchvit") - least("import numpy")
    return {
        "seconds": beyond, "targets": {"seconds": 0.25},
        **records.origin("python scripts/bench.py --against torch --only import"),
    }


# --- what is shown --------------------------------------------------------------------------------------------------


def lines(one: dict[str, Any]) -> list[str]:
    """A record in words, each figure with its target."""
    targets = one["targets"]
    found = []
    for what, key in (("training", "ratio"), ("inference", "inference_ratio")):
        if key in one:
            spread = one[key]
            found.append(f"{what}: {spread['median']:.2f} × PyTorch ({spread['least']:.2f} to {spread['most']:.2f})"
                         f"{judged(spread['median'], targets.get(key))}")
    if "gib" in one:
        found.append(f"memory: {one['gib'] / one['torch_gib']:.2f} × PyTorch"
                     f"{judged(one['gib'] / one['torch_gib'], MEMORY)}")
    if "products_seconds" in one:
        products = one["seconds"] / one["products_seconds"]
        found.append(f"a step: {products:.2f} × its matrix products{judged(products, PRODUCTS)}")
    if "seconds" in targets:
        found.append(f"{one['seconds']:.2f} s{judged(one['seconds'], targets['seconds'])}")
    return found


def judged(value: float, target: float | None) -> str:
    """Whether a target is met, or by how much it is missed."""
    if target is None:
        return ""
    return f", target {target:.2f}: " + ("met" if value <= target else f"missed by {value / target - 1:.0%}")


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Bars of our time relative to PyTorch's, for training and inference."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = list({one["row"]: one for one in found if "products_seconds" in one}.values())      # the last of each row
    figure, axes = plt.subplots(figsize=(8, 0.7 * len(found) + 1.2), layout="constrained")
    kinds = ((-0.2, "ratio", "training", "#2b6cb0"), (0.2, "inference_ratio", "inference", "#a0c4e8"))
    for offset, key, name, colour in kinds:
        values = [one[key]["median"] for one in found]
        spread = [[v - one[key]["least"] for v, one in zip(values, found)],
                  [one[key]["most"] - v for v, one in zip(values, found)]]
        axes.barh([i + offset for i in range(len(found))], values, 0.38, xerr=spread, label=name, color=colour)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(found)), [one["row"] for one in found])
    axes.invert_yaxis()
    axes.set_xlabel("time ÷ PyTorch eager (less is faster)")
    last = found[-1]
    axes.set_title(f"{last['machine']['processor']}, {last['machine']['cores']} cores, {last['date']}", fontsize=9)
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=100)
    plt.close(figure)
