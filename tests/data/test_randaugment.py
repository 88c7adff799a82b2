"""RandAugment: every operation against Pillow and timm, its arguments against hand-made numbers, its draws counted."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from scratchvit.data import randaugment
from scratchvit.data.randaugment import LEVELS, OPERATIONS, RandAugment, apply_operation
from tests.support.augment_samples import by_pillow, generator, likely, pictures
from tests.support.data_samples import random_images
from tests.support.peers import import_timm

SHAPES = [(4, 32, 32, 3), (3, 20, 45, 3), (3, 28, 28, 1), (2, 1, 1, 3)]
POSITIVE, NEGATIVE = [[1.0, 0.5, 0.5]], [[0.0, 0.5, 0.5]]       # chance for one picture: sign, place


# Levels and arguments


def test_levels_are_the_papers():
    assert LEVELS == {
        "none": (0, 0, 0.0),
        "light1": (2, 0, 0.0),
        "light2": (2, 10, 0.2),
        "medium1": (2, 15, 0.2),
        "medium2": (2, 15, 0.5),
        "heavy1": (2, 20, 0.5),
        "heavy2": (2, 20, 0.8),
    }


# At magnitudes 0, 5, 10, 15, 20, by the formulas of big_vision's autoaugment.py, worked out by hand.
ARGUMENTS = {
    "AutoContrast": None,
    "Equalize": None,
    "Invert": None,
    "Rotate": (0, 15, 30, 45, 60),
    "Posterize": (0, 2, 4, 6, 8),
    "Solarize": (0, 128, 256, 384, 512),
    "Color": (0.1, 1.0, 1.9, 2.8, 3.7),
    "Contrast": (0.1, 1.0, 1.9, 2.8, 3.7),
    "Brightness": (0.1, 1.0, 1.9, 2.8, 3.7),
    "Sharpness": (0.1, 1.0, 1.9, 2.8, 3.7),
    "ShearX": (0, 0.15, 0.3, 0.45, 0.6),
    "ShearY": (0, 0.15, 0.3, 0.45, 0.6),
    "TranslateX": (0, 50, 100, 150, 200),
    "TranslateY": (0, 50, 100, 150, 200),
    "Cutout": (0, 20, 40, 60, 80),
    "SolarizeAdd": (0, 55, 110, 165, 220),
}
SIGNED = {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"}
WHOLE = {"Posterize", "Solarize", "Cutout", "SolarizeAdd"}


def test_the_operations_are_theirs_in_their_order():
    assert list(OPERATIONS) == list(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name):
    for sign, chance in ((1, POSITIVE), (-1, NEGATIVE)):
        made = [OPERATIONS[name].arguments(magnitude / 10, np.array(chance)) for magnitude in (0, 5, 10, 15, 20)]
        if ARGUMENTS[name] is None:
            assert made == [()] * 5
            continue
        first = [np.ravel(arguments[0])[0] for arguments in made]
        expected = np.multiply(ARGUMENTS[name], sign if name in SIGNED else 1)
        np.testing.assert_allclose(first, expected, rtol=1e-12)
    if name in WHOLE:       # rounded down: 7/10 of 4, of 256, of 40, of 110
        (argument, *_) = OPERATIONS[name].arguments(7 / 10, np.array(POSITIVE))
        assert argument == {"Posterize": 2, "Solarize": 179, "Cutout": 28, "SolarizeAdd": 77}[name]


# What the operations do


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("ours", "pillows"),
    [
        (randaugment.auto_contrast, ImageOps.autocontrast),
        (randaugment.equalize, ImageOps.equalize),
        (randaugment.invert, ImageOps.invert),
        *[(lambda x, b=b: randaugment.posterize(x, b), lambda p, b=b: ImageOps.posterize(p, b)) for b in (1, 4, 8)],
        *[(lambda x, t=t: randaugment.solarize(x, t), lambda p, t=t: ImageOps.solarize(p, t)) for t in (0, 100, 255)],
        *[
            (lambda x, f=f: randaugment.brightness(x, f), lambda p, f=f: ImageEnhance.Brightness(p).enhance(f))
            for f in (0.1, 1.0, 1.9, 3.7)
        ],
    ],
)
def test_tables_equal_pillow(ours, pillows, shape):
    for images in (pictures(*shape), random_images(*shape)):
        before = images.copy()
        assert np.array_equal(ours(images), by_pillow(pillows, images))
        assert np.array_equal(images, before)


def test_equalize_of_many_pixels_and_few_values():
    """Steps of more than one, and tables that would leave 0 … 255."""
    values = np.array([0, 3, 200, 201, 255], np.uint8)
    images = values[generator().integers(0, 5, (6, 40, 50, 3))]
    images[0, :39] = 7
    assert np.array_equal(randaugment.equalize(images), by_pillow(ImageOps.equalize, images))


def test_beyond_uint8():
    """As google-research/big_vision's own code did under TensorFlow 2.12 and NumPy 1.23, run once to see."""
    x = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)

    def at(name, magnitude):
        return apply_operation(name, x, magnitude, np.array(POSITIVE))

    for magnitude in (0, 25, 30):
        assert np.array_equal(at("Posterize", magnitude), x & 0b1000_0000)
    assert np.array_equal(at("Posterize", 15), x & 0b1111_1100)
    assert np.array_equal(at("Posterize", 20), x)
    for magnitude in (0, 10, 20, 30):
        assert np.array_equal(at("Solarize", magnitude), 255 - x)
    for magnitude in (5, 15, 25):
        assert np.array_equal(at("Solarize", magnitude), np.where(x < 128, x, 255 - x))


