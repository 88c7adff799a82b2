"""`scratchvit profile`: how long each op of a model takes, and how long the machine would need at best."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from scratchvit import backend
from scratchvit.cli._options import Parser, add_device, add_model, positive
from scratchvit.cli._output import OUTPUT, add_output, note_result
from scratchvit.cli._text import filled, table
from scratchvit.costs.counting import configured_shape, readable_bytes
from scratchvit.costs.machine import Machine, measure
from scratchvit.costs.profiling import BACKWARD, FORWARD, Profile, Row, profile, summed
from scratchvit.costs.trace import chrome_trace
from scratchvit.files import check_can_be_written, counted, printable, write_atomically
from scratchvit.models import create_model
from scratchvit.models.interface import config_of, detects

DESCRIPTION = """\
The time that each op of a model takes in a training step, forward and backward, beside what the machine can do. The
images are random, and so are the weights.

  scratchvit profile vit_tiny_patch16_224
  scratchvit profile swin_tiny_patch4_window7_224 --inference --batch-size 1
  scratchvit profile resnet18 --img-size 64 --trace trace.json

All numbers are medians per step:
  calls    how often the op is called
  ms, %    its time, and the share of the time of all ops
  GFLOP/s  two for each multiply-add of matrix products and convolutions. The
           backward of a product makes twice those of its forward.
  peak     GFLOP/s as a share of the machine's, measured in a float32 product
  bytes    inputs and outputs, each read or written once, and what is saved
           for the backward
  at best  time in ms by the roofline, in which the machine makes these
           multiply-adds at its peak, or moves these bytes as fast as a large
           copy, whichever takes longer. Arrays that stay in the cache can be
           faster.

On a GPU, each op is waited for, so its time includes the launch of its kernels. Open the file of --trace at
https://ui.perfetto.dev or in chrome://tracing.
"""
NAME = 20       # columns for the name of an op: the table fits 80


def profile_table(argv: Sequence[str]) -> int:
    """Print the time of each op, and write a trace if one is asked for."""
    parser = Parser(prog="scratchvit profile", usage="scratchvit profile MODEL [options]", description=DESCRIPTION)
    parser.add_argument("--batch-size", type=positive, default=8, metavar="SIZE", help="images per batch (default: 8)")
    parser.add_argument(
        "--steps", type=positive, default=5, metavar="N",
        help="steps in which ops are timed, after one to warm up; as many run without timing the ops (default: 5)",
    )
    parser.add_argument("--inference", action="store_true", help="time inference: no backward and no update")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write the timed steps as a trace for Perfetto")
    add_device(parser)
    add_output(parser)
    add_model(parser, argv)
    given = parser.parse_strictly(argv)
    check_can_be_written(given.trace)
    own = {"model", "batch_size", "steps", "inference", "trace", "device", *OUTPUT}
    sizes = {name: value for name, value in vars(given).items() if name not in own}

    backend.use(given.device)
    backend.keep_freed_memory()         # as in training
    model = create_model(given.model, **sizes)
    machine = measure()
    found = profile(model, batch_size=given.batch_size, steps=given.steps, inference=given.inference)
    title = _title(given, configured_shape(model))
    rows = found.rows(machine)
    print(f"{filled(title)}\n{filled(_about(machine))}\n")
    print(f"{table(_lines(rows, machine))}\n\n{filled(_step(found, given))}")
    if detects(config_of(model)) and not given.inference:
        print("The loss is that of all queries, without matching them to objects.")
    if given.trace:
        write_atomically(given.trace, chrome_trace(found, machine, title))
        print(f"trace: {printable(given.trace)}, for https://ui.perfetto.dev")
    note_result(
        model=given.model, device=given.device, batch_size=given.batch_size, inference=given.inference,
        peak_flops_per_second=machine.flops, bandwidth_bytes_per_second=machine.bandwidth,
        step_seconds=found.plain_seconds, timed_step_seconds=found.timed_seconds, share_of_ops=found.share_of_ops,
        share_of_update=found.share_of_update,
        ops=[dataclasses.asdict(row) | {"flops_per_second": row.flops} for row in rows], trace=given.trace,
    )
    return 0


def _title(given: argparse.Namespace, shape: Sequence[int]) -> str:
    what = "inference" if given.inference else "a training step"
    images = f"{counted(given.batch_size, 'image')} of {'×'.join(map(str, shape))}"
    return f"{given.model} on the {given.device.upper()}: {what} with {images}, median of {given.steps}"


def _about(machine: Machine) -> str:
    return (
        f"this machine: {machine.flops / 1e9:,.0f} GFLOP/s in a float32 product, "
        f"{machine.bandwidth / 1e9:,.1f} GB/s in a copy"
    )


def _lines(rows: Sequence[Row], machine: Machine) -> list[tuple[str, ...]]:
    """The lines of the table: the ops of the forward, those of the backward, and the totals."""
    everything = summed(rows, "")
    lines: list[tuple[str, ...]] = [("", "calls", "ms", "%", "GFLOP/s", "peak", "bytes", "at best")]

    def add(name: str, row: Row) -> None:
        short = name if len(name) <= NAME else f"{name[: NAME - 1]}…"
        lines.append((f"  {short}", *_figures(row, everything.seconds, machine)))

    directions = [name for name in (FORWARD, BACKWARD) if any(row.direction == name for row in rows)]
    for direction in directions:
        lines.append((direction, *[""] * 7))
        for row in rows:
            if row.direction == direction:
                add(row.op, row)
    lines.append(("total", *[""] * 7))
    for direction in directions:
        add(direction, summed([row for row in rows if row.direction == direction], direction))
    if len(directions) > 1:
        add("both", everything)
    return lines


def _figures(row: Row, all_seconds: float, machine: Machine) -> tuple[str, ...]:
    products = row.macs > 0
    return (
        f"{row.calls:,}",
        _milliseconds(row.seconds),
        f"{100 * row.seconds / all_seconds:.1f}",
        f"{row.flops / 1e9:,.1f}" if products else "",
        f"{row.flops / machine.flops:.0%}" if products else "",
        readable_bytes(row.nbytes) if row.nbytes else "",
        _milliseconds(row.at_best) if row.nbytes else "",
    )


def _milliseconds(seconds: float) -> str:
    """A time in ms with about three digits: 0.012, 1.23, 45.6, 1,234."""
    ms = 1000 * seconds
    return f"{ms:,.{3 if ms < 1 else 2 if ms < 10 else 1 if ms < 100 else 0}f}"


def _step(found: Profile, given: argparse.Namespace) -> str:
    """The time of a step and where it lies, as text."""
    rest = 1 - found.share_of_ops - found.share_of_update
    update = "" if given.inference else f"{found.share_of_update:.1%} in AdamW's update, "
    return (
        f"A step takes {_milliseconds(found.plain_seconds)} ms, and {_milliseconds(found.timed_seconds)} ms while each "
        f"op is timed. {found.share_of_ops:.1%} of that lies in ops, {update}and {rest:.1%} between them: in the "
        "engine, in sums of gradients and in Python."
    )
