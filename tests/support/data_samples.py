"""Small files in the formats that scratchvit.data reads, and small data sets, for its tests."""

import gzip
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from scratchvit.data import ArrayDataset
from scratchvit.data.images import SUFFIXES
from tests.support.seeds import seeded

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def random_images(count, height=8, width=8, channels=3, seed=0):
    return seeded(seed).integers(0, 256, (count, height, width, channels), np.uint8)


def random_dataset(count=50, classes=5, **shape):
    labels = np.arange(count) % classes
    return ArrayDataset(random_images(count, **shape), labels, [f"c{i}" for i in range(classes)], "random")


def idx_bytes(array):
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_mnist(folder, train=20, test=10, zipped=True):
    """The four files in folder; returns {file name without .gz: array}."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for part, count in (("train", train), ("t10k", test)):
        arrays[f"{part}-images-idx3-ubyte"] = random_images(count, 28, 28, 1, seed=count)[..., 0]
        arrays[f"{part}-labels-idx1-ubyte"] = np.arange(count, dtype=np.uint8) % 10
    for name, array in arrays.items():
        content = idx_bytes(array)
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return arrays


def write_cifar(folder, classes=10, per_file=20):
    """The unpacked binary files in folder; returns (images, labels) of train, as a reader should give them."""
    folder.mkdir(parents=True, exist_ok=True)
    if classes == 10:
        files, names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"], "batches.meta.txt"
    else:
        files, names = ["train.bin", "test.bin"], "fine_label_names.txt"
    (folder / names).write_text("".join(f"class{i}\n" for i in range(classes)) + "\n")

    all_images, all_labels = [], []
    for number, file in enumerate(files):
        images = random_images(per_file, 32, 32, 3, seed=number)
        labels = (np.arange(per_file) * 7 % classes).astype(np.uint8)
        record = b""
        for image, label in zip(images, labels):
            coarse = b"" if classes == 10 else b"\x13"
            record += coarse + bytes([label]) + image.transpose(2, 0, 1).tobytes()
        (folder / file).write_bytes(record)
        all_images.append(images)
        all_labels.append(labels)
    return np.concatenate(all_images[:-1]), np.concatenate(all_labels[:-1])


def pack(folder, archive):
    """folder as a .tar.gz that has it as its only top-level entry."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)


def write_picture(path, size=(12, 8), colour=(200, 40, 40), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def write_image_folder(root, parts=("train", "test"), classes=("ant", "bee"), per_class=10):
    for part in parts:
        for label, name in enumerate(classes):
            for i in range(per_class):
                write_picture(root / part / name / f"{i:02}.png", colour=(20 * i, 100 * label, 7))
    return root


def write_files(root, *names):
    """Files below root: pictures, no two alike, in the format of their ending; anything else is empty.

    A name may have a range: "train/cat/{0..4}.png".
    """
    count = 0
    for name in names:
        before, _, rest = name.partition("{")
        inside, _, after = rest.partition("}")
        first, _, last = inside.partition("..")
        for number in range(int(first), int(last) + 1) if rest else [""]:
            path = root / f"{before}{number}{after}"
            if path.suffix.lower() in SUFFIXES:
                write_picture(path, colour=(53 * count % 256, 101 * count % 256, 197 * count % 256))
                count += 1
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    return root


def counts(splits):
    """How many pictures are in train, val and test."""
    return tuple(len(part) for part in (splits.train, splits.val, splits.test))


def by_class(dataset, root):
    """{class: the paths of its pictures below root}."""
    found = {name: [] for name in dataset.classes}
    for path, label in zip(dataset.paths, dataset.labels):
        found[dataset.classes[label]].append(path.relative_to(root).as_posix())
    return found


def file_table(splits):
    """{text of a row of the table of files: its number}, after checking that the numbers add up."""
    rows = [line.strip().split("  ", 1) for line in splits.inventory.lines()]
    numbers = [int(number.replace(",", "")) for number, _ in rows]
    assert numbers[0] == sum(numbers[1:])
    return {text.replace("\\", "/"): number for number, (_, text) in zip(numbers, rows)}
