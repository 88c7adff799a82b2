"""Whether a training step changes anything, decided and counted on the device; and the scale of the loss.

    plain       see kernels/decision.py: a few comparisons of single numbers
    problem     the host would have to wait for the numbers, which were computed last, before it launches what is next
    idea        a thread compares them and writes flags. The kernels that follow read these before they change anything
    who         one thread

In all of updates.py, `when` points to such a flag. A factor of 0 instead would not do: 0 · NaN is NaN.
"""

from __future__ import annotations

from scratchvit.backend import Array
from scratchvit.kernels.cuda.modules import launch

TEXT = r"""
// --- decision.py ---

// As the tuple of this name in kernels/decision.py.
struct Counts {
    size last, kind, skipped, bad, in_a_row, longest, unmade;
};
enum { MADE, OVERFLOWN, GRADIENT, LOSS };

// Whether this step is made, and what follows for the counts. scale: its factor comes first, or null. One thread.
extern "C" __global__ void judge(const T* norm, const T* loss, const double* scale, bool* made, bool* skipped,
                                 Counts* counts) {
    bool loss_is_finite = isfinite(*loss), is_made = loss_is_finite && isfinite(*norm);
    *made = is_made;
    *skipped = !is_made;
    if (is_made) {
        counts->last = MADE;
        counts->in_a_row = 0;
        return;
    }
    counts->skipped += 1;
    counts->unmade += 1;
    counts->last = OVERFLOWN;
    if (scale && *scale > 1 && loss_is_finite) return;
    counts->last = counts->kind = loss_is_finite ? GRADIENT : LOSS;
    counts->bad += 1;
    counts->in_a_row += 1;
    if (counts->in_a_row > counts->longest) counts->longest = counts->in_a_row;
}

// scale: the factor, its inverse, the steps made with it. One thread.
extern "C" __global__ void adapt_scale(double* scale, const bool* made, size growth_interval, double largest) {
    if (!*made) {
        scale[0] /= 2;
        scale[2] = 0;
    } else if (++scale[2] == growth_interval) {
        scale[2] = 0;
        if (2 * scale[0] <= largest) scale[0] *= 2;
    }
    scale[1] = 1 / scale[0];
}
"""


def judge(norm: Array, loss: Array, scale: Array | None, made: Array, skipped: Array, counts: Array) -> None:
    """The `judge` of kernels/decision.py."""
    launch("norms", "judge", norm, (1,), (1,), norm, loss, scale, made, skipped, counts)


def adapt_scale(scale: Array, made: Array, growth_interval: int, largest: float) -> None:
    """The `adapt_scale` of kernels/decision.py."""
    launch("norms", "adapt_scale", scale, (1,), (1,), scale, made, growth_interval, largest)
