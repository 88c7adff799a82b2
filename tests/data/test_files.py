"""Reading MNIST's and CIFAR's files: what was written comes back, and whatever is damaged is named."""

import dataclasses
import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scratchvit.data import idx, load, read_idx
from scratchvit.errors import ScratchvitError
from tests.support.data_samples import SHARED, idx_bytes, pack, random_images, write_cifar, write_mnist
from tests.support.processes import alone, peak_bytes
from tests.support.seeds import seeded


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """No test sees the data sets of the machine that it runs on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, source in idx.DATASETS.items():
        monkeypatch.setitem(idx.DATASETS, name, dataclasses.replace(source, system_folders=()))


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 5, 7), (2, 3, 4, 5)])
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_round_trip(tmp_path, shape, zipped):
    array = seeded(0).integers(0, 256, shape, np.uint8)
    path = tmp_path / "file.gz"  # the content tells whether it is gzip, not the name
    path.write_bytes(gzip.compress(idx_bytes(array)) if zipped else idx_bytes(array))
    assert np.array_equal(read_idx(path), array)


GOOD = idx_bytes(random_images(3, 4, 4, 1)[..., 0])


ZIPPED = gzip.compress(GOOD, mtime=0)
DAMAGED_IDX = {
    "empty": (b"", "not an IDX file"),
    "floats": (b"\x00\x00\x0d" + GOOD[3:], "not an IDX file of unsigned bytes"),
    "wrong magic": (b"\x89PNG" + GOOD[4:], "not an IDX file"),
    "half a header": (GOOD[:10], "truncated header"),
    "cut short": (GOOD[:-1], "announces 48 bytes, it has 47"),
    "too long": (GOOD + b"\x00", "announces 48 bytes, it has more"),
    "gzip cut short": (ZIPPED[:-12], "cannot be read"),
    "gzip with a wrong sum": (ZIPPED[:-5] + b"\x00" * 5, "cannot be read"),
    "gzip of a bad block": (ZIPPED[:10] + b"\xff" * 40, "cannot be read"),
    "no axes": (bytes((0, 0, 8, 0)), "announces an array"),
    "255 axes": (bytes((0, 0, 8, 255)) + struct.pack(">255I", *[1] * 255), "announces an array"),
    "huge": (bytes((0, 0, 8, 3)) + struct.pack(">3I", *[2**32 - 1] * 3), "announces an array"),
    "huge times zero": (
        bytes((0, 0, 8, 3)) + struct.pack(">3I", 0, 2**32 - 1, 2**32 - 1),
        "announces an array",
    ),
}


@pytest.mark.parametrize(("content", "message"), DAMAGED_IDX.values(), ids=DAMAGED_IDX)
def test_damaged_idx_is_named(tmp_path, content, message):
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with pytest.raises(ScratchvitError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def peak_of_refusing(path):
    def refuse():
        with pytest.raises(ScratchvitError, match="it has 3"):
            read_idx(Path(path))

    return peak_bytes(refuse)


def test_lying_idx_header_allocates_nothing(tmp_path):
    path = tmp_path / "lying"
    path.write_bytes(bytes((0, 0, 8, 1)) + struct.pack(">I", 1 << 30) + b"abc")
    assert alone(peak_of_refusing, str(path)) < 8 << 20


def _with_byte(content, at, byte):
    at %= len(content)
    return content[:at] + bytes([byte]) + content[at + 1 :]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.binary(max_size=80)
    | st.builds(lambda b: bytes((0, 0, 8)) + b, st.binary(max_size=40))
    | st.builds(
        _with_byte,
        st.sampled_from([GOOD, ZIPPED]),
        st.integers(0, 200),
        st.integers(0, 255),
    )
)
def test_idx_reader_gives_an_array_or_a_sentence(tmp_path, content):
    path = tmp_path / "fuzz"
    path.write_bytes(content)
    try:
        assert read_idx(path).dtype == np.uint8
    except ScratchvitError as error:
        assert str(path) in str(error)


def test_missing_idx_file_is_a_sentence(tmp_path):
    with pytest.raises(ScratchvitError, match="nothing"):
        read_idx(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_from_a_folder(tmp_path, name, zipped):
    arrays = write_mnist(tmp_path / "files", zipped=zipped)
    splits = load(name, data_dir=tmp_path / "files", val_fraction=0.25, seed=3)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [15, 5, 10]
    assert splits.test.image_shape == (28, 28, 1)
    assert np.array_equal(splits.test.images(range(10))[..., 0], arrays["t10k-images-idx3-ubyte"])
    assert np.array_equal(splits.test.labels, arrays["t10k-labels-idx1-ubyte"])
    assert "5 pictures drawn from train with seed 3" in splits.notes[0]
    both = np.concatenate([part.images(range(len(part))) for part in (splits.train, splits.val)])
    assert sorted(map(bytes, both)) == sorted(map(bytes, arrays["train-images-idx3-ubyte"]))


def test_mnist_is_found_where_torchvision_the_cache_and_the_system_keep_it(tmp_path, monkeypatch):
    write_mnist(tmp_path / "data" / "MNIST" / "raw")
    assert len(load("mnist", data_dir=tmp_path / "data").test) == 10
    write_mnist(tmp_path / "cache" / "scratchvit" / "fashion-mnist", test=7)
    assert len(load("fashion-mnist").test) == 7

    write_mnist(tmp_path / "system", test=4)
    source = dataclasses.replace(idx.DATASETS["fashion-mnist"], system_folders=(tmp_path / "system",))
    monkeypatch.setitem(idx.DATASETS, "fashion-mnist", source)
    assert len(load("fashion-mnist").test) == 4


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_mnist_as_kaggle_has_it(tmp_path, zipped, nested):
    arrays = write_mnist(tmp_path / "plain", zipped=zipped)
    for path in sorted((tmp_path / "plain").iterdir()):
        dotted = path.name.replace("-idx", ".idx")
        folder = tmp_path / "kaggle" / (dotted if nested and not zipped else "")
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / dotted)
    splits = load("mnist", data_dir=tmp_path / "kaggle")
    assert np.array_equal(splits.test.images(range(10))[..., 0], arrays["t10k-images-idx3-ubyte"])


def test_mnist_without_files_says_where_it_looked(tmp_path):
    with pytest.raises(ScratchvitError, match=r"data_dir.*, or download it .*download=True") as caught:
        load("mnist")
    assert str(tmp_path / "cache" / "scratchvit" / "mnist") in str(caught.value)


def test_val_fraction_zero_leaves_val_empty(tmp_path):
    write_mnist(tmp_path)
    splits = load("mnist", data_dir=tmp_path, val_fraction=0)
    assert (len(splits.train), len(splits.val)) == (20, 0)


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        ("train-labels-idx1-ubyte", np.zeros(19), r"holds labels \(19,\) for the 20 images"),
        ("train-labels-idx1-ubyte", np.zeros((20, 1)), r"holds labels \(20, 1\)"),
        ("train-labels-idx1-ubyte", np.full(20, 10), "label 10, but there are only 10 classes"),
        ("t10k-images-idx3-ubyte", np.zeros(10), r"expected images \(N, H, W\)"),
        ("t10k-images-idx3-ubyte", np.zeros((10, 8, 8)), "belong to different data sets"),
    ],
)
def test_mnist_files_that_do_not_belong_together(tmp_path, file, array, message):
    write_mnist(tmp_path, zipped=False)
    (tmp_path / file).write_bytes(idx_bytes(array))
    with pytest.raises(ScratchvitError, match=message):
        load("mnist", data_dir=tmp_path)


CIFAR = [("cifar10", 10, "cifar-10-batches-bin"), ("cifar100", 100, "cifar-100-binary")]


@pytest.mark.parametrize("place", ["here", "subfolder", "archive"])
@pytest.mark.parametrize(("name", "classes", "subfolder"), CIFAR)
def test_cifar_round_trip(tmp_path, name, classes, subfolder, place):
    images, labels = write_cifar(tmp_path / "made" / subfolder, classes)
    data_dir = tmp_path / "made" / subfolder if place == "here" else tmp_path / "made"
    if place == "archive":
        data_dir = tmp_path / "packed"
        data_dir.mkdir()
        archive = "cifar-10-binary.tar.gz" if classes == 10 else "cifar-100-binary.tar.gz"
        pack(tmp_path / "made" / subfolder, data_dir / archive)
    train = load(name, data_dir=data_dir, val_fraction=0).train
    assert train.image_shape == (32, 32, 3)
    assert np.array_equal(train.images(range(len(train))), images)
    assert np.array_equal(train.labels, labels)
    assert train.classes == tuple(f"class{i}" for i in range(classes))


def _cut(folder):
    (folder / "data_batch_3.bin").write_bytes((folder / "data_batch_3.bin").read_bytes()[:-1])


def _empty(folder):
    (folder / "test_batch.bin").write_bytes(b"")


def _wrong_label(folder):
    content = bytearray((folder / "data_batch_2.bin").read_bytes())
    content[3073 * 4] = 10
    (folder / "data_batch_2.bin").write_bytes(content)


def _lost(folder):
    (folder / "data_batch_5.bin").unlink()


def _few_names(folder):
    (folder / "batches.meta.txt").write_bytes(b"cat\ndog\xff\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "data_batch_3.bin has 61459 bytes, not a multiple of the 3073"),
        (_empty, "test_batch.bin has 0 bytes"),
        (_wrong_label, "record 4 of data_batch_2.bin has label 10"),
        (_lost, r"data_batch_5\.bin \(or cifar-10-binary\.tar\.gz\) not found in"),
        (_few_names, "names 2 classes, expected 10"),
    ],
)
def test_damaged_cifar_is_named(tmp_path, damage, message):
    write_cifar(tmp_path)
    damage(tmp_path)
    with pytest.raises(ScratchvitError, match=message):
        load("cifar10", data_dir=tmp_path)


def test_cifar_archive_cut_short_or_of_another_version(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-bin", per_file=2)
    archive = tmp_path / "data" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    pack(tmp_path / "cifar-10-batches-bin", archive)
    whole = archive.read_bytes()
    for content in (whole[: len(whole) // 2], b"not gzip", b""):
        archive.write_bytes(content)
        with pytest.raises(ScratchvitError, match=r"cifar-10-binary\.tar\.gz: this archive cannot be read"):
            load("cifar10", data_dir=archive.parent)
    write_mnist(tmp_path / "other")
    pack(tmp_path / "other", archive)
    with pytest.raises(ScratchvitError, match="is not in this archive: it is another version"):
        load("cifar10", data_dir=archive.parent)


def test_cifar_archive_writes_nothing_and_follows_no_link(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-bin", per_file=2)
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(3073))
    with tarfile.open(data_dir / "cifar-10-binary.tar.gz", "w:gz") as tar:
        escaping = tarfile.TarInfo("../escaped.txt")
        escaping.size = 3
        tar.addfile(escaping, io.BytesIO(b"out"))
        for path in sorted((tmp_path / "cifar-10-batches-bin").iterdir()):
            if path.name != "test_batch.bin":
                tar.add(path, arcname=f"cifar-10-batches-bin/{path.name}")
        link = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
    with pytest.raises(ScratchvitError, match=r"cifar-10-batches-bin/test_batch\.bin is not in this archive"):
        load("cifar10", data_dir=data_dir)
    assert [path.name for path in data_dir.iterdir()] == ["cifar-10-binary.tar.gz"]
    assert not (tmp_path / "escaped.txt").exists()


@pytest.mark.skipif(not (SHARED / "fashion-mnist").is_dir(), reason="../shared/data/fashion-mnist is not here")
def test_real_fashion_mnist():
    splits = load("fashion-mnist", data_dir=SHARED / "fashion-mnist", val_fraction=1 / 12)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [55000, 5000, 10000]
    assert np.bincount(splits.val.labels).tolist() == [500] * 10
    assert np.bincount(splits.test.labels).tolist() == [1000] * 10
    assert splits.test.classes[splits.test.labels[0]] == "Ankle boot"
