"""The shares of several processes, joined, are the batches of one process, bit for bit."""

import contextlib

import numpy as np
import pytest

from scratchvit.data import (
    ColorJitter,
    Compose,
    Loader,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
)
from scratchvit.data.draws import ShareOfDraws
from scratchvit.data.loader import small_rest
from scratchvit.detection.config import DetectConfig
from scratchvit.detection.data.batches import DetectionLoader
from scratchvit.detection.data.transforms import detr_steps
from scratchvit.detection.task import DetectionTask
from scratchvit.errors import ScratchvitError
from scratchvit.parallel.share import share_of
from scratchvit.training.build import rest_note
from scratchvit.training.classification.task import ClassificationTask
from scratchvit.training.config import TrainConfig
from tests.support.data_samples import random_dataset
from tests.support.noise_pictures import NORMALIZE, mixed
from tests.support.ranks import run_ranks
from tests.support.worker_samples import HEAVY, PLAIN

TRANSFORMS = {
    "crop": Compose(RandomCrop(2), PLAIN),
    "reflected crop": Compose(RandomCrop(2, "reflect"), PLAIN),
    "flip": Compose(RandomHorizontalFlip(), PLAIN),
    "resized crop": Compose(RandomResizedCrop(12), PLAIN),
    "RandAugment": Compose(RandAugment(2, 15), PLAIN),
    "jitter": Compose(ColorJitter(0.4, 0.4, 0.4, 0.1), PLAIN),
    "erasing": Compose(PLAIN, RandomErasing(0.7, count=2)),
    "erasing by colours": Compose(PLAIN, RandomErasing(0.7, count=2, mode="rand")),
    "erasing by noise, twice": Compose(PLAIN, RandomErasing(mode="pixel"), RandomErasing(0.7, mode="pixel", count=2)),
    "all": HEAVY,
}


def make(transform=HEAVY, **options):
    """50 pictures in batches of 8: 7 batches, the last of 2."""
    return Loader(random_dataset(50), 8, transform, **{"shuffle": True, "seed": 3, **options})


def joined(shares):
    """The batches of several processes, put together to those of one."""
    return [[np.concatenate(parts) for parts in zip(*batch)] for batch in zip(*shares, strict=True)]


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert all(one.dtype == two.dtype and np.array_equal(one, two) for one, two in zip(batch, other, strict=True))


@pytest.mark.parametrize(("whole", "size"), [(8, 2), (8, 3), (7, 4), (3, 3), (2, 4), (0, 2)])
def test_shares_are_disjoint_and_differ_by_one_row_at_most(whole, size):
    shares = [share_of(whole, rank, size) for rank in range(size)]
    assert [row for share in shares for row in range(whole)[share]] == list(range(whole))
    counts = [share.stop - share.start for share in shares]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("name", TRANSFORMS)
def test_shares_of_every_transform(name):
    """Two epochs, the last batches with one image for each process."""
    transform = TRANSFORMS[name]
    one = make(transform)
    shares = [make(transform, share=(rank, 2)) for rank in range(2)]
    for _ in range(2):
        expected = list(one)
        assert_same(joined(shares), expected)
    plain = list(make(PLAIN))
    assert not all(np.array_equal(x, y) for (x, *_), (y, *_) in zip(expected, plain))    # something is random


@pytest.mark.parametrize("workers", [0, 1])
def test_unequal_shares_with_and_without_workers(workers):
    """Batches of 8 on three processes: 2, 3 and 3 images; the last, of 5: 1, 2 and 2."""
    with contextlib.ExitStack() as stack:
        shares = [
            stack.enter_context(contextlib.closing(make(share=(rank, 3), workers=workers, epoch_size=21)))
            for rank in range(3)
        ]
        assert all(len(share) == 3 and share.epoch_size == 21 for share in shares)
        sizes = [[len(batch.labels) for batch in share] for share in shares]
        assert sizes == [[2, 2, 1], [3, 3, 2], [3, 3, 2]]
        one = make(epoch_size=21)
        list(one)
        assert_same(joined(shares), list(one))


def test_the_size_of_the_whole_batch_is_known():
    one, share = make(), make(share=(1, 2))
    for loader in (one, share):
        assert [loader.whole for _ in loader] == [8] * 6 + [2]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_another_number_of_processes_goes_on_with_the_same_batches(before, after):
    def shares(size):
        return [make(share=(rank, size), epoch_size=45) for rank in range(size)]

    expected = joined([make(epoch_size=45)])
    run, done = shares(before), []
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(contextlib.closing(iter(share))) for share in run]
        done = joined([[next(batches) for _ in range(2)] for batches in running])
        states = [share.state_dict() for share in run]
    assert all(state == states[0] for state in states)

    resumed = shares(after)
    for share in resumed:
        share.load_state_dict(states[0])
    assert_same(done + joined(resumed), expected)


