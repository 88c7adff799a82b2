"""Names of classes on pictures: drawn in a font that has their characters, or with escapes; never as empty boxes."""

import numpy as np
import pytest
from PIL import Image

import scratchvit as sv
from scratchvit.data import Normalize
from scratchvit.data.glyphs import escaped, font_for
from scratchvit.detection.draw_boxes import draw_boxes

ODD = [
    "a$b$c", r"$\frac$", "$x", "100%", "a\\b", "two\nlines", "猫", "🐈", "שלום", "caf\udce9", "a_b^c", "x" * 300,
    "\x00", "",
]


def test_what_cannot_be_drawn_or_printed_is_escaped():
    assert escaped("a猫\n", str.isascii) == r"a\u732b\n"
    assert escaped("🐈é", lambda character: character == "é") == "\\U0001f408é"


def test_a_character_that_no_font_has_is_an_escape():
    """U+10FFFD is of the last private plane, which no font fills."""
    font, text = font_for("a\U0010fffdb", 12)
    assert text == "a\\U0010fffdb" and font.getlength(text) > 0


def test_latin_text_is_as_it_is():
    assert font_for("Größe 100 %", 12)[1] == "Größe 100 %"


@pytest.mark.parametrize("name", ODD)
def test_boxes_are_drawn_with_any_name(name):
    found = {"scores": np.array([0.9]), "labels": np.array([0]), "boxes": np.array([[8.0, 20, 40, 60]])}
    picture = draw_boxes(Image.new("RGB", (64, 64)), [name], found)
    assert np.asarray(picture).any()


@pytest.mark.parametrize("name", ODD)
def test_figures_are_drawn_with_any_name(name, tmp_path, recwarn):
    pytest.importorskip("matplotlib")
    from scratchvit.inspect import draw_attention

    model = sv.create_model(
        "vit_tiny_patch16_224", num_classes=2, img_size=8, patch_size=4, depth=1, embed_dim=16, num_heads=2
    )
    pictures = np.zeros((1, 8, 8, 3), np.uint8)
    draw_attention(model, pictures, Normalize([0.5] * 3, [0.5] * 3), np.array([0]), [name, name], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert not [each for each in recwarn if "Glyph" in str(each.message)]
