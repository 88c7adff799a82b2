"""How many kernels, products, copies and waits is a training step on a GPU? By phase, op and kernel; without a GPU.

    tests/fakegpu/run python scripts/count_device_ops.py                        # ViT-Ti/16 at 224², batch 32
    tests/fakegpu/run python scripts/count_device_ops.py --model swin_tiny_patch4_window7_224 --batch 16
    tests/fakegpu/run python scripts/count_device_ops.py --model detr_resnet18 --img-size 128 --batch 2 --execute
    tests/fakegpu/run python scripts/count_device_ops.py --json counts.json

An operation of the device costs the host about the same time however small it is, so their number bounds the speed of
small models. Operations are counted and not done, so that the host's time is that of issuing them. With --execute they
are done, which a detector needs: its matching reads what the model computed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import scratchvit as sv  # noqa: E402
from scratchvit import backend, gpu, optim  # noqa: E402
from scratchvit.detection.config import DetectConfig  # noqa: E402
from scratchvit.detection.task import make_criterion  # noqa: E402
from scratchvit.files import write_atomically  # noqa: E402
from scratchvit.models.vit import pair  # noqa: E402
from scratchvit.recording import replace_ops  # noqa: E402
from scratchvit.replay import WARM_UP, Replay  # noqa: E402
from scratchvit.signature import takes_need  # noqa: E402
from scripts.bench import is_detector, random_objects  # noqa: E402

PHASES = ("forward", "backward", "clip", "update")
TIMED_STEPS = 9
SIZES = ("img_size", "patch_size", "depth")

Step: TypeAlias = dict[str, Callable[[], Any]]      # {phase: what it does}


class Counts:
    """What the device was asked to do, each with its phase; and the operations of each op and kernel."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()        # (phase, "launch", "gemm", "memcpyAsync h2d", …)
        self.ops: Counter[tuple[str, str]] = Counter()          # (phase, op)
        self.kernels: Counter[str] = Counter()
        self.phase, self.op = "", "no op"

    def event(self, what: str, name: str, a: int, b: int) -> None:
        """The tracer of fakegpu.device."""
        is_copy = what.startswith("memcpy")
        self.calls[self.phase, f"{what} {name}" if is_copy else what] += 1
        if what in ("launch", "gemm", "memset") or (is_copy and name == "d2d"):
            self.ops[self.phase, self.op] += 1
            self.kernels[what if is_copy else name.partition("__")[0] or what] += 1

    def operations(self, phase: str) -> int:
        """Kernels, products, fills and copies within the device."""
        return sum(count for (of, _), count in self.ops.items() if of == phase)

    @contextlib.contextmanager
    def during(self, op: str) -> Iterator[None]:
        """What happens inside is for this op."""
        before, self.op = self.op, op
        try:
            yield
        finally:
            self.op = before

    def call(self, function: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, Callable[..., Any]]:
        """An op and its backward; for `replace_ops`."""
        with self.during(function.__name__):
            value, backward = function(*args, **kwargs)

        def counted_backward(dy: Any, need: Any) -> Any:
            with self.during(function.__name__):
                return backward(dy, **({"need": need} if takes_need(backward) else {}))

        return value, counted_backward


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    for size in SIZES:
        parser.add_argument(f"--{size.replace('_', '-')}", type=int, help="default: the model's")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--execute", action="store_true", help="do the operations too")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    options = parser.parse_args(argv)
    os.environ["FAKEGPU_POISON"] = "1"          # filling the pool's memory would be counted into the host's time
    if not options.execute:
        os.environ["FAKEGPU_COUNT"] = "1"
        gpu.prove = lambda *_: None             # nothing is computed, so there is nothing to compare
    try:
        from fakegpu import device
    except ImportError:
        print("count_device_ops: start it by tests/fakegpu/run python scripts/count_device_ops.py", file=sys.stderr)
        return 1
    sv.use("gpu")

    step = training_step(options)
    run(step)                                   # allocates the optimizer's state
    counts = Counts()
    device.trace(counts.event)
    with replace_ops(counts.call):
        for phase in PHASES:
            counts.phase = phase
            step[phase]()
    device.trace(None)
    host_ms = None if options.execute else median_ms(lambda: run(step))
    replayed_ms = None if options.execute else median_ms(replayed(step))
    report(counts, host_ms, replayed_ms)
    if options.json:
        table = {
            "model": options.model, "batch": options.batch, "host_ms": host_ms,
            "replayed_host_ms": replayed_ms,
            "operations": {phase: counts.operations(phase) for phase in PHASES},
            "calls": {" ".join(key): count for key, count in counts.calls.items()},
        }
        write_atomically(options.json, (json.dumps(table, indent=2) + "\n").encode())
    return 0