def test_an_epoch_of_another_size_is_not_resumed():
    saved = make(epoch_size=48).state_dict()
    with pytest.raises(ScratchvitError, match="an epoch of the saved run has 48 images, one of this loader 50"):
        make().load_state_dict(saved)
    loader = make()
    loader.load_state_dict({"epoch": 1, "batch": 2, "seed": 3})     # of an older version
    assert loader.state_dict()["batch"] == 2


# The last batch


@pytest.mark.parametrize(
    ("images", "batch_size", "least", "expected"),
    [
        (50, 8, 2, 0), (50, 8, 3, 2), (49, 8, 2, 1), (48, 8, 4, 0), (1, 8, 2, 0), (3, 8, 4, 0), (9, 1, 2, 0),
        (17, 16, 1, 0),
    ],
)
def test_a_last_batch_that_is_too_small(images, batch_size, least, expected):
    assert small_rest(images, batch_size, least) == expected


def test_what_is_left_out_comes_first_in_the_next_epoch():
    loader = make(PLAIN, epoch_size=50 - small_rest(50, 8, 4), share=(0, 4))
    first, second = (np.concatenate([batch.indices for batch in loader]) for _ in range(2))
    whole = make(PLAIN)
    order = np.concatenate([batch.indices for batch in whole])
    assert len(first) == len(second) == 12
    assert np.array_equal(second[:1], order[48:49])     # a share of a batch of 8 has rows 0 and 1
    assert rest_note(2, 4) == (
        "train: the last batch of an epoch, 2 images, is left for the next epoch: each of 4 processes needs an image",
    )
    assert rest_note(0, 4) == rest_note(1, 1) == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": (0, 3)}, "random: a batch of 2 images cannot be divided among 3 processes"),
        ({"share": (0, 9), "drop_last": True}, "a batch of 8 images cannot be divided among 9 processes"),
        ({"share": (2, 2)}, r"share=\(2, 2\) must be \(rank, size\)"),
        ({"share": (-1, 2)}, r"share=\(-1, 2\)"),
    ],
)
def test_shares_that_cannot_be(options, message):
    with pytest.raises(ScratchvitError, match=message):
        make(**options)


# What transforms may draw


def test_draws_are_the_rows_of_the_whole_batch():
    def draws(generator):
        count = getattr(generator, "count", None) or 7
        return (
            generator.random(count), generator.random(size=(count, 2)), generator.integers(9, size=count),
            generator.integers(2, 9, (count, 3), dtype=np.uint8), generator.normal(1.0, 2.0, count),
            generator.uniform(size=count), generator.choice(5, count), generator.beta(1.0, 2.0, size=(count, 1)),
            generator.standard_normal((count, 2), np.float32),
        )

    expected = draws(np.random.default_rng(5))
    rows = slice(2, 5)
    share = ShareOfDraws(np.random.default_rng(5), rows, np.arange(7))
    share.count = 3
    for own, whole in zip(draws(share), expected, strict=True):
        assert own.dtype == whole.dtype and np.array_equal(own, whole[rows])


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda images, rng: images * (rng.random() < 0.5), "draws rng.random with size None"),
        (lambda images, rng: rng.integers(0, 2, (2, len(images))), r"draws rng.integers with size \(2, 3\)"),
        (lambda images, rng: rng.permutation(images), "calls rng.permutation"),
    ],
)
def test_draws_that_are_not_one_row_for_each_image_are_refused(transform, message):
    with pytest.raises(ScratchvitError, match=f"{message}.*draw for all of its 3 images at once"):
        list(Loader(random_dataset(12), 6, transform, share=(0, 2)))
    assert len(list(Loader(random_dataset(12), 6, transform))) == 2
    assert not hasattr(ShareOfDraws(np.random.default_rng(0), slice(0, 1), np.arange(2)), "unknown")


# Detection


def detector(size, rank, workers=0, stretch=4, **options):
    return DetectionLoader(
        mixed(26), 6, NORMALIZE, steps=detr_steps(24), colours=ColorJitter(0.4, 0.4, 0.4, 0.1), stretch=stretch,
        shuffle=True, seed=2, workers=workers, share=(rank, size), **options,
    )


