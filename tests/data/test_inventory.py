"""Every file of a data folder is used, or left out for a reason, and the numbers add up."""

import os

import pytest

from scratchvit.data.inventory import HIDDEN, Inventory


@pytest.fixture
def folder(tmp_path):
    for name in ("train/cat/0.jpg", "train/cat/1.jpg", "test/cat/2.jpg", "train/cat/notes.txt", "train/README",
                 ".DS_Store", "__MACOSX/train/cat/0.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_what_nobody_speaks_of_is_left_out_by_its_ending(folder):
    inventory = Inventory(folder)
    inventory.use("train", [folder / "train/cat/0.jpg"])
    inventory.use("test", [folder / "test/cat/2.jpg"])
    inventory.leave_out("cannot be decoded", [folder / "train/cat/1.jpg"])
    assert inventory.used() == {"train": 1, "test": 1}
    assert inventory.left_out() == {
        HIDDEN: [folder / ".DS_Store", folder / "__MACOSX/train/cat/0.jpg"],
        "not read: files without an extension": [folder / "train/README"],
        "cannot be decoded": [folder / "train/cat/1.jpg"],
        "not read: .txt": [folder / "train/cat/notes.txt"],
    }
    numbers = [int(line.split()[0]) for line in inventory.lines()]
    assert numbers[0] == len(inventory.files) == 7 == sum(numbers[1:])
    assert "1  left out: cannot be decoded (train/cat/1.jpg)" in [line.replace("\\", "/") for line in inventory.lines()]


def test_one_file_is_no_files(tmp_path):
    (tmp_path / "0.tmp").touch()
    assert Inventory(tmp_path).lines()[0] == f"1  file in {tmp_path}"
    (tmp_path / "1.tmp").touch()
    assert Inventory(tmp_path).lines()[0] == f"2  files in {tmp_path}"


def test_a_file_that_is_used_is_not_left_out_and_counts_once(folder):
    inventory = Inventory(folder)
    picture = folder / "train/cat/0.jpg"
    inventory.leave_out("a copy", [picture])
    inventory.use("train", [picture, picture])
    assert inventory.used() == {"train": 1}
    assert "a copy" not in inventory.left_out()


def test_many_files_are_named_by_three_examples(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.tmp").touch()
    assert Inventory(tmp_path).lines()[-1] == "5  left out: not read: .tmp (0.tmp, 1.tmp, 2.tmp, …)"


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_links_to_folders_are_followed_once_and_dead_links_are_seen(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "3.jpg").touch()
    (folder / "train/linked").symlink_to(other)
    (folder / "train/circle").symlink_to(folder)
    (folder / "train/cat/dead.jpg").symlink_to(folder / "nowhere.jpg")
    files = Inventory(folder).files
    assert folder / "train/linked/3.jpg" in files and folder / "train/cat/dead.jpg" in files
    assert len(files) == 9
