"""Folders that were damaged at random: each is read, with all its files accounted for, or refused in a sentence."""

import random
import re
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scratchvit.detection.data.source import load_detection
from scratchvit.errors import ScratchvitError
from tests.support.detection_layouts import IN_PARTS, WHOLE
from tests.support.detection_pictures import assert_adds_up
from tests.support.fuzz import EXAMPLES

PIECES = [
    b"\0", b"-1", b"1e999", b"nan", b'"', b"'", b"[", b"]", b"{", b"}", b"null", b"true", b"\xff", b"\xef\xbb\xbf",
    b"..", b"/", b"\\", b",", b":", b"\n", b"0", b"9" * 20, b"<", b">", b"&x;", b"", b"cat", b"\xe2\x80\xa8", b"1.5",
    b'{"a":1}', b"[]", b"*a", b"&a", b"!!x", b"train", b"a" * 300, b"\\ud800",
]
NAMES = ["x", "train", "a.txt", "images", "val.json", "classes.txt", "data.yaml", "1.txt", "\udcff.txt", "boxes.csv"]


def damage(root, rng):
    """Change a word, put something in between, cut off, replace, rename or remove one of the files."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    texts = [path for path in files if path.suffix.lower() not in (".jpg", ".png")]
    path = rng.choice((texts or files) if rng.random() < 0.9 else files)
    content = bytearray(path.read_bytes())
    way = rng.choice(["word", "word", "word", "between", "between", "cut", "noise", "rename", "remove"])
    words = [*re.finditer(rb"[\w.]+|[^\w\s]", bytes(content))]
    if way == "word" and words:
        word = rng.choice(words)
        content[word.start() : word.end()] = rng.choice(PIECES)
    elif way == "between":
        place = rng.randrange(len(content) + 1)
        content[place:place] = rng.choice(PIECES)
    elif way == "cut":
        del content[rng.randrange(len(content) + 1) :]
    elif way == "noise":
        content = rng.randbytes(rng.randrange(40))
    elif way == "rename":
        name = path.with_name(rng.choice(NAMES) + rng.choice(["", path.suffix]))
        if not name.is_dir():
            path.rename(name)
        return
    elif way == "remove":
        path.unlink()
        return
    path.write_bytes(bytes(content))


def attempt(root, write, rng):
    write(root)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        damage(root, rng)
    for skip_bad in (False, True):
        try:
            splits = load_detection(root, val_fraction=0.2, skip_bad=skip_bad)
        except ScratchvitError as error:
            assert not str(error).endswith(".")
            continue
        assert_adds_up(splits, root)
        for part in (splits.train, splits.val, splits.test):
            part.ground_truth()
            for index in range(len(part)):
                target = part.target(index)
                assert ((target["boxes"] >= 0) & (target["boxes"] <= 1)).all()
                assert (target["labels"] < len(part.classes)).all()


def check(tmp_path, write, rng):
    root = tmp_path / "data"
    root.mkdir()
    try:
        attempt(root, write, rng)
    finally:
        shutil.rmtree(root)


LAYOUTS = st.sampled_from([*WHOLE, *IN_PARTS])
QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=30, **QUIET)
@given(write=LAYOUTS, seed=st.integers(0, 2**32))
def test_damaged_folders(tmp_path, write, seed):
    check(tmp_path, write, random.Random(seed))


@pytest.mark.slow
@settings(max_examples=3 * EXAMPLES, **QUIET)
@given(write=LAYOUTS, seed=st.integers(0, 2**32))
def test_many_damaged_folders(tmp_path, write, seed):
    check(tmp_path, write, random.Random(seed))
