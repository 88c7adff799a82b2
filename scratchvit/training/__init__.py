"""Training: settings, the loop, tasks, checkpoints, evaluation."""

from scratchvit.training.checkpoint import Checkpoint, load_checkpoint, model_from_checkpoint, save_checkpoint
from scratchvit.training.classification import ClassificationTask, Result, prepare, train
from scratchvit.training.classification.evaluate import Meter, Predictions, evaluate, predict
from scratchvit.training.config import RunConfig, TrainConfig
from scratchvit.training.folder import RunFolder, read_config
from scratchvit.training.interrupt import Interrupted
from scratchvit.training.loop import TrainingLoop
from scratchvit.training.meter import Means
from scratchvit.training.task import Course, Task
