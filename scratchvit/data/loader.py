"""Batches for training and evaluation: shuffled, transformed, made ahead of time, and resumable bit for bit.

Chance depends on the place alone: the order of pass p comes from (seed, p), the augmentation of batch b in epoch e
from (seed, e, b). So it does not matter how far ahead batches are made, by how many, or where a run was resumed.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scratchvit.data.datasets import Pictures
from scratchvit.data.transforms import Transform
from scratchvit.data.workers import Workers
from scratchvit.errors import ScratchvitError


class Batch(NamedTuple):
    """What a `Loader` gives; a transform may make images of another type."""

    images: NDArray[np.float32]     # (B, C, H, W)
    labels: NDArray[np.int64]       # (B,)
    indices: NDArray[np.intp]       # (B,) places of the samples in the data set


_ORDER, _AUGMENTATION = 0, 1  # keep the two uses of a seed apart


class Loader:
    """Iterating gives one epoch of `Batch`es: images float32 (B, C, H, W), labels int64 (B,), indices (B,); NumPy.

    transform   called with what dataset.images gives, uint8 (B, H, W, C), and the batch's generator; see `transforms`
    shuffle     a new order in each pass over the data
    epoch_size  samples in an epoch; by default all. Passes then go on from one epoch into the next, so that an
                epoch may hold part of a pass, or several
    drop_last   leave out a last batch that is smaller than batch_size
    prefetch    batches that one background thread makes ahead of the consumer
    workers     processes that make the batches instead, each one at a time, and `prefetch` more are ready. The
                batches are the same. See `workers` for what a data set and a transform must be to get there

    An epoch left early (break, an exception) stops the thread or the workers, and starts over with the next
    iteration; only `load_state_dict` makes an iteration begin in the middle. Otherwise workers live until `close`,
    or until the loader is gone. What goes wrong while a batch is made, such as a picture that does not decode, is
    raised from the iteration, as it was; a worker that dies raises ScratchvitError. Raises ScratchvitError for
    arguments out of range and for a data set too small to give a batch.
    """

    def __init__(
        self,
        dataset: Pictures,
        batch_size: int,
        transform: Transform,
        *,
        shuffle: bool = False,
        epoch_size: int | None = None,
        drop_last: bool = False,
        seed: int = 0,
        prefetch: int = 2,
        workers: int = 0,
    ):
        if batch_size < 1 or epoch_size == 0 or min(seed, prefetch, workers, epoch_size or 0) < 0:
            raise ScratchvitError(
                f"Loader: batch_size={batch_size} and epoch_size={epoch_size} must be at least 1, "
                f"seed={seed}, prefetch={prefetch} and workers={workers} at least 0."
            )
        if len(dataset) < (batch_size if drop_last else 1):
            raise ScratchvitError(
                f"{dataset.name}: {len(dataset)} pictures do not make a batch of {batch_size}; "
                "take a smaller batch_size, a larger part of the data, or drop_last=False."
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.transform = transform
        self.shuffle = shuffle
        self.epoch_size = epoch_size or len(dataset)
        self.drop_last = drop_last
        self.seed = seed
        self.prefetch = prefetch
        self.workers = workers
        self.waited = 0.0  # seconds of this epoch in which a batch, after its first, was not yet made when asked for
        self._epoch, self._batch = 0, 0  # the next batch that the consumer has not been handed
        self._first = 0  # the batch with which the next iteration begins
        self._processes: Workers | None = None

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(self.epoch_size, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self._epoch, self._first
        self._batch, self._first, self.waited = first, 0, 0.0
        order = self._order(epoch)
        if self.workers and self._processes is None:
            self._processes = Workers(self.workers, self.dataset, self.transform)
        make_images = self._processes.make if self._processes else self._make_images

        def make(batch: int) -> Batch:
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            images = make_images(indices, self._generator(_AUGMENTATION, epoch, batch))
            return Batch(images, self.dataset.labels[indices], indices)

        threads = max(self.workers, 1)
        with closing(_map_ahead(make, range(first, len(self)), self.prefetch + self.workers, threads)) as batches:
            try:
                for batch in range(first, len(self)):
                    asked = time.perf_counter()
                    made = next(batches)
                    if batch > first:       # for that one there was nothing to do meanwhile
                        self.waited += time.perf_counter() - asked
                    at_end = batch + 1 == len(self)
                    self._epoch, self._batch = (epoch + 1, 0) if at_end else (epoch, batch + 1)
                    yield made
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Stop the workers, if there are any. An iteration begun later starts new ones."""
        if self._processes:
            self._processes.close()
            self._processes = None

    def _make_images(self, indices: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.float32]:
        return self.transform(self.dataset.images(indices), rng)

    def state_dict(self) -> dict[str, int]:
        """{"epoch", "batch", "seed"}: the place of the next batch that the consumer has not been handed."""
        return {"epoch": self._epoch, "batch": self._batch, "seed": self.seed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next iteration give the batches of that epoch that were still to come.

        Raises ScratchvitError for a state of another seed or of a place that this loader does not have.
        """
        epoch, batch, seed = (state.get(key) for key in ("epoch", "batch", "seed"))
        if type(epoch) is not int or type(batch) is not int or epoch < 0 or not 0 <= batch < len(self):
            raise ScratchvitError(
                f"Loader: epoch {epoch!r}, batch {batch!r} is no place in this loader, whose epochs have "
                f"{len(self)} batches; resume with the data set and batch_size of the saved run."
            )
        if seed != self.seed:
            raise ScratchvitError(
                f"Loader: the saved state has seed {seed!r}, this loader has seed {self.seed}; "
                "resume with the seed of the saved run."
            )
        self._epoch, self._batch, self._first = epoch, batch, batch

    def _order(self, epoch: int) -> NDArray[np.intp]:
        """The epoch's part of the passes over the data, laid end to end."""
        first, last = epoch * self.epoch_size, (epoch + 1) * self.epoch_size
        passes = range(first // len(self.dataset), -(-last // len(self.dataset)))
        order = np.concatenate([self._pass(number) for number in passes])
        start = first - passes.start * len(self.dataset)
        return order[start : start + self.epoch_size]

    def _pass(self, number: int) -> NDArray[np.intp]:
        if not self.shuffle:
            return np.arange(len(self.dataset))
        return self._generator(_ORDER, number).permutation(len(self.dataset))

    def _generator(self, *place: int) -> np.random.Generator:
        # spawn_key tells (e, 0) from (e); a plain list of numbers would not.
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=place))


def _map_ahead(
    function: Callable[[int], Batch], items: Iterable[int], ahead: int, threads: int
) -> Generator[Batch, None, None]:
    """map(function, items), computed in background threads, up to `ahead` items before they are needed."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="scratchvit-loader")
    pending: deque[Future[Batch]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()  # raises here what was raised there
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # waits for the items in progress
