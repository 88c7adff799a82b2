"""Folders of pictures and labels with random damage: reading them ends in a result or in a ScratchvitError."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchvit import data
from scratchvit.data.images import open_image
from scratchvit.errors import ScratchvitError
from scratchvit.weights.labels import read_labels
from tests.support.data_samples import write_image_folder, write_picture
from tests.support.fuzz import assert_ends_well, damaged, fuzzed, names, tree, words, written

pytestmark = pytest.mark.slow


def sound(tmp_path_factory, *parts):
    root = tmp_path_factory.mktemp("sound")
    write_image_folder(root, parts=parts, per_class=4)
    return tree(root)


def read_all(root, skip_bad):
    """Every picture of a folder, as a run would ask for them."""
    splits = data.load(root, img_size=8, skip_bad=skip_bad)
    for part in (splits.train, splits.val, splits.test):
        if part is not None and len(part):
            assert part.images(np.arange(len(part))).shape == (len(part), 8, 8, 3)
            assert part.labels.min() >= 0 and part.labels.max() < len(part.classes)


def test_damaged_image_folders(tmp_path_factory):
    folders = [sound(tmp_path_factory, "train"), sound(tmp_path_factory, "train", "val", "test")]

    @fuzzed
    @given(st.sampled_from(folders).flatmap(damaged), st.booleans())
    def check(folder, skip_bad):
        assert_ends_well(folder, lambda root: read_all(root, skip_bad))

    check()


@fuzzed
@given(st.lists(names, min_size=1, max_size=3, unique_by=str.casefold))
def test_any_name_of_a_class(class_names):
    with written({}) as root:
        for name in class_names:
            for number in range(5):
                try:
                    write_picture(root / "train" / name / f"{number}.png", (8, 8))
                except (OSError, ValueError):       # not a name for this file system
                    return
        try:
            read_all(root, skip_bad=False)
        except ScratchvitError as error:
            assert len(class_names) == 1 or any(name.startswith(".") for name in class_names), error


@fuzzed
@given(st.binary(max_size=200), st.sampled_from(("png", "jpg", "gif", "webp", "tif", "bmp", "ppm")))
def test_any_bytes_of_a_picture(content, suffix):
    with written({f"a.{suffix}": content}) as root:
        try:
            assert open_image(root / f"a.{suffix}").mode == "RGB"
        except ScratchvitError as error:
            assert f"a.{suffix}" in str(error)


@fuzzed
@given(
    st.lists(words, max_size=5), st.sampled_from(("names.txt", "names.json")),
    st.sampled_from(("utf-8", "utf-16", "cp1252")),
)
def test_any_list_of_labels(lines, name, encoding):
    content = "\n".join(lines).encode(encoding, "replace" if encoding != "utf-8" else "surrogatepass")
    with written({name: content}) as root:
        try:
            assert all(isinstance(label, str) for label in read_labels(root / name))
        except ScratchvitError as error:
            assert name in str(error)
