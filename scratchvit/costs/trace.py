"""A profile as a trace: JSON in the Chrome trace event format, which https://ui.perfetto.dev and chrome://tracing open.

Steps, their phases (forward, backward, update) and the calls of ops lie above each other on one track, in the order in
which they ran. A click on a call shows its module, its multiply-adds and bytes, and its time by the roofline.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from scratchvit.costs.machine import Machine
from scratchvit.costs.profiling import Profile, Span


def chrome_trace(found: Profile, machine: Machine, title: str) -> bytes:
    """The timed steps of a profile as the content of a trace file. title: the name of the track."""
    begun = found.steps[0].start
    events = [named("process_name", "scratchvit", 1), named("thread_name", title, 1, 1)]

    def add(span: Span, name: str, category: str, **args: Any) -> None:
        events.append(lasting(name, category, (1, 1), span.start - begun, span.seconds, **args))

    for number, step in enumerate(found.steps, 1):
        add(step, f"step {number}", "step")
        for phase in step.phases:
            add(phase, phase.name, "phase")
        for call in step.calls:
            flops = 2 * call.macs
            add(
                call, call.name, call.direction, module=call.module, multiply_adds=call.macs, bytes=call.nbytes,
                gflops_per_second=round(flops / call.seconds / 1e9, 3) if call.seconds else None,
                at_best_us=round(1e6 * machine.at_best(flops, call.nbytes), 3),
            )
    about = {"peak_flops_per_second": machine.flops, "bandwidth_bytes_per_second": machine.bandwidth}
    return trace_file(events, about)


def trace_file(events: Sequence[dict[str, Any]], about: dict[str, Any]) -> bytes:
    """The content of a trace file. about: what is shown as information on the whole trace."""
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}).encode()


def named(what: str, text: str, process: int, thread: int = 0) -> dict[str, Any]:
    """An event that names a process or a thread. what: "process_name" or "thread_name"."""
    return {"name": what, "ph": "M", "pid": process, "tid": thread, "args": {"name": text}}


def lasting(
    name: str, category: str, place: tuple[int, int], start: float, seconds: float, **args: Any
) -> dict[str, Any]:
    """An event with a duration, on the track (process, thread). Times are in seconds, those of the file in µs."""
    process, thread = place
    return {
        "name": name, "cat": category, "ph": "X", "pid": process, "tid": thread,
        "ts": 1e6 * start, "dur": 1e6 * seconds, "args": args,
    }
