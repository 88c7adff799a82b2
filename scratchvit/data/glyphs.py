"""Drawing names of classes and files on pictures: in a font that has their characters, or else with escapes.

A character that a font lacks is drawn as an empty box, so 猫 and 犬 would look the same. Where no font on the machine
has a character, its escape, \\u732b, is written instead.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from PIL import ImageFont

from scratchvit.files import printable

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

# Files that Pillow looks for in the system's folders of fonts, after its own font: for Latin, Greek, Cyrillic, Hebrew
# and Arabic; then for Chinese, Japanese and Korean (Linux, Windows, macOS); then for emoji.
FILES = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc",
    "msyh.ttc", "meiryo.ttc", "malgun.ttf", "Hiragino Sans GB.ttc", "NotoEmoji-Regular.ttf", "seguiemj.ttf",
)
# The same for Matplotlib, by family.
FAMILIES = (
    "DejaVu Sans", "Noto Sans", "Arial Unicode MS", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei",
    "Microsoft YaHei", "Meiryo", "Malgun Gothic", "Hiragino Sans GB", "Noto Emoji", "Segoe UI Emoji",
)


def font_for(text: str, size: float) -> tuple[Font, str]:
    """The first font that can draw a text, and the text for it: as it is, or with escapes in Pillow's own font."""
    text = printable(text)
    first = _own(size)
    others = (_from_file(name, size) for name in FILES)
    for font in (first, *(font for font in others if font)):
        if all(_draws(font, character) for character in text):
            return font, text
    return first, escaped(text, lambda character: _draws(first, character))


def escaped(text: str, can_draw: Callable[[str], bool]) -> str:
    """A text in which characters that cannot be drawn, or printed, are written as escapes."""
    return "".join(c if can_draw(c) else c.encode("ascii", "backslashreplace").decode() for c in printable(text))


@functools.lru_cache(maxsize=64)
def _own(size: float) -> Font:
    return ImageFont.load_default(size)


@functools.lru_cache(maxsize=256)
def _from_file(name: str, size: float) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@functools.lru_cache(maxsize=4096)
def _draws(font: Font, character: str) -> bool:
    """Whether a font has a character: it does not look like one that no font has."""
    missing = font.getmask("\U0010fffe")
    drawn = font.getmask(character)
    return character.isspace() or (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))
