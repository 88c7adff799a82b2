"""NumPy's .npz, a zip archive of .npy files, the format of Google's ViT, augreg and BiT. Never reads pickled objects.

A .npy file is a magic string, the length of a header, the header (a Python literal: dtype, order, shape), the bytes.
https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import io
import warnings

import numpy as np

from scratchvit.errors import ScratchvitError
from scratchvit.weights.arrays import BFLOAT16, DAMAGED, native, short, view
from scratchvit.weights.zip_files import ZipArchive

SUFFIX = ".npy"
LONGEST_HEADER = 1 << 16  # bytes; the header of an ordinary array has about 120

_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(archive: ZipArchive) -> dict[str, np.ndarray]:
    """Read an .npz as {name: array}: read-only views if entries are stored uncompressed; bfloat16 becomes float32.

    Raises ScratchvitError (without the path) for a damaged entry, a header that does not match the size of its entry,
    pickled objects, and dtypes that are not numbers.
    """
    return {name.removesuffix(SUFFIX): native(_read_npy(archive.read(name), name)) for name in archive.names}


def _read_npy(raw: np.ndarray, name: str) -> np.ndarray:
    shape, fortran_order, dtype, start = _read_header(raw, name)
    if dtype.hasobject:
        raise ScratchvitError(
            f"{short(name)} contains pickled Python objects, which are never read: save plain arrays of numbers"
        )
    if dtype != BFLOAT16 and (dtype.kind not in "biuf" or dtype.itemsize > 8):
        raise ScratchvitError(
            f"{short(name)} is of type {short(str(dtype))}, not of real numbers: save plain arrays of numbers"
        )
    return view(raw[start:], dtype, shape, order="F" if fortran_order else "C")


def _read_header(raw: np.ndarray, name: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, whether in Fortran order, dtype, start of the data)."""
    stream = io.BytesIO(bytes(raw[:LONGEST_HEADER]))
    try:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADER_READERS:
            raise ValueError(f"version {version}")
        with warnings.catch_warnings():  # NumPy warns about headers written by Python 2
            warnings.simplefilter("ignore")
            shape, fortran_order, dtype = _HEADER_READERS[version](stream)
    except Exception as error:  # the parsers behind these functions raise many types
        raise ScratchvitError(f"{short(name)} has no readable header ({short(str(error))}): {DAMAGED}") from error
    return shape, fortran_order, dtype, stream.tell()
