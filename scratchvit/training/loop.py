"""The training loop, whatever is learned.

    for epoch in …:
        for batch in loader:
            loss = task.loss(model, batch, …)           # what differs from task to task: task.py
            loss.backward(); clip; optimizer.step(); ema.update()       # see step.py
        evaluate on val; write metrics.csv; save last.safetensors, and best.safetensors if it is the best
    evaluate the best on test, once

All that it remembers between two steps is in the checkpoint, so a run that was stopped anywhere goes on as if it had
never been. Whatever stops it (a signal, a full disk, a loss that is not finite) leaves the last good checkpoint alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from tqdm import tqdm

from scratchvit import backend, optim
from scratchvit.data import Loader
from scratchvit.errors import ScratchvitError
from scratchvit.models import create_model
from scratchvit.random import Generator
from scratchvit.training.build import check_run, make_optimizer, make_schedule
from scratchvit.training.checkpoint import Checkpoint, current_versions, load_checkpoint, load_into, save_checkpoint
from scratchvit.training.config import RunConfig
from scratchvit.training.diagnose import is_finite
from scratchvit.training.events import EventFile
from scratchvit.training.folder import RunFolder, resuming
from scratchvit.training.interrupt import Interrupted, SignalWatch, StopRequested
from scratchvit.training.step import LearningStep, NoLoss, NotFinite
from scratchvit.training.task import Course, Row, Task
from scratchvit.weights import UNSEEN, LoadReport, load_weights, unseen_options

READ_EVERY = {"cpu": 1, "gpu": 20}      # steps between two looks at the numbers: on a GPU each waits for the device
WAITING = 0.05                          # share of an epoch spent waiting for pictures, beyond which a line says so

TaskT = TypeVar("TaskT", bound=Task)    # so that whoever has a loop knows its task's type


class _NoBatch(Exception):
    """What a loader raised is its cause. On its way to `run` it undoes what must be undone before saving."""


class TrainingLoop(Generic[TaskT]):
    """A run of a task: model, optimiser and data, and where it stands.

    task     what is learned, see `Task`
    config   the settings of the run; the task's own settings are its own affair
    folder   of the run. With resume, the run there goes on; it may be one that was stopped before its first save
    log      gets one line per epoch

    Everything is loaded and built, and the folder made, when the constructor returns; `run()` then trains. Until
    `loop.folder.release()`, which `with loop.folder:` calls, no other run can write there.

    Raises ScratchvitError for settings that make no sense, weights or data that cannot be loaded, and a folder that
    holds another run or in which one is going on. The folder is then as it was.
    """

    def __init__(
        self, task: TaskT, config: RunConfig, folder: str | Path, resume: bool = False,
        log: Callable[[str], None] = tqdm.write,
    ):
        check_run(config)
        task.check()
        self.task, self.config, self.log = task, config, log
        self.folder = RunFolder(Path(folder))
        try:
            self.folder.claim(config, resume)
            backend.use(config.device)
            backend.keep_freed_memory()
            self._build(goes_on=self.folder.last.exists())
            self.folder.begin(config)       # only now, so that settings that do not work change nothing
            if self.history:
                self.folder.write_metrics(self.history)
        except BaseException:
            self.folder.release()
            raise

    def _build(self, goes_on: bool) -> None:
        """Ask the task for everything; goes_on: take up the run that is saved in the folder."""
        task, config = self.task, self.config
        # A run that goes on has weights of its own, and needs the file that it began with no more.
        data = task.load_data(config.init and (self.folder.last if goes_on else config.init))
        self.loader = data.train_loader(config)
        self.about, self.fingerprint = data.about(), data.fingerprint()
        # What the initial weights decide, unless the run does; once it has begun, its own checkpoint says it.
        theirs: dict[str, Any] = {}
        if goes_on:
            args = load_checkpoint(self.folder.last).model_args
            theirs = {name: args[name] for name in UNSEEN if name in args}
        elif config.init:
            theirs = unseen_options(config.init, config.model)
        self.model_args = theirs | task.model_args(self.about)
        self.model = create_model(config.model, seed=config.seed, **self.model_args)
        self.generator = Generator(config.seed)         # of dropout and stochastic depth
        self.model.set_generator(self.generator)
        if not goes_on:
            task.init_from_data(self.model)
        self.loaded: LoadReport | None = None           # what came of `init`
        if config.init and not goes_on:
            self.loaded = load_weights(self.model, config.init, new_head=config.new_head)
            taken = {name: value for name, value in theirs.items() if name not in config.model_args}
            self.loaded.adapted += [f"the model, to the file's {name} {value}" for name, value in taken.items()]
        task.prepare_loss(self.model)
        self.optimizer = make_optimizer(config, task.param_groups(self.model))
        self.schedule = make_schedule(config, len(self.loader))
        self.ema = optim.EMA(self.model, config.ema_decay) if config.ema_decay else None
        self.learn = LearningStep(config, self.model, self.optimizer, self.ema)
        self.watch = SignalWatch()
        self.events = EventFile(self.folder.path / "tensorboard")

        self.step = 0                                   # steps made
        self.epoch_seconds = 0.0                        # spent in this epoch
        self.meter = task.meter()                       # of this epoch
        self.history: list[Row] = []                    # the rows of metrics.csv
        if goes_on:
            self._go_on()

    def run(self) -> Any:
        """Train to the end, then evaluate the best weights on the test split. Returns what `Task.test` does.

        Raises ScratchvitError if numbers are not finite, a picture cannot be read, or the disk is full; Interrupted
        after Ctrl-C or SIGTERM, when the run has been saved.
        """
        # A loss that is not finite is found and explained below; NumPy's warnings would only come first.
        with np.errstate(all="ignore"), self.watch:
            try:
                if len(self.history) < self.config.epochs:
                    self.task.before_training(self.batches)
                while len(self.history) < self.config.epochs:
                    self._train_epoch()
                    self._finish_epoch()
                return self._test()
            except StopRequested:
                raise self._interrupted() from None
            except _NoBatch as error:
                raise self._out_of_pictures(error.__cause__) from error.__cause__
            except NotFinite as error:      # the task's
                raise self._diverged(str(error)) from None
            finally:
                self.loader.close()

    def _train_epoch(self) -> None:
        """The steps of this epoch that are still to be made."""
        epoch = len(self.history)
        if self.loader.state_dict()["epoch"] > epoch:
            return              # stopped during validation: they are all made
        self.model.train()
        description = f"epoch {epoch + 1}/{self.config.epochs}"
        total, done = self.loader.epoch_size, self.loader.state_dict()["batch"] * self.config.batch_size
        with tqdm(total=total, initial=done, desc=description, unit="img", leave=False) as bar:
            begun, before = time.perf_counter(), self.epoch_seconds
            for batch in self.batches(self.loader):
                is_last = self.loader.state_dict()["epoch"] > epoch
                look = is_last or (self.step + 1) % READ_EVERY[self.config.device] == 0
                self._step(batch, look)
                if look:
                    bar.set_postfix(self.meter.shown(), refresh=False)
                bar.update(len(batch.images))
                self.epoch_seconds = before + time.perf_counter() - begun
                if self.config.save_every and self.step % self.config.save_every == 0:
                    self.save()

    def batches(self, loader: Loader) -> Iterator[Any]:
        """The loader's batches. A signal stops the run after one; if one cannot be made, the run is saved first."""
        try:
            for batch in loader:
                yield batch
                self.watch.check()
        except ScratchvitError as error:
            raise _NoBatch from error

    def _step(self, batch: Any, look: bool) -> None:
        images = batch.images
        if self.config.non_finite == "stop" and not math.isfinite(images.sum()):
            wrong = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
            raise self._diverged(f"the data is not finite (images {', '.join(map(str, wrong))} of the batch)")
        inputs = self.task.inputs(batch)
        self.learn.begin()
        try:
            try:
                loss, noted = self.task.loss(self.model, batch, inputs, self.step)
            except NoLoss as error:
                self.learn.leave_out(error, images, inputs)
            else:
                if self.learn(loss, images, self.schedule.at(self.step), look, inputs):
                    self.meter.add(*noted)
        except NotFinite as error:
            every = 1 if self.learn.may_leave_out else READ_EVERY[self.config.device]
            begun = "" if every == 1 else f" (at one of the last {every} steps)"
            raise self._diverged(f"{error}{begun}") from None
        self.step += 1

    def _finish_epoch(self) -> None:
        """Validate, note the row, and save."""
        begun = time.perf_counter()
        train, skipped = self.meter.read(), self.learn.skipped
        waiting = self.loader.waited / self.epoch_seconds
        if not train.images:
            scale = f", though its loss is by now scaled by {self.learn.scaler.factor:g}" if self.learn.scaler else ""
            raise self._diverged(f"every step of the epoch had to be left out{scale}")
        val = self._validate()
        row = {
            "epoch": len(self.history) + 1,
            "step": self.step,
            "lr": self.schedule.at(self.step - 1),
            **train.columns("train_"),
            **val,
            "images_per_second": self.loader.epoch_size / self.epoch_seconds,
            "seconds": self.epoch_seconds + time.perf_counter() - begun,
            "skipped": skipped,
        }
        if not math.isfinite(row["val_loss"]):
            raise self._diverged("the loss on the validation images is not finite")
        is_best = all(self.task.merit(row) > self.task.merit(earlier) for earlier in self.history)
        self.history.append(row)
        self.meter, self.epoch_seconds, self.learn.skipped = self.task.meter(), 0.0, 0
        if is_best:
            self._save(self.folder.best, with_optimizer=False)
        self.save()
        self.folder.write_metrics(self.history)
        self.events.write(self.history)
        self.log(
            f"epoch {row['epoch']}/{self.config.epochs}  {self.task.line(row)}{' (best)' if is_best else ''}  "
            f"{row['images_per_second']:,.0f} images/s{f'  steps left out: {skipped}' if skipped else ''}"
            f"{self._advice(waiting)}"
        )

    def _advice(self, waiting: float) -> str:
        if waiting <= WAITING:
            return ""
        return f"  {waiting:.0%} of the time waiting for pictures: try --workers {self.config.workers + 1}"

    def _validate(self) -> Row:
        with self.ema.applied() if self.ema else contextlib.nullcontext():
            row = self.task.validate(self.model, self.batches)
            self.task.draw(self.folder.path, len(self.history) + 1)
        return row

    def _test(self) -> Any:
        best = load_checkpoint(self.folder.best)
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
        return self.task.test(self.model, self.batches, row, course)

    # --- stopping ---

    @property
    def _resume_command(self) -> str:
        return resuming(self.config.command, self.folder.path)

    def _interrupted(self) -> Interrupted:
        """Save, and say how to go on."""
        assert self.watch.received is not None
        self._save_place()
        return Interrupted(
            f"stopped and saved at step {self.step} of {self.schedule.total_steps}; go on with: {self._resume_command}",
            self.watch.received,
        )

    def _out_of_pictures(self, error: BaseException | None) -> ScratchvitError:
        """The same for what kept a loader from making a batch."""
        self._save_place()
        return ScratchvitError(
            f"{error}. The run is saved at step {self.step} of {self.schedule.total_steps}; with its pictures as they "
            f"were, go on with: {self._resume_command}"
        )

    def _save_place(self) -> None:
        if len(self.history) < self.config.epochs:      # otherwise only the test is left, and all is saved
            self.save()

    def _diverged(self, what: str) -> ScratchvitError:
        """What to raise when numbers are not finite."""
        last = self.folder.last
        kept = f"the last good checkpoint is {last}" if last.exists() else "nothing was saved yet"
        skip = ', and non_finite "skip" leaves single steps out' if self.config.non_finite == "stop" else ""
        return ScratchvitError(
            f"step {self.step + 1} (epoch {len(self.history) + 1}): {what}; {kept}. "
            f"If it is not the data, a lower lr, a longer warm-up or a smaller clip_grad helps{skip}"
        )

    # --- saving and going on ---

    def save(self) -> None:
        """Write last.safetensors. Raises ScratchvitError, and writes nothing, if a weight is not finite."""
        self._save(self.folder.last, with_optimizer=True)

    def _save(self, path: Path, with_optimizer: bool) -> None:
        weights = self.model.state_dict()
        wrong = next((name for name, array in weights.items() if not is_finite(array)), None)
        if wrong:
            raise self._diverged(f"the weight {wrong} is not finite")
        checkpoint = Checkpoint(
            config=dataclasses.asdict(self.config),
            model_name=self.config.model,
            model_args=self.model_args,
            data=self.about,
            progress={
                "epoch": len(self.history),
                "step": self.step,
                "loader": self.loader.state_dict(),
                "generator": self.generator.state_dict(),
                "meter": dataclasses.asdict(self.meter.read()),
                "epoch_seconds": self.epoch_seconds,
                "learn": self.learn.state_dict(),
                "history": self.history,
                "pictures": self.fingerprint,
            },
            model=weights,
            ema=self.ema.state_dict() if self.ema else {},
            optimizer=self.optimizer.state_dict() if with_optimizer else {},
            versions=current_versions(),
        )
        save_checkpoint(path, checkpoint)

    def _go_on(self) -> None:
        """Take up the run where last.safetensors left it."""
        saved = load_checkpoint(self.folder.last)
        same = saved.progress.get("pictures", self.fingerprint) == self.fingerprint     # older versions have none
        if saved.data != self.about or not same:
            raise ScratchvitError(
                f"{self.config.data}: these are not the pictures that the run in {self.folder.path} began with: bring "
                "those back, or begin a new run"
            )
        load_into(self.model, saved.model, self.folder.last)
        self.optimizer.load_state_dict(saved.optimizer)
        if self.ema:
            self.ema.load_state_dict(saved.ema)
        progress = saved.progress
        self.loader.load_state_dict(progress["loader"])
        self.generator.load_state_dict(progress["generator"])
        self.meter = self.task.meter(**progress["meter"])
        self.step, self.epoch_seconds = progress["step"], progress["epoch_seconds"]
        self.history = progress["history"]
        if "learn" in progress:     # older versions left no step out
            self.learn.load_state_dict(progress["learn"])
