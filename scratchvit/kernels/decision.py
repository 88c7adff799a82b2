"""Whether a training step changes anything: it does if its loss and its gradients are finite.

    plain       if isfinite(norm) and isfinite(loss): …
    problem     on a GPU, `if` waits until the loss has been computed, and the GPU then waits for the next launches
    idea        the answer stays on the device, as a flag that the kernels of updates.py take as `when`. What follows
                from it is counted there too, and read when somebody asks

cuda/decision.py has the kernels for a GPU. All arrays are changed in place.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scratchvit.backend import Array, array_module
from scratchvit.kernels import cuda
from scratchvit.kernels.cuda import decision as on_gpu

MADE, OVERFLOW, GRADIENT, LOSS = range(4)       # how a step went; the last three are what was not finite
LARGEST = float(np.finfo(np.float32).max)       # the largest factor of a loss


class Counts(NamedTuple):
    """How the steps of a run went, int64 (7,) on the device. An overflow is a gradient that the scale of the loss made
    infinite: such steps are skipped too, but are not among `bad` and neither continue nor end a run of bad ones."""

    last: int           # how the last step went
    kind: int           # how the last bad step went: GRADIENT or LOSS
    skipped: int        # steps in this epoch that changed nothing
    bad: int            # steps whose loss or gradient was not finite
    in_a_row: int       # of them, those since the last step that was made
    longest: int        # the largest that `in_a_row` has been
    unmade: int         # skipped steps that the optimiser has counted as steps, and has not yet taken back


def judge(norm: Array, loss: Array, scale: Array | None, made: Array, skipped: Array, counts: Array) -> None:
    """made ← whether norm and loss are finite, skipped ← whether they are not, and count it.

    norm, loss: 0-d. scale: as of `adapt_scale`, before it is adapted to this step, or None. made, skipped: bool ().
    counts: `Counts`.
    """
    loss = loss.astype(norm.dtype, copy=False)
    if cuda.takes(norm):
        return on_gpu.judge(norm, loss, scale, made, skipped, counts)
    isfinite = array_module(norm).isfinite
    loss_is_finite = bool(isfinite(loss))
    made[...] = is_made = loss_is_finite and bool(isfinite(norm))
    skipped[...] = not is_made
    c = Counts(*counts.tolist())
    if is_made:
        c = c._replace(last=MADE, in_a_row=0)
    else:
        c = c._replace(last=OVERFLOW, skipped=c.skipped + 1, unmade=c.unmade + 1)
        if scale is None or not scale[0] > 1 or not loss_is_finite:
            kind, in_a_row = GRADIENT if loss_is_finite else LOSS, c.in_a_row + 1
            c = c._replace(
                last=kind, kind=kind, bad=c.bad + 1, in_a_row=in_a_row, longest=max(c.longest, in_a_row)
            )
    counts[...] = array_module(counts).asarray(list(c))


def adapt_scale(scale: Array, made: Array, growth_interval: int) -> None:
    """Halve the factor of the loss after a step that was not made, double it after so many that were.

    scale: float64 (3,), the factor, its inverse, and the number of steps made with this factor. made: bool ().
    """
    if cuda.takes(scale):
        return on_gpu.adapt_scale(scale, made, growth_interval, LARGEST)
    factor, _, clean_steps = scale.tolist()
    if not made:
        factor, clean_steps = factor / 2, 0
    else:
        clean_steps += 1
        if clean_steps == growth_interval:
            clean_steps = 0
            if 2 * factor <= LARGEST:
                factor *= 2
    scale[...] = array_module(scale).asarray([factor, 1 / factor, clean_steps])
