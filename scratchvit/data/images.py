"""Reading a picture file into an array with Pillow: decode, apply the EXIF orientation, resize, crop the centre."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from scratchvit.errors import ScratchvitError

MODES = {1: "L", 3: "RGB"}  # channels → Pillow's name


def open_image(path: str | Path, channels: int = 3) -> Image.Image:
    """Read a picture file at its own size, in RGB (channels 3) or grey (1), with its EXIF orientation applied.

    Raises ScratchvitError, which names the file, if it is missing, damaged, or a decompression bomb.
    """
    if channels not in MODES:
        raise ScratchvitError(f"channels={channels}: pictures are read with 3 channels (RGB) or 1 (grey)")
    try:
        with Image.open(path) as picture:
            upright = eight_bit(ImageOps.exif_transpose(picture), channels)
    except FileNotFoundError as error:
        raise ScratchvitError(f"{path}: no such picture") from error
    except Exception as error:  # decoders raise many types of exceptions for damaged files, even SyntaxError
        raise ScratchvitError(
            f"{path}: this picture cannot be decoded ({error}); repair or remove it, or use --skip-bad "
            "to leave such pictures out of a data set"
        ) from error
    return upright


def load_image(path: str | Path, img_size: int, channels: int = 3) -> NDArray[np.uint8]:
    """Read a picture as uint8 (img_size, img_size, channels): `open_image`, then `resize_image`.

    Raises ScratchvitError as `open_image` does.
    """
    square = resize_image(open_image(path, channels), img_size)
    return np.asarray(square).reshape(img_size, img_size, channels)


def resize_image(picture: Image.Image, img_size: int) -> Image.Image:
    """Resize the shorter side to img_size (bicubic, antialiased) and crop the central square.

    The crop is done first: the result is the same, and a picture of 1 × 60,000 pixels does not need much memory.
    """
    return ImageOps.fit(picture, (img_size, img_size), Image.Resampling.BICUBIC)


def to_picture(pixels: NDArray[np.uint8]) -> Image.Image:
    """Convert uint8 (H, W, C) to a Pillow image, in grey for C = 1. Raises ScratchvitError unless C is 1 or 3."""
    if pixels.shape[-1] not in MODES:
        raise ScratchvitError(f"{pixels.shape[-1]} channels: a picture has 3 channels (RGB) or 1 (grey)")
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def eight_bit(picture: Image.Image, channels: int) -> Image.Image:
    """Convert a Pillow image of any mode to 8-bit RGB (channels 3) or grey (1); transparency is dropped.

    Raises ScratchvitError for floating-point pixels.
    """
    if picture.mode == "F":
        raise ScratchvitError("floating-point pixels have no defined range; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):  # 16-bit grey: convert() would clip at 255 instead of scaling
        picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:  # a palette with transparency converts to RGB only through RGBA
        picture = picture.convert("RGBA")
    return picture.convert(MODES[channels])