def assert_joined(shares, expected):
    """Images, masks and targets of all processes, joined, are those of one."""
    for parts, whole in zip(zip(*shares, strict=True), expected, strict=True):
        assert np.array_equal(np.concatenate([part.images for part in parts]), whole.images)
        assert np.array_equal(np.concatenate([part.mask for part in parts]), whole.mask)
        found = [target for part in parts for target in part.targets]
        for target, other in zip(found, whole.targets, strict=True):
            assert target.keys() == other.keys()
            assert all(np.array_equal(target[key], other[key]) for key in target)


@pytest.mark.parametrize(("size", "workers", "pad_to"), [(2, 0, 1), (2, 1, 1), (2, 0, 16)])
def test_shares_of_a_detector(size, workers, pad_to):
    """Crops, sizes, colours, and the padding of the whole batch; batches of 6, the last of 2."""
    with contextlib.ExitStack() as stack:
        shares = [
            stack.enter_context(contextlib.closing(detector(size, rank, workers, pad_to=pad_to)))
            for rank in range(size)
        ]
        one = detector(1, 0, pad_to=pad_to)
        expected = list(one)
        assert [len(batch.targets) for batch in expected] == [6, 6, 6, 6, 2]
        assert_joined([list(share) for share in shares], expected)
        assert any(batch.mask.any() for batch in expected)
        second = [list(share) for share in shares]      # another epoch
        assert_joined(second, list(one))
        assert not np.array_equal(second[0][0].images, expected[0].images[:3])


def test_pictures_that_an_epoch_leaves_out_come_first_in_the_next():
    """Of 26 pictures, 24 in an epoch; the second begins with the two that the first left out. No view comes twice."""
    options = {"steps": detr_steps(24), "stretch": 1, "shuffle": True}
    loader = DetectionLoader(mixed(26), 6, NORMALIZE, epoch_size=24, **options)
    ids = [[target["image_id"] for _, _, targets in loader for target in targets] for _ in range(14)]
    assert all(len(epoch) == 24 for epoch in ids)
    assert np.unique([loader._order(epoch) for epoch in range(14)]).size == 14 * 24
    passes = np.concatenate(ids)[: 12 * 26].reshape(12, 26)
    assert (np.sort(passes, axis=1) == np.sort(passes[0])).all()

    whole = DetectionLoader(mixed(26), 6, NORMALIZE, **options)
    first = [batch for batch, _ in zip(whole, range(4))]
    again = DetectionLoader(mixed(26), 6, NORMALIZE, epoch_size=24, **options)
    assert_joined([list(again)], first)


# The tasks


def loaders(task, config, size):
    """The loaders of all ranks, and what is said of the data to rank 0."""

    def load(ranks):
        own = task(config)
        own.ranks = ranks
        data = own.load_data(None)
        return data.train_loader(config), data.splits.notes

    found, said = zip(*run_ranks(size, load))
    return found, said[0]


def test_a_classifier_s_data_are_shared():
    config = TrainConfig(epoch_images=67, batch_size=16, augment="light1", flip=True)
    (one,), notes = loaders(ClassificationTask, config, 1)
    shares, said = loaders(ClassificationTask, config, 2)
    assert one.epoch_size == shares[0].epoch_size == 67 and said == notes
    assert_same(joined(shares), list(one))

    shares, said = loaders(ClassificationTask, config, 4)
    assert {share.epoch_size for share in shares} == {64}
    assert set(said) - set(notes) == {*rest_note(3, 4)}


def test_a_detector_s_data_are_shared():
    config = DetectConfig(epoch_images=11, batch_size=4, short_side=24, multi_scale=True, flip=True, color_jitter=0.2)
    (one,), notes = loaders(DetectionTask, config, 1)
    shares, said = loaders(DetectionTask, config, 2)
    assert one.epoch_size == shares[0].epoch_size == 11 and said == notes
    assert_joined(shares, list(one))

    shares, said = loaders(DetectionTask, config, 4)
    assert {share.epoch_size for share in shares} == {8}
    assert set(said) - set(notes) == {*rest_note(3, 4)}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_last_batch_of_which_some_have_nothing(workers):
    """The last batch of 2 on four processes, in two epochs: the second and the fourth have one image."""
    one = make(PLAIN)
    shares = [make(PLAIN, share=(rank, 4), uneven=True, workers=workers) for rank in range(4)]
    for _ in range(2):
        expected, found = list(one), [list(share) for share in shares]
        assert [len(batches) for batches in found] == [6, 7, 6, 7] and len(expected) == 7
        assert_same(joined([batches[:6] for batches in found]), expected[:6])
        assert_same(joined([batches[6:] for batches in found if len(batches) == 7]), expected[6:])
        assert all(share.state_dict() == one.state_dict() and len(share) == 7 for share in shares)
    for share in shares:
        share.close()
