"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al., arXiv 1708.07747), from their IDX files.

An IDX file is: two zero bytes, a type (8 = unsigned byte), the number of axes, each axis as a big-endian
32-bit number, then the entries in C order. http://yann.lecun.com/exdb/mnist/
"""

import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from scratchvit.data.datasets import ArrayDataset
from scratchvit.data.sources import Remote, cache_dir, fetch, find, not_found
from scratchvit.errors import ScratchvitError

UNSIGNED_BYTE = 8
LARGEST = 1 << 30  # bytes of entries; MNIST's largest file has 47 million
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class _Mnist:
    classes: tuple[str, ...]
    train_images: Remote
    train_labels: Remote
    test_images: Remote
    test_labels: Remote
    subfolder: str  # where torchvision stores it under its root
    system_folders: tuple[Path, ...] = ()


_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

DATASETS = {
    "mnist": _Mnist(
        tuple("0123456789"),
        Remote(_MNIST_URL + "train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        Remote(_MNIST_URL + "train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
        Remote(_MNIST_URL + "t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
        Remote(_MNIST_URL + "t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
        subfolder="MNIST/raw",
    ),
    "fashion-mnist": _Mnist(
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
         "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        Remote(_FASHION_URL + "train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        Remote(_FASHION_URL + "train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
        Remote(_FASHION_URL + "t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
        Remote(_FASHION_URL + "t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
        subfolder="FashionMNIST/raw",
        system_folders=(Path("/usr/share/datasets/fashion-mnist"),),  # Debian's dataset-fashion-mnist
    ),
}


def load_mnist(name: str, data_dir: Path | None, download: bool) -> tuple[ArrayDataset, ArrayDataset]:
    """(train, test) of "mnist" or "fashion-mnist": grey uint8 (60000 and 10000, 28, 28, 1), ten classes.

    The four files, gzipped or not, with a dash or a dot before idx, are read from data_dir or, without it, from the
    system's folder and the user's cache. With download=True, missing files are downloaded. Raises ScratchvitError for
    missing or damaged files.
    """
    source = DATASETS[name]
    if data_dir:
        folders: Sequence[Path] = (data_dir, data_dir / source.subfolder)
    else:
        folders = (*source.system_folders, cache_dir() / name)
    target = data_dir or cache_dir() / name

    def path(remote: Remote) -> Path:
        found = find(_spellings(remote.filename), folders)
        if found is None and not download:
            raise not_found(name, remote.filename, folders)
        return found or fetch(remote, target)

    def dataset(images: Remote, labels: Remote) -> ArrayDataset:
        return _pair(path(images), path(labels), source.classes, name)

    train = dataset(source.train_images, source.train_labels)
    test = dataset(source.test_images, source.test_labels)
    if train.image_shape != test.image_shape:
        raise ScratchvitError(
            f"{name}: training images are {train.image_shape}, test images {test.image_shape}; "
            f"the files in {', '.join(map(str, folders))} belong to different data sets"
        )
    return train, test


def _spellings(name: str) -> list[str]:
    """The names that a file has elsewhere: with a dot, unpacked, or in a folder of its own name, as on Kaggle."""
    dotted = name.replace("-idx", ".idx")
    plain, dotted_plain = (each.removesuffix(".gz") for each in (name, dotted))
    return [name, plain, dotted, dotted_plain, f"{plain}/{plain}", f"{dotted_plain}/{dotted_plain}"]


def _pair(images_path: Path, labels_path: Path, classes: Sequence[str], name: str) -> ArrayDataset:
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3:
        raise ScratchvitError(f"{images_path}: holds an array {images.shape}, expected images (N, H, W)")
    if labels.shape != images.shape[:1]:
        raise ScratchvitError(
            f"{labels_path}: holds labels {labels.shape} for the {len(images)} images of {images_path}; "
            "download both files again"
        )
    try:
        return ArrayDataset(images[..., None], labels, classes, name)
    except ScratchvitError as error:
        raise ScratchvitError(f"{labels_path}: {error}") from error


def read_idx(path: str | Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped or not (recognised by content, not by name).

    Returns a uint8 array of the shape in the header. Raises ScratchvitError, which names the file, if the file is
    missing, truncated, too long, or not an IDX file. No more memory is allocated than the file has bytes, whatever
    its header says.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            is_gzip = file.read(2) == GZIP_MAGIC
            file.seek(0)
            if not is_gzip:
                return _parse(file, path)
            with gzip.open(file) as unpacked:
                return _parse(unpacked, path)
    except (OSError, EOFError, zlib.error) as error:
        raise ScratchvitError(f"{path}: cannot be read ({error}); download it again") from error


def _parse(stream: BinaryIO | gzip.GzipFile, path: Path) -> NDArray[np.uint8]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:3] != bytes((0, 0, UNSIGNED_BYTE)):
        raise ScratchvitError(f"{path}: not an IDX file of unsigned bytes (it starts with {magic.hex(' ')!r})")
    header = stream.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise ScratchvitError(f"{path}: truncated header; download it again")
    shape = tuple(np.frombuffer(header, ">u4").tolist())
    announced = math.prod(shape)
    if not 1 <= len(shape) <= 4 or not 0 < announced <= LARGEST:
        raise ScratchvitError(f"{path}: its header announces an array {shape}, which no data set of this kind has")

    entries = bytearray()
    while chunk := stream.read(min(1 << 20, announced + 1 - len(entries))):  # one more, to notice surplus bytes
        entries += chunk
    if len(entries) != announced:
        has = "more" if len(entries) > announced else str(len(entries))
        raise ScratchvitError(f"{path}: its header announces {announced} bytes, it has {has}; download it again")
    return np.frombuffer(entries, np.uint8).reshape(shape)
