"""Random crops, colours, erased boxes: against torchvision, timm, and counted draws; the command that shows them."""

import random

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from scratchvit.cli import main
from scratchvit.data import Compose, ImageFolder, Loader, Normalize, RandomHorizontalFlip, Resized
from scratchvit.data.augment import ColorJitter, RandomErasing, RandomResizedCrop
from scratchvit.data.images import to_picture
from scratchvit.data.randaugment import RandAugment
from scratchvit.errors import ScratchvitError
from tests.support.augment_samples import CHANCE, alike, generator, likely, pictures
from tests.support.data_samples import random_dataset, random_images, write_picture
from tests.support.peers import import_timm, import_torchvision
from tests.support.seeds import moved

TRANSFORMS = [
    RandAugment(2, 15), RandomResizedCrop((9, 12)), ColorJitter(0.4, 0.4, 0.4, 0.1),
    Compose(Normalize((0.5,) * 3, (0.2,) * 3), RandomErasing(0.7, count=3)),
]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_picture_does_not_depend_on_how_its_batch_is_cut(transform):
    images = random_images(30, 16, 16, 3)
    whole = transform(images.copy(), generator())
    rng = generator()
    parts = [transform(images[a:b].copy(), rng) for a, b in ((0, 1), (1, 12), (12, 30))]
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(transform(images.copy(), generator()), whole)
    assert not np.array_equal(transform(images.copy(), generator(12)), whole)
    assert len(transform(images[:0], generator())) == 0


@pytest.mark.parametrize("prefetch", [0, 3])
def test_a_loader_gives_the_same_pictures_however_far_ahead_it_works(prefetch):
    transform = Compose(
        RandomResizedCrop(12), RandomHorizontalFlip(), RandAugment(2, 10), Normalize((0.5,) * 3, (0.2,) * 3),
        RandomErasing(mode="pixel"),
    )
    dataset = random_dataset(50)
    expected = [x for x, *_ in Loader(dataset, 16, transform, shuffle=True, seed=3, prefetch=1)]
    given = [x for x, *_ in Loader(dataset, 16, transform, shuffle=True, seed=3, prefetch=prefetch)]
    assert [x.shape for x in given] == [(16, 3, 12, 12)] * 3 + [(2, 3, 12, 12)]
    assert all(np.array_equal(a, b) for a, b in zip(expected, given))
    assert not np.array_equal(given[0], given[1])


# Random resized crop


def test_crop_cuts_its_boxes_out_and_resizes_them():
    images = random_images(20, 30, 40, 3)
    crop = RandomResizedCrop((12, 10), interpolation="bicubic")
    boxes = crop.boxes([image.shape[:2] for image in images], generator())
    out = crop(images, generator())
    assert out.shape == (20, 12, 10, 3) and out.dtype == np.uint8
    for image, result, (top, left, height, width) in zip(images, out, boxes):
        cut = Image.fromarray(image[top : top + height, left : left + width])
        assert np.array_equal(result, cut.resize((10, 12), Image.Resampling.BICUBIC))
    grey = RandomResizedCrop(7)(images[..., :1], generator())
    assert grey.shape == (20, 7, 7, 1)


def test_boxes_have_the_area_and_the_ratio_asked_for():
    top, left, height, width = RandomResizedCrop(8, scale=(0.2, 0.3), ratio=(0.5, 0.6)).boxes(
        [(200, 300)] * 2000, generator()
    ).T
    assert 0.19 < (height * width).min() / 60_000 < 0.21 and 0.29 < (height * width).max() / 60_000 < 0.31
    assert 0.49 < (width / height).min() < 0.51 and 0.59 < (width / height).max() < 0.61
    assert top.min() == 0 and left.min() == 0
    assert (top + height).max() == 200 and (left + width).max() == 300


@pytest.mark.parametrize(
    ("size", "box"),
    [((10, 300), (0, 143, 10, 13)), ((300, 10), (143, 0, 13, 10)), ((20, 20), (0, 0, 20, 20))],
)
def test_where_no_box_fits_it_is_the_largest_central_one(size, box):
    boxes = RandomResizedCrop(8, scale=(1.0, 1.0)).boxes([size] * 40, generator())
    assert (boxes == box).all()


