"""Weights by a formula, for a model here and for a library's alike, so that its logits can be kept as numbers."""

import numpy as np

from scratchvit.weights.names import recognise


def formula(state):
    """{name: float32 array} of the shapes of a state: waves, scaled so that a matrix keeps its inputs' magnitude."""
    made = {}
    for number, (name, value) in enumerate(sorted(state.items())):
        shape = np.shape(value)
        wave = np.cos(np.arange(1, np.prod(shape, dtype=int) + 1) * (2.1 + 0.37 * number)).reshape(shape)
        is_scale = name.endswith("weight") and len(shape) == 1
        made[name] = (1 + 0.3 * wave if is_scale else wave * 1.4 / np.sqrt(shape[-1])).astype(np.float32)
    return made


def as_theirs(theirs, ours):
    """The library's state {name: array} whose values, under our names, are those of `ours`.

    theirs: the library's {name: array}, for its names and shapes. Found by numbering all of its entries and letting our
    own renaming say where each goes; an entry that it drops is zero.
    """
    sizes = {name: int(np.size(value)) for name, value in theirs.items()}
    first = dict(zip(sizes, np.cumsum([0, *sizes.values()][:-1])))
    numbered = {
        name: (first[name] + np.arange(sizes[name], dtype=np.float64)).reshape(np.shape(value))
        for name, value in theirs.items()
    }
    entries = np.zeros(sum(sizes.values()))
    for name, places in recognise(numbered).rename(numbered).weights.items():
        if name in ours:
            entries[places.astype(int).reshape(-1)] = ours[name].reshape(-1)
    return {
        name: entries[first[name] : first[name] + size].reshape(np.shape(theirs[name])).astype(np.float32)
        for name, size in sizes.items()
    }
