"""`scratchvit cost --ranks`: the predicted step of several ranks, as text."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from scratchvit.backend import current
from scratchvit.cli import _units
from scratchvit.cli._options import Parser, numbers, positive
from scratchvit.cli._text import filled, table
from scratchvit.costs.counting import cost, readable_bytes
from scratchvit.costs.machine import SECONDS, product_speed
from scratchvit.costs.memory import MOMENTS
from scratchvit.costs.scaling import Network, PredictedStep, gradient_buckets, predict
from scratchvit.files import counted
from scratchvit.nn import Module

RANKS = (1, 2, 8, 64, 512, 4096)
OPTIONS = ("ranks", "bandwidth", "latency", "seconds", "flops", "global_batch", "accumulate")


def add_scaling(parser: argparse.ArgumentParser) -> None:
    """Add the options of a step on several ranks."""
    group = parser.add_argument_group("several processes (ranks), with --bandwidth and --latency")
    shown = ",".join(map(str, RANKS))
    group.add_argument("--ranks", type=numbers, metavar="N,…", help=f"how many ranks (default: {shown})")
    group.add_argument(
        "--bandwidth", type=_units.bandwidth, metavar="B", help="of a link, in each direction: 25GB/s, 100Gbit/s"
    )
    group.add_argument("--latency", type=_units.seconds, metavar="L", help="of a message, however short: 2us")
    group.add_argument(
        "--seconds", type=_units.seconds, metavar="S",
        help="time of a step of one rank with --batch-size images: 0.3s (default: from --flops)",
    )
    group.add_argument(
        "--flops", type=_units.flops, metavar="F",
        help="speed at which a rank computes: 60TFLOP/s (default: this machine's in a float32 product, measured)",
    )
    group.add_argument(
        "--global-batch", type=positive, metavar="SIZE",
        help="divide so many images among the ranks (default: --batch-size images on each)",
    )
    group.add_argument("--accumulate", type=positive, metavar="N", help="parts of a rank's batch (default: 1)")


def is_asked(parser: Parser, given: argparse.Namespace) -> bool:
    """Whether there are options of several ranks. Ends the program if they are incomplete."""
    named = [name for name in OPTIONS if getattr(given, name) is not None]
    if not named:
        return False
    missing = [f"--{name}" for name in ("bandwidth", "latency") if getattr(given, name) is None]
    if missing:
        parser.error(
            f"--{named[0].replace('_', '-')} is about several ranks, whose network has to be known: give "
            f"{' and '.join(missing)} too, such as --bandwidth 25GB/s --latency 2us"
        )
    if given.precision != "float32":
        parser.error("--precision has no effect on the time of several ranks: leave it out, and give --flops")
    if given.seconds is not None and given.flops is not None:
        parser.error("--seconds and --flops both say how fast a rank computes: leave out one of them")
    if given.ranks is not None and (not given.ranks or min(given.ranks) < 1):
        parser.error("--ranks: numbers of at least 1 are needed")
    ranks = given.ranks or RANKS
    if given.global_batch is not None and given.ranks and given.global_batch < max(ranks):
        parser.error(f"--global-batch: {counted(given.global_batch, 'image')} are fewer than {max(ranks)} ranks")
    if given.accumulate is not None and given.accumulate > _largest_share(given, max(_possible(given))):
        parser.error(f"--accumulate: a rank's batch cannot be cut into {given.accumulate} parts")
    return True


def _possible(given: argparse.Namespace) -> list[int]:
    """The numbers of ranks that are asked for, of the default ones those that the global batch is enough for."""
    return [ranks for ranks in given.ranks or RANKS if given.global_batch is None or ranks <= given.global_batch]


def _largest_share(given: argparse.Namespace, ranks: int) -> int:
    """The images of a rank, or of the one that has most."""
    return given.batch_size if given.global_batch is None else -(-given.global_batch // ranks)


def scaling_text(name: str, model: Module, given: argparse.Namespace) -> str:
    """The table of predicted steps, and what it assumes."""
    network, buckets = Network(given.latency, given.bandwidth), gradient_buckets(model)
    per_image, speed = _speed(model, given)
    moments = MOMENTS * sum(p.size * p.dtype.itemsize for p in model.parameters() if p.requires_grad)
    nbytes = sum(bucket.nbytes for bucket in buckets)
    rows: list[Sequence[str]] = [
        ("ranks", "images", "compute", "ring", "tree", "step", "efficiency", "no overlap", "sharded", "moments")
    ]
    for ranks in _possible(given):
        images = _largest_share(given, ranks)
        step = predict(buckets, ranks, images * per_image, network, given.accumulate or 1)
        # What one rank would take for all images, over what these take together: less than 1 if shares differ, too.
        balance = 1.0 if given.global_batch is None else given.global_batch / (images * ranks)
        rows.append(_row(step, images, balance, moments))
    smallest, largest = (readable_bytes(found(bucket.nbytes for bucket in buckets)) for found in (min, max))
    span = f" of {smallest} to {largest}" if len(buckets) > 1 else ""
    kind = "weak scaling: as many images on every rank" if given.global_batch is None else (
        f"strong scaling: {counted(given.global_batch, 'image')} in all"
    )
    return "\n".join([
        filled(
            f"{name}: {readable_bytes(nbytes)} of gradients in float32 a step, in {counted(len(buckets), 'bucket')}"
            f"{span}; {kind}"
        ),
        "", table(rows), "",
        filled(
            "ring, tree: time to sum all gradients by a ring or by two trees. step: the sum of a bucket begins when "
            "its gradients are there, by the quicker way. efficiency: work done, over that of as many ranks that "
            "exchange nothing; no overlap: if sums began after the backward pass. sharded: with --shard-optimizer, by "
            f"rings, whose bytes it sends; moments: AdamW's, of a rank then (else {readable_bytes(moments)})."
        ),
        filled(
            f"Assumed: {speed}; a message of n bytes takes {_seconds(network.latency)} + n / "
            f"{network.bandwidth / 1e9:.3g} GB/s on every link, whatever the others carry; sending takes no processor "
            "time; no rank is slower than another; the update takes no time."
        ),
    ])


def _speed(model: Module, given: argparse.Namespace) -> tuple[float, str]:
    """Seconds of an image, forward and backward, and in words where they are from."""
    if given.seconds is not None:
        per_image = given.seconds / given.batch_size
        return per_image, f"{_seconds(given.seconds)} for {counted(given.batch_size, 'image')}, as given"
    flops = product_speed(current(), SECONDS) if given.flops is None else given.flops
    source = "as given" if given.flops is not None else "measured here in a float32 product"
    per_image = 3 * 2 * cost(model).macs / flops     # the backward pass makes twice the products of the forward pass
    return per_image, f"a rank computes {_amount(flops)}FLOP/s, {source}"


def _row(step: PredictedStep, images: int, balance: float, moments: int) -> Sequence[str]:
    return (
        f"{step.ranks:,}", f"{images:,}", *map(_seconds, (step.compute, step.ring, step.tree, step.seconds)),
        *(f"{balance * step.compute / seconds:.1%}" for seconds in (step.seconds, step.in_turn, step.sharded)),
        readable_bytes(-(-moments // step.ranks)),
    )


def _seconds(value: float) -> str:
    """A time with three digits: "2 µs", "41.3 ms"."""
    if value == 0:
        return "0"
    unit, factor = next(((u, f) for u, f in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)) if value >= f), ("ns", 1e-9))
    return f"{value / factor:.3g} {unit}" if value / factor < 1000 else f"{value / factor:,.0f} {unit}"


def _amount(value: float) -> str:
    """A number with a prefix and a space before it: "200 G"."""
    prefix, factor = next(
        ((p, f) for p, f in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)) if value >= f), ("", 1.0)
    )
    return f"{value / factor:.3g} {prefix}"
