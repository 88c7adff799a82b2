"""Classification: the task that learns labels, its data, its loss, and how a model is evaluated."""

from scratchvit.training.classification.task import ClassificationTask, Result, prepare, train