@pytest.mark.parametrize("addition", [0, 55, 110, 165, 330])
def test_solarize_add_equals_the_formula(addition):
    images = random_images(2, 40, 40, 3)
    expected = np.where(images < 128, np.minimum(images.astype(int) + addition, 255), images)
    assert np.array_equal(randaugment.solarize_add(images, addition), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_translations_are_shifts_filled_with_grey(channels):
    images = random_images(2, 224, 224, channels)
    left = randaugment.translate_x(images, np.array([50.0, -50.0]))
    assert np.array_equal(left[0, :, :174], images[0, :, 50:]) and (left[0, :, 174:] == 128).all()
    assert np.array_equal(left[1, :, 50:], images[1, :, :174]) and (left[1, :, :50] == 128).all()
    up = randaugment.translate_y(images, np.array([50.0, -50.0]))
    assert np.array_equal(up.swapaxes(1, 2), randaugment.translate_x(images.swapaxes(1, 2), np.array([50.0, -50.0])))


def test_a_small_picture_moves_by_the_same_share():
    images = random_images(1, 32, 64, 3)    # 56 of 224 pixels are a quarter
    assert np.array_equal(randaugment.translate_x(images, np.array([56.0]))[:, :, :48], images[:, :, 16:])
    assert np.array_equal(randaugment.translate_y(images, np.array([56.0]))[:, :24], images[:, 8:])
    assert (randaugment.cutout(images, 56, np.array([[0.5, 0.5]])) == 128).sum() >= 16 * 16 * 3


@pytest.mark.parametrize("channels", [1, 3])
def test_shear_moves_every_row_by_its_own_shift(channels):
    images = random_images(1, 21, 33, channels)
    sheared = randaugment.shear_x(images, np.array([0.3]))[0]
    for y in range(21):
        for x in range(33):
            source = int(np.floor(x + 0.5 + 0.3 * (y + 0.5)))
            assert np.array_equal(sheared[y, x], images[0, y, source] if source < 33 else [128] * channels)
    sideways = randaugment.shear_y(images.swapaxes(1, 2), np.array([0.3]))[0]
    assert np.array_equal(sideways, sheared.swapaxes(0, 1))


def test_rotation_is_counter_clockwise_about_the_middle():
    images = random_images(2, 15, 15, 3)
    turned = randaugment.rotate(images, np.array([90.0, -90.0]))
    assert np.array_equal(turned[0], np.rot90(images[0])) and np.array_equal(turned[1], np.rot90(images[1], -1))
    assert (randaugment.rotate(images, np.array([45.0, 45.0]))[:, 0, 0] == 128).all()       # a corner left empty


def test_cutout_equals_a_loop():
    images = random_images(200, 224, 32, 3)
    centres = generator().random((200, 2))
    for image, result, (y, x) in zip(images, randaugment.cutout(images, 40, centres), centres):
        row, column, half = int(y * 224), int(x * 32), 5        # 40 · 32/224, rounded down
        for i in range(row - 7, row + 8):
            for j in range(column - 7, column + 8):
                if 0 <= i < 224 and 0 <= j < 32:
                    inside = -half <= i - row < half and -half <= j - column < half
                    assert np.array_equal(result[i, j], [128] * 3 if inside else image[i, j])
        assert (result != image).any(axis=-1).sum() <= (2 * half) ** 2


def test_colour_leaves_a_grey_picture_alone():
    grey = random_images(3, 9, 9, 1)
    assert np.array_equal(randaugment.color(grey, 3.7), grey)


# What is drawn


def test_operations_signs_and_places_are_uniform_and_independent(monkeypatch):
    """Pictures that carry their number show which of them went through what, in which layer, by which chance."""
    count, names = 16_000, list(OPERATIONS)
    drawn, chances = np.full((2, count), -1), np.empty((2, count, 3))
    passed = np.zeros(count, int)

    def apply(name, images, magnitude, chance):
        assert magnitude == 15
        own = images.reshape(-1, 2) @ [1, 256]
        drawn[passed[own], own] = names.index(name)
        chances[passed[own], own] = chance
        passed[own] += 1
        return images

    monkeypatch.setattr(randaugment, "apply_operation", apply)
    numbered = np.stack(np.divmod(np.arange(count), 256)[::-1], axis=1).astype(np.uint8)
    RandAugment(2, 15)(numbered.reshape(count, 1, 1, 2), generator())

    assert (passed == 2).all()
    assert likely(np.bincount(drawn[0] * 16 + drawn[1], minlength=256))     # the two of one kind among them
    for chance in chances.reshape(-1, 3).T:
        assert likely(np.histogram2d(drawn.ravel(), chance, (16, 8), ((0, 16), (0, 1)))[0].ravel())
    (angles,) = OPERATIONS["Rotate"].arguments(1.0, chances[0])
    assert likely([(angles == 30).sum(), (angles == -30).sum()])


@pytest.mark.parametrize("shape", [(40, 32, 32, 3), (40, 14, 20, 1)])
@pytest.mark.parametrize("level", ["none", "light1", "medium2", "heavy2"])
def test_randaugment_equals_a_loop_over_pictures(shape, level):
    layers, magnitude, _ = LEVELS[level]
    images = random_images(*shape)
    before = images.copy()
    augmented = RandAugment(layers, magnitude)(images, generator())
    assert augmented.dtype == np.uint8
    for image, result, chance in zip(images, augmented, generator().random((40, layers, 4))):
        expected = image[None]
        for operation, *rest in chance:
            name = list(OPERATIONS)[int(operation * 16)]
            expected = apply_operation(name, expected, magnitude, np.array([rest]))
        assert np.array_equal(result, expected[0])
    assert np.array_equal(images, before)       # the data set's own pictures stay as they are
    assert np.array_equal(augmented, before) == (level == "none")


# Against timm


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("shape", [(3, 224, 224, 3), (3, 32, 32, 3), (3, 21, 35, 3), (3, 28, 28, 1)])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "Cutout"])
def test_operations_equal_timms(name, shape):
    import_timm()
    from timm.data import auto_augment

    images = pictures(*shape)
    options = {"fillcolor": (128,) * shape[3], "resample": Image.Resampling.NEAREST}
    function = auto_augment.NAME_TO_OP[name + "Rel" if name.startswith("Translate") else name]
    for magnitude in (0, 3, 5, 7.5, 10, 15, 20):
        for chance in (POSITIVE, NEGATIVE):
            chance = np.repeat(chance, len(images), axis=0)
            ours = apply_operation(name, images, magnitude, chance)
            arguments = [np.ravel(argument)[0] for argument in OPERATIONS[name].arguments(magnitude / 10, chance)]
            if name.startswith("Translate"):
                arguments = [arguments[0] / 224]
            if name in ("Posterize", "Solarize"):       # where timm's and TensorFlow's part: test_beyond_uint8
                arguments = [max(arguments[0], 1) if name == "Posterize" else arguments[0] % 256]
            assert np.array_equal(ours, by_pillow(function, images, *arguments, **options)), magnitude


@pytest.mark.parity
@pytest.mark.parametrize("name", [name for name in OPERATIONS if ARGUMENTS[name] and name != "Cutout"])
def test_arguments_equal_timms_up_to_magnitude_10(name, monkeypatch):
    import_timm()
    from timm.data import auto_augment

    monkeypatch.setattr(auto_augment, "_randomly_negate", lambda value: value)
    for magnitude in np.linspace(0, 10, 41):
        (theirs,) = auto_augment.LEVEL_TO_ARG[name](magnitude, {"translate_const": 100})
        ours = OPERATIONS[name].arguments(magnitude / 10, np.array(POSITIVE))[0]
        assert np.ravel(ours)[0] == theirs
