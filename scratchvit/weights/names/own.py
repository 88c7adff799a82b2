"""Checkpoints of a training run of scratchvit: weights, their average if there is one, and the optimiser's state."""

from scratchvit.weights.names.layout import Layout, Weights


def _best_of(weights: Weights) -> Weights:
    """The averaged weights if there are any, otherwise the plain weights, without the optimiser's state."""
    part = "ema." if any(name.startswith("ema.") for name in weights) else "model."
    return {name.removeprefix(part): value for name, value in weights.items() if name.startswith(part)}


CHECKPOINT = Layout(owner="scratchvit train", mark=r"(?:ema|optimizer)\..+", prepare=_best_of)