def training_step(options: argparse.Namespace) -> Step:
    """A training step with AdamW and clipped gradients, on random images."""
    sizes = {size: value for size in SIZES if (value := getattr(options, size)) is not None}
    model: Any = sv.create_model(options.model, **sizes)
    rng, config = np.random.default_rng(0), model.config
    x = backend.asarray(rng.standard_normal((options.batch, config.in_chans, *pair(config.img_size)), dtype=np.float32))
    if is_detector(model):
        criterion = make_criterion(DetectConfig(), model)
        targets = random_objects(rng, options.batch, config.num_classes)

        def loss_of() -> sv.Tensor:
            return criterion.total(criterion(model(x), targets))
    else:
        y = backend.asarray(rng.integers(config.num_classes, size=options.batch))

        def loss_of() -> sv.Tensor:
            return sv.ops.cross_entropy(model(x), y)

    parameters = list(model.parameters())
    optimizer = optim.AdamW(optim.param_groups(model, 0.05), lr=1e-4)
    losses: list[sv.Tensor] = []
    factors: list[Any] = []

    def forward() -> None:
        optimizer.zero_grad()
        losses[:] = [loss_of()]

    def clip() -> None:
        factors[:] = [optim.clip_factor(optim.grad_norm(parameters), 1.0)]

    return {
        "forward": forward,
        "backward": lambda: losses[0].backward(),
        "clip": clip,
        "update": lambda: optimizer.step(factors[0]),
    }


def run(step: Step) -> None:
    for phase in PHASES:
        step[phase]()


def replayed(step: Step) -> Callable[[], Any]:
    """The step, captured and then replayed by one launch, as `scratchvit train` does it (replay.py)."""
    def failed(error: Exception) -> None:
        raise error

    replay = Replay(lambda: run(step), failed)
    for _ in range(WARM_UP + 1):
        replay()
    return replay


def median_ms(call: Callable[[], Any]) -> float:
    """The host's CPU time for a step."""
    times = []
    for _ in range(TIMED_STEPS):
        begin = time.process_time()
        call()
        times.append(1000 * (time.process_time() - begin))
    return statistics.median(times)


def report(counts: Counts, host_ms: float | None, replayed_ms: float | None) -> None:
    total = sum(map(counts.operations, PHASES))
    for phase in PHASES:
        calls = ", ".join(f"{what} {n}" for (of, what), n in counts.calls.most_common() if of == phase)
        print(f"{phase:<9} {counts.operations(phase):6} operations of the device: {calls}")
    print(f"{'total':<9} {total:6}; {len(counts.kernels)} kernels and products of different names")
    if host_ms is not None:
        print(f"the host's time: {host_ms:.1f} ms, {1000 * host_ms / max(total, 1):.1f} µs for each; "
              f"of a replayed step {replayed_ms:.2f} ms")
    for phase in PHASES[:2]:
        print(f"{phase} by op: " + ", ".join(f"{op} {n}" for (of, op), n in counts.ops.most_common() if of == phase))
    print("by kernel: " + ", ".join(f"{name} {n}" for name, n in counts.kernels.most_common(24)))


if __name__ == "__main__":
    sys.exit(main())
