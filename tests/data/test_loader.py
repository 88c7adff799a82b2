"""The loader: every picture once, the same pictures however they are fetched, and a resume bit for bit."""

import contextlib
import gc
import json
import threading

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.backend import asnumpy
from scratchvit.data import ArrayDataset, Compose, Loader, Normalize, RandomCrop, RandomErasing, RandomHorizontalFlip
from scratchvit.errors import ScratchvitError
from tests.support.data_samples import random_dataset

PLAIN = Normalize((0.5,) * 3, (0.25,) * 3)
AUGMENTED = Compose(RandomCrop(2), RandomHorizontalFlip(), PLAIN)


def make(**options):
    """50 pictures in batches of 8: 7 batches, the last of 2."""
    return Loader(random_dataset(50), 8, AUGMENTED, **{"shuffle": True, "seed": 3, **options})


def same(batches, others):
    batches, others = list(batches), list(others)
    return len(batches) == len(others) and all(
        np.array_equal(x, u) and np.array_equal(y, v) for (x, y, _), (u, v, _) in zip(batches, others)
    )


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("scratchvit-loader")]


def test_an_epoch_in_order():
    dataset = random_dataset(50)
    loader = Loader(dataset, 8, PLAIN)
    batches = list(loader)
    assert len(loader) == len(batches) == 7
    assert [x.shape for x, *_ in batches] == [(8, 3, 8, 8)] * 6 + [(2, 3, 8, 8)]
    assert {(x.dtype, y.dtype) for x, y, _ in batches} == {(np.dtype(np.float32), np.dtype(np.int64))}
    assert np.array_equal(np.concatenate([x for x, *_ in batches]), PLAIN(dataset.images(range(50))))
    assert np.array_equal(np.concatenate([y for _, y, _ in batches]), dataset.labels)


def test_drop_last():
    loader = make(drop_last=True)
    assert len(loader) == 6
    assert [len(y) for _, y, _ in loader] == [8] * 6
    assert len(Loader(random_dataset(48), 8, PLAIN, drop_last=True)) == 6


def test_shuffling_gives_every_picture_once_in_a_new_order_each_epoch():
    dataset = ArrayDataset(np.zeros((50, 2, 2, 3), np.uint8), np.arange(50), [str(i) for i in range(50)])
    loader = Loader(dataset, 8, PLAIN, shuffle=True)
    first, second = (np.concatenate([y for _, y, _ in loader]) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(50))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.arange(50))


def test_order_and_augmentation_follow_from_the_seed():
    one, two, other = make(), make(), make(seed=4)
    for _ in range(2):
        epoch = list(one)
        assert same(epoch, two)
        assert not same(epoch, other)


def test_augmentation_differs_between_batches_and_epochs():
    dataset = ArrayDataset(np.tile(random_dataset(1).images([0]), (16, 1, 1, 1)), np.zeros(16, int), ("same",))
    loader = Loader(dataset, 8, RandomCrop(4))
    batches = [x for _ in range(2) for x, *_ in loader]
    assert not any(np.array_equal(a, b) for i, a in enumerate(batches) for b in batches[:i])


@pytest.mark.parametrize("prefetch", [0, 1, 100])
def test_prefetching_changes_nothing(prefetch):
    loader, reference = make(prefetch=prefetch), make()
    assert same(loader, reference)
    assert same(loader, reference)


