"""Folders of pictures as people have them: which pictures are in which split and class, what is said of the rest."""

import os
import zlib

import pytest
from PIL import Image

from scratchvit.data import ImageFolder, load
from scratchvit.data.folder import picture_files
from scratchvit.data.layout import part_of
from scratchvit.errors import ScratchvitError
from tests.support.data_samples import counts, file_table, write_files, write_image_folder
from tests.support.peers import import_timm, import_torchvision

CAT_DOG = ("cat", "dog")
LAYOUTS = {    # files: the classes, and how many pictures are in train, val and test
    "nested": (["train/cat/{0..3}.jpg", "train/cat/2021/{0..7}.jpg", "train/dog/a/b/c/{0..9}.png", "val/dog/x/1.jpg",
                "val/cat/0.png", "test/cat/{0..1}.jpg"], CAT_DOG, (22, 2, 2)),
    "other endings": (["train/cat/{0..3}.jfif", "train/cat/4.JPE", "train/dog/0.pcx", "train/dog/1.JP2",
                       "train/dog/2.tga", "val/cat/0.webp", "test/dog/0.pgm"], CAT_DOG, (8, 1, 1)),
    "valid": (["train/cat/{0..4}.jpg", "train/dog/{0..4}.jpg", "valid/cat/{0..2}.jpg", "valid/dog/0.jpg",
               "test/cat/0.jpg", "test/dog/0.jpg"], CAT_DOG, (10, 4, 2)),
    "Training, Testing": (["Training/cat/{0..9}.jpg", "Training/dog/{0..9}.jpg", "Testing/cat/{0..4}.jpg",
                           "Testing/dog/{0..4}.jpg"], CAT_DOG, (18, 2, 10)),
    "TRAIN, Validation, Test": (["TRAIN/cat/{0..4}.jpg", "TRAIN/dog/0.jpg", "Validation/cat/0.jpg", "Test/cat/1.jpg"],
                                CAT_DOG, (6, 1, 1)),
    "training_set, test_set": (["training_set/training_set/cat/{0..4}.jpg", "training_set/training_set/dog/{0..4}.jpg",
                                "test_set/test_set/cat/0.jpg", "test_set/test_set/dog/0.jpg"], CAT_DOG, (9, 1, 2)),
    "seg_train, seg_test": (["seg_train/seg_train/cat/{0..4}.jpg", "seg_train/seg_train/dog/{0..4}.jpg",
                             "seg_test/seg_test/cat/0.jpg", "seg_pred/seg_pred/{0..4}.jpg"], CAT_DOG, (9, 1, 1)),
    "one level down": (["data/train/cat/{0..4}.jpg", "data/train/dog/{0..4}.jpg", "data/val/cat/0.jpg", "README.md"],
                       CAT_DOG, (10, 1, 0)),
    "one level down beside others": (["data/train/cat/{0..4}.jpg", "data/train/dog/0.jpg", "data/test/cat/0.jpg",
                                      "docs/{0..2}.png", "demo/x/1.png"], CAT_DOG, (5, 1, 1)),
    "two levels down": (["archive/photos/train/cat/{0..4}.jpg", "archive/photos/train/dog/{0..4}.jpg",
                         "archive/photos/val/cat/0.jpg"], CAT_DOG, (10, 1, 0)),
    "classes": (["cat/{0..9}.jpg", "dog/{0..9}.jpg"], CAT_DOG, (14, 2, 4)),
    "classes, nested": (["cat/{0..4}.jpg", "cat/2021/{0..4}.jpg", "dog/2020/{0..9}.jpg"], CAT_DOG, (14, 2, 4)),
    "classes one level down": (["archive/cat/{0..9}.jpg", "archive/dog/{0..9}.jpg", "notes.txt"], CAT_DOG, (14, 2, 4)),
    "packed twice": (["yes/{0..9}.jpg", "no/{0..9}.jpg", "brain/yes/{0..9}.jpg", "brain/no/{0..9}.jpg"], ("no", "yes"),
                     (14, 2, 4)),
    "splits in the classes": (["cat/train/{0..4}.jpg", "cat/valid/0.jpg", "cat/test/{0..1}.jpg", "dog/train/{0..4}.jpg",
                               "dog/valid/{0..1}.jpg", "dog/test/0.jpg"], CAT_DOG, (10, 3, 3)),
    "classes beside test": (["cat/{0..9}.jpg", "dog/{0..9}.jpg", "test/cat/{0..2}.jpg", "test/dog/0.jpg"], CAT_DOG,
                            (18, 2, 4)),
    "classes beside valid": (["cat/{0..9}.jpg", "dog/{0..9}.jpg", "valid/cat/{0..2}.jpg"], CAT_DOG, (20, 3, 0)),
    "classes beside test without labels": (["cat/{0..9}.jpg", "dog/{0..9}.jpg", "test/{0..2}.jpg"], CAT_DOG,
                                           (14, 2, 4)),
    "a split with one class, a number": (["train/0/{0..4}.jpg", "train/1/{0..4}.jpg", "val/1/a/{0..1}.jpg",
                                          "test/0/1.jpg"], ("0", "1"), (10, 2, 1)),
    "a split with one class, not in ASCII": (["train/犬/{0..4}.jpg", "train/é/{0..4}.jpg", "val/犬/a/{0..1}.jpg",
                                              "test/é/1.jpg"], ("é", "犬"), (10, 2, 1)),
    "one class, not in ASCII": (["犬/{0..9}.jpg"], ("犬",), (7, 1, 2)),
    "a class that is called train": (["bus/{0..9}.jpg", "car/{0..9}.jpg", "train/{0..9}.jpg"], ("bus", "car", "train"),
                                     (22, 2, 6)),
    "inside of images": (["train/images/cat/{0..9}.jpg", "train/images/dog/{0..9}.jpg", "test/images/cat/0.jpg"],
                         CAT_DOG, (18, 2, 1)),
    "a test split without labels": (["train/cat/{0..9}.jpg", "train/dog/{0..9}.jpg", "test/{0..4}.jpg"], CAT_DOG,
                                    (14, 2, 4)),
    "a test split without labels, beside val": (["train/cat/{0..9}.jpg", "train/dog/{0..9}.jpg", "val/cat/0.jpg",
                                                 "test/{0..4}.jpg"], CAT_DOG, (20, 1, 0)),
    "empty folders of val and test": (["train/cat/{0..9}.jpg", "train/dog/{0..9}.jpg", "val/.keep", "test/cat/.keep"],
                                      CAT_DOG, (14, 2, 4)),
}


