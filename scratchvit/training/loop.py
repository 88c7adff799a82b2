"""The training loop, the same for every task.

    for epoch in …:
        for batch in loader:
            loss = task.loss(model, batch, …)                           # depends on the task, see task.py
            loss.backward(); clip; optimizer.step(); ema.update()       # see step.py, where a GPU replays a step
        evaluate on val; write metrics.csv; save last.safetensors, and best.safetensors if it is the best
    evaluate the best on test, once

With several ranks, every rank does all of this with its share of the images (step.py, agreement.py); only rank 0 writes
files, draws, and has bars and a log.

A checkpoint contains the whole state between two steps, so a run that was stopped anywhere continues bit for bit.
Whatever stops it (a signal, a full disk, a loss that is not finite), the last good checkpoint is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from tqdm import tqdm

from scratchvit import backend, nn, optim, progress
from scratchvit.backend import CPU, Array, backend_of
from scratchvit.data import Loader
from scratchvit.errors import WrongValue
from scratchvit.files import counted
from scratchvit.models import create_model
from scratchvit.parallel.buckets import Buckets
from scratchvit.parallel.communicator import ALONE, Communicator
from scratchvit.parallel.place import device_of_rank, ranks_of_device
from scratchvit.precision import computing_in, use_device
from scratchvit.random import Generator
from scratchvit.tensor import Tensor
from scratchvit.training import batches as reading
from scratchvit.training.agreement import average_statistics, check_alike, check_equal, on_rank_0, start_equal, together
from scratchvit.training.batches import NoBatch
from scratchvit.training.build import check_run, make_optimizer, make_schedule
from scratchvit.training.checkpoint import Checkpoint, load_checkpoint, load_into, save_checkpoint
from scratchvit.training.config import RunConfig
from scratchvit.training.diagnose import is_finite
from scratchvit.training.ending import Ending, Place
from scratchvit.training.events import EventFile
from scratchvit.training.folder import RunFolder, data_of_run
from scratchvit.training.interrupt import SignalWatch, StopRequested
from scratchvit.training.log import epoch_line, gpu_peak
from scratchvit.training.meter import over_ranks
from scratchvit.training.state import checkpoint_of, restore
from scratchvit.training.step import Compute, InHalves, LearningStep, NotFinite
from scratchvit.training.task import Batches, Course, ResultT, Row, Task
from scratchvit.training.timeline import Timeline
from scratchvit.weights import UNSEEN, LoadReport, load_weights, unseen_options

READ_EVERY = {"cpu": 1, "gpu": 20}      # steps between reads of the loss and gradient norm: on a GPU, each is a wait
WAITING = 0.05                          # fraction of an epoch spent waiting for pictures above which the log says so

TaskT_co = TypeVar("TaskT_co", bound=Task[Any], covariant=True)     # covariant, so that `run` infers its result


class TrainingLoop(Generic[TaskT_co]):
    """The training run of a task: its model, optimiser and data, and its progress.

    task     what is learned, see `Task`
    config   the settings of the run. If the task has a `config`, it must be the same object
    folder   the run folder. With resume, the run in it continues, even if it was stopped before its first checkpoint
    log      is called with one line per epoch
    ranks    the processes of the run. Each makes a loop with the same arguments, and can read the folder

    The constructor loads and builds everything and creates the folder; `run()` trains. No other run can write to the
    folder until `loop.folder.release()` is called, as `with loop.folder:` does at its end.

    Raises ScratchvitError for invalid settings, for weights or data that cannot be loaded, and for a folder that
    contains another run or is in use; the folder is then unchanged. Raises ValueError if the task has another config.
    All errors that one rank has are raised on all.
    """

    def __init__(
        self, task: TaskT_co, config: RunConfig, folder: str | Path, resume: bool = False,
        log: Callable[[str], None] = tqdm.write, ranks: Communicator = ALONE,
    ):
        if getattr(task, "config", config) is not config:
            name = type(task).__name__
            raise WrongValue(
                f"TrainingLoop: its config is not the config of its {name}: pass the same object to both, "
                f"TrainingLoop({name}(config), config, folder)"
            )
        check_run(config)
        task.check()
        self.task, self.config, self.ranks, self.is_first = task, config, ranks, ranks.rank == 0
        self.log = log if self.is_first else lambda line: None
        task.ranks = ranks
        self.folder = RunFolder(Path(folder))
        self.ending = Ending(config, self.folder, self._place)
        self._bars = contextlib.nullcontext if self.is_first else progress.hidden
        try:
            on_rank_0(ranks, lambda: self.folder.claim(config, resume))
            device = device_of_rank(config.device, ranks)
            together(ranks, lambda: use_device(device, config.precision))
            self.ranks = task.ranks = ranks = ranks_of_device(ranks)
            backend.keep_freed_memory()
            is_resumed = ranks.gather(self.folder.last.exists())[0]
            load = data_of_run(way_out="resume where it leads to them")(self._load) if resume else self._load
            with self._bars():
                saved = together(ranks, lambda: load(is_resumed))
            check_alike(ranks, {"settings": dataclasses.asdict(config), "pictures": self.fingerprint})
            self._build(saved)
            on_rank_0(ranks, self._begin_folder)        # only now, so that invalid settings change nothing
        except BaseException:
            self.folder.release()
            raise

    def _place(self) -> Place:
        return Place(self.step, self.schedule.total_steps, len(self.history))

    def _begin_folder(self) -> None:
        self.folder.begin(self.config)
        if self.history:
            self.folder.write_metrics(self.history)

    def _load(self, is_resumed: bool) -> Checkpoint | None:
        """Load data and model as the task says. Returns the state from which the run is resumed, or None.

        No rank waits for another here.
        """
        task, config = self.task, self.config
        # A resumed run has its own weights, and does not need the file of its initial weights.
        data = task.load_data(config.init and (self.folder.last if is_resumed else config.init))
        self.loader = data.train_loader(config)
        self.about, self.fingerprint = data.about(), data.fingerprint()
        # Options that the initial weights decide unless the run sets them; a resumed run has them in its checkpoint.
        theirs: dict[str, Any] = {}
        saved = load_checkpoint(self.folder.last) if is_resumed else None
        if saved:
            theirs = {name: saved.model_args[name] for name in UNSEEN if name in saved.model_args}
        elif config.init:
            theirs = unseen_options(config.init, config.model, entry=config.entry)
        self.model_args = theirs | task.model_args(self.about)
        self.model = create_model(config.model, seed=config.seed, **self.model_args)
        if config.sync_bn:
            nn.synchronise_batch_norms(self.model, task.ranks)
        self.generator = Generator(config.seed)         # of dropout and stochastic depth
        self.model.set_generator(self.generator)
        if not saved:
            task.init_from_data(self.model)
        self.loaded: LoadReport | None = None           # how the weights in `init` were loaded
        if config.init and not saved:
            self.loaded = load_weights(
                self.model, config.init, new_head=config.new_head, entry=config.entry
            )
            taken = {name: value for name, value in theirs.items() if name not in config.model_args}
            self.loaded.adapted += [f"the model, to the file's {name} {value}" for name, value in taken.items()]
        task.prepare_loss(self.model)
        return saved

    def _build(self, saved: Checkpoint | None) -> None:
        """Build optimiser and schedule, and take over the state that was saved."""
        config, ranks = self.config, self.ranks
        groups = self.task.param_groups(self.model)     # which may freeze some
        buckets = Buckets(self.model.parameters(), ranks, config.shard_optimizer) if ranks.size > 1 else None
        self.optimizer = make_optimizer(config, groups, buckets)
        self.schedule = make_schedule(config, len(self.loader))
        self.ema = optim.EMA(self.model, config.ema_decay) if config.ema_decay else None
        self.learn = LearningStep(config, self.model, self.optimizer, self.ema, self.log, self._note, buckets)
        self.timeline = Timeline(config.timeline, self.model, ranks, buckets, self.folder.timeline)
        self.watch = SignalWatch()
        self._read = reading.Batches(ranks, self.watch)
        self.events = EventFile(self.folder.path / "tensorboard")

        self.step = 0                                   # number of steps so far, including skipped ones
        self.epoch_seconds = 0.0                        # training time of this epoch
        self.advised = False                            # to use workers
        self.meter = self.task.meter()                  # of this epoch, and of this rank's images
        self.history: list[Row] = []                    # the rows of metrics.csv
        if saved:
            together(ranks, lambda: restore(self, saved))
        start_equal(self.model, self.ema, ranks)

    def run(self: TrainingLoop[Task[ResultT]]) -> ResultT:
        """Train to the end, then evaluate the best weights on the test split. Returns the result of `Task.test`.

        Raises ScratchvitError if the loss, a gradient or a weight is not finite, a picture cannot be read, the disk or
        the memory of the GPU is full; DeviceFailed, which is one too, for other errors of the GPU. Raises Interrupted
        after Ctrl-C or SIGTERM, once the run has been saved.
        """
        # A loss that is not finite raises an error with an explanation, so NumPy's warnings are not needed.
        computing = computing_in(self.config.precision)     # also in validation and test
        explained = self.ending.gpu_errors_explained()
        with np.errstate(all="ignore"), self.watch, explained, computing, self._bars():
            try:
                if len(self.history) < self.config.epochs:
                    self._say_why_not_replayed()
                    if self.config.shard_optimizer and not isinstance(self.optimizer, optim.Sharded):
                        self.log("       shard_optimizer has no effect in one process: begin with mpiexec or srun")
                    self.task.before_training(self.batches)
                while len(self.history) < self.config.epochs:
                    self._train_epoch()
                    self._finish_epoch()
                return self._test()
            except StopRequested:
                self._save_progress()
                assert self.watch.received is not None
                raise self.ending.interrupted(self.watch.received) from None
            except NoBatch as error:
                self._save_progress()
                raise self.ending.unreadable(error.__cause__) from error.__cause__
            except NotFinite as error:      # raised by the task
                raise self.ending.diverged(str(error)) from None
            finally:
                self.loader.close()

    def _say_why_not_replayed(self) -> None:
        why = self.task.why_not_replayed(self.model)
        if self.ranks.size > 1:
            why = "its gradients are exchanged with those of other processes"
        if why and self.config.replay and backend.current().has_cuda:
            self.log(f"       steps are not replayed, each operation is started by itself: {why}")

    def _train_epoch(self) -> None:
        """Run the remaining steps of this epoch."""
        epoch = len(self.history)
        if self.loader.state_dict()["epoch"] > epoch:
            return              # no steps remain: the run was stopped during validation
        self.model.train()
        description = f"epoch {epoch + 1}/{self.config.epochs}"
        total, done = self.loader.epoch_size, self.loader.state_dict()["batch"] * self.config.batch_size
        with progress.bar(total, description, done) as bar:
            begun, before = time.perf_counter(), self.epoch_seconds
            for batch in self.batches(self.loader):
                is_last = self.loader.state_dict()["epoch"] > epoch
                saves = self.config.save_every and (self.step + 1) % self.config.save_every == 0
                look = bool(is_last or saves or (self.step + 1) % self._read_every == 0)
                self._step(batch, look)
                if look:
                    bar.set_postfix(self.meter.shown(), refresh=False)
                bar.update(self.loader.whole)
                self.epoch_seconds = before + time.perf_counter() - begun
                if saves:
                    self.save()

    def batches(self, loader: Loader) -> Iterator[Any]:
        """Iterate over a loader. After a signal, or if a picture cannot be read, the run is saved and ends.

        Several ranks notice a signal between training steps, and after an evaluation.
        """
        return self._read.training(loader) if loader is self.loader else self._read.evaluation(loader)

    def _shown(self, description: str) -> Batches:
        """`batches`, with a progress bar."""
        return lambda loader: progress.over(self.batches(loader), loader.epoch_size, description)

    @property
    def _read_every(self) -> int:
        return READ_EVERY[self.config.device.partition(":")[0]]

    def _step(self, batch: Any, look: bool) -> None:
        images = batch.images
        # On a GPU, where the sum would have to be waited for, data that are not finite show in the loss. With several
        # ranks too, which have to end together.
        is_read = backend_of(images) is CPU and self.config.non_finite == "stop" and self.ranks.size == 1
        if is_read and not math.isfinite(images.sum()):
            wrong = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
            raise self.ending.diverged(f"the data is not finite (images {', '.join(map(str, wrong))} of the batch)")
        inputs = self.task.inputs(batch)
        arrays = self.task.arrays(self.model, batch, self.step)

        def compute(*arrays: Array, part: slice | None = None) -> tuple[Tensor, tuple[Any, ...]]:
            if arrays:
                return self.task.loss_of(self.model, *arrays)
            if part is not None:
                return self.task.loss_of_part(self.model, batch, part, self.step)
            return self.task.loss(self.model, batch, inputs, self.step)

        loss: Compute | InHalves = compute
        if arrays and self.task.in_halves:
            loss = InHalves(
                functools.partial(self.task.forward_of, self.model), functools.partial(self.task.match, batch),
                functools.partial(self.task.loss_of, self.model),
            )
        with self._what_ends_it_explained(), self.timeline.step(self.step):
            self.learn(loss, arrays, images, self.schedule.at(self.step), look, inputs, self.loader.whole)
        self.step += 1

    def _note(self, noted: tuple[Any, ...], made: Array) -> None:
        self.meter.add(*noted, made=made)

    @contextlib.contextmanager
    def _what_ends_it_explained(self) -> Iterator[None]:
        """Turn the NotFinite of a look into the error that ends the run."""
        try:
            yield
        except NotFinite as error:
            when = "" if self._read_every == 1 else f" (in one of the last {self._read_every} steps)"
            raise self.ending.diverged(f"{error}{when}") from None

    def _finish_epoch(self) -> None:
        """Validate, add a row to the history, and save."""
        begun = time.perf_counter()
        train, skipped = over_ranks(self.meter.read(), self.ranks), self.learn.skipped
        waiting = self.loader.waited / self.epoch_seconds
        if not train.images:
            scale = f", with a loss scale of {self.learn.scaler.factor:g} at last" if self.learn.scaler else ""
            raise self.ending.diverged(f"all steps of the epoch were skipped{scale}")
        val = self._validate()
        own_row = {
            "epoch": len(self.history) + 1, "step": self.step, "lr": self.schedule.at(self.step - 1),
            **train.columns("train_"),
            **val,
            "images_per_second": self.loader.epoch_size / self.epoch_seconds,
            "seconds": self.epoch_seconds + time.perf_counter() - begun,
            "skipped": skipped,
            **gpu_peak(self.learn.held),
        }
        row: Row = self.ranks.gather(own_row if self.is_first else None)[0]      # with its times
        if not math.isfinite(row["val_loss"]):
            raise self.ending.diverged("the loss on the validation images is not finite")
        is_best = all(self.task.merit(row) > self.task.merit(earlier) for earlier in self.history)
        self.history.append(row)
        self.epoch_seconds = 0.0
        self.meter.clear()
        self.learn.begin_epoch()
        self.save(is_best)
        on_rank_0(self.ranks, self._write_history)
        self.log(epoch_line(self.history, self.config.epochs, self.task.line(row), is_best))
        for remark in self._remarks(skipped, waiting):
            self.log(f"       {remark}")

    def _write_history(self) -> None:
        self.folder.write_metrics(self.history)
        self.events.write(self.history)

    def _remarks(self, skipped: int, waiting: float) -> Iterator[str]:
        """What is worth a line below that of an epoch; the advice about --workers once in a session."""
        if skipped:
            yield f"{counted(skipped, 'step')} skipped, because the loss or the gradient was not finite"
        if waiting > WAITING and not self.advised:
            self.advised = True
            yield f"{waiting:.0%} of the time was spent waiting for pictures: try --workers {self.config.workers + 1}"

    def _validate(self) -> Row:
        average_statistics(self.model, self.ema, self.ranks)
        with self.ema.applied() if self.ema else contextlib.nullcontext():
            row = self.task.validate(self.model, self._shown("validation"))
            on_rank_0(self.ranks, lambda: self.task.draw(self.folder.path, len(self.history) + 1))
        self._read.agree()
        return row

    def _test(self: TrainingLoop[Task[ResultT]]) -> ResultT:
        best = together(self.ranks, lambda: load_checkpoint(self.folder.best))
        load_into(self.model, best.ema or best.model, self.folder.best)
        row = self.history[best.progress["epoch"] - 1]
        course = Course(
            run_dir=self.folder.path,
            checkpoint=self.folder.best,
            best_epoch=row["epoch"],
            epochs=len(self.history),
            seconds=sum(row["seconds"] for row in self.history),
            images_per_second=sum(r["images_per_second"] for r in self.history) / len(self.history),
            skipped=sum(r.get("skipped", 0) for r in self.history),     # rows of older versions do not have it
            parameters=self.model.num_parameters(),
        )
        return self.task.test(self.model, self._shown("test"), row, course)

    # --- saving and restoring ---

    def _save_progress(self) -> None:
        """Save the run before it ends early."""
        if len(self.history) < self.config.epochs:      # otherwise only the test remains, and everything is saved
            self.save()

    def save(self, is_best: bool = False) -> None:
        """Write last.safetensors, after best.safetensors if these weights are the best.

        Raises ScratchvitError and writes nothing if a step or a weight was not finite, or ranks have other weights.
        """
        with self._what_ends_it_explained():
            self.learn.look()
        average_statistics(self.model, self.ema, self.ranks)
        check_equal(self.model, self.ema, self.ranks)
        if is_best:
            self._write(self.folder.best, with_optimizer=False)
        self._write(self.folder.last, with_optimizer=True)

    def _write(self, path: Path, with_optimizer: bool) -> None:
        checkpoint = checkpoint_of(self, with_optimizer)
        wrong = next((name for name, array in checkpoint.model.items() if not is_finite(array)), None)
        if wrong:
            raise self.ending.diverged(f"the weight {wrong} is not finite")
        on_rank_0(self.ranks, lambda: save_checkpoint(path, checkpoint))