def originals(*sizes):
    """Pictures each of its own size."""
    return [random_images(1, *size, seed=i)[0] for i, size in enumerate(sizes)]


SIZES = [(30, 40), (200, 9), (9, 200), (1, 1), (64, 64)]


def test_pictures_of_different_sizes_get_the_boxes_that_each_would_get_among_its_like():
    crop = RandomResizedCrop((12, 10), scale=(0.3, 1.0))
    images = originals(*SIZES * 6)
    boxes = crop.boxes([image.shape[:2] for image in images], generator())
    out = crop(images, generator())
    for row, (image, result) in enumerate(zip(images, out)):
        copies = np.tile(image, (len(images), 1, 1, 1))
        assert np.array_equal(crop.boxes([image.shape[:2]] * len(images), generator())[row], boxes[row])
        assert np.array_equal(crop(copies, generator())[row], result)


def test_how_originals_are_cropped_does_not_depend_on_how_their_batch_is_cut():
    crop, images = RandomResizedCrop(9), originals(*SIZES * 4)
    rng = generator()
    parts = [crop(images[a:b], rng) for a, b in ((0, 1), (1, 12), (12, 20))]
    assert np.array_equal(np.concatenate(parts), crop(images, generator()))


def test_originals_are_the_pictures_before_they_were_brought_to_a_size(tmp_path):
    dataset = random_dataset(6)
    assert Resized(dataset, 16).originals() is dataset.originals() is dataset
    paths = [write_picture(tmp_path / "any" / f"{i}.png", (10 + i, 20)) for i in range(4)]
    folder = ImageFolder.scan(tmp_path, 8).subset([3, 1])
    images = folder.originals().images([1, 0, 1])
    assert [image.shape for image in images] == [(20, 11, 3), (20, 13, 3), (20, 11, 3)]
    assert np.array_equal(images[1], np.asarray(Image.open(paths[3])))
    assert np.array_equal(folder.originals().labels, folder.labels) and len(folder.originals()) == 2


def test_originals_lose_no_detail_that_a_crop_shows(tmp_path):
    """The smallest crop has as many pixels as the result; a small picture, or a narrow one, is left as it is."""
    crop = RandomResizedCrop(24, scale=(0.3, 1.0))
    path = write_picture(tmp_path / "any" / "0.png", (300, 500))
    small = write_picture(tmp_path / "any" / "1.png", (500, 20))
    large, narrow = ImageFolder.scan(tmp_path, 8).originals(crop.needs()).images([0, 1])
    assert large.shape == (round(500 * crop.needs() / 300), crop.needs(), 3)
    assert np.array_equal(narrow, np.asarray(Image.open(small)))
    boxes = crop.boxes([large.shape[:2]] * 2_000, generator())
    assert 24 <= boxes[:, 2:].min() <= 34       # the longer side makes boxes larger than they need be
    with Image.open(path) as original:
        expected = original.resize((large.shape[1], large.shape[0]), Image.Resampling.BICUBIC)
    assert np.abs(large.astype(int) - np.asarray(expected)).mean() < 1     # of 255; reducing in two steps is as good


def test_originals_are_decoded_once_as_long_as_they_fit(tmp_path, monkeypatch):
    """Which pictures are kept makes no difference to what they are."""
    for i in range(4):
        write_picture(tmp_path / "any" / f"{i}.png", (50, 60))
    folder = ImageFolder.scan(tmp_path, 8)
    everything = folder.originals(20)
    first = everything.images(range(4))
    monkeypatch.setattr("scratchvit.data.folder.CACHE_BYTES", 2 * first[0].nbytes)
    some = folder.originals(20)
    assert all(map(np.array_equal, some.images(range(4)), first))
    for path in folder.paths:
        path.unlink()
    assert all(map(np.array_equal, everything.images(range(4)), first))
    assert all(map(np.array_equal, some.images([0, 1]), first))
    with pytest.raises(ScratchvitError, match=r"2\.png: no such picture"):
        some.images([2])


def test_a_picture_of_one_pixel_is_cropped_whatever_the_ratio():
    for ratio in ((3 / 4, 4 / 3), (2, 3), (0.2, 0.3)):
        assert RandomResizedCrop(4, ratio=ratio)(random_images(3, 1, 1), generator()).shape == (3, 4, 4, 3)


