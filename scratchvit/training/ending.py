"""How a run ends before its last step: the errors that say what happened, what was saved, and how to go on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from scratchvit.errors import DeviceFailed, ScratchvitError
from scratchvit.gpu import explain, is_out_of_memory
from scratchvit.training.config import RunConfig
from scratchvit.training.folder import RunFolder, resuming
from scratchvit.training.interrupt import Interrupted


class Place(NamedTuple):
    """Where a run is: steps done, of how many, and epochs done."""

    step: int
    total_steps: int
    epochs: int


class Ending:
    """Makes the errors with which a run ends. place: asked where it is."""

    def __init__(self, config: RunConfig, folder: RunFolder, place: Callable[[], Place]):
        self.config, self.folder, self.place = config, folder, place

    @property
    def _resume_command(self) -> str:
        return resuming(self.config.command, self.folder.path)

    @property
    def _here(self) -> str:
        place = self.place()
        return f"step {place.step + 1} (epoch {place.epochs + 1})"

    @property
    def _kept(self) -> str:
        last = self.folder.last
        return f"the last good checkpoint is {last}" if last.exists() else "nothing has been saved yet"

    def interrupted(self, received: int) -> Interrupted:
        """After a signal, when the run has been saved."""
        place = self.place()
        return Interrupted(
            f"stopped and saved at step {place.step} of {place.total_steps}; resume with: {self._resume_command}",
            received,
        )

    def unreadable(self, error: BaseException | None) -> ScratchvitError:
        """After an error of a loader, when the run has been saved."""
        place = self.place()
        return ScratchvitError(
            f"{error}. The run is saved at step {place.step} of {place.total_steps}; when its pictures can "
            f"be read, resume with: {self._resume_command}"
        )

    def diverged(self, what: str) -> ScratchvitError:
        """If a number is not finite. what: which one, as a sentence."""
        skip = ', or skip such steps with non_finite "skip"' if self.config.non_finite == "stop" else ""
        return ScratchvitError(
            f"{self._here}: {what}; {self._kept}. "
            f"If the data is not the cause, use a lower lr, a longer warm-up or a smaller clip_grad{skip}"
        )

    @contextlib.contextmanager
    def gpu_errors_explained(self) -> Iterator[None]:
        """Turn CuPy's errors into a sentence, which names the last checkpoint.

        Nothing is saved: within a step, the weights may be half updated, and of a GPU on which a kernel failed, they
        cannot be read any more. (If that shows only while the run is saved, no file is begun.)
        """
        try:
            yield
        except Exception as error:
            sentence = explain(error, self.config.batch_size)
            if sentence is None:
                raise
            if is_out_of_memory(error):
                raise ScratchvitError(f"{self._here}: {sentence}; {self._kept}") from error
            resume = f"; resume with: {self._resume_command}" if self.folder.last.exists() else ""
            raise DeviceFailed(f"{self._here}: {sentence}; {self._kept}{resume}") from error
