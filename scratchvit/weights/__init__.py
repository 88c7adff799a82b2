"""Loading weights from files: third-party formats and parameter names, and the preprocessing that they need."""

from scratchvit.weights.fit import LoadReport
from scratchvit.weights.load import UNSEEN, load_weights, model_from_weights, unseen_options
