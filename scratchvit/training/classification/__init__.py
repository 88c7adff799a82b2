"""Classification: the task that learns labels, and its data."""

from scratchvit.training.classification.task import ClassificationTask, Result, prepare, train
