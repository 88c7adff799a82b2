"""Reading zip archives, the container of .npz and of PyTorch's files since 1.6, through a memory map.

Python's zipfile reads the directory at the end of the archive. It is then compared with the header before each entry,
so that a flipped bit in either is detected, and the checksum of every entry that is read is verified. This takes one
pass over the bytes, half a second for the 350 MB of ViT-B; without it, a flipped bit in a weight would not be noticed.
"""

from __future__ import annotations

import itertools
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from scratchvit.errors import ScratchvitError
from scratchvit.weights.arrays import CUT, DAMAGED, read_only, short

LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # signature, …, length of the name, length of the extra field
END_OF_DIRECTORY = 22                       # bytes, without a comment that may follow; the number of entries is at 10
ENCRYPTED, UTF8_NAME = 0x1, 0x800

# A limit against zip bombs. Weights hardly compress: their lowest bits are noise, and float32 converted from bfloat16
# shrinks to half. Only constant arrays shrink much. So all entries together may inflate to 16 times the size of the
# archive, and small archives to the size of a small model (ViT-Ti, all zeros: 23 MB). Deflate can reach 1032 times.
LARGEST_RATIO, ALWAYS_ALLOWED = 16, 64 << 20


class ZipArchive:
    """A zip archive, whose entries can be read by name.

    raw     the bytes of the file at path, uint8 (size,)
    names   names of the entries, in the order of the directory

    Raises ScratchvitError for a damaged directory, overlapping entries, duplicate names, encryption, compression other
    than deflate, and an archive that would inflate too much (see LARGEST_RATIO). No entry is read yet.
    """

    def __init__(self, path: Path, raw: np.ndarray):
        self.raw = raw
        try:
            with zipfile.ZipFile(path) as directory:
                entries, comment = directory.infolist(), directory.comment
        except (
            zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, EOFError, OSError, struct.error,
        ) as error:
            raise ScratchvitError(f"its zip directory cannot be read ({short(str(error))}): {CUT}") from error
        self._entries = {entry.filename: entry for entry in entries}
        self.names = list(self._entries)
        if len(self.names) != len(entries):
            raise ScratchvitError(f"its zip directory names an entry twice: {DAMAGED}")

        # A damaged length in the directory can hide the following entries, but not change their number at its end.
        (count,) = struct.unpack_from("<H", raw.data, raw.size - len(comment) - END_OF_DIRECTORY + 10)
        if count != min(len(entries), 0xFFFF):
            raise ScratchvitError(f"its zip directory names {count} entries and lists {len(entries)}: {DAMAGED}")

        spans = sorted(self._span(entry) for entry in entries)
        if any(end > start for (_, end), (start, _) in itertools.pairwise(spans)):
            raise ScratchvitError(f"entries of its zip directory overlap: {DAMAGED}")
        inflated = sum(entry.file_size for entry in entries)
        if inflated > LARGEST_RATIO * raw.size + ALWAYS_ALLOWED:
            raise ScratchvitError(
                f"its {raw.size} bytes would inflate to {inflated}, too much for weights: do not trust this file"
            )

    def read(self, name: str) -> np.ndarray:
        """The bytes of an entry, uint8 (size,): a view of the map if it is stored uncompressed, else inflated.

        Raises ScratchvitError if there is no such entry, or its checksum is wrong.
        """
        if name not in self._entries:
            raise ScratchvitError(f"it has no entry {short(name)}: {DAMAGED}")
        entry = self._entries[name]
        _, end = self._span(entry)
        content = self.raw[end - entry.compress_size : end]
        if entry.compress_type == zipfile.ZIP_DEFLATED:
            content = self._inflate(content, entry)
        if zlib.crc32(content.data) != entry.CRC:
            raise ScratchvitError(f"the checksum of its entry {short(name)} is wrong: {DAMAGED}")
        return content

    def _inflate(self, content: np.ndarray, entry: zipfile.ZipInfo) -> np.ndarray:
        """Inflate an entry, up to its announced size, which __init__ has checked against LARGEST_RATIO."""
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            inflated = inflater.decompress(content.data, entry.file_size + 1)
        except zlib.error as error:
            raise ScratchvitError(f"its entry {short(entry.filename)} does not inflate ({error}): {DAMAGED}") from error
        if len(inflated) != entry.file_size or not inflater.eof:
            raise ScratchvitError(f"its entry {short(entry.filename)} does not have the announced size: {DAMAGED}")
        return read_only(np.frombuffer(inflated, np.uint8))

    def _span(self, entry: zipfile.ZipInfo) -> tuple[int, int]:
        """(start, end) of an entry with its local header, which must agree with the directory."""
        name, start = entry.filename, entry.header_offset
        if entry.flag_bits & ENCRYPTED or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ScratchvitError(f"its entry {short(name)} is encrypted or compressed in an unusual way: {DAMAGED}")
        fits = 0 <= start <= self.raw.size - LOCAL_HEADER.size
        if fits:
            signature, _, _, method, *_, name_length, extra_length = LOCAL_HEADER.unpack_from(self.raw.data, start)
            name_at = start + LOCAL_HEADER.size
            content_at = name_at + name_length + extra_length
            encoded = bytes(self.raw[name_at : name_at + name_length])
            fits = (
                signature == b"PK\x03\x04"
                and encoded == entry.orig_filename.encode("utf-8" if entry.flag_bits & UTF8_NAME else "cp437")
                and name == entry.orig_filename
                and method == entry.compress_type
                and content_at + entry.compress_size <= self.raw.size
                and (entry.compress_type != zipfile.ZIP_STORED or entry.compress_size == entry.file_size)
            )
        if not fits:
            raise ScratchvitError(f"the two headers of its entry {short(name)} do not agree: {CUT}")
        return start, content_at + entry.compress_size
