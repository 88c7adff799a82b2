"""Vision Transformers from scratch on NumPy and CuPy, with a hand-written autograd engine.

`sv.data`, `sv.training`, `sv.detection`, `sv.recipes`, `sv.inspect`, `sv.costs` and `sv.zoo` are imported when they are
used.
"""

import importlib
from types import ModuleType

from scratchvit import backend, nn, ops, optim, random
from scratchvit.backend import device, use
from scratchvit.checkpoint import checkpoint
from scratchvit.errors import ScratchvitError
from scratchvit.gradcheck import GradcheckWarning, GradientError, gradcheck
from scratchvit.plain import plain_forms
from scratchvit.precision import autocast, autocast_dtype, matmul_precision, set_matmul_precision
from scratchvit.recording import enable_grad, no_grad
from scratchvit.tensor import Tensor
from scratchvit.weights import load_weights
from scratchvit.weights.pretrained import create_model, list_models

__version__ = "0.1.0"

_ON_DEMAND = ("costs", "data", "detection", "inspect", "recipes", "training", "zoo")

__all__ = [
    "GradcheckWarning", "GradientError", "ScratchvitError", "Tensor", "__version__", "autocast", "autocast_dtype",
    "backend", "checkpoint", "create_model", "device", "enable_grad", "gradcheck", "list_models", "load_weights",
    "matmul_precision", "nn", "no_grad", "ops", "optim", "plain_forms", "random", "set_matmul_precision", "use",
]


def __getattr__(name: str) -> ModuleType:
    if name in _ON_DEMAND:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What users need: the public names, and the packages that are imported on demand."""
    return sorted([*__all__, *_ON_DEMAND])
