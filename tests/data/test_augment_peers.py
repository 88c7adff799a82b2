"""Erased boxes on timm's draws, RandAugment's operations against torchvision, and where the definitions part.

test_augment and test_randaugment compare with timm and torchvision too: there, distributions and timm's operations.
"""

import math

import numpy as np
import pytest

from scratchvit.data.augment import RandomErasing
from scratchvit.data.images import to_picture
from scratchvit.data.randaugment import OPERATIONS, apply_operation
from tests.support.augment_samples import generator, pictures
from tests.support.peers import import_timm, import_torchvision

pytestmark = pytest.mark.parity

MAGNITUDES = (0, 3, 5, 7.5, 10, 15, 20)
ONE_WAY, THE_OTHER = (1.0, 0.5, 0.5), (0.0, 0.5, 0.5)       # chance: sign, place


# Random erasing


class Replayed:
    """The module `random`, as timm uses it, out of our table of chance: touched, count, and 22 numbers a box."""

    def __init__(self, chance):
        self._rows = iter(chance)

    def random(self):
        touched, count, *boxes = next(self._rows)
        self._boxes = iter(np.reshape(boxes, (-1, 22)))
        self._attempts, self._whole = [], [count]
        return touched

    def uniform(self, low, high):
        """An area, then a ratio, for up to ten attempts at a box."""
        if not self._attempts:
            box = next(self._boxes)
            self._attempts = [number for attempt in zip(box[:10], box[10:20]) for number in attempt]
            self._whole = [*box[20:]]
        return low + (high - low) * self._attempts.pop(0)

    def randint(self, low, high):
        """How many boxes, before any attempt; or a box's top and then its left, after which it has its place."""
        number = self._whole.pop(0)
        if not self._whole:
            self._attempts = []
        return low + int(number * (high - low + 1))


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
@pytest.mark.parametrize(
    ("size", "count", "scale", "ratio"),
    [
        ((32, 32), 1, (0.02, 1 / 3), (0.3, 1 / 0.3)),
        ((40, 24), 1, (0.02, 1 / 3), (0.3, 1 / 0.3)),
        ((32, 48), 3, (0.1, 0.6), (0.5, 1.5)),
        ((12, 60), 4, (0.3, 1.0), (0.2, 5.0)),          # most attempts do not fit
    ],
)
def test_erased_pixels_are_timms_on_the_same_draws(size, count, scale, ratio, mode, monkeypatch):
    import_timm()
    torch, random_erasing = pytest.importorskip("torch"), pytest.importorskip("timm.data.random_erasing")
    images = generator(1).standard_normal((200, 3, *size), np.float32)
    found = RandomErasing(0.7, scale, ratio, mode, count)(images.copy(), generator())

    noise = generator()     # which comes after the boxes
    replayed = Replayed(noise.random((len(images), 2 + 22 * count)))

    def get_pixels(per_pixel, rand_color, shape, dtype, device):
        if not (per_pixel or rand_color):
            return torch.zeros(shape[0], 1, 1)
        return torch.tensor(noise.standard_normal(shape if per_pixel else (shape[0], 1, 1), np.float32))

    monkeypatch.setattr(random_erasing, "random", replayed)
    monkeypatch.setattr(random_erasing, "_get_pixels", get_pixels)
    theirs = random_erasing.RandomErasing(0.7, *scale, *ratio, mode=mode, max_count=count, device="cpu")
    expected = theirs(torch.tensor(images)).numpy()
    np.testing.assert_array_equal(found, expected)
    untouched = (found == images).all(axis=(1, 2, 3)).mean()
    assert 0.2 < untouched < 0.45


# RandAugment's operations: what each is called in torchvision, and its argument there


def sheared(F, picture, fill, degrees):
    return F.affine(picture, 0.0, [0, 0], 1.0, degrees, fill=fill, center=[0, 0])


def shifted(F, picture, fill, pixels):
    return F.affine(picture, 0.0, pixels, 1.0, [0.0, 0.0], fill=fill)


def degrees(factor):
    return math.degrees(math.atan(factor))      # torchvision's shear is an angle


IN_TORCHVISION = {
    "AutoContrast": lambda F, picture, fill: F.autocontrast(picture),
    "Equalize": lambda F, picture, fill: F.equalize(picture),
    "Invert": lambda F, picture, fill: F.invert(picture),
    "Rotate": lambda F, picture, fill, angle: F.rotate(picture, angle, fill=fill),
    # Outside 1 … 8 bits and thresholds of 0 … 255, ours are TensorFlow's: see `posterize` and `solarize`.
    "Posterize": lambda F, picture, fill, bits: F.posterize(picture, max(bits, 1)),
    "Solarize": lambda F, picture, fill, threshold: F.solarize(picture, threshold % 256),
    "Color": lambda F, picture, fill, factor: F.adjust_saturation(picture, factor),
    "Contrast": lambda F, picture, fill, factor: F.adjust_contrast(picture, factor),
    "Brightness": lambda F, picture, fill, factor: F.adjust_brightness(picture, factor),
    "Sharpness": lambda F, picture, fill, factor: F.adjust_sharpness(picture, factor),
    "ShearX": lambda F, picture, fill, factor: sheared(F, picture, fill, [degrees(factor), 0.0]),
    "ShearY": lambda F, picture, fill, factor: sheared(F, picture, fill, [0.0, degrees(factor)]),
    # Ours moves to the left for a positive number, as Pillow and TensorFlow; of a picture 224 wide.
    "TranslateX": lambda F, picture, fill, by: shifted(F, picture, fill, [-by * picture.width / 224, 0]),
    "TranslateY": lambda F, picture, fill, by: shifted(F, picture, fill, [0, -by * picture.height / 224]),
}


