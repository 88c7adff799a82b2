"""What do two ranks do that one does not? Weak scaling, against PyTorch's DistributedDataParallel in the same run.

    OMP_NUM_THREADS=1 mpiexec -n 2 python scripts/bench_scaling.py
    OMP_NUM_THREADS=1 mpiexec -n 2 python scripts/bench_scaling.py --batch 16 --rounds 12 --json scaling.json

A training step of `scratchvit train` (training/step.py: loss, backward pass with sums of gradients, norm, AdamW), on
images that are in memory, for a ViT without dropout. A rank computes in one thread on --batch images. In every round:

    alone       rank 0 trains, the others sleep
    apart       all ranks train models of their own at the same time: what sharing the machine costs
    together    all ranks train one model, on a batch so many times as large
    DDP         the same in PyTorch: DistributedDataParallel over gloo, timm's model; and "DDP alone", on rank 0

Efficiency is the time alone over the time together. A time is that of the slowest rank, from a common start, over
--steps steps. Printed are the least of all rounds and the spread. Ours and PyTorch's have the same weights and must
have the same loss. What `scratchvit cost` predicts from the time apart and an all-reduce measured here stands below.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import scratchvit as sv
from scratchvit import backend, threads
from scratchvit.costs.scaling import PredictedStep, gradient_buckets, predict
from scratchvit.errors import ScratchvitError
from scratchvit.files import counted
from scratchvit.models import model_config
from scratchvit.parallel import Communicator, share_of, world
from scratchvit.parallel.buckets import Buckets
from scratchvit.training import TrainConfig
from scratchvit.training.step import LearningStep
from scratchvit.weights.names import recognise
from scripts import measure_allreduce, records
from scripts.bench_peers import peer_of

Step = Callable[[], float]      # a training step; returns its loss
ORDER = ("alone", "together", "DDP", "apart", "DDP alone")      # in every round
NAP = 0.005                     # seconds between looks of a rank that waits for those that are timed


def main() -> None:
    """Measure; print on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--depth", type=int, help="number of blocks (default: the model's own)")
    parser.add_argument("--batch", type=int, default=16, help="images of a rank")
    parser.add_argument("--steps", type=int, default=2, help="in one measurement")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a record of the result into this file")
    args = parser.parse_args()
    backend.keep_freed_memory()
    try:
        ranks = world()
        if ranks.size == 1:
            raise ScratchvitError("one process has nothing to exchange: begin with mpiexec -n 2")
        if threads.cpu_threads() > 1:
            raise ScratchvitError("every rank is to compute in one thread: begin with OMP_NUM_THREADS=1")
        bench(args, ranks)
    except ScratchvitError as error:
        raise SystemExit(str(error)) from None


def bench(args: argparse.Namespace, ranks: Communicator) -> None:
    """Time all in turn. Raises ScratchvitError for a model or size that there is not."""
    options: dict[str, Any] = {"img_size": args.img_size, "drop_path_rate": 0.0, "num_classes": 10}
    options |= {"depth": args.depth} if args.depth else {}
    times: dict[str, list[float]] = {name: [] for name in ORDER}
    with joined_by_gloo(ranks):
        steps, model = make_steps(args, options, ranks)
        compare({name: [step() for _ in range(2)] for name, step in steps.items()}, ranks)
        for _ in range(args.rounds):
            for name in ORDER:
                times[name].append(timed(steps.get(name), args.steps, ranks))
    network = measure_allreduce.fitted(measure_allreduce.measure(ranks, 0.3), ranks.size)
    if ranks.rank == 0:
        predicted = predict(gradient_buckets(model), ranks.size, min(times["apart"]), network)
        report(args, ranks.size, times, predicted, measure_allreduce.command(network, ranks.size))
    ranks.gather(None)              # here ranks wait asleep; in MPI's end they would occupy their cores


@contextlib.contextmanager
def joined_by_gloo(ranks: Communicator) -> Iterator[None]:
    """Context manager in which PyTorch's default process group is that of these ranks, which are on one machine."""
    import torch

    with tempfile.TemporaryDirectory() as own:
        store = Path(ranks.gather(own)[0], "store")
        torch.distributed.init_process_group("gloo", f"file://{store}", rank=ranks.rank, world_size=ranks.size)
        yield
        torch.distributed.destroy_process_group()
        ranks.gather(None)      # all have left, before the store is removed


def make_steps(args: argparse.Namespace, options: dict[str, Any], ranks: Communicator) -> tuple[dict[str, Step], Any]:
    """The steps of this rank by name, and the model. All begin with the same weights."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = model_config(args.model)
    changed = {name: options[name] for name in ("depth", "num_classes") if name in options}
    make_peer = peer_of(args.model, type(config)(**{**vars(config), **options}), changed)
    rng = np.random.default_rng(0)
    whole = args.batch * ranks.size
    images = rng.standard_normal((whole, 3, args.img_size, args.img_size), dtype=np.float32)
    labels = rng.integers(0, options["num_classes"], whole)
    own = share_of(whole, ranks.rank, ranks.size)

    peer = make_peer()
    state = recognise(raw := {name: value.numpy() for name, value in peer.state_dict().items()}).rename(raw).weights

    def ours(rows: slice, together: bool) -> tuple[Step, Any]:
        model = sv.create_model(args.model, **options)
        model.load_state_dict(state)
        optimizer = sv.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
        buckets = Buckets(model.parameters(), ranks) if together else None
        learn = LearningStep(TrainConfig(batch_size=whole if together else args.batch), model, optimizer, None,
                             buckets=buckets)

        def compute() -> tuple[Any, Any]:
            loss = sv.ops.cross_entropy(model(images[rows]), labels[rows])
            return loss, loss.data

        def step() -> float:
            (loss,) = learn(compute, (), images[rows], 1e-4, look=True, whole=whole if together else None)
            return float(loss)

        return step, model

    def theirs(peer: Any, rows: slice) -> Step:
        optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4, weight_decay=0.05)
        x, y = torch.from_numpy(images[rows]), torch.from_numpy(labels[rows])

        def step() -> float:
            loss = torch.nn.functional.cross_entropy(peer(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        return step

    first = slice(0, args.batch)
    step, model = ours(own, together=True)
    steps = {"together": step, "apart": ours(own, together=False)[0], "DDP": theirs(DistributedDataParallel(peer), own)}
    if ranks.rank == 0:
        alone = make_peer()
        alone.load_state_dict({name: torch.from_numpy(value) for name, value in raw.items()})
        steps |= {"alone": ours(first, together=False)[0], "DDP alone": theirs(alone, first)}
    return steps, model


def compare(losses: dict[str, list[float]], ranks: Communicator) -> None:
    """Raise ScratchvitError if the losses of ours and theirs differ, on this rank's images or any other's."""
    wrong = [
        f"{a} {losses[a]}, {b} {losses[b]}" for a, b in (("together", "DDP"), ("alone", "DDP alone"))
        if a in losses and not np.allclose(losses[a], losses[b], rtol=1e-3)
    ]
    for rank, of_rank in enumerate(ranks.gather(wrong)):
        if of_rank:
            raise ScratchvitError(f"rank {rank}: the losses of two steps differ: {'; '.join(of_rank)}")


def timed(step: Step | None, steps: int, ranks: Communicator) -> float:
    """Seconds of a step, the same on all ranks: those of the slowest rank. None: this rank only waits."""
    ranks.gather(None)                          # all begin together
    start = time.perf_counter()
    for _ in range(steps if step else 0):
        step()
    seconds = (time.perf_counter() - start) / steps if step else 0.0
    end = ranks.start_sum(np.zeros(1, np.float32))
    while not end.done():
        time.sleep(NAP)
    return max(ranks.gather(seconds))


def report(
    args: argparse.Namespace, size: int, times: dict[str, list[float]], predicted: PredictedStep, command: str
) -> None:
    """Print the table and what is predicted, and write the record."""
    print(f"{args.model}, {args.img_size}², {args.batch} images a rank, {size} ranks on {os.cpu_count()} cores, "
          f"{counted(args.rounds, 'round')} of {counted(args.steps, 'step')}")
    print(f"{'seconds of a step':24}{'least':>9}{'median':>9}{'most':>9}")
    for name in ORDER:
        values = times[name]
        print(f"  {name:22}{min(values):9.4f}{statistics.median(values):9.4f}{max(values):9.4f}")
    ratios = {
        "efficiency": ("alone", "together"), "efficiency of DDP": ("DDP alone", "DDP"),
        "ours ÷ DDP": ("together", "DDP"), "apart ÷ together": ("apart", "together"),
    }
    found = {name: [a / b for a, b in zip(times[above], times[below])] for name, (above, below) in ratios.items()}
    least = {name: min(times[above]) / min(times[below]) for name, (above, below) in ratios.items()}
    print(f"{'round by round':24}{'least':>9}{'median':>9}{'most':>9}   of the least times")
    for name, values in found.items():
        print(f"  {name:22}{min(values):9.3f}{statistics.median(values):9.3f}{max(values):9.3f}{least[name]:9.3f}")
    measured = min(times["together"])
    print(f"predicted from the time apart: {predicted.seconds:.4f} s, without overlap {predicted.in_turn:.4f} s; "
          f"measured {measured:.4f} s, {measured / predicted.seconds:.3f} times as long\n{command}")
    if args.json:
        record = {
            "model": args.model, "image": args.img_size, "batch": args.batch, "ranks": size,
            "seconds": {name: records.spread(values, 5) for name, values in times.items()},
            "ratios": {name: records.spread(values, 4) for name, values in found.items()},
            "of_least": {name: round(value, 4) for name, value in least.items()},
            "predicted": {"seconds": round(predicted.seconds, 5), "in_turn": round(predicted.in_turn, 5)},
            **records.origin(measure_allreduce.started_with(size)),
        }
        args.json.write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main()
