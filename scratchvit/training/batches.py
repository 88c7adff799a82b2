"""The batches of a run, until a signal or a picture that cannot be read ends it, on all ranks at the same place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scratchvit.data import Loader
from scratchvit.errors import ScratchvitError, WrongValue
from scratchvit.parallel.communicator import Communicator
from scratchvit.training.agreement import first_error, report_of
from scratchvit.training.interrupt import SignalWatch, StopRequested


class NoBatch(Exception):
    """A loader has raised an error, the cause of this one. It is caught after averaged weights were swapped back."""


class Batches:
    """Iterates over loaders, of which those of several ranks have the parts.

    Raises StopRequested if a rank has received a signal, and NoBatch if a loader of a rank raises a ScratchvitError.
    """

    def __init__(self, ranks: Communicator, watch: SignalWatch):
        self.ranks, self.watch = ranks, watch

    def evaluation(self, loader: Loader) -> Iterator[Any]:
        """The batches of a loader, of which the ranks may have different numbers.

        So several ranks cannot agree here: `agree` afterwards about signals. If the loader of one of them fails, this
        rank raises a ScratchvitError, which ends the others too (parallel/waiting.py), and nothing is saved.
        """
        try:
            for batch in loader:
                yield batch
                if self.ranks.size == 1:
                    self.watch.check()
        except ScratchvitError as error:
            if self.ranks.size > 1:
                raise
            raise NoBatch from error

    def training(self, loader: Loader) -> Iterator[Any]:
        """The batches of a loader, of which all ranks have the same number. They agree about each.

        If they end here, the state of the loader is that before the batch which was not returned. Raises ValueError for
        a loader that gives this rank other images than its share.
        """
        share = self.ranks.rank, self.ranks.size
        if loader.share != share:
            raise WrongValue(
                f"the train_loader of a task gives all {share[1]} processes the same images: make it a Loader(…, "
                "share=(self.ranks.rank, self.ranks.size)), or start one process"
            )
        batches: Any = iter(loader)
        batch: Any = None
        while True:
            place, failure = loader.state_dict(), None
            try:
                batch = next(batches, None)
            except ScratchvitError as error:
                failure = error
            try:
                self.agree(failure)
            except (StopRequested, NoBatch):
                batches.close()
                loader.load_state_dict(place)
                raise
            if batch is None:
                return
            yield batch

    def agree(self, failure: ScratchvitError | None = None) -> None:
        """End on all ranks, if one of them has received a signal or has an error. failure: that of this rank."""
        found = self.ranks.gather([self.watch.received, report_of(failure, self.ranks)])
        if error := first_error([report for _, report in found], failure, self.ranks.rank):
            raise NoBatch from error
        received = [number for number, _ in found if number is not None]
        if received:
            self.watch.received = received[0]
            raise StopRequested
