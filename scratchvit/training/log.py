"""The line of an epoch in the log of a run.

    epoch 3/10  train 0.4112, 86.9%  val 0.3650, 88.9%  best  8.4 s, 2.1 GiB, 59 s left
"""

from __future__ import annotations

from collections.abc import Sequence

from scratchvit import backend, progress
from scratchvit.costs.counting import readable_bytes
from scratchvit.training.task import Row

GPU_PEAK = "gpu_peak_bytes"     # column of metrics.csv, for runs on a GPU


def gpu_peak(captured: int) -> Row:
    """The column of the GPU's peak memory, in bytes; none on the CPU. captured: as `LearningStep.held`.

    It is what arrays have taken from the GPU in this process so far: pools keep what is freed for later arrays. CUDA
    itself needs some hundred MiB more.
    """
    held = backend.current().held
    return {} if held is None else {GPU_PEAK: held() + captured}


def line_legend(of_the_task: str) -> str:
    """What the numbers of the line are. of_the_task: `Task.legend`."""
    memory = "" if backend.current().held is None else " peak memory of the GPU,"
    return f"{of_the_task}; time,{memory} time left"


def epoch_line(history: Sequence[Row], epochs: int, of_the_task: str, is_best: bool) -> str:
    """The line of the last epoch in the history. of_the_task: `Task.line` of its row."""
    row = history[-1]
    memory = f", {readable_bytes(row[GPU_PEAK])}" if GPU_PEAK in row else ""
    return (
        f"epoch {row['epoch']}/{epochs}  {of_the_task}{'  best' if is_best else ''}  "
        f"{progress.duration(row['seconds'])}{memory}{_left(history, epochs)}"
    )


def _left(history: Sequence[Row], epochs: int) -> str:
    """How long the remaining epochs will take if they are like the last three."""
    remaining, last = epochs - len(history), history[-3:]
    if not remaining:
        return ""
    return f", {progress.duration(remaining * sum(row['seconds'] for row in last) / len(last))} left"
