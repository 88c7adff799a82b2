"""Shared by the commands that show one picture."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from scratchvit.data.images import open_image, without_advice
from scratchvit.errors import ScratchvitError


def open_the_picture(path: Path, channels: int = 3) -> Image.Image:
    """The picture that a command is about, by `open_image`. It cannot be left out, so an error asks for another one."""
    try:
        return open_image(path, channels)
    except ScratchvitError as error:
        raise ScratchvitError(f"{without_advice(error)}; name another one") from error
