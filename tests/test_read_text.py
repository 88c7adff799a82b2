"""Text as editors and tools write it: UTF-8, with or without a byte-order mark, UTF-16, and what is neither."""

import codecs

import pytest

from scratchvit.errors import ScratchvitError
from scratchvit.files import read_text

TEXT = "Größe\nмяч\r\n猫 🐈\n"


@pytest.mark.parametrize("content", [
    TEXT.encode(), codecs.BOM_UTF8 + TEXT.encode(), TEXT.encode("utf-16"),
    codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), TEXT.encode("utf-32"),
])
def test_text_is_the_same_in_every_encoding_that_says_which_it_is(tmp_path, content):
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    assert read_text(path) == TEXT


@pytest.mark.parametrize("content, encoding", [
    ("Größe".encode("cp1252"), "UTF-8"), ("мяч".encode("cp1251"), "UTF-8"), (codecs.BOM_UTF8 + b"\xff", "UTF-8"),
    (codecs.BOM_UTF16_LE + b"a", "UTF-16"), (codecs.BOM_UTF16_LE + b"\x00\xdc\x00\x00", "UTF-16"),
])
def test_another_encoding_is_not_guessed(tmp_path, content, encoding):
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(ScratchvitError, match=f"names.txt: this label list is not in {encoding} .* save it in UTF-8"):
        read_text(path, "label list")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ScratchvitError, match=r"nowhere\.txt: this text file cannot be read"):
        read_text(tmp_path / "nowhere.txt")
