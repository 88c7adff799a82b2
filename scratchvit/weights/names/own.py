"""Checkpoints of a training run here: the weights, their average if there is one, and the optimiser's state."""

from scratchvit.weights.names.layout import Layout, Weights


def _best_of(weights: Weights) -> Weights:
    """The averaged weights where there are any, as everywhere; the optimiser's state is none of the model's."""
    part = "ema." if any(name.startswith("ema.") for name in weights) else "model."
    return {name.removeprefix(part): value for name, value in weights.items() if name.startswith(part)}


CHECKPOINT = Layout(owner="scratchvit train", mark=r"(?:ema|optimizer)\..+", prepare=_best_of)