# Colour jitter


def test_jitter_draws_factors_and_orders_evenly():
    changes = ColorJitter(0.4, 1.5, (0.5, 2.0), 0.1).changes(12_000, generator())
    orders = [tuple(name for name, _ in own) for own in changes]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24 and likely(counts)
    limits = {"brightness": (0.6, 1.4), "contrast": (0, 2.5), "saturation": (0.5, 2.0), "hue": (-0.1, 0.1)}
    for name, (low, high) in limits.items():
        factors = np.array([dict(own)[name] for own in changes])
        assert low <= factors.min() and factors.max() <= high
        assert likely(np.histogram(factors, 10, (low, high))[0])
        place = [order.index(name) for order in orders]     # independent of the factor
        assert likely(np.histogram2d(place, factors, (4, 8), ((0, 4), (low, high)))[0].ravel())


def test_jitter_of_nothing_and_of_grey():
    images = random_images(6, 9, 9, 3)
    assert ColorJitter().changes(2, generator()) == [[], []]
    assert np.array_equal(ColorJitter()(images, generator()), images)
    assert np.array_equal(ColorJitter(saturation=0.9, hue=0.5)(images[..., :1], generator()), images[..., :1])
    assert not np.array_equal(ColorJitter(brightness=(2, 2))(images, generator()), images)
    assert [name for name, _ in ColorJitter(hue=(0.2, 0.2)).changes(1, generator())[0]] == ["hue"]


# Random erasing


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
@pytest.mark.parametrize("count", [1, 3])
def test_erasing_writes_into_its_boxes_and_nowhere_else(mode, count):
    x = generator(1).standard_normal((300, 3, 24, 30), np.float32)
    erasing = RandomErasing(0.6, mode=mode, count=count)
    boxes = erasing.boxes(x.shape, generator())
    assert {len(own) for own in boxes} == set(range(count + 1))
    assert 0.5 < np.mean([len(own) > 0 for own in boxes]) < 0.7
    out = erasing(x.copy(), generator())
    assert out.dtype == np.float32
    noise = []
    for before, after, own in zip(x, out, boxes):
        inside = np.zeros((24, 30), bool)
        for top, left, height, width in own:
            inside[top : top + height, left : left + width] = True
        assert np.array_equal(after[:, ~inside], before[:, ~inside])
        if len(own) == 1 and mode == "rand":
            assert all(len(np.unique(channel[inside])) == 1 for channel in after)
        noise.append(after[:, inside][:, :1] if mode == "rand" else after[:, inside])
    noise = np.concatenate([values.ravel() for values in noise])
    if mode == "const":
        assert (noise == 0).all() and len(noise) > 1000
    else:
        assert stats.kstest(noise, "norm").pvalue > CHANCE


def test_erased_boxes_have_the_area_and_the_ratio_asked_for():
    boxes = np.concatenate(RandomErasing(1.0, (0.1, 0.2), (0.5, 0.6)).boxes((3000, 3, 300, 400), generator()))
    top, left, height, width = boxes.T
    assert 0.095 < (height * width).min() / 120_000 < 0.105 and 0.195 < (height * width).max() / 120_000 < 0.205
    assert 0.49 < (height / width).min() < 0.51 and 0.59 < (height / width).max() < 0.61
    assert top.min() == 0 and left.min() == 0
    assert (top + height).max() == 300 and (left + width).max() == 400


def test_of_several_boxes_each_gets_its_share_and_never_the_whole_side():
    boxes = RandomErasing(1.0, (0.3, 0.3), (1.0, 1.0), count=3).boxes((3000, 3, 100, 100), generator())
    assert likely(np.bincount([len(own) for own in boxes])[1:])
    for own in boxes:
        assert (own[:, 2] == round((3000 / len(own)) ** 0.5)).all()
    sides = np.concatenate(RandomErasing(1.0, (0.9, 1.0), (1.0, 1.0)).boxes((200, 3, 24, 24), generator()))[:, 2:]
    assert sides.max() == 23        # 24 at 24² would leave nothing


