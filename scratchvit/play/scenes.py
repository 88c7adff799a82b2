"""A scene of digits that the page of a detector describes and moves about: JSON ↔ a picture with its true boxes.

    {"ground": 12,                          # the background: that of the test scene with this number
     "digits": [{"label": 7, "which": 41,   # the 41st of the handwritten digits, which is a 7
                 "x": 30.5, "y": 52.0,      # centre of its box
                 "side": 28.1, "stretch": 1.02, "tilt": -4.0,       # how it is drawn: see scenes.Form
                 "colour": [212.0, 90.5, 40.0]}, …]}                # red, green, blue, 0 … 255

x, y and side are in pixels of the scene, tilt in degrees. A digit may have a label alone: everything else is then drawn
at random, as for a generated scene. All drawing is that of detection/data/scenes.py, and the digits are those of its
test split, of which no model has seen any in training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from scratchvit.detection.data.annotations import Annotations
from scratchvit.detection.data.scenes import MOST_DIGITS, Colour, Digit, Form, Scenes, as_picture, colour_on, paint
from scratchvit.errors import ScratchvitError

MOST = 2 * MOST_DIGITS      # digits in a scene, more than any scene of the training has
RANGES = {                  # of the numbers of a digit; sides as fractions of the scene's
    "side": (0.12, 0.6), "stretch": (0.9, 1.1), "tilt": (-180.0, 180.0), "x": (0.0, 1.0), "y": (0.0, 1.0),
}
PIXELS = ("side", "x", "y")     # those that JSON has in pixels
LARGEST_GROUND = 1 << 31
_TRIES = 5                      # random sizes for which room is looked for


class Scene(NamedTuple):
    """A scene: the number of its background, its digits, and the colour of each."""

    ground: int
    digits: list[Digit]
    colours: list[Colour]


def generated(scenes: Scenes, number: int) -> Scene:
    """Scene `number` of the data set. Raises ScratchvitError if there is none."""
    if not 0 <= number < len(scenes):
        raise ScratchvitError(f"there is no scene {number}: choose one of 0 … {len(scenes) - 1}")
    return Scene(number, scenes.digits(number), scenes.colours(number))


def read(scenes: Scenes, given: Any) -> Scene:
    """The scene that JSON describes.

    A digit that would cross the border is moved inside, because no digit of a generated scene is cut.
    Raises ScratchvitError for more than MOST digits, a number out of range, anything that is missing or unknown, and
    a further digit for which there is no room.
    """
    entries = _fields(given, "the scene", {"ground", "digits"})
    ground = _whole(entries["ground"], "the ground of the scene", LARGEST_GROUND)
    if not isinstance(entries["digits"], list):
        raise ScratchvitError(f"the digits of the scene are a list, not {entries['digits']!r}")
    if len(entries["digits"]) > MOST:
        raise ScratchvitError(f"a scene has at most {MOST} digits, this one has {len(entries['digits'])}: delete some")
    scene = Scene(ground, [], [])
    for place, entry in enumerate(entries["digits"]):
        digit, colour = _digit(scenes, entry, scene, f"digit {place + 1} of {len(entries['digits'])}")
        scene.digits.append(digit)
        scene.colours.append(colour)
    return scene


def described(scene: Scene) -> dict[str, Any]:
    """The scene as JSON, from which `read` makes the same."""
    digits = []
    for digit, colour in zip(scene.digits, scene.colours, strict=True):
        x0, y0, x1, y1 = digit.box
        digits.append({
            "label": digit.label, **digit.form._asdict(), "x": (x0 + x1) / 2, "y": (y0 + y1) / 2,
            "colour": colour.tolist(),
        })
    return {"ground": scene.ground, "digits": digits}


def painted(scenes: Scenes, scene: Scene) -> tuple[Image.Image, Annotations]:
    """The picture of a scene, and its true boxes."""
    pixels = scenes.ground(scene.ground).astype(np.float32)
    for digit, colour in zip(scene.digits, scene.colours, strict=True):
        paint(pixels, digit, colour)
    return as_picture(pixels), scenes.annotated(scene.ground, scene.digits)


def _digit(scenes: Scenes, given: Any, scene: Scene, name: str) -> tuple[Digit, Colour]:
    """A digit of JSON with its colour, beside those that the scene has already."""
    label = _whole(_fields(given, name, {"label"}, {*RANGES, "which", "colour"})["label"], f"{name}: its label", 10)
    if given.keys() == {"label"}:
        return _another(scenes, label, scene)
    entries = _fields(given, name, {*RANGES, "label", "which", "colour"})
    which = _whole(entries["which"], f"{name}: which", len(scenes.labels))
    if scenes.labels[which] != label:
        raise ScratchvitError(f"{name}: handwritten digit {which} is a {scenes.labels[which]}, not a {label}")
    numbers = {}
    for key, (least, most) in RANGES.items():
        scale = scenes.img_size if key in PIXELS else 1
        numbers[key] = _number(entries[key], f"{name}: its {key}", least * scale, most * scale)
    if not isinstance(entries["colour"], list) or len(entries["colour"]) != 3:
        raise ScratchvitError(f"{name}: its colour is three numbers, not {entries['colour']!r}")
    colour = np.array([_number(part, f"{name}: its colour", 0, 255) for part in entries["colour"]], np.float32)
    digit = scenes.drawn(Form(which, numbers["side"], numbers["stretch"], numbers["tilt"]), (0, 0))
    height, width = digit.ink.shape
    top, left = (
        min(max(0, round(numbers[key] - length / 2)), scenes.img_size - length)
        for key, length in (("y", height), ("x", width))
    )
    return dataclasses.replace(digit, place=(top, left)), colour


def _another(scenes: Scenes, label: int, scene: Scene) -> tuple[Digit, Colour]:
    """A random digit beside those of the scene, the same for the same scene."""
    rng = np.random.default_rng([scene.ground, len(scene.digits), label])
    for _ in range(_TRIES):
        digit = scenes.another(label, scene.digits, rng)
        if digit is not None:
            # From the whole background and not from what is under the digit, so that it stays when the digit moves.
            return digit, colour_on(scenes.ground(scene.ground).astype(np.float32), rng)
    raise ScratchvitError(f"there is no room for a {label}: move digits together, make one smaller, or delete one")


def _fields(given: Any, name: str, needed: set[str], others: set[str] | None = None) -> Mapping[str, Any]:
    """A JSON object with these fields, and perhaps others."""
    if not isinstance(given, dict):
        raise ScratchvitError(f"{name} is an object of JSON, not {given!r}")
    missing, unknown = needed - given.keys(), given.keys() - needed - (others or set())
    if missing or unknown:
        what = "lacks" if missing else "has an unknown"
        raise ScratchvitError(f"{name} {what} {', '.join(sorted(missing or unknown))}")
    return given


def _whole(given: Any, name: str, count: int) -> int:
    """An integer in 0 … count - 1."""
    if type(given) is not int or not 0 <= given < count:
        raise ScratchvitError(f"{name} is a whole number from 0 to {count - 1}, not {given!r}")
    return given


def _number(given: Any, name: str, least: float, most: float) -> float:
    """A number in least … most."""
    if type(given) not in (int, float) or not least <= given <= most:
        raise ScratchvitError(f"{name} is a number from {least:g} to {most:g}, not {given!r}")
    return float(given)
