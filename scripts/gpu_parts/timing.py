"""How long a training step or a call takes, on devices that work while the host goes on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

Wait = Callable[[], None]       # for the device

ROUNDS = 3


def seconds_of(call: Callable[[], Any], wait: Wait) -> float:
    """Seconds of a call, with what it started on the device."""
    begin = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - begin


def step_times(step: Callable[[], Any], wait: Wait, most_steps: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of a training step, after two that compile and allocate.

    ms: of steps that follow each other, with one wait for the device at the end, as in training; the median of three
    rounds, all of which are in rounds_ms. host_ms: until a step is issued to an idle device. Equal to ms, the host is
    what limits the speed (or the step waits for the device itself, as a DETR's does). Rounds are as long as seconds
    allow, at most most_steps.
    """
    first = seconds_of(step, wait)
    estimate = max(seconds_of(step, wait), 1e-6)
    steps = max(1, min(most_steps, int(seconds / (ROUNDS + 1) / estimate)))
    issued = []
    for _ in range(min(5, steps)):
        begin = time.perf_counter()
        step()
        issued.append(1000 * (time.perf_counter() - begin))
        wait()

    def steps_in_a_row() -> None:
        for _ in range(steps):
            step()

    rounds = [1000 * seconds_of(steps_in_a_row, wait) / steps for _ in range(ROUNDS)]
    return {
        "ms": round(statistics.median(rounds), 4), "host_ms": round(statistics.median(issued), 4),
        "rounds_ms": [round(each, 4) for each in rounds], "first_s": round(first, 3), "steps": steps,
    }


def call_times(call: Callable[[], Any], wait: Wait, seconds: float = 0.1) -> dict[str, float]:
    """Microseconds of a call among many that follow each other: us; and those until it is issued: host_us.

    If us is well above host_us, the device is what limits the speed, and us is its time. Inputs stay where they are, so
    small ones are in the cache.
    """
    call()
    wait()
    calls = 1
    while True:
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        issued = time.perf_counter() - begin
        wait()
        took = time.perf_counter() - begin
        if took >= seconds / 2 or calls >= 1 << 16:
            return {"us": round(1e6 * took / calls, 3), "host_us": round(1e6 * issued / calls, 3)}
        calls *= 2