@pytest.mark.parametrize(("files", "classes", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(tmp_path, files, classes, expected):
    splits = load(write_files(tmp_path / "photos", *files), img_size=8)
    assert (splits.train.classes, counts(splits)) == (classes, expected)
    assert splits.val.classes == splits.test.classes == classes
    rows = file_table(splits)
    assert [rows.get(f"used: {part}", 0) for part in ("train", "val", "test")] == [*expected]
    for part in (splits.train, splits.val, splits.test):
        assert all(part.classes[label] in path.parts for path, label in zip(part.paths, part.labels))
        part.images(range(len(part)))


@pytest.mark.parametrize(("name", "part"), {
    "train": "train", "Training": "train", "train2017": "train", "TrainSet": "train", "train_images": "train",
    "val": "val", "VALID": "val", "validation": "val", "val-split": "val", "Test": "test", "testing": "test",
    "testset": "test", "TestImages": "test", "latest": None, "contest": None, "bullet train": None, "traindeer": None,
    "evaluation": None, "train犬": None, "2017": None, "train_test": None, "": None,
}.items())
def test_names_of_splits_are_whole_words(name, part):
    assert part_of(name) == part


@pytest.mark.parity
def test_nested_classes_are_those_of_torchvision(tmp_path):
    root = write_files(tmp_path, "train/cat/{0..3}.jpg", "train/cat/2021/{0..7}.jpg", "train/dog/b/{0..2}.png",
                       "train/dog/a.jpg", "train/Émile/x/y.jpeg")
    ours = ImageFolder.scan(root / "train", 8)
    found = sorted((str(path), label) for path, label in zip(ours.paths, ours.labels.tolist()))
    theirs = import_torchvision().datasets.ImageFolder(root / "train")
    assert found == sorted((str(path), label) for path, label in theirs.samples)
    assert list(ours.classes) == theirs.classes
    import_timm()
    from timm.data.readers.reader_image_folder import find_images_and_targets

    # timm reads the same files; it calls the class of a nested one by the innermost folder.
    samples, _ = find_images_and_targets(str(root / "train"))
    assert sorted(path for path, _ in samples) == [path for path, _ in found]


# What version 0.1 drew: a run that began with it goes on with the same pictures.
DRAWN = {
    "train": ({"train": 20}, 1676036623,
              "Bee/7 ant/3 ant/8 cicada/11 cicada/20 cicada/7",
              "Bee/6 Bee/9 ant/11 ant/12 ant/13 ant/15 cicada/0 cicada/21 cicada/22 cicada/5 cicada/9"),
    "train and test": ({"train": 20, "test": 4}, 3252684081,
                       "Bee/6 Bee/9 ant/12 ant/13 ant/15 cicada/0 cicada/22 cicada/5",
                       "Bee/0 Bee/1 ant/0 ant/1 ant/2 ant/3 cicada/0 cicada/1 cicada/2 cicada/3 cicada/4 cicada/5 "
                       "cicada/6"),
}


@pytest.mark.parametrize(("parts", "train", "val", "test"), DRAWN.values(), ids=DRAWN)
def test_splits_are_drawn_as_ever(tmp_path, parts, train, val, test):
    root = tmp_path / "insects"
    for part, n in parts.items():
        write_files(root, *(f"{part}/{name}/{{0..{k - 1}}}.png" for name, k in
                            (("ant", n), ("Bee", n // 2), ("cicada", n + 3))))
    splits = load(root, img_size=4, val_fraction=0.15, seed=3)
    said = [" ".join(f"{path.parent.name}/{path.stem}" for path in part.paths) for part in (splits.val, splits.test)]
    assert said == [val, test]
    paths = "/".join(f"{path.parent.name}/{path.stem}" for path in splits.train.paths)
    assert zlib.crc32(paths.encode()) == train and splits.train.name == "insects"


def test_of_few_pictures_one_is_for_validation(tmp_path):
    root = write_files(tmp_path, "train/cat/{0..1}.jpg", "train/dog/{0..1}.jpg", "test/cat/8.jpg", "test/dog/8.jpg")
    splits = load(root, img_size=8)
    assert counts(splits) == (3, 1, 2) and f"val: 1 picture drawn from {root / 'train'} with seed 0" in splits.notes
    assert counts(load(root, img_size=8, val_fraction=0)) == (4, 0, 2)


def test_nobody_takes_from_train_what_val_can_tell(tmp_path):
    root = write_files(tmp_path, "train/cat/{0..9}.jpg", "train/dog/{0..9}.jpg", "val/cat/{0..2}.jpg", "val/dog/3.jpg")
    splits = load(root, img_size=8)
    assert counts(splits) == (20, 4, 0) and splits.held_out == ("val", splits.val)
    assert splits.notes == ("test: there is none; the figures at the end of a run are those of val",)


def test_every_file_that_is_not_used_is_in_the_table(tmp_path):
    root = write_files(
        tmp_path / "photos", "train/cat/{0..3}.jpg", "train/dog/{0..3}.jpg", "train/loose.png", "test/{0..4}.png",
        "val/cat/0.jpg", "val/dog/0.jpg", "train/cat/notes.txt", "train/dog/a.heic", "extra/cat/9.jpg", "README",
        ".DS_Store", "train/cat/._0.jpg", "train/.ipynb_checkpoints/0.jpg", "labels.csv", "cover.jpg",
    )
    rows = file_table(load(root, img_size=8))
    elsewhere = "left out: in no class folder of train, val or test (cover.jpg, extra/cat/9.jpg, test/0.png, …)"
    assert rows == {
        f"files in {root}".replace("\\", "/"): 25, "used: train": 8, "used: val": 2, elsewhere: 8,
        "left out: not read: .txt (train/cat/notes.txt)": 1, "left out: not read: .heic (train/dog/a.heic)": 1,
        "left out: not read: files without an extension (README)": 1, "left out: not read: .csv (labels.csv)": 1,
        "left out: hidden files and system files (.DS_Store, train/.ipynb_checkpoints/0.jpg, train/cat/._0.jpg)": 3,
    }


def test_runs_that_were_started_in_the_folder_are_no_class_of_it(tmp_path):
    root = write_files(tmp_path, "cat/{0..9}.jpg", "dog/{0..9}.jpg", "runs/a/last.safetensors", "runs/a/sample.png",
                       "runs/a/predictions/{0..2}.png", "notes/a.txt")
    splits = load(root, img_size=8)
    assert splits.train.classes == CAT_DOG
    assert "folders without pictures, which are not classes: notes, runs" in splits.notes
    said = "runs/a/last.safetensors, runs/a/predictions/0.png, runs/a/predictions/1.png, …"
    assert file_table(splits)[f"left out: written by a run of scratchvit ({said})"] == 5


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_dead_links_and_pipes_are_counted_and_circles_end(tmp_path):
    root = write_files(tmp_path / "photos", "train/cat/{0..9}.jpg", "train/dog/{0..9}.jpg", "test/cat/0.jpg")
    for number in range(3):
        (root / f"train/cat/z{number}.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(root / "train/dog/pipe.jpg")
    (root / "train/dog/circle").symlink_to(root / "train")
    splits = load(root, img_size=8)
    assert counts(splits) == (18, 2, 1)
    rows = file_table(splits)
    assert rows["left out: broken links (train/cat/z0.jpg, train/cat/z1.jpg, train/cat/z2.jpg)"] == 3
    assert rows["left out: not regular files (train/dog/pipe.jpg)"] == 1


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_links_to_pictures_and_to_folders_are_pictures(tmp_path):
    store = write_files(tmp_path / "store", "{0..9}.jpg", "more/{0..4}.jpg")
    root = write_files(tmp_path / "photos", "train/cat/0.jpg", "val/cat/0.jpg", "val/dog/0.jpg")
    (root / "train/dog").mkdir()
    (root / "train/dog/0.jpg").symlink_to(store / "0.jpg")
    (root / "train/dog/more").symlink_to(store / "more")
    assert counts(load(root, img_size=8)) == (7, 2, 0)


def test_a_class_may_lack_pictures_in_val_and_test_but_not_in_train(tmp_path):
    root = write_files(tmp_path, *(f"train/{name}/{{0..3}}.jpg" for name in ("ant", "bee", "fox")), "test/ant/0.jpg",
                       "test/bee/0.jpg", "val/fox/0.jpg")
    (root / "test/fox").mkdir()
    splits = load(root, img_size=8)
    assert splits.test.classes == splits.val.classes == ("ant", "bee", "fox")
    assert (splits.test.labels.tolist(), splits.val.labels.tolist()) == ([0, 1], [2])
    assert {"test has no pictures of fox", "val has no pictures of ant, bee"} <= set(splits.notes)

    (root / "test/wasp").mkdir()        # empty, it stands for none
    assert len(load(root, img_size=8).test) == 2
    write_files(root, "test/wasp/0.jpg")
    with pytest.raises(ScratchvitError, match=r"test: its classes differ from those of .*train; only here: wasp"):
        load(root, img_size=8)
    (root / "train/wasp").mkdir()
    with pytest.raises(ScratchvitError, match="wasp: no pictures in this class folder"):
        load(root, img_size=8)


def test_names_that_macos_writes_otherwise_are_the_same_class(tmp_path):
    root = write_files(tmp_path, "train/caf\u00e9/{0..3}.jpg", "train/dog/{0..3}.jpg", "val/cafe\u0301/0.jpg",
                       "test/dog/0.jpg")
    splits = load(root, img_size=8)
    assert splits.val.classes == splits.train.classes == ("caf\u00e9", "dog") and splits.val.labels.tolist() == [0]


def test_one_class_only_is_warned_of(tmp_path):
    notes = load(write_files(tmp_path, "train/cat/{0..9}.jpg"), img_size=8).notes
    assert "warning: there is only one class, cat, so there is nothing to classify" in notes


@pytest.mark.parametrize(("files", "sentence"), {
    ("readme.txt", "a.heic"): "no folder train and no class folders; .*there are 1 .heic, 1 .txt",
    ("{0..4}.jpg",): "no folder train and no class folders; .*a table labels.csv .*there are 5 .jpg",
    ("images/{0..4}.jpg", "a.txt"): "no folder train and no class folders; .*there are 5 .jpg, 1 .txt",
    ("train/{0..4}.jpg", "test/{0..2}.jpg"): "train: no class folders; expected .*train/<class>.*; there are 5 .jpg",
    ("images/train/{0..4}.jpg", "images/val/5.jpg", "labels/train/{0..4}.txt"):
        "there are 6 .jpg, 5 .txt; pictures with boxes are for `scratchvit detect-train`",
    ("train/images/{0..4}.jpg", "train/labels/{0..4}.txt", "valid/images/{0..4}.jpg", "data.yaml"):
        "train: no class folders; .*there are 5 .jpg, 5 .txt; pictures with boxes are for",
    ("JPEGImages/{0..4}.jpg", "Annotations/{0..4}.xml"): "there are 5 .jpg, 5 .xml; pictures with boxes are for",
    ("test/cat/0.jpg", "val/cat/0.jpg"): "no folder train",
    ("train/cat/0.jpg", "val/cat/0.jpg", "valid/cat/1.jpg"): "val and valid could both be val",
    ("a/train/cat/0.jpg", "b/train/cat/0.jpg", "b/test/cat/0.jpg"): "a and b each have a folder train: give the path",
}.items())
def test_what_cannot_be_read_says_what_was_found(tmp_path, files, sentence):
    with pytest.raises(ScratchvitError, match=sentence):
        load(write_files(tmp_path, *files), img_size=8)


# --- splits that share pictures ---


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_split_that_is_a_link_to_another_is_told(tmp_path):
    root = write_files(tmp_path, "train/cat/{0..3}.jpg", "train/dog/{0..3}.jpg", "val/cat/0.jpg", "val/dog/0.jpg")
    (root / "test").symlink_to(root / "val")
    splits = load(root, img_size=8)
    assert counts(splits) == (8, 2, 2) and file_table(splits)["used: test"] == 2
    assert [note.replace("\\", "/") for note in splits.notes] == [
        "warning: 2 of the 2 pictures of test are also in val (val/cat/0.jpg = test/cat/0.jpg): the accuracy on test "
        "is not an independent check"
    ]


def test_files_with_the_same_bytes_are_told(tmp_path):
    root = write_image_folder(tmp_path, ("train", "test"))
    for number in range(7):      # another colour
        Image.new("RGB", (12, 8), (number, number, number)).save(root / "test" / "ant" / f"{number:02}.png")
    (note,) = [note for note in load(root, img_size=8, val_fraction=0.0).notes if "warning" in note]
    assert note.startswith("warning: 13 of the 20 pictures of test are also in train (")


def test_copies_that_lie_in_one_split_are_nobodys_concern(tmp_path):
    root = write_files(tmp_path, "train/cat/{0..3}.jpg", "train/dog/{0..3}.jpg", "val/cat/0.jpg", "test/cat/0.jpg")
    (root / "train/cat/again.jpg").write_bytes((root / "train/cat/0.jpg").read_bytes())
    assert not any("warning" in note for note in load(root, img_size=8).notes)


# --- predict FOLDER ---


def test_picture_files_are_found_in_folders_of_folders(tmp_path):
    root = write_files(tmp_path, "b.jpg", "a/2.jfif", "a/1.png", "a/c/0.jpg", "a/notes.txt", ".hidden.jpg", ".x/0.jpg")
    assert [path.relative_to(root).as_posix() for path in picture_files(root)] == [
        "a/1.png", "a/2.jfif", "a/c/0.jpg", "b.jpg"
    ]
    with pytest.raises(ScratchvitError, match=r"no pictures in this folder; there are 1 \.md"):
        picture_files(write_files(tmp_path / "none", "x.md"))
