"""Rows for scratchvit/ops/loss.py."""

import warnings

import numpy as np

from scratchvit import ops
from tests.support.peers import import_torchvision
from tests.support.seeds import seeded

from .case import Case, apart

_labels = np.array([2, 0, 4, 2])
_some_ignored = np.array([2, -100, 4, 0])
_pixel_labels = np.array([[[0, 2, 1], [1, 1, 2]], [[2, 0, 255], [255, 0, 1]]])
_weight = np.array([0.5, 2.0, 1.0, 0.25, 1.5])
_soft = seeded(7).dirichlet(np.ones(5), 4)
_soft_pixels = np.moveaxis(seeded(8).dirichlet(np.ones(3), (2, 2, 2)), -1, 1)


def _cross_entropy(note, target, shape=(4, 5), **options):
    def theirs(torch, x):
        t = torch.as_tensor(target)
        t = t.to(x.dtype) if t.is_floating_point() else t
        mine = {k: torch.as_tensor(v, dtype=x.dtype) if k == "weight" else v for k, v in options.items()}
        return torch.nn.functional.cross_entropy(x, t, **mine)

    return Case("cross_entropy", (shape,), lambda x: ops.cross_entropy(x, target, **options), theirs, note)


def _row(name, note, inputs, constants=(), **options):
    """A loss of (x, target), both differentiable; `constants` are options that hold numbers."""
    constants = dict(constants)

    def ours(x, target):
        return getattr(ops, name)(x, target, **constants, **options)

    def theirs(torch, x, target):
        arrays = {key: torch.as_tensor(value, dtype=x.dtype) for key, value in constants.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "reduction: 'mean' divides")      # kl_div's mean is over entries
            return getattr(torch.nn.functional, name)(x, target, **arrays, **options)

    return Case(name, inputs, ours, theirs, note)


def _probabilities(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.uniform(0.05, 0.95, (3, 4)), rng.uniform(0.05, 0.95, (3, 4))]


def _apart_but_not_by_one(rng: np.random.Generator) -> list[np.ndarray]:
    """Differences that are multiples of 0.0515, never of 0.05: at 1 the slope of a smooth loss has a corner."""
    return [1.03 * array for array in apart((3, 4), (3, 4))(rng)]


def _log_probabilities(rng: np.random.Generator) -> list[np.ndarray]:
    return [np.log(_distributions(rng)), np.log(_distributions(rng))]


def _distributions(rng: np.random.Generator) -> np.ndarray:
    """Three over four classes, no probability close to 0, where t log t bends within a step of the differences."""
    weights = rng.uniform(0.1, 1, (3, 4))
    return weights / weights.sum(axis=1, keepdims=True)


def _log_probabilities_and_target(rng: np.random.Generator) -> list[np.ndarray]:
    return [np.log(_distributions(rng)), _distributions(rng)]


def _focal(note, target, **options):
    """Against torchvision's, whose Python needs none of its compiled operators."""
    def theirs(torch, x):
        focal_loss = import_torchvision().ops.sigmoid_focal_loss
        return focal_loss(x, torch.as_tensor(target, dtype=x.dtype), **options)

    shape = np.shape(target)
    return Case("sigmoid_focal_loss", (shape,), lambda x: ops.sigmoid_focal_loss(x, target, **options), theirs, note)


_reductions = ("mean", "sum", "none")
_entry_weight = np.linspace(0.5, 2, 12).reshape(3, 4)
_present = np.array([[1, 0, 0, 1], [0, 0, 1, 0], [1, 1, 0, 0]])

CASES = [
    *(_cross_entropy(r, _labels, reduction=r) for r in _reductions),
    *(_cross_entropy(f"ignored, {r}", _some_ignored, reduction=r) for r in _reductions),
    *(_cross_entropy(f"everything, {r}", _some_ignored, weight=_weight, label_smoothing=0.2, reduction=r)
      for r in _reductions),
    _cross_entropy("smoothing", _labels, label_smoothing=0.1),
    _cross_entropy("smoothing, ignored", _some_ignored, label_smoothing=0.1),
    _cross_entropy("weights", _labels, weight=_weight),
    _cross_entropy("all smoothing", _labels, label_smoothing=1.0),
    _cross_entropy("pixels", _pixel_labels, (2, 3, 2, 3), ignore_index=255, weight=_weight[:3], label_smoothing=0.1),
    _cross_entropy("pixels, none", _pixel_labels, (2, 3, 2, 3), ignore_index=255, reduction="none"),
    *(_cross_entropy(f"soft, {r}", _soft, reduction=r) for r in _reductions),
    _cross_entropy("soft, smoothing and weights", _soft, weight=_weight, label_smoothing=0.1),
    _cross_entropy("soft pixels", _soft_pixels, (2, 3, 2, 2), weight=_weight[:3]),
    *(_row("kl_div", r, _log_probabilities_and_target, reduction=r) for r in (*_reductions, "batchmean")),
    *(_row("kl_div", f"log target, {r}", _log_probabilities, reduction=r, log_target=True)
      for r in (*_reductions, "batchmean")),
    *(_row("binary_cross_entropy", r, _probabilities, reduction=r) for r in _reductions),
    _row("binary_cross_entropy", "weight", _probabilities, {"weight": _entry_weight}),
    *(_row("binary_cross_entropy_with_logits", r, ((3, 4), (3, 4)), reduction=r) for r in _reductions),
    _row("binary_cross_entropy_with_logits", "weights", ((3, 4), (3, 4)),
         {"weight": _entry_weight, "pos_weight": _weight[:4]}),
    *(_row("l1_loss", r, apart((3, 4), (3, 4)), reduction=r) for r in _reductions),
    *(_row("mse_loss", r, ((3, 4), (3, 4)), reduction=r) for r in _reductions),
    *(_row("smooth_l1_loss", r, _apart_but_not_by_one, reduction=r) for r in _reductions),
    _row("smooth_l1_loss", "beta", apart((3, 4), (3, 4)), beta=0.31),
    _row("smooth_l1_loss", "beta 0", apart((3, 4), (3, 4)), beta=0.0),
    *(_focal(r, _present, reduction=r) for r in _reductions),
    _focal("unweighted", _present, alpha=-1),
    _focal("options", _present, alpha=0.6, gamma=1.5, reduction="sum"),
    _focal("cross-entropy", _present, alpha=-1, gamma=0, reduction="sum"),
]