# Settings out of range


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandAugment(-1, 10), lambda: RandAugment(2, -1), lambda: RandAugment(2, float("nan")),
        lambda: RandomResizedCrop(0), lambda: RandomResizedCrop(8, scale=(0.5, 0.1)),
        lambda: RandomResizedCrop(8, scale=(0, 1)), lambda: RandomResizedCrop(8, scale=(0.5, 1.5)),
        lambda: RandomResizedCrop(8, ratio=(2, 1)), lambda: RandomResizedCrop(8, interpolation="lanczos"),
        lambda: ColorJitter(-0.1), lambda: ColorJitter(hue=0.6), lambda: ColorJitter(saturation=(2, 1)),
        lambda: ColorJitter(contrast=float("nan")), lambda: ColorJitter(brightness=(-1, 1)),
        lambda: RandomErasing(1.1), lambda: RandomErasing(scale=(0, 0.1)), lambda: RandomErasing(count=0),
        lambda: RandomErasing(ratio=(0, 1)), lambda: RandomErasing(mode="noise"),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ScratchvitError):
        make()


def test_pictures_of_the_wrong_kind_are_refused():
    with pytest.raises(ScratchvitError, match="2 channels"):
        RandomResizedCrop(8)(random_images(1, channels=2), generator())
    with pytest.raises(ScratchvitError, match="after Normalize"):
        RandomErasing()(random_images(1), generator())


# The command


@pytest.mark.slow
def test_show_augment_draws_a_sheet(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    photo = write_picture(tmp_path / "photo.png", (40, 30))
    assert main(["show-augment", str(photo), "--img-size", "24"]) == 0
    with Image.open(tmp_path / capsys.readouterr().out.strip()) as sheet:
        assert sheet.format == "PNG" and sheet.size[0] > 1000
        everything = sheet.size[1]
    few = ["--operations", "Rotate, RandomErasing", "--out", "few.png"]
    assert main(["show-augment", str(photo), *few]) == 0
    with Image.open(tmp_path / "few.png") as sheet:
        assert sheet.size[1] < everything / 4


def test_show_augment_has_a_picture_of_its_own(tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    path = tmp_path / "own.png"
    assert main(["show-augment", "--operations", "Color", "--out", str(path)]) == 0
    assert path.stat().st_size > 10_000


def test_show_augment_refuses_what_it_does_not_know(tmp_path, capsys):
    assert main(["show-augment", "--help"]) == 0
    assert "RandAugment" in capsys.readouterr().out
    assert main(["show-augment", "--operations", "Rotate,Swirl"]) == 2
    assert "no operation 'Swirl'; there are AutoContrast" in capsys.readouterr().err
    assert main(["show-augment", "--img-size", "0"]) == 2
    assert main(["show-augment", str(tmp_path / "none.png")]) == 1
    assert "no such picture; name another one" in capsys.readouterr().err
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert main(["show-augment", str(tmp_path / "bad.png")]) == 1
    error = capsys.readouterr().err
    assert "bad.png: this picture cannot be decoded" in error and error.endswith("; name another one\n")
    assert "--skip-bad" not in error        # there is no such option


# Against timm and torchvision


@pytest.mark.parity
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_cropped_pixels_equal_torchvisions(interpolation):
    import_torchvision()
    from torchvision.transforms import InterpolationMode, functional

    images = random_images(20, 40, 50, 3)
    crop = RandomResizedCrop((24, 20), interpolation=interpolation)
    out = crop(images, generator())
    for image, result, box in zip(images, out, crop.boxes([image.shape[:2] for image in images], generator())):
        mode = InterpolationMode(interpolation)
        theirs = functional.resized_crop(Image.fromarray(image), *map(int, box), (24, 20), mode)
        assert np.array_equal(result, np.asarray(theirs))


@pytest.mark.parity
def test_crops_of_picture_files_equal_torchvisions(tmp_path):
    import_torchvision()
    from torchvision.transforms import functional

    for i, image in enumerate(originals(*SIZES)):
        path = tmp_path / "any" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    pictures = ImageFolder.scan(tmp_path, 8).originals()
    crop = RandomResizedCrop(24)
    boxes = crop.boxes(SIZES, generator())
    for i, (result, box) in enumerate(zip(crop(pictures.images(range(len(SIZES))), generator()), boxes)):
        with Image.open(tmp_path / "any" / f"{i}.jpg") as picture:
            theirs = functional.resized_crop(picture.convert("RGB"), *map(int, box), (24, 24))
        assert np.array_equal(result, np.asarray(theirs))


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((224, 224), (0.05, 1.0), (3 / 4, 4 / 3)),
        ((32, 32), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((60, 200), (0.3, 1.0), (0.5, 1.5)),        # often without a box that fits
    ],
)
def test_crop_boxes_are_distributed_as_torchvisions(size, scale, ratio):
    import_torchvision()
    import torch
    from torchvision.transforms import RandomResizedCrop as Theirs

    draws = 10_000
    ours = RandomResizedCrop(8, scale, ratio).boxes([size, (111, 90)] * draws, generator())[::2]
    image = Image.new("L", size[::-1])
    with torch.random.fork_rng():
        torch.manual_seed(moved(5))
        theirs = np.array([Theirs.get_params(image, list(scale), list(ratio)) for _ in range(draws)])
    for column in range(4):
        assert alike(ours[:, column], theirs[:, column])
    for measure in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 2] / b[:, 3], lambda b: b[:, 0] + b[:, 2]):
        assert alike(measure(ours), measure(theirs))
    fallback = RandomResizedCrop(8, scale, ratio)._central(*size)
    share = [(boxes == fallback).all(axis=1).mean() for boxes in (ours, theirs)]
    assert abs(share[0] - share[1]) < 0.015


