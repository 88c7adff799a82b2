"""Classification: the task, its data, its loss, and evaluation."""

from scratchvit.training.classification.task import ClassificationTask, Result, prepare, train
