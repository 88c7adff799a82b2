"""Reading a picture file into an array with Pillow: decode, apply the EXIF orientation, resize, crop the centre."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from scratchvit.errors import ScratchvitError

MODES = {1: "L", 3: "RGB"}  # channels → Pillow's name

# File extensions of the formats that Pillow decodes. Not among them: formats that it only recognises (BUFR, GRIB,
# HDF5, IPTC, MPEG), those that it hands to another program (EPS) or to Windows (WMF), and FITS, whose numbers are not
# grey values. A format that this build of Pillow lacks (AVIF, JPEG 2000) is an error that names the file. The list is
# written out because asking Pillow imports all of its readers, which takes 0.2 s; a test compares the two.
SUFFIXES = frozenset({
    ".apng", ".avif", ".avifs", ".blp", ".bmp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".flc", ".fli", ".ftc", ".ftu",
    ".gbr", ".gif", ".icb", ".icns", ".ico", ".im", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf",
    ".jpg", ".jpx", ".mpo", ".msp", ".pbm", ".pcd", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".pxr",
    ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp", ".xbm", ".xpm",
})
_FULL_DEPTH = 0xFFFF    # the largest value of 16 bits


def open_image(path: str | Path, channels: int = 3) -> Image.Image:
    """Read a picture file at its own size, in RGB (channels 3) or grey (1), with its EXIF orientation applied.

    Raises ScratchvitError, which names the file, if it is missing, damaged, or a decompression bomb.
    """
    if channels not in MODES:
        raise ScratchvitError(f"channels={channels}: pictures are read with 3 channels (RGB) or 1 (grey)")
    try:
        return _upright(path, channels)
    except FileNotFoundError as error:
        raise ScratchvitError(f"{path}: no such picture") from error
    except Exception as error:  # decoders raise many types of exceptions for damaged files, even SyntaxError
        raise ScratchvitError(
            f"{path}: this picture cannot be decoded ({error}); repair or remove it, or use --skip-bad "
            "to leave such pictures out of a data set"
        ) from error


def decode_image(content: bytes, channels: int = 3) -> Image.Image:
    """The picture of a file with this content, as `open_image` reads it. Raises ScratchvitError as it does."""
    try:
        return _upright(io.BytesIO(content), channels)
    except UnidentifiedImageError as error:     # its own message has the address of the content
        raise ScratchvitError("this file is no picture of a known format: choose a PNG or a JPEG") from error
    except Exception as error:  # as above
        raise ScratchvitError(f"this picture cannot be decoded ({error}): choose another one") from error


def _upright(file: str | Path | io.BytesIO, channels: int) -> Image.Image:
    """A picture in 8 bits, with its EXIF orientation applied."""
    with Image.open(file) as picture:
        is_deep_colour = picture.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in picture.tile)
        upright = ImageOps.exif_transpose(picture)
        upright.format = picture.format
        if is_deep_colour:
            _check_deep_colour(upright)
        return eight_bit(upright, channels)


def without_advice(error: ScratchvitError) -> str:
    """An error message without its last clause, if that recommends --skip-bad."""
    what, _, then = str(error).rpartition("; ")
    return what if "--skip-bad" in then else str(error)


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


def reduce_image(picture: Image.Image, shorter_side: int) -> Image.Image:
    """Resize a picture with a longer shorter side to this one (bicubic, antialiased); its proportions are kept."""
    ratio = shorter_side / min(picture.size)
    if ratio >= 1:
        return picture
    width, height = (max(1, round(side * ratio)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3)


def to_picture(pixels: NDArray[np.uint8]) -> Image.Image:
    """Convert uint8 (H, W, C) to a Pillow image, in grey for C = 1. Raises ScratchvitError unless C is 1 or 3."""
    if pixels.shape[-1] not in MODES:
        raise ScratchvitError(f"{pixels.shape[-1]} channels: a picture has 3 channels (RGB) or 1 (grey)")
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def eight_bit(picture: Image.Image, channels: int) -> Image.Image:
    """Convert a Pillow image of any mode to 8-bit RGB (channels 3) or grey (1); transparency is dropped.

    Grey values of more than 8 bits are divided by the range that they use, since files do not say it: up to 255 they
    are 8-bit values, up to 4,095 12-bit values (as medical and industrial cameras write them), else 16-bit values.
    Raises ScratchvitError for floating-point pixels, and for integers below 0 or above 65,535.
    """
    if picture.mode == "F":
        raise ScratchvitError("floating-point pixels have no defined range; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):  # convert() would clip at 255 instead of scaling
        values = np.asarray(picture)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > _FULL_DEPTH:
            raise ScratchvitError(
                f"its integers go from {low} to {high}, a range that is not defined; save it with 8 or 16 bits"
            )
        if picture.format == "PPM":     # says its range, from which Pillow scales to 16 bits
            high = _FULL_DEPTH
        picture = Image.fromarray((values >> _surplus_bits(high)).astype(np.uint8))
    if picture.has_transparency_data:  # a palette with transparency converts to RGB only through RGBA
        picture = picture.convert("RGBA")
    return picture.convert(MODES[channels])


def _surplus_bits(highest: int) -> int:
    """How many bits values up to `highest` have beyond 8, if they were made with 8, 12 or 16."""
    return next(depth - 8 for depth in (8, 12, 16) if highest < 1 << depth)


def _check_deep_colour(picture: Image.Image) -> None:
    """Raises ScratchvitError for 12-bit colours in a 16-bit file: Pillow keeps the upper 8 bits, which are nearly 0."""
    extrema = picture.convert("RGB").getextrema()
    if 0 < max(high for _, high in extrema) < 1 << 4:       # type: ignore[misc]
        raise ScratchvitError("its 16-bit colours use 12 bits or fewer and would come out black; save it with 8 bits")