def test_torchvision_lacks_two_operations():
    assert OPERATIONS.keys() - IN_TORCHVISION.keys() == {"Cutout", "SolarizeAdd"}


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 224, 224, 3), (3, 32, 32, 3), (3, 21, 35, 3), (3, 28, 28, 1)])
@pytest.mark.parametrize("name", IN_TORCHVISION)
def test_operations_equal_torchvisions(name, shape):
    import_torchvision()
    from torchvision.transforms.v2 import functional

    images, fill = pictures(*shape), [128] * shape[3]
    for magnitude in MAGNITUDES:
        for chance in (ONE_WAY, THE_OTHER):
            found = apply_operation(name, images, magnitude, np.repeat([chance], len(images), axis=0))
            made = OPERATIONS[name].arguments(magnitude / 10, np.array([chance]))
            arguments = [np.ravel(argument)[0].item() for argument in made]
            for image, result in zip(images, found):
                expected = IN_TORCHVISION[name](functional, to_picture(image), fill, *arguments)
                np.testing.assert_array_equal(result, np.asarray(expected).reshape(image.shape), f"{magnitude}")


# Levels: what a magnitude means differs. Ours at 0 and at 10 of 10, torchvision's `RandAugment` at 0 and at 30 of 30,
# both for a picture of 224 × 224, and why.
LEVELS_OF_TORCHVISION = {
    #              ours          torchvision's
    "ShearX":     ((0, 0.3),     (0, 0.3),         "the same"),
    "ShearY":     ((0, 0.3),     (0, 0.3),         "the same"),
    "Rotate":     ((0, 30),      (0, 30),          "the same"),
    "TranslateX": ((0, 100),     (0, 101.5),       "150/331 of the width, as AutoAugment on ImageNet's 331 × 331"),
    "TranslateY": ((0, 100),     (0, 101.5),       "likewise"),
    "Color":      ((0.1, 1.9),   (1.0, 1.9),       "1 ± 0.9 m there: 0 is no change, and a sign is drawn"),
    "Contrast":   ((0.1, 1.9),   (1.0, 1.9),       "likewise"),
    "Brightness": ((0.1, 1.9),   (1.0, 1.9),       "likewise"),
    "Sharpness":  ((0.1, 1.9),   (1.0, 1.9),       "likewise"),
    "Posterize":  ((0, 4),       (8, 4),           "stronger with the magnitude there, weaker here"),
    "Solarize":   ((0, 256),     (255, 0),         "stronger with the magnitude there, weaker here, up to 256 → 0"),
}


def test_levels_against_torchvisions():
    import_torchvision()
    from torchvision.transforms.v2 import RandAugment as Theirs

    space = Theirs._AUGMENTATION_SPACE
    plain = {"AutoContrast", "Equalize"}                        # without an argument
    assert space.keys() - {"Identity"} == LEVELS_OF_TORCHVISION.keys() | plain
    assert OPERATIONS.keys() - space.keys() == {"Invert", "Cutout", "SolarizeAdd"}
    for name, (ours, theirs, _) in LEVELS_OF_TORCHVISION.items():
        made = [OPERATIONS[name].arguments(level, np.array([ONE_WAY])) for level in (0, 1)]
        assert [np.ravel(arguments[0])[0] for arguments in made] == pytest.approx(ours, rel=1e-14), name
        bins, signed = space[name]
        ends = [bins(31, 224, 224)[i].item() for i in (0, 30)]
        unit = {"Solarize": 255.0}.get(name, 1.0)
        offset = 1.0 if name in ("Color", "Contrast", "Brightness", "Sharpness") else 0.0
        assert [offset + unit * end for end in ends] == pytest.approx(theirs, abs=0.02), name
        assert signed == (name not in ("Posterize", "Solarize")), name


def test_levels_beyond_ten_against_timms(monkeypatch):
    """Up to 10 they are timm's (test_randaugment). Beyond it, timm limits two of them and nothing else."""
    import_timm()
    from timm.data import auto_augment

    monkeypatch.setattr(auto_augment, "_randomly_negate", lambda value: value)
    limits = {"Solarize": 256, "SolarizeAdd": 128}
    for name in OPERATIONS.keys() - {"AutoContrast", "Equalize", "Invert", "Cutout"}:
        for magnitude in (12, 15, 20, 30):
            (theirs,) = auto_augment.LEVEL_TO_ARG[name](magnitude, {"translate_const": 100})
            ours = OPERATIONS[name].arguments(magnitude / 10, np.array([ONE_WAY]))[0]
            assert min(np.ravel(ours)[0], limits.get(name, math.inf)) == pytest.approx(theirs, rel=1e-12), name
    drawn = {name.removesuffix("Rel") for name in auto_augment._RAND_TRANSFORMS}
    assert OPERATIONS.keys() - drawn == {"Cutout"} and drawn <= OPERATIONS.keys()