@pytest.mark.parity
@pytest.mark.parametrize("channels", [1, 3])
def test_jittered_pixels_equal_torchvisions(channels):
    import_torchvision()
    from torchvision.transforms import functional

    adjust = {
        "brightness": functional.adjust_brightness,
        "contrast": functional.adjust_contrast,
        "saturation": functional.adjust_saturation,
        "hue": functional.adjust_hue,
    }
    images = np.concatenate([pictures(20, 24, 30, channels), random_images(20, 24, 30, channels)])
    jitter = ColorJitter(0.8, 0.8, 1.5, 0.5)
    out = jitter(images, generator())
    for image, result, changes in zip(images, out, jitter.changes(40, generator())):
        picture = to_picture(image)
        for name, factor in changes:
            picture = adjust[name](picture, factor)
        assert np.array_equal(result, np.asarray(picture).reshape(image.shape))


@pytest.mark.parity
@pytest.mark.parametrize("settings", [0.4, (0.2, 0.9)])
def test_jitter_ranges_are_torchvisions(settings):
    import_torchvision()
    from torchvision.transforms import ColorJitter as Theirs

    hue = (0.2, 0.4) if isinstance(settings, tuple) else settings
    theirs = Theirs(settings, settings, settings, hue)
    for name, limits in ColorJitter(settings, settings, settings, hue).ranges.items():
        assert limits == getattr(theirs, name)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(("size", "count"), [((64, 64), 1), ((32, 48), 1), ((32, 32), 3)])
def test_erased_boxes_are_distributed_as_timms(size, count, monkeypatch):
    import_timm()
    import torch
    from timm.data import random_erasing

    draws = 4_000
    monkeypatch.setattr(random_erasing, "random", random.Random(5))
    theirs = random_erasing.RandomErasing(0.7, max_count=count, device="cpu")
    ours = RandomErasing(0.7, count=count)
    erased = {
        "ours": ours(np.ones((draws, 1, *size), np.float32), generator()) == 0,
        "theirs": theirs(torch.ones(draws, 1, *size)).numpy() == 0,
    }
    touched = {name: mask.any(axis=(1, 2, 3)).mean() for name, mask in erased.items()}
    assert abs(touched["ours"] - touched["theirs"]) < 0.03
    for measure in (
        lambda mask: mask.sum(axis=(1, 2, 3)),              # area
        lambda mask: mask.any(axis=(1, 3)).sum(axis=1),     # width
        lambda mask: mask.any(axis=(1, 2)).sum(axis=1),     # height
        lambda mask: mask.any(axis=(1, 3)).argmax(axis=1),  # left
        lambda mask: mask.any(axis=(1, 2)).argmax(axis=1),  # top
    ):
        assert alike(measure(erased["ours"]), measure(erased["theirs"]))
