"""Batches for training and evaluation: shuffled, transformed, prefetched, and resumable bit for bit.

Pictures are read and transformed on the host. If the last transform is `Normalize`, a GPU does that: the batch is taken
there as uint8, a quarter of the bytes, beside the step that it computes (`upload`).

Random numbers depend only on the position: the order of pass p is drawn from (seed, p), the augmentation of batch b in
epoch e from (seed, e, b). So prefetching, the number of workers and resuming a run do not change the batches. Nor does
the number of processes that train a model together: each makes the images of its share of every batch only.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scratchvit import backend
from scratchvit.backend import CPU, Array
from scratchvit.data.datasets import Pictures
from scratchvit.data.draws import ShareOfDraws
from scratchvit.data.transforms import Transform, split_normalize
from scratchvit.data.workers import Workers
from scratchvit.errors import ScratchvitError
from scratchvit.files import counted
from scratchvit.parallel.share import share_of


class Batch(NamedTuple):
    """What a `Loader` gives; a transform may make images of another type."""

    images: Array                   # (B, C, H, W), float32, on the device in use
    labels: NDArray[np.int64]       # (B,)
    indices: NDArray[np.intp]       # (B,) places of the samples in the data set


_ORDER, _AUGMENTATION = 0, 1  # separate the two uses of a seed


class Loader:
    """Iterates over one epoch of `Batch`es: images float32 (B, C, H, W), labels int64 (B,), indices (B,).

    Images are on the device in use, labels and indices are NumPy arrays.

    transform   called with the pictures, uint8 (B, H, W, C), and the generator of the batch; see `transforms`
    shuffle     use a new random order in each pass over the data
    epoch_size  samples in an epoch; by default the size of the data set. Passes continue from one epoch into the next,
                so an epoch can be part of a pass, or several passes
    drop_last   leave out the last batch if it is smaller than batch_size
    prefetch    number of batches that a background thread prepares in advance
    workers     number of processes that prepare the batches instead, with `prefetch` further batches in advance. The
                batches are the same. Data set and transform must be importable in a worker; see `workers`
    share       (rank, size): of every batch, only the rows that belong to this one of `size` processes (`share_of`).
                Number and order of the batches, epoch_size and the state are those of one process, and the images are
                augmented as there, bit for bit. transform is then called with a `ShareOfDraws`
    uneven      with a share: the last batch may have fewer images than there are processes. It is then left out on
                those that have none of its images

    whole: the number of images of the last returned batch, over all processes.

    Leaving an epoch early (by break or an exception) stops the thread or the workers, and the next iteration starts
    the epoch again; only `load_state_dict` starts in the middle of one. Otherwise workers live until `close` is called
    or the loader is deleted. Errors in a transform or data set, such as a picture that cannot be decoded, are raised
    from the iteration unchanged; a worker that dies raises ScratchvitError. Raises ScratchvitError for arguments out
    of range and for a data set that is too small for one batch.
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
        share: tuple[int, int] = (0, 1),
        uneven: bool = False,
    ):
        if batch_size < 1 or epoch_size == 0 or min(seed, prefetch, workers, epoch_size or 0) < 0:
            raise ScratchvitError(
                f"Loader: batch_size={batch_size} and epoch_size={epoch_size} must be at least 1, "
                f"seed={seed}, prefetch={prefetch} and workers={workers} at least 0"
            )
        if len(dataset) < (batch_size if drop_last else 1):
            raise ScratchvitError(
                f"{dataset.name}: {len(dataset)} pictures are too few for a batch of {batch_size}; "
                "use a smaller batch_size, more of the data, or drop_last=False"
            )
        rank, size = share
        if not 0 <= rank < size:
            raise ScratchvitError(f"Loader: share={share} must be (rank, size), with a rank from 0 to size - 1")
        epoch_size = epoch_size or len(dataset)
        smallest = batch_size if drop_last else epoch_size % batch_size or batch_size
        if smallest < size and not uneven:
            raise ScratchvitError(
                f"{dataset.name}: a batch of {counted(smallest, 'image')} cannot be divided among {size} processes: "
                "use a larger batch_size, fewer processes, or an epoch_size that leaves out a small last batch"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.transform = transform
        self.share = share
        self._on_host, self._normalize = split_normalize(transform)
        self.shuffle = shuffle
        self.epoch_size = epoch_size
        self.drop_last = drop_last
        self.seed = seed
        self.prefetch = prefetch
        self.workers = workers
        self.whole = 0
        self.waited = 0.0  # seconds in this epoch that the consumer waited for batches, except the first one
        self._epoch, self._batch = 0, 0  # the next batch to be returned
        self._first = 0  # the batch with which the next iteration begins
        self._processes: Workers | None = None

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        whole, rest = divmod(self.epoch_size, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self._epoch, self._first
        self._batch, self._first, self.waited = first, 0, 0.0
        order = self._order(epoch)
        if self.workers and self._processes is None:
            self._processes = Workers(self.workers, self.dataset, self._on_host)
        make_images = self._processes.make if self._processes else self._make_images
        on_cpu = backend.current() is CPU

        def samples_of(batch: int) -> NDArray[np.intp]:
            return order[batch * self.batch_size : (batch + 1) * self.batch_size]

        def rows_in(batch: int) -> slice:
            return share_of(len(samples_of(batch)), *self.share)

        def make(batch: int) -> Batch:
            whole, rows = samples_of(batch), rows_in(batch)
            indices, rng = whole[rows], self._generator(_AUGMENTATION, epoch, batch)
            images = make_images(indices, rng if len(indices) == len(whole) else ShareOfDraws(rng, rows, whole))
            made = Batch(images, self.dataset.labels[indices], indices)
            return self._finish(made) if on_cpu else made       # a GPU is given work by one thread only

        threads = max(self.workers, 1)
        own = [batch for batch in range(first, len(self)) if range(self.batch_size)[rows_in(batch)]]
        with closing(_map_ahead(make, own, self.prefetch + self.workers, threads)) as batches:
            try:
                for batch in own:
                    asked = time.perf_counter()
                    made = next(batches)
                    if batch > first:       # the first batch cannot have been prepared in advance
                        self.waited += time.perf_counter() - asked
                    at_end = batch + 1 == len(self)
                    self._epoch, self._batch = (epoch + 1, 0) if at_end else (epoch, batch + 1)
                    self.whole = len(samples_of(batch))
                    yield made if on_cpu else self._finish(made)
                self._epoch, self._batch = epoch + 1, 0     # also without a share of the last batch
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Stop the workers, if there are any. A later iteration starts new ones."""
        if self._processes:
            self._processes.close()
            self._processes = None

    def _make_images(self, indices: NDArray[np.intp], rng: Any) -> Any:
        return self._on_host(self.dataset.images(indices), rng)

    def _finish(self, made: Batch) -> Batch:
        """The batch with its images on the device in use, and normalised."""
        if not isinstance(made.images, np.ndarray):
            return made         # a transform made something else of them
        return made._replace(images=backend.upload(made.images, self._normalize or _copied_to_gpu))

    def state_dict(self) -> dict[str, int]:
        """The position of the next batch to be returned: {"epoch", "batch", "seed", "epoch_size"}."""
        return {"epoch": self._epoch, "batch": self._batch, "seed": self.seed, "epoch_size": self.epoch_size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next iteration continue at a saved position.

        Raises ScratchvitError for a state with another seed or epoch_size, and for a position that this loader does not
        have.
        """
        epoch, batch, seed = (state.get(key) for key in ("epoch", "batch", "seed"))
        if type(epoch) is not int or type(batch) is not int or epoch < 0 or not 0 <= batch < len(self):
            raise ScratchvitError(
                f"Loader: there is no epoch {epoch!r}, batch {batch!r} in this loader, whose epochs have "
                f"{len(self)} batches; resume with the data set and batch_size of the saved run"
            )
        if seed != self.seed:
            raise ScratchvitError(
                f"Loader: the saved state has seed {seed!r}, this loader has seed {self.seed}; "
                "resume with the seed of the saved run"
            )
        size = state.get("epoch_size", self.epoch_size)     # older versions did not save it
        if size != self.epoch_size:
            raise ScratchvitError(
                f"Loader: an epoch of the saved run has {size!r} images, one of this loader {self.epoch_size}; resume "
                "with the data and batch_size of the saved run. If these are the same, it left out a last batch with "
                "fewer images than processes, or this one does: resume on as many processes as before"
            )
        self._epoch, self._batch, self._first = epoch, batch, batch

    def _order(self, epoch: int) -> NDArray[np.intp]:
        """The sample indices of an epoch (epoch_size,), cut out of the sequence of passes over the data."""
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
        # spawn_key distinguishes (e, 0) from (e); a plain list of numbers would not.
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=place))


def small_rest(images: int, batch_size: int, least: int) -> int:
    """The number of images in the last batch of an epoch if it has fewer than `least` and is not the only one; else 0.

    With an epoch_size that is smaller by so many, a `Loader` gives them at the beginning of the next epoch.
    """
    rest = images % batch_size
    return rest if rest < min(least, images) else 0


def _copied_to_gpu(images: Array) -> Array:
    return images if isinstance(images, np.ndarray) else images.copy()


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
                yield pending.popleft().result()  # re-raises an exception of the thread
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # waits for the items in progress
