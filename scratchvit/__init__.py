"""Vision Transformers from scratch on NumPy and CuPy, with a hand-written autograd engine."""

from scratchvit import _openblas  # isort: skip  (before anything that imports NumPy)
from scratchvit import backend, nn, ops, optim, random
from scratchvit.backend import device, use
from scratchvit.checkpoint import checkpoint
from scratchvit.errors import ScratchvitError
from scratchvit.gradcheck import GradcheckWarning, GradientError, gradcheck
from scratchvit.models import create_model, list_models
from scratchvit.recording import enable_grad, no_grad
from scratchvit.tensor import Tensor
from scratchvit.weights import load_weights

__version__ = "0.1.0"
