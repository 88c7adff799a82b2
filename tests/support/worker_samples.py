"""What worker processes run in tests: transforms, a loader. Without pytest, which each of them would have to import."""

import os
import time
from pathlib import Path

import numpy as np

from scratchvit.data import (
    Compose,
    Loader,
    Normalize,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
)
from tests.support.data_samples import random_dataset

PLAIN = Normalize((0.5,) * 3, (0.25,) * 3)
HEAVY = Compose(
    RandomResizedCrop(12), RandomCrop(2), RandomHorizontalFlip(), RandAugment(2, 15), PLAIN, RandomErasing(mode="pixel")
)


# Transforms that do what they should not, at the top of a module, where a worker finds them.


class OddError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def fail_on_the_last_batch(images, rng):
    if len(images) == 2:
        raise LookupError("picture 49")
    return images


def fail_oddly(images, rng):
    raise OddError("this", "that")


def exit_on_the_last_batch(images, rng):
    if len(images) == 2:
        os._exit(7)
    return images


def say_something(images, rng):
    print("a transform speaks")
    return images


def tell_about_the_process(images, rng):
    return np.array([os.getpid(), entries("/proc/self/task"), int(os.environ["OPENBLAS_NUM_THREADS"])])


def take_a_while(images, rng):
    time.sleep(0.3)
    return images


def leave_a_mark(folder, images, rng):
    (folder / str(rng.integers(1 << 60))).touch()
    return images


def take(images, rng):
    return images


def make(workers, transform=PLAIN, batch_size=8, prefetch=2):
    """50 pictures in batches of 8: 7 batches, the last of 2."""
    return Loader(
        random_dataset(50), batch_size, transform, shuffle=True, seed=3, prefetch=prefetch, workers=workers
    )


def entries(folder):
    return sum(1 for _ in Path(folder).iterdir())


def assert_same(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others)
    for (x, y, _), (u, v, _) in zip(batches, others):
        assert x.dtype == u.dtype and np.array_equal(x, u) and np.array_equal(y, v)


def pids(loader):
    return [process.pid for process in loader._processes._processes]