def test_no_more_is_made_ahead_than_asked_for():
    made = []
    loader = Loader(random_dataset(50), 5, lambda images, rng: made.append(1) or images, prefetch=2)
    for handed, _ in enumerate(loader, 1):
        assert len(made) <= handed + 2
    assert len(made) == 10


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("stop", range(8))
def test_resume_gives_the_remaining_batches_bit_for_bit(stop, prefetch):
    whole = make()
    list(whole)
    expected = list(whole) + list(whole)  # epochs 1 and 2

    run = make(prefetch=prefetch)
    list(run)
    done = []
    if stop:
        for batch in run:
            done.append(batch)
            if len(done) == stop:
                break
    saved = json.loads(json.dumps(run.state_dict()))
    assert saved == {"epoch": 1 + stop // 7, "batch": stop % 7, "seed": 3, "epoch_size": 50}

    resumed = make(prefetch=prefetch)
    resumed.load_state_dict(saved)
    assert resumed.state_dict() == saved
    rest = list(resumed)
    if stop < 7:
        rest += list(resumed)
    assert same(done + rest, expected)
    assert resumed.state_dict() == {"epoch": 3, "batch": 0, "seed": 3, "epoch_size": 50}


def test_the_state_counts_what_was_handed_over_not_what_was_made():
    loader = make(prefetch=5)
    states = [loader.state_dict() for _ in loader]
    assert [state["batch"] for state in states] == [1, 2, 3, 4, 5, 6, 0]
    assert [state["epoch"] for state in states] == [0] * 6 + [1]


def test_an_epoch_left_early_starts_over():
    loader = make()
    next(iter(loader))  # a look at one batch costs an evaluation nothing
    assert same(loader, make())
    assert loader.state_dict()["epoch"] == 1


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"epoch": 0, "batch": 0, "seed": 4}, "seed 4, this loader has seed 3"),
        ({"epoch": 0, "batch": 0}, "seed None"),
        (
            {"epoch": 0, "batch": 7, "seed": 3},
            "there is no epoch 0, batch 7 in this loader, whose epochs have 7 batches",
        ),
        ({"epoch": 0, "batch": -1, "seed": 3}, "batch -1"),
        ({"epoch": -1, "batch": 0, "seed": 3}, "epoch -1"),
        ({"epoch": 1.5, "batch": 0, "seed": 3}, "epoch 1.5"),
        ({}, "epoch None"),
    ],
)
def test_impossible_states_are_refused(state, message):
    loader = make()
    with pytest.raises(ScratchvitError, match=message):
        loader.load_state_dict(state)
    assert loader.state_dict() == {"epoch": 0, "batch": 0, "seed": 3, "epoch_size": 50}


def test_leaving_the_loop_stops_the_thread():
    for _ in make():
        break
    assert not loader_threads()

    with pytest.raises(ZeroDivisionError):
        for _ in make():
            assert loader_threads()
            1 / 0  # noqa: B018
    gc.collect()
    assert not loader_threads()

    list(make())
    assert not loader_threads()


def test_an_exception_in_the_thread_arrives_as_it_was():
    class Broken(RuntimeError):
        pass

    def transform(images, rng):
        if len(images) == 2:
            raise Broken("picture 49")
        return images

    loader = Loader(random_dataset(50), 8, transform)
    handed = 0
    with pytest.raises(Broken, match=r"^picture 49$"):
        for _ in loader:
            handed += 1
    assert handed == 6
    assert loader.state_dict()["batch"] == 6
    assert not loader_threads()


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"seed": -1}, {"prefetch": -1}])
def test_arguments_out_of_range(options):
    with pytest.raises(ScratchvitError, match=f"{next(iter(options))}="):
        Loader(random_dataset(5), **{"batch_size": 2, "transform": PLAIN, **options})


def test_a_data_set_too_small_for_a_batch_is_refused():
    with pytest.raises(ScratchvitError, match="random: 5 pictures are too few for a batch of 8"):
        Loader(random_dataset(5), 8, PLAIN, drop_last=True)
    with pytest.raises(ScratchvitError, match="random: 0 pictures"):
        Loader(random_dataset(5).subset([]), 8, PLAIN)


@pytest.mark.parametrize("transform", [AUGMENTED, Compose(PLAIN, RandomErasing(1, mode="pixel")), RandomCrop(2)],
                         ids=["uint8, normalised on the device", "float32 from the host", "uint8, not normalised"])
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_on_the_device_and_the_same_as_on_the_cpu(device, transform, workers):
    options = {"shuffle": True, "seed": 3}
    with contextlib.closing(Loader(random_dataset(50), 8, transform, workers=workers, **options)) as loader:
        found = [batch for _ in range(2) for batch in loader]
    selected = sv.backend.current()
    sv.use("cpu")
    reference = Loader(random_dataset(50), 8, transform, **options)
    expected = [batch for _ in range(2) for batch in reference]
    assert len(found) == len(expected) == 14
    for ours, theirs in zip(found, expected):
        assert type(ours.images) is selected.array_type and ours.images.flags.c_contiguous
        x = asnumpy(ours.images)
        assert x.dtype == theirs.images.dtype and np.array_equal(x, theirs.images)
        assert np.array_equal(ours.labels, theirs.labels) and np.array_equal(ours.indices, theirs.indices)


def test_a_loader_goes_on_bit_for_bit_on_a_device(device):
    loader, resumed = make(), make()
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    resumed.load_state_dict(loader.state_dict())
    rest = list(resumed)
    assert [asnumpy(batch.images).tobytes() for batch in batches] == [asnumpy(batch.images).tobytes() for batch in rest]
    assert len(rest) == 4
