"""A profile as a trace: JSON in the Chrome trace event format, which https://ui.perfetto.dev and chrome://tracing open.

Steps, their phases (forward, backward, update) and the calls of ops lie above each other on one track, in the order in
which they ran. A click on a call shows its module, its multiply-adds and bytes, and its time by the roofline.
"""

from __future__ import annotations

import json
from typing import Any

from scratchvit.costs.machine import Machine
from scratchvit.costs.profiling import Profile, Span


def chrome_trace(found: Profile, machine: Machine, title: str) -> bytes:
    """The timed steps of a profile as the content of a trace file. title: the name of the track."""
    begun = found.steps[0].start
    events: list[dict[str, Any]] = [
        {"name": name, "ph": "M", "pid": 1, "tid": 1, "args": {"name": text}}
        for name, text in (("process_name", "scratchvit"), ("thread_name", title))
    ]

    def add(span: Span, name: str, category: str, **args: Any) -> None:
        events.append({
            "name": name, "cat": category, "ph": "X", "pid": 1, "tid": 1,       # X: an event with a duration, in µs
            "ts": 1e6 * (span.start - begun), "dur": 1e6 * span.seconds, "args": args,
        })

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
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}).encode()
