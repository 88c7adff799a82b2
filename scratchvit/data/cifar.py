"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from the binary version or the one for Python (`pickled_cifar`).

A file of the binary version is records of fixed length: the label byte (CIFAR-100: coarse label, then fine label), then
1024 red, 1024 green, 1024 blue bytes, row by row. https://www.cs.toronto.edu/~kriz/cifar.html
"""

import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scratchvit.data import pickled_cifar
from scratchvit.data.datasets import ArrayDataset
from scratchvit.data.pickled_cifar import PIXEL_BYTES
from scratchvit.data.sources import Remote, cache_dir, fetch, find, not_found
from scratchvit.errors import ScratchvitError

LARGEST = 1 << 28  # bytes; CIFAR-100's train.bin has 154 million

_Batch = tuple[NDArray[np.uint8], NDArray[np.integer]]      # pixels (N, 3072) and labels (N,)


@dataclass(frozen=True)
class _Version:
    """A form in which the data set is published.

    read_batch   content of a file → pixels and labels
    read_names   content of the file class_names → the names of the classes
    Both raise ScratchvitError without the name of the file.
    """

    archive: Remote
    subfolder: str
    train: tuple[str, ...]
    test: str
    class_names: str
    read_batch: Callable[[bytes], _Batch]
    read_names: Callable[[bytes], list[str]]

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.class_names)


@dataclass(frozen=True)
class _Cifar:
    class_count: int
    versions: tuple[_Version, ...]      # the first is the one that is downloaded


def _records(label_bytes: int) -> Callable[[bytes], _Batch]:
    """Reads a binary file with so many label bytes per record, of which the last one is used."""

    def read(content: bytes) -> _Batch:
        record = label_bytes + PIXEL_BYTES
        if not content or len(content) % record:
            raise ScratchvitError(
                f"has {len(content)} bytes, not a multiple of the {record} bytes of a record: it is truncated or from "
                "another data set; download it again"
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, record)
        return records[:, label_bytes:], records[:, label_bytes - 1]

    return read


def _lines(content: bytes) -> list[str]:
    return [line.strip() for line in content.decode("utf-8", "replace").splitlines() if line.strip()]


_URL = "https://www.cs.toronto.edu/~kriz/"
DATASETS = {
    "cifar10": _Cifar(10, (
        _Version(
            Remote(_URL + "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"), "cifar-10-batches-bin",
            tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt",
            _records(label_bytes=1), _lines,
        ),
        _Version(
            Remote(_URL + "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"), "cifar-10-batches-py",
            tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta",
            lambda content: pickled_cifar.read_batch(content, "labels"),
            lambda content: pickled_cifar.read_names(content, "label_names"),
        ),
    )),
    "cifar100": _Cifar(100, (
        _Version(
            Remote(_URL + "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"), "cifar-100-binary",
            ("train.bin",), "test.bin", "fine_label_names.txt", _records(label_bytes=2), _lines,
        ),
        _Version(
            Remote(_URL + "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"), "cifar-100-python",
            ("train",), "test", "meta",
            lambda content: pickled_cifar.read_batch(content, "fine_labels"),
            lambda content: pickled_cifar.read_names(content, "fine_label_names"),
        ),
    )),
}


def load_cifar(name: str, data_dir: Path | None, download: bool) -> tuple[ArrayDataset, ArrayDataset]:
    """(train, test) of "cifar10" or "cifar100": colour uint8 (50000 and 10000, 32, 32, 3), fine labels.

    Read from data_dir (by default the user's cache folder), from the binary version or the one for Python: the unpacked
    files, in the folder or in their usual subfolder, or else the .tar.gz, without unpacking it to disk. With
    download=True the binary archive is downloaded if there is none. Nothing in a pickle is executed. Raises
    ScratchvitError for missing or damaged files.
    """
    source = DATASETS[name]
    version, contents = _read_files(name, source, data_dir or cache_dir() / name, download)

    classes = _named(name, version.class_names, lambda: version.read_names(contents[version.class_names]))
    if len(classes) != source.class_count:
        raise ScratchvitError(
            f"{name}: {version.class_names} names {len(classes)} classes, expected {source.class_count}"
        )

    def dataset(*files: str) -> ArrayDataset:
        parts = [_read_batch(name, file, version, contents[file], source.class_count) for file in files]
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
        return ArrayDataset(images, labels, classes, name)

    return dataset(*version.train), dataset(version.test)


def _read_files(name: str, source: _Cifar, folder: Path, download: bool) -> tuple[_Version, dict[str, bytes]]:
    """The version that is there, and the content of each of its files, by file name."""
    missing: dict[str, list[str]] = {}
    for version in source.versions:
        folders = (folder, folder / version.subfolder)
        paths = {file: find([file], folders) for file in version.files}
        if all(paths.values()):
            return version, {file: _read_file(path) for file, path in paths.items() if path}
        missing[version.archive.filename] = [file for file, path in paths.items() if path is None]
    for version in source.versions:
        archive = find([version.archive.filename], (folder, folder / version.subfolder))
        if archive is not None:
            return version, _read_archive(archive, version)
    if download:
        version = source.versions[0]
        return version, _read_archive(fetch(version.archive, folder), version)
    # What is there in part says which version was meant.
    archive_name = min(missing, key=lambda archive: len(missing[archive]))
    places = [folder, *(folder / version.subfolder for version in source.versions)]
    raise not_found(name, f"{', '.join(missing[archive_name])} (or {archive_name})", places)


def _read_file(path: Path) -> bytes:
    if path.stat().st_size > LARGEST:
        raise ScratchvitError(f"{path}: {path.stat().st_size} bytes, larger than any file of CIFAR")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ScratchvitError(f"{path}: cannot be read ({error.strerror})") from error


def _read_archive(path: Path, version: _Version) -> dict[str, bytes]:
    wanted = {f"{version.subfolder}/{file}": file for file in version.files}
    contents = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                # Regular files of the expected names only: no links, no other paths.
                if member.isreg() and member.name in wanted and member.size <= LARGEST:
                    stream = archive.extractfile(member)
                    assert stream is not None  # a regular file always has one
                    contents[wanted[member.name]] = stream.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ScratchvitError(f"{path}: this archive cannot be read ({error}); download it again") from error
    missing = [name for name, file in wanted.items() if file not in contents]
    if missing:
        raise ScratchvitError(f"{path}: {', '.join(missing)} is not in this archive: it is another version")
    return contents


def _named(name: str, file: str, read: Callable[[], Any]) -> Any:
    """What `read` returns; its errors get the names of the data set and the file."""
    try:
        return read()
    except ScratchvitError as error:
        raise ScratchvitError(f"{name}: {file} {error}") from error


def _read_batch(
    name: str, file: str, version: _Version, content: bytes, class_count: int
) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
    """The pictures uint8 (N, 32, 32, 3) and labels (N,) of a file."""
    pixels, labels = _named(name, file, lambda: version.read_batch(content))
    wrong = np.flatnonzero((labels < 0) | (labels >= class_count))
    if wrong.size:
        raise ScratchvitError(
            f"{name}: record {wrong[0]} of {file} has label {labels[wrong[0]]}, but there are only {class_count} "
            "classes: the file is damaged, download it again"
        )
    planes = pixels.reshape(-1, 3, 32, 32)      # (N, C, H, W)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels
