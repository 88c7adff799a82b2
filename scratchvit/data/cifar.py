"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from the binary version, never from the pickled one.

A file is records of fixed length: the label byte (CIFAR-100: coarse label, then fine label), then 1024 red,
1024 green, 1024 blue bytes, row by row. https://www.cs.toronto.edu/~kriz/cifar.html
"""

import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scratchvit.data.datasets import ArrayDataset
from scratchvit.data.sources import Remote, cache_dir, fetch, find, not_found
from scratchvit.errors import ScratchvitError

PIXEL_BYTES = 3 * 32 * 32
LARGEST = 1 << 28  # bytes; CIFAR-100's train.bin has 154 million


@dataclass(frozen=True)
class _Cifar:
    archive: Remote
    subfolder: str
    train: tuple[str, ...]
    test: str
    class_names: str
    class_count: int
    label_bytes: int  # label bytes per record; the last one is used

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.class_names)


DATASETS = {
    "cifar10": _Cifar(
        Remote("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
        subfolder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test="test_batch.bin",
        class_names="batches.meta.txt",
        class_count=10,
        label_bytes=1,
    ),
    "cifar100": _Cifar(
        Remote("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
        subfolder="cifar-100-binary",
        train=("train.bin",),
        test="test.bin",
        class_names="fine_label_names.txt",
        class_count=100,
        label_bytes=2,
    ),
}


def load_cifar(name: str, data_dir: Path | None, download: bool) -> tuple[ArrayDataset, ArrayDataset]:
    """(train, test) of "cifar10" or "cifar100": colour uint8 (50000 and 10000, 32, 32, 3), fine labels.

    Read from data_dir (by default the user's cache folder): the unpacked files, in the folder or in their usual
    subfolder, or else the .tar.gz, without unpacking it to disk. With download=True the archive is downloaded if
    neither exists. Raises ScratchvitError for missing or damaged files.
    """
    source = DATASETS[name]
    folder = data_dir or cache_dir() / name
    contents = _read_files(name, source, folder, download)

    classes = _class_names(contents[source.class_names], source, name)

    def dataset(*files: str) -> ArrayDataset:
        parts = [_parse(contents[file], file, source, name) for file in files]
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
        return ArrayDataset(images, labels, classes, name)

    return dataset(*source.train), dataset(source.test)


def _read_files(name: str, source: _Cifar, folder: Path, download: bool) -> dict[str, bytes]:
    """The content of every file of the data set, by file name."""
    folders = (folder, folder / source.subfolder)
    paths = {file: find([file], folders) for file in source.files}
    missing = [file for file, path in paths.items() if path is None]
    if not missing:
        return {file: _read_file(path) for file, path in paths.items() if path}

    archive = find([source.archive.filename], folders)
    if archive is None and not download:
        raise not_found(name, f"{', '.join(missing)} (or {source.archive.filename})", folders)
    return _read_archive(archive or fetch(source.archive, folder), source)


def _read_file(path: Path) -> bytes:
    if path.stat().st_size > LARGEST:
        raise ScratchvitError(f"{path}: {path.stat().st_size} bytes, larger than any file of CIFAR")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ScratchvitError(f"{path}: cannot be read ({error.strerror})") from error


def _read_archive(path: Path, source: _Cifar) -> dict[str, bytes]:
    wanted = {f"{source.subfolder}/{file}": file for file in source.files}
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
        raise ScratchvitError(f"{path}: {', '.join(missing)} is not in this archive; use the *binary* version")
    return contents


def _class_names(text: bytes, source: _Cifar, name: str) -> tuple[str, ...]:
    classes = tuple(line.strip() for line in text.decode("utf-8", "replace").splitlines() if line.strip())
    if len(classes) != source.class_count:
        raise ScratchvitError(
            f"{name}: {source.class_names} names {len(classes)} classes, expected {source.class_count}"
        )
    return classes


def _parse(content: bytes, file: str, source: _Cifar, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One .bin file → images uint8 (N, 32, 32, 3), labels uint8 (N,)."""
    record = source.label_bytes + PIXEL_BYTES
    if not content or len(content) % record:
        raise ScratchvitError(
            f"{name}: {file} has {len(content)} bytes, not a multiple of the {record} bytes of a record; "
            "it is truncated or from another data set; download it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    labels = records[:, source.label_bytes - 1]
    wrong = np.flatnonzero(labels >= source.class_count)
    if wrong.size:
        raise ScratchvitError(
            f"{name}: record {wrong[0]} of {file} has label {labels[wrong[0]]}, but there are only "
            f"{source.class_count} classes; the file is damaged, download it again"
        )
    pixels = records[:, source.label_bytes :].reshape(-1, 3, 32, 32)  # (N, C, H, W)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels
