"""Folders as tools export them: every layout gives the same pictures, classes and boxes, in the parts that it has."""

import pytest

from scratchvit.data.folder import SUFFIXES
from scratchvit.detection.data.source import load_detection
from scratchvit.errors import ScratchvitError
from tests.support.detection_layouts import IN_PARTS, WHOLE
from tests.support.detection_pictures import assert_parts, assert_whole, put


@pytest.mark.parametrize("write", WHOLE)
def test_an_export_without_parts_is_split_by_seed(tmp_path, write):
    write(tmp_path)
    assert_whole(tmp_path)


@pytest.mark.parametrize("write", WHOLE)
def test_what_the_system_adds_to_a_folder_changes_nothing(tmp_path, write):
    write(tmp_path)
    for name in (".DS_Store", "Thumbs.db", "__MACOSX/._0.jpg", "__MACOSX/._0.xml", "._0.txt", ".cache/x.json"):
        put(tmp_path / name, "\x00\x05")
    splits = assert_whole(tmp_path)
    assert any("6  left out: hidden files and system files" in line for line in splits.files)


@pytest.mark.parametrize("write", IN_PARTS)
def test_an_export_in_parts(tmp_path, write):
    write(tmp_path)
    assert_parts(tmp_path)


@pytest.mark.parametrize("write", IN_PARTS)
def test_the_same_one_folder_further_down(tmp_path, write):
    write(tmp_path / "My First Project.v1i")
    assert_parts(tmp_path)


@pytest.mark.parametrize("write", [*WHOLE, *IN_PARTS])
def test_a_folder_without_its_pictures_is_refused(tmp_path, write):
    write(tmp_path)
    for path in list(tmp_path.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            path.unlink()
    with pytest.raises(ScratchvitError, match=r"no pictures|no picture |no such picture|pictures that it lists"):
        load_detection(tmp_path)
