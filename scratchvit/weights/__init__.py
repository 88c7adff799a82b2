"""Weights from files: anybody's format, anybody's names, and what pictures they were trained to see."""

from scratchvit.weights.fit import LoadReport
from scratchvit.weights.load import load_weights, model_from_weights
