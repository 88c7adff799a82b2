"""CIFAR's files for Python: what Python's own unpickler finds in them is found, and nothing in them is executed."""

import os
import pickle
import pickletools
import struct

import numpy as np
import pytest

from scratchvit.data import load
from scratchvit.errors import ScratchvitError
from tests.support.data_samples import pack, random_images

CIFAR = {
    "cifar10": ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], "test_batch", "batches.meta", "", 10),
    "cifar100": ("cifar-100-python", ["train"], "test", "meta", "fine_", 100),
}


def python_2(value):
    """A value as Python 2 pickled it in 2009, by protocol 2: strings are bytes. (Python 3 cannot write that.)"""
    if isinstance(value, bytes):
        if len(value) < 256:
            return pickle.SHORT_BINSTRING + bytes([len(value)]) + value
        return pickle.BINSTRING + struct.pack("<I", len(value)) + value
    if isinstance(value, int):
        return pickle.BININT + struct.pack("<i", value)
    if isinstance(value, list):
        return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(python_2, value)) + pickle.APPENDS
    if isinstance(value, dict):
        entries = b"".join(python_2(key) + python_2(item) for key, item in value.items())
        return pickle.EMPTY_DICT + pickle.MARK + entries + pickle.SETITEMS
    dtype = (b"cnumpy\ndtype\n" + pickle.MARK + python_2(b"u1") + python_2(0) + python_2(1) + pickle.TUPLE
             + pickle.REDUCE + pickle.MARK + python_2(3) + python_2(b"|") + 3 * pickle.NONE + python_2(-1)
             + python_2(-1) + python_2(0) + pickle.TUPLE + pickle.BUILD)
    shape = pickle.MARK + b"".join(map(python_2, value.shape)) + pickle.TUPLE
    return (b"cnumpy.core.multiarray\n_reconstruct\n" + pickle.MARK + b"cnumpy\nndarray\n" + python_2(0) + pickle.TUPLE1
            + python_2(b"b") + pickle.TUPLE + pickle.REDUCE
            + pickle.MARK + python_2(1) + shape + dtype + pickle.NEWFALSE + python_2(value.tobytes()) + pickle.TUPLE
            + pickle.BUILD)


WRITERS = {
    "Python 2": lambda value: pickle.PROTO + b"\x02" + python_2(value) + pickle.STOP,
    "Python 3, keys of bytes": lambda value: pickle.dumps(value, protocol=4),
    "Python 3, protocol 2": lambda value: pickle.dumps(value, protocol=2),
    "Python 3, keys of text": lambda value: pickle.dumps({key.decode(): item for key, item in value.items()}, 4),
}


def write(folder, name, writer, per_file=20):
    _, train, test, meta, prefix, classes = CIFAR[name]
    folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate([*train, test]):
        pixels = random_images(per_file, 32, 32, 3, seed=number).transpose(0, 3, 1, 2).reshape(per_file, 3072)
        content = {
            b"batch_label": b"training batch 1 of 5", b"data": np.ascontiguousarray(pixels),
            f"{prefix}labels".encode(): [at * 7 % classes for at in range(per_file)],
            b"filenames": [f"{at}.png".encode() for at in range(per_file)],
        }
        if prefix:
            content[b"coarse_labels"] = [19] * per_file
        (folder / file).write_bytes(writer(content))
    (folder / meta).write_bytes(writer({f"{prefix}label_names".encode(): [b"class%d" % at for at in range(classes)]}))


@pytest.mark.parametrize("place", ["here", "subfolder", "archive"])
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("name", CIFAR)
def test_it_is_what_pythons_unpickler_reads(tmp_path, name, writer, place):
    subfolder, train, test, _, prefix, classes = CIFAR[name]
    folder = tmp_path / "made" / subfolder
    write(folder, name, writer)
    data_dir = folder if place == "here" else folder.parent
    if place == "archive":
        data_dir = tmp_path / "packed"
        data_dir.mkdir()
        pack(folder, data_dir / f"cifar-{classes}-python.tar.gz")
    splits = load(name, data_dir=data_dir, val_fraction=0)
    for dataset, files in ((splits.train, train), (splits.test, [test])):
        read = [pickle.loads((folder / file).read_bytes(), encoding="latin1") for file in files]    # noqa: S301 - ours
        read = [{key if isinstance(key, str) else key.decode(): value for key, value in each.items()} for each in read]
        data = np.vstack([each["data"] for each in read]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        assert np.array_equal(dataset.images(range(len(dataset))), data)
        assert dataset.labels.tolist() == [label for each in read for label in each[f"{prefix}labels"]]
    assert splits.train.classes == tuple(f"class{at}" for at in range(classes))


def test_nothing_in_a_pickle_is_executed(tmp_path):
    write(tmp_path, "cifar10", WRITERS["Python 2"])
    marker = tmp_path / "executed"

    class Gadget:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"labels": Gadget(), b"data": Gadget()}))
    with pytest.raises(ScratchvitError, match=r"cifar10: test_batch (cannot be read|has no data)"):
        load("cifar10", data_dir=tmp_path)
    assert not marker.exists()


DAMAGED = {
    "cut short": (lambda content: content[:-100], "data_batch_2 .*truncated"),
    "no pickle": (lambda content: b"\x00" * 100, "data_batch_2 "),
    "empty": (lambda content: b"", "data_batch_2 "),
    "a list": (lambda content: pickle.dumps([1]), "data_batch_2 holds a list, not a dictionary"),
    "no data": (lambda content: pickle.dumps({"labels": [1]}), r"data_batch_2 has no data, an array uint8 \(N, 3072\)"),
    "floats": (lambda content: pickle.dumps({"labels": [1], "data": np.zeros((1, 3072))}), "data_batch_2 has no data"),
    "few labels": (lambda content: pickle.dumps({"labels": [1], "data": np.zeros((2, 3072), np.uint8)}),
                   "data_batch_2 has no labels, a list of 2 integers"),
    "a label too many": (lambda content: pickle.dumps({"labels": [10], "data": np.zeros((1, 3072), np.uint8)}),
                         "record 0 of data_batch_2 has label 10"),
    "a label below 0": (lambda content: pickle.dumps({"labels": [-1], "data": np.zeros((1, 3072), np.uint8)}),
                        "record 0 of data_batch_2 has label -1"),
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_named(tmp_path, damage, sentence):
    write(tmp_path, "cifar10", WRITERS["Python 2"])
    path = tmp_path / "data_batch_2"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ScratchvitError, match=sentence):
        load("cifar10", data_dir=tmp_path)


def test_a_file_that_is_missing_is_named_in_the_version_that_is_there(tmp_path):
    write(tmp_path, "cifar10", WRITERS["Python 2"])
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(ScratchvitError, match=r"cifar10: data_batch_3 \(or cifar-10-python\.tar\.gz\) not found"):
        load("cifar10", data_dir=tmp_path)


def test_the_samples_use_the_instructions_of_the_real_files(tmp_path):
    write(tmp_path, "cifar10", WRITERS["Python 2"])
    used = {op.name for op, _, _ in pickletools.genops((tmp_path / "test_batch").read_bytes())}
    assert {"SHORT_BINSTRING", "BINSTRING", "GLOBAL", "REDUCE", "BUILD"} <= used and "BINUNICODE" not in used
