"""NumPy's .npz, a zip archive of .npy files, as Google published ViT, augreg and BiT. No pickled objects.

A .npy file is a magic text, the length of a header, the header (a Python literal: type, order, shape), then the bytes.
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
LONGEST_HEADER = 1 << 16  # bytes; a plain array's header has about 120

_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(archive: ZipArchive) -> dict[str, np.ndarray]:
    """{name: array}; read-only views of the file where its entries are stored uncompressed. bfloat16 becomes float32.

    Raises ScratchvitError (without the path) for a damaged entry, a header that announces another size than its entry
    has, objects, and types that are no numbers.
    """
    return {name.removesuffix(SUFFIX): native(_read_npy(archive.read(name), name)) for name in archive.names}


def _read_npy(raw: np.ndarray, name: str) -> np.ndarray:
    shape, fortran_order, dtype, start = _read_header(raw, name)
    if dtype.hasobject:
        raise ScratchvitError(
            f"{short(name)} holds pickled Python objects, which are never read: save plain arrays of numbers"
        )
    if dtype != BFLOAT16 and (dtype.kind not in "biuf" or dtype.itemsize > 8):
        raise ScratchvitError(
            f"{short(name)} is of type {short(str(dtype))}, not of real numbers: save plain arrays of numbers"
        )
    return view(raw[start:], dtype, shape, order="F" if fortran_order else "C")


def _read_header(raw: np.ndarray, name: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, whether in Fortran's order, type, where the bytes begin)."""
    stream = io.BytesIO(bytes(raw[:LONGEST_HEADER]))
    try:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADER_READERS:
            raise ValueError(f"version {version}")
        with warnings.catch_warnings():  # of headers that Python 2 wrote
            warnings.simplefilter("ignore")
            shape, fortran_order, dtype = _HEADER_READERS[version](stream)
    except Exception as error:  # of a dozen kinds, from the parsers behind those functions
        raise ScratchvitError(f"{short(name)} has no readable header ({short(str(error))}): {DAMAGED}") from error
    return shape, fortran_order, dtype, stream.tell()
