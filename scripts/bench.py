"""How fast are training and inference here, against PyTorch eager on the same machine, in the same run?

    python scripts/bench.py                                      # ViT-Ti/16 at 224², batch 32
    python scripts/bench.py --model vit_small_patch16_224 --batch 16 --steps 5
    python scripts/bench.py --model resnet18 --img-size 32 --batch 64
    python scripts/bench.py --model mvit_v1_b --batch 1 --steps 3       # clips of 16 frames: torchvision's model
    python scripts/bench.py --model igpt_tiny --batch 4                 # pixels after pixels: Hugging Face's ImageGPT
    python scripts/bench.py --model detr_resnet18 --img-size 256 --batch 4
    python scripts/bench.py --record                                    # also writes the row of docs/benchmarks.md
    python scripts/bench.py --against torch                             # models and other work: bench_table.py

Both take the same weights, images, labels and AdamW, the same number of threads, and live in one process whose glibc
was told to keep freed memory. Steps alternate, so that a machine that slows down slows both. Beside the ratio of the
step times stands what the step's matrix products take alone, made by NumPy: the floor under any implementation on this
BLAS. Peak memory is what two steps need beyond the weights, in a process of its own for each.

NumPy's OpenBLAS chooses its kernels by the processor, unless OPENBLAS_CORETYPE is set, as in some containers; products
may then take twice as long. The first line says for which processor they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np  # first, as in most programs: the order of imports must make no difference

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import scratchvit as sv  # noqa: E402
from scratchvit import backend, threads  # noqa: E402
from scratchvit.costs.counting import OpCost, cost  # noqa: E402
from scratchvit.detection.config import DetectConfig  # noqa: E402
from scratchvit.detection.task import make_criterion  # noqa: E402
from scratchvit.errors import ScratchvitError  # noqa: E402
from scratchvit.models import model_config  # noqa: E402
from scratchvit.models.vit import pair  # noqa: E402
from scratchvit.training.classification.evaluate import truth  # noqa: E402
from scratchvit.weights.names import recognise  # noqa: E402
from scripts import bench_table, records  # noqa: E402
from scripts.bench_peers import peer_of  # noqa: E402

Step = Callable[[], float]
LARGE_PRODUCT = 1 << 22         # entries of a factor, beyond which a product does not gain from being larger
OBJECTS = 5                     # in every image of a detector


class Work(NamedTuple):
    """What is timed: a training step and an inference. Both return a number that must be the same on both sides."""

    training: Step
    inference: Step


class Times(NamedTuple):
    """Seconds here and in PyTorch, taken in turn."""

    ours: list[float]
    theirs: list[float]

    def ratios(self) -> list[float]:
        """Ours ÷ theirs, pair by pair."""
        return [a / b for a, b in zip(self.ours, self.theirs)]


class Measured(NamedTuple):
    """What `measure` finds; products are the seconds of a training step's matrix products in NumPy."""

    image: tuple[int, ...]
    training: Times
    inference: Times
    products: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--img-size", type=int, help="side of the images or frames (default: the model's own)")
    parser.add_argument("--patch-size", type=int, help="side of a ViT's patches")
    parser.add_argument("--depth", type=int, help="a ViT's number of blocks")
    parser.add_argument("--steps", type=int, default=8, help="measured steps of each, after two that are not")
    parser.add_argument("--record", action="store_true", help="write the result into docs/benchmarks.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record of the result into this file")
    parser.add_argument("--against", choices=("torch",), help="measure all rows of the table; see bench_table.py")
    parser.add_argument("--only", metavar="REGEX", help="with --against: only the rows whose names match")
    parser.add_argument("--memory-of", choices=("ours", "torch"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.batch, args.steps) < 1:
        parser.error("--batch and --steps are at least 1")
    if args.against:
        bench_table.main(args.only, args.record)
        return
    backend.keep_freed_memory()
    try:
        found = measure(args)
        if found:
            report(args, found, memory_of_both())
    except ScratchvitError as error:
        raise SystemExit(str(error)) from None


def measure(args: argparse.Namespace) -> Measured | None:
    """Measure; with --memory-of, print the bytes. Raises ScratchvitError for a model or size that there is not."""
    config = model_config(args.model)
    names = [field.name for field in dataclasses.fields(config)]
    options: dict[str, Any] = {name: 0.0 for name in names if name.endswith("_rate") or name == "dropout"}
    if args.img_size is not None:
        options["img_size"] = args.img_size
    changed = {name: value for name in ("patch_size", "depth") if (value := getattr(args, name)) is not None}
    options |= changed
    config = dataclasses.replace(config, **options)
    peer = peer_of(args.model, config, changed)
    frames = getattr(config, "num_frames", 1)
    image = (config.in_chans, *((frames,) if frames > 1 else ()), *pair(config.img_size))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((args.batch, *image), dtype=np.float32)
    model: Any = sv.create_model(args.model, **options)
    if is_detector(model):
        y: Any = random_objects(rng, args.batch, config.num_classes)
    else:
        y = truth(model, x, rng.integers(0, config.num_classes or 1, args.batch))
    if args.memory_of:
        if is_detector(model):
            import scipy.optimize  # noqa: F401  matches objects on both sides; PyTorch's has imported it already
        step = (our_work(model, x, y) if args.memory_of == "ours" else torch_work(peer(), x, y)).training
        before = peak_bytes(anew=True)
        step(), step()
        print(peak_bytes() - before)
        return None

    theirs = peer()
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    renamed = recognise(state).rename(state).weights
    model.load_state_dict(model.state_dict() | renamed)         # but for iGPT's palette, which theirs has no place for
    ours, peers = our_work(model, x, y), torch_work(theirs, x, y)
    inference = alternate(ours.inference, peers.inference, args.steps)
    training = alternate(ours.training, peers.training, args.steps)
    layers = cost(model, image).layers
    products = statistics.median(timed(lambda: matrix_products(layers, image, args.batch)) for _ in range(5))
    return Measured(image, training, inference, products)


def is_detector(model: Any) -> bool:
    """Whether a model gives boxes."""
    return hasattr(model.config, "num_queries")


def random_objects(rng: np.random.Generator, images: int, num_classes: int) -> list[dict[str, np.ndarray]]:
    """Objects as a batch of a detector has them."""
    return [
        {"labels": rng.integers(0, num_classes, OBJECTS),
         "boxes": rng.uniform(0.2, 0.6, (OBJECTS, 4)).astype(np.float32)}
        for _ in range(images)
    ]


def our_work(model: Any, x: np.ndarray, y: Any) -> Work:
    """A training step and an inference of this project."""
    optimizer = sv.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    criterion = make_criterion(DetectConfig(), model) if is_detector(model) else None

    def training() -> float:
        model.train()
        loss = criterion.total(criterion(model(x), y)) if criterion else sv.ops.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    def inference() -> float:
        model.eval()
        with sv.no_grad():
            out = model(x)
        return float(np.abs((out["pred_logits"] if criterion else out).numpy()).mean())

    return Work(training, inference)


def torch_work(peer: Any, x: np.ndarray, y: Any) -> Work:
    """The same work of a model in PyTorch."""
    import torch

    torch.set_num_threads(threads.cpu_threads())
    trained = [parameter for parameter in peer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.05)
    images = torch.from_numpy(x)
    labels = None if isinstance(y, list) else torch.from_numpy(y)

    def training() -> float:
        peer.train()
        loss = peer.loss_of(images, y) if labels is None else torch.nn.functional.cross_entropy(peer(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    def inference() -> float:
        peer.eval()
        with torch.inference_mode():
            out = peer(images)
        return (out.logits if labels is None else out).abs().mean().item()

    return Work(training, inference)


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def alternate(ours: Step, theirs: Step, steps: int) -> Times:
    """Step times of both, taken in turn. Checks on the way that both compute the same number."""
    for _ in range(2):
        a, b = ours(), theirs()
        assert abs(a - b) <= 1e-4 * abs(b), f"the results differ: {a} here, {b} in PyTorch"
    pairs = [(timed(ours), timed(theirs)) for _ in range(steps)]
    return Times([a for a, _ in pairs], [b for _, b in pairs])


def matrix_products(layers: Sequence[OpCost], image: tuple[int, ...], batch: int) -> None:
    """The products of one training step, and nothing else: y = x Wᵀ, dx = dy W, dW = dyᵀ x for every matrix and every
    convolution, of images or clips; for every head q kᵀ and P v with their two gradients each.

    A depth-wise convolution counts as one of a single channel with as many kernels: as many multiply-adds.
    """
    for layer in layers:
        if layer.op == "linear":
            (*tokens, inputs), (outputs, _) = layer.inputs[0], layer.inputs[1]      # (1, N) of an image; (windows, N)
            weight, rows = np.ones((outputs, inputs), np.float32), batch * math.prod(tokens)
            x, dy = np.ones((rows, inputs), np.float32), np.ones((rows, outputs), np.float32)
            x @ weight.T, dy.T @ x, dy @ weight
        elif layer.op == "matmul":                          # queries with the relative positions of an axis
            (_, *matrices), shared = layer.inputs[0], np.ones(layer.inputs[1], np.float32)
            x = np.ones((batch, *matrices), np.float32)
            dy = x @ shared
            dy @ shared.swapaxes(-1, -2), x.swapaxes(-1, -2) @ dy
        elif layer.op in ("conv2d", "conv3d"):
            outputs, taps = layer.inputs[1][0], math.prod(layer.inputs[1][1:])
            weight, places = np.ones((outputs, taps), np.float32), math.prod(layer.outputs[0][2:])
            is_first = layer.inputs[0][1:] == image         # nobody asks for the gradient of the image
            together = max(1, min(batch, LARGE_PRODUCT // (taps * places)))     # images; small ones in one product
            columns = np.ones((taps, together * places), np.float32)
            dy = np.ones((outputs, together * places), np.float32)

            def some_images(weight: np.ndarray, columns: np.ndarray, dy: np.ndarray, is_first: bool) -> None:
                weight @ columns, dy @ columns.T
                if not is_first:
                    weight.T @ dy

            threads.deal(some_images, [(weight, columns, dy, is_first)] * (batch // together))
        elif layer.op == "attention":
            q, k, v = (np.ones((batch * shape[0], *shape[1:]), np.float32) for shape in layer.inputs[:3])

            def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
                p = q @ k.swapaxes(-1, -2)
                dy = p @ v
                p @ k, p.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ dy, dy @ v.swapaxes(-1, -2)

            threads.parallel_rows(attend, q, k, v, block_bytes=q[:2].nbytes)


def peak_bytes(anew: bool = False) -> int:
    """The largest memory that this process has held; anew: what it holds now, from where the peak is then counted.

    Linux only. (`ru_maxrss` would include the parent's.)
    """
    if anew:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    status = Path("/proc/self/status").read_text("ascii")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def memory_of_both() -> dict[str, int]:
    """Bytes that two training steps need beyond the weights, each side in a process of its own."""
    return {
        who: int(subprocess.run([sys.executable, __file__, *sys.argv[1:], "--memory-of", who], check=True,
                                capture_output=True, text=True).stdout)
        for who in ("ours", "torch")
    }


def report(args: argparse.Namespace, found: Measured, memory: dict[str, int]) -> None:
    """Print the table, and write the record where the options say."""
    cores = f"{threads.cpu_threads()} threads of {os.cpu_count()} cores, BLAS for {records.machine()['blas']}"
    print(f"{args.model}, {'×'.join(map(str, found.image[1:]))}, batch {args.batch}, {cores}")
    for work, times in (("training step", found.training), ("inference", found.inference)):
        print(f"{work:24}{'min':>9}{'median':>9}{'max':>9}")
        for name, values, unit in (("  scratchvit", times.ours, "s"), ("  PyTorch eager", times.theirs, "s"),
                                   ("  ratio, pair by pair", times.ratios(), "")):
            print(f"{name:24}{min(values):9.3f}{statistics.median(values):9.3f}{max(values):9.3f} {unit}")
    seconds, torch_seconds = (statistics.median(values) for values in found.training)
    print(f"a training step's matrix products alone {found.products:.3f} s: "
          f"our step takes {seconds / found.products:.2f} times as long")
    ours_mib, theirs_mib = (memory[who] / 2**20 for who in ("ours", "torch"))
    print(f"peak memory of a step {ours_mib:.0f} MiB here, {theirs_mib:.0f} MiB in PyTorch")
    if not (args.record or args.json):
        return
    record = {
        "model": args.model, "image": list(found.image), "batch": args.batch, "pairs": args.steps,
        "ratio": records.spread(found.training.ratios(), 3), "seconds": round(seconds, 4),
        "torch_seconds": round(torch_seconds, 4), "products_seconds": round(found.products, 4),
        "inference_ratio": records.spread(found.inference.ratios(), 3),
        "inference_seconds": round(statistics.median(found.inference.ours), 4),
        "torch_inference_seconds": round(statistics.median(found.inference.theirs), 4),
        "gib": round(ours_mib / 1024, 3), "torch_gib": round(theirs_mib / 1024, 3),
        "torch_version": importlib.metadata.version("torch").partition("+")[0],
        **records.origin(records.command_line()),
    }
    if args.record:
        records.add("steps", record)
    if args.json:
        args.json.write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main()
