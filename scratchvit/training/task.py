"""The interface of a task: what a run learns. `loop.TrainingLoop` calls the methods of its task:

    data                load_data, model_args, init_from_data
    training            prepare_loss, param_groups, meter, before_training, inputs, loss
    evaluation          validate, draw, merit, line, test

The loop owns the model, the optimiser and the progress of the run, and passes the model to the methods that need it.
The task owns the data and the loss function.

Tasks are `classification.ClassificationTask` and `detection.task.DetectionTask`. A third one, in about sixty lines, is
in tests/training/test_third_task.py; CONTRIBUTING.md has the checklist.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

from scratchvit.backend import Array
from scratchvit.data import Loader
from scratchvit.errors import WrongState
from scratchvit.parallel.communicator import ALONE, Communicator
from scratchvit.tensor import Tensor
from scratchvit.training.meter import Means

ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)

Row: TypeAlias = dict[str, Any]
"""The row of an epoch in metrics.csv: {column: number}, None for an empty cell."""

Batches: TypeAlias = Callable[[Loader], Iterator[Any]]
"""Iterates over the batches of a loader. After a signal, or if a picture cannot be read, the run is saved and ends."""


class Data(Protocol):
    """The data that a task is trained and evaluated on."""

    def about(self) -> dict[str, Any]:
        """The description of the data in a checkpoint: numbers, strings, lists and dictionaries.

        Commands that open a checkpoint, and a `Teacher`, expect "classes", "mean" and "std".
        """

    def fingerprint(self) -> dict[str, int]:
        """Checksums that change if pictures are added, removed or reordered. A resumed run must have the same."""

    def train_loader(self, config: Any) -> Loader:
        """The loader of the training batches: named tuples with a field `images`, float32 (B, C, H, W)."""


class Sums(Protocol):
    """A meter: a dataclass of sums over the images of an epoch. They stay on the device until they are read."""

    images: Any

    def add(self, *noted: Any, **made: Any) -> None:
        """Add a batch: the second value that `Task.loss` returns, as arguments, and made=….

        made: whether the step was made, bool () on the device; otherwise, nothing is added (kernels/updates.py helps).
        It is part of the step that is captured and replayed, if the task has `arrays`: the sums are then arrays on the
        device, the number of images too, which are changed in place.
        """

    def read(self) -> Any:
        """A copy with Python numbers, which a checkpoint can contain. On the GPU this waits for the device."""

    def clear(self) -> None:
        """Set all sums to 0, arrays in place. Called at the end of an epoch."""

    def columns(self, prefix: str) -> Row:
        """{prefix + name: mean over the images}; one of the names is "loss"."""

    def shown(self) -> dict[str, str]:
        """What the progress bar shows."""


@dataclass(frozen=True)
class Course:
    """The outcome of a run, whatever its task. The result of a task adds its own figures."""

    run_dir: Path
    checkpoint: Path            # of the best weights
    best_epoch: int             # from 1
    epochs: int
    seconds: float              # time of training and validation, summed over all sessions
    images_per_second: float    # in training, mean over the epochs
    skipped: int                # steps that were skipped because the loss or gradient was not finite
    parameters: int


class Task(Protocol[ResultT_co]):
    """The methods that the loop calls, in this order. Inherit from this class: only the abstract ones are required.

    `Task[MyResult]` has a `test` that returns MyResult, and so does `TrainingLoop.run`. `model` is always the model of
    the run. Iterate over a loader by `batches(loader)`, see `Batches`.

    ranks: the processes of the run. The loop sets it before it calls `load_data`. A batch is then this rank's share of
    the batch. The losses of all ranks, each weighted by its share of the images, must add up to the loss of the batch.
    """

    ranks: Communicator = ALONE

    # --- once, at the beginning ---

    def check(self) -> None:
        """Raise ScratchvitError for invalid settings. Called first, after the checks that all tasks share."""
        return

    @abstractmethod
    def load_data(self, init: str | Path | None) -> Data:
        """Load the data. init: file of the initial weights, if any; pixels are to be normalised as they expect."""

    @abstractmethod
    def model_args(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `create_model`, from the data and from the settings. about: from `Data.about`."""

    def init_from_data(self, model: Any) -> None:
        """Initialise what depends on the data. Called for a new run, before pretrained weights are loaded."""
        return

    def prepare_loss(self, model: Any) -> None:
        """Build the loss function. The model has its initial weights, even if the run is then resumed."""
        return

    @abstractmethod
    def param_groups(self, model: Any) -> list[dict[str, Any]]:
        """The parameter groups of the optimiser, in the form of `optim.param_groups`."""

    def meter(self, **sums: Any) -> Sums:
        """A new meter; with the fields of a saved one, a copy of it. By default `Means`."""
        return Means(**sums)

    def before_training(self, batches: Batches) -> None:
        """Compute what is not saved. Called before the first step of every session."""
        return

    # --- every step ---

    def inputs(self, batch: Any) -> Mapping[str, Any]:
        """Further keyword arguments of the model, besides the images, such as a padding mask."""
        return {}

    @abstractmethod
    def loss(self, model: Any, batch: Any, inputs: Mapping[str, Any], step: int) -> tuple[Tensor, tuple[Any, ...]]:
        """The loss, a Tensor (), and the arguments of the meter's `add`, which adds nothing if the step is skipped.

        batch: a batch of the loader, its images on the device in use, everything else on the host. inputs: the result
        of `inputs` for it. step: number of the step, from 0; random numbers should depend on (seed, step) only, so that
        a resumed run draws the same ones. Do not read from the device here. If outputs are not finite, the loss is to
        be NaN, and not an error, which other processes would wait for.
        """

    def loss_of_part(self, model: Any, batch: Any, part: slice, step: int) -> tuple[Tensor, tuple[Any, ...]]:
        """What `loss` returns, for the images `part` of a batch, if a run accumulates gradients.

        The losses of all parts, each weighted by its share of the images, must add up to the loss of the batch. By
        default, the loss is a mean over images, and each field of the batch has an entry for every image.
        """
        images = type(batch)(*(field[part] for field in batch))
        return self.loss(model, images, self.inputs(images), step)

    def arrays(self, model: Any, batch: Any, step: int) -> tuple[Array, ...]:
        """What the loss depends on, as arrays on the device, if a step can be replayed on a GPU: `loss` is then
        loss_of(model, *arrays). By default (): it cannot. If a run accumulates gradients, they are cut by their first
        axis, which must be that of the images, and the loss must be a mean over them."""
        return ()

    in_halves: bool = False
    """Whether the host has to decide something before the loss can be computed from the arrays: it is then
    loss_of(model, kept, *match(batch, asked)) with kept, asked = forward_of(model, *arrays)."""

    def forward_of(self, model: Any, *arrays: Array) -> tuple[Any, Array]:
        """What the loss needs, and an array for the host to read. Captured and replayed, as `loss_of` is."""
        raise WrongState(f"{type(self).__name__} is in_halves, so it must have forward_of and match")

    def match(self, batch: Any, asked: Any) -> tuple[Array, ...]:
        """What the host decides, as arrays on the device. asked: the array, on the host. Raises as `loss` does."""
        raise WrongState(f"{type(self).__name__} is in_halves, so it must have forward_of and match")

    def why_not_replayed(self, model: Any) -> str:
        """Why its steps cannot be replayed on a GPU, for the log, or ""."""
        return ""

    def loss_of(self, model: Any, *arrays: Any) -> tuple[Tensor, tuple[Any, ...]]:
        """What `loss` returns, from `arrays`. The shapes of the arrays decide which operations it consists of, and it
        reads nothing from the device: it is captured and replayed (see replay.py)."""
        raise WrongState(f"{type(self).__name__} gives arrays, so it must have loss_of")

    # --- every epoch ---

    @abstractmethod
    def validate(self, model: Any, batches: Batches) -> Row:
        """Evaluate on the validation split: {column: number}, with "val_loss". With EMA, the model has its averages.

        Raises `step.NotFinite` if a figure cannot be computed. The run also ends if "val_loss" is not finite.
        """

    def draw(self, folder: Path, epoch: int) -> None:
        """Write pictures of the last validation into the run folder. epoch: from 1."""
        return

    def merit(self, row: Row) -> tuple[float, ...]:
        """The quality of an epoch: the best epoch is the first with the largest tuple. By default (-val_loss,)."""
        return (-row["val_loss"],)

    def line(self, row: Row) -> str:
        """The losses and metrics of an epoch, as text for the log: about 40 characters."""
        return f"train {row['train_loss']:.4f}  val {row['val_loss']:.4f}"

    @property
    def legend(self) -> str:
        """What the numbers of `line` are."""
        return "loss on train and val"

    # --- once, at the end ---

    @abstractmethod
    def test(self, model: Any, batches: Batches, row: Row, course: Course) -> ResultT_co:
        """Evaluate on the test split: the result of the run. The model has the best weights; row: that of their epoch.

        Raises `step.NotFinite` as `validate` does.
        """
