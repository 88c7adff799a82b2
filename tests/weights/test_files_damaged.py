"""Weight files that lie about sizes, are cut, or have flipped bits: refused with a sentence, in little memory."""

import io
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scratchvit.errors import ScratchvitError
from scratchvit.weights import unpickler, zip_files
from scratchvit.weights.files import read_weights
from tests.support.weight_samples import (
    CONTENT,
    WEIGHT,
    Build,
    Call,
    Global,
    Raw,
    Storage,
    npy_bytes,
    npz_bytes,
    peak_of_refusal,
    refuse,
    safetensors_bytes,
    safetensors_of,
    tensor,
    torch_legacy,
    torch_legacy_of,
    torch_zip,
    torch_zip_of,
    write,
    zip_bytes,
)

# Lies about sizes. Memory is measured, and what was asked for is far more than what is allowed.


def npy_header(descr="<f4", shape="()"):
    descr = descr if descr.startswith("[") else repr(descr)
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


LYING_NPY = {
    "10¹² entries": (npy_header(shape="(1000000, 1000000)"), "and contains 4 bytes"),
    "2⁸⁰ entries": (npy_header(shape="(1099511627776, 1099511627776)"), "impossible shape"),
    "none": (npy_header(shape="(0,)"), "of 0 bytes and contains 4"),
    "negative": (npy_header(shape="(-1, -1)"), "impossible shape"),
    "objects": (npy_header("|O", "(1,)"), "'w.npy' contains pickled Python objects"),
    "objects inside": (npy_header("[('a', '|O')]", "(1,)"), "pickled Python objects"),
    "texts": (npy_header("<U1", "(1,)"), "'w.npy' is of type '<U1'"),
    "complex": (npy_header("<c8", "(1,)"), "is of type 'complex64'"),
    "times": (npy_header("<M8[s]", "(1,)"), "is of type"),
    "records": (npy_header("[('a', '<f4')]", "(1,)"), "is of type"),
    "code": ("__import__('os').system('touch canary')", "no readable header"),
    "nested": ("(" * 9000, "no readable header"),
    "long": (npy_header() + " " * 60_000, "no readable header"),
    "nothing": ("", "no readable header"),
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("case", LYING_NPY)
def test_npy_headers_that_lie(tmp_path, case, compression):
    header, message = LYING_NPY[case]
    content = zip_bytes({"w.npy": npy_bytes(header, b"\0\0\0\0")}, compression)
    assert peak_of_refusal(tmp_path, content, message) < 8 << 20


def test_npy_of_another_version(tmp_path):
    for version in (b"\x01\x00", b"\x02\x00"):
        content = zip_bytes({"w.npy": npy_bytes(npy_header(), bytes(4), version)})
        assert read_weights(write(tmp_path, content))["w"] == 0
    refuse(tmp_path, zip_bytes({"w.npy": npy_bytes(npy_header(), bytes(4), b"\x03\x00")}), r"version \(3, 0\)")
    refuse(tmp_path, zip_bytes({"w.npy": b"not numpy"}), "no readable header")


def test_zip_bombs_are_refused_before_they_inflate(tmp_path):
    entry = npy_bytes(npy_header("|u1", "(100000000,)"), bytes(100_000_000))
    content = zip_bytes({"w.npy": entry}, zipfile.ZIP_DEFLATED)
    assert len(content) < 200_000
    assert peak_of_refusal(tmp_path, content, "would inflate to 1000.*too much for weights") < 8 << 20


def test_an_entry_that_inflates_beyond_its_announced_size(tmp_path):
    """The directory says 1,000 bytes of what is 50 million; both of its copies are changed to say so."""
    content = zip_bytes({"w.npy": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    lying = content.replace(struct.pack("<I", 50_000_000), struct.pack("<I", 1000))
    assert lying != content
    assert peak_of_refusal(tmp_path, lying, "does not have the announced size") < 8 << 20


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    """A bomb without a great ratio: many entries of the directory point to the same bytes."""
    content = zip_bytes({"a.npy": npy_bytes("x", bytes(100)), "b.npy": npy_bytes("x", bytes(100))})
    second = content.index(b"PK\x03\x04", 4)
    lying = bytearray(content)
    at = content.rindex(b"PK\x01\x02") + 42
    assert struct.unpack_from("<I", lying, at)[0] == second
    struct.pack_into("<I", lying, at, 0)
    refuse(tmp_path, bytes(lying), "do not agree|overlap")


def test_zip_archives_that_contradict_themselves(tmp_path):
    content = zip_bytes({"a.npy": npy_bytes("x", bytes(100)), "b.npy": npy_bytes("x", bytes(100))})
    directory = content.index(b"PK\x01\x02")

    def lying_at(at, code, value, base=directory):
        lying = bytearray(content)
        struct.pack_into(code, lying, base + at, value)
        return bytes(lying)

    refuse(tmp_path, lying_at(8, "<H", 1), "encrypted")
    refuse(tmp_path, lying_at(10, "<H", 12), "compressed in an unusual way")
    refuse(tmp_path, lying_at(10, "<H", 8), "do not agree")                  # stored, and said to be deflated
    refuse(tmp_path, lying_at(24, "<I", 10**9), "do not agree")              # its size
    refuse(tmp_path, lying_at(42, "<I", 10**9), "do not agree")              # its place
    refuse(tmp_path, lying_at(46, "5s", b"b.npy"), "twice")
    refuse(tmp_path, lying_at(46, "5s", b"c.npy"), "do not agree")
    refuse(tmp_path, lying_at(30, "5s", b"c.npy", base=0), "do not agree")
    refuse(tmp_path, lying_at(32, "<H", 51), "names 2 entries and lists 1")   # a comment that is the second
    refuse(tmp_path, lying_at(16, "<I", zlib.crc32(b"else")), "the checksum of its entry 'a.npy' is wrong")


SAFETENSORS = {
    "long header": (struct.pack("<Q", 1 << 62) + b"{}", "not a complete safetensors file"),
    "not json": (safetensors_bytes(b"{'w': 1}"), "not a complete safetensors file"),
    "nested": (safetensors_bytes(b"{" + b'"a":{' * 5000), "not a complete safetensors file"),
    "10¹² entries": (
        safetensors_bytes({"w": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4]}}, b"1234"),
        "not a complete safetensors file",
    ),
    "outside": (
        safetensors_bytes({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"1234"),
        "not a complete safetensors file",
    ),
    "empty and enormous": (
        safetensors_bytes({"w": {"dtype": "F32", "shape": [0, 1 << 40, 1 << 40], "data_offsets": [0, 0]}}),
        "impossible shape",
    ),
    "trailing": (safetensors_of({"w": WEIGHT}) + b"\0", "not a complete safetensors file"),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_safetensors_headers_that_lie(tmp_path, case):
    content, message = SAFETENSORS[case]
    assert peak_of_refusal(tmp_path, content, message) < 8 << 20


@pytest.mark.slow
def test_lying_sizes_within_a_limit_of_memory(tmp_path):
    """All lies again, in one process that may have no more than 1 GB of memory beyond what NumPy takes."""
    pytest.importorskip("resource")
    lies = {
        **{f"npy-{i}": zip_bytes({"w.npy": npy_bytes(header, bytes(4))})
           for i, (header, _) in enumerate(LYING_NPY.values())},
        **{f"safetensors-{i}": content for i, (content, _) in enumerate(SAFETENSORS.values())},
        "tensor": torch_zip({"w": tensor(Storage("0", "<f4", 6), 0, (10**6, 10**6), (0, 0))}, CONTENT),
        "storage": torch_zip({"w": tensor(Storage("0", "<f4", 10**12))}, CONTENT),
        "legacy": torch_legacy({"w": tensor(Storage("0", "<f4", 10**12))}, {"0": WEIGHT}),
        "text": torch_zip(Raw(b"X\xff\xff\xff\xff")),
        "long text": torch_zip(Raw(b"\x8d" + struct.pack("<Q", 1 << 62))),
        "bytes": torch_zip(Raw(b"\x8e" + struct.pack("<Q", 1 << 62))),
        "bomb": zip_bytes({"w.npy": bytes(300_000_000)}, zipfile.ZIP_DEFLATED),
        "dicts": torch_zip(Raw(b"}K\x01Ns" * (unpickler.MOST_INSTRUCTIONS // 4 + 1))),
        "memory": torch_zip(Raw(b"N" + b"\x94" * unpickler.MOST_INSTRUCTIONS)),
    }
    for name, content in lies.items():
        (tmp_path / name).write_bytes(content)
    code = """if True:
        import resource, sys
        from pathlib import Path
        from scratchvit.errors import ScratchvitError
        from scratchvit.weights.files import read_weights
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))
        for path in sorted(Path(sys.argv[1]).iterdir()):
            try:
                read_weights(path)
            except ScratchvitError:
                print(path.name)
        """
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert run.stdout.split("\n")[:-1] == sorted(lies), run.stderr[-2000:]


# Damage.

ARRAYS = {"w": WEIGHT.reshape(2, 3), "b": np.arange(2.0), "n": np.array(3)}
WHOLE = {
    "safetensors": safetensors_of(ARRAYS),
    "npz": npz_bytes(ARRAYS),
    "npz compressed": npz_bytes(ARRAYS, compressed=True),
    "torch zip": torch_zip_of(ARRAYS),
    "torch zip compressed": torch_zip_of(ARRAYS, zipfile.ZIP_DEFLATED),
    "torch legacy": torch_legacy_of(ARRAYS),
    "checkpoint": torch_zip(
        {"model": {"module.w": tensor(Storage("0", "<f4", 6), 0, (2, 3), (3, 1))}, "epoch": 3,
         "args": Build(Call(Global("argparse", "Namespace"), (), b"\x81"), {"lr": 0.1}),
         "best": Call(Global("numpy.core.multiarray", "scalar"), (Call(Global("numpy", "dtype"), ("f8",)), bytes(8)))},
        CONTENT,
    ),
}
ZIPS = [kind for kind in WHOLE if kind not in ("safetensors", "torch legacy")]     # which have checksums


@pytest.mark.parametrize("kind", WHOLE)
def test_a_file_cut_anywhere_is_refused(tmp_path, kind):
    whole = WHOLE[kind]
    read_weights(write(tmp_path, whole))
    for length in [*range(0, len(whole), 5), len(whole) - 1]:
        refuse(tmp_path, whole[:length])


@pytest.mark.parametrize("kind", ZIPS)
def test_no_flipped_bit_in_a_zip_changes_a_weight(tmp_path, kind):
    """One bit in eleven: either the file is refused, or the bit was one that nothing depends on."""
    whole = WHOLE[kind]
    expected = read_weights(write(tmp_path, whole))
    refused = 0
    for bit in range(0, 8 * len(whole), 11):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found = read_weights(write(tmp_path, bytes(flipped)))
        except ScratchvitError:
            refused += 1
        else:
            assert list(found) == list(expected), f"bit {bit}"
            assert all(np.array_equal(found[name], expected[name]) for name in expected), f"bit {bit}"
    assert refused > len(whole) // 5


def test_a_flipped_bit_in_the_weights_of_a_zip_is_named(tmp_path):
    whole = WHOLE["torch zip"]
    at = whole.index(WEIGHT.tobytes())
    refuse(tmp_path, whole[: at + 5] + b"\xff" + whole[at + 6 :], "checksum of its entry 'archive/data/0' is wrong")


positions = st.integers(0, 1 << 16)


def changed(draw, content):
    """Some random changes: bytes set, cut out, put in, doubled, numbers made large, another file's end put on."""
    for _ in range(draw(st.integers(1, 3))):
        i, j = sorted(draw(positions) % (len(content) + 1) for _ in range(2))
        match draw(st.sampled_from(["set", "cut", "insert", "double", "splice", "number"])):
            case "set":
                content = content[:i] + draw(st.binary(min_size=1, max_size=1)) + content[i + 1 :]
            case "cut":
                content = content[:i] + content[j:]
            case "insert":
                content = content[:i] + draw(st.binary(max_size=16)) + content[i:]
            case "double":
                content = content[:j] + content[i:j] + content[j:]
            case "splice":
                other = WHOLE[draw(st.sampled_from(sorted(WHOLE)))]
                content = content[:i] + other[draw(positions) % len(other) :]
            case "number":
                number = draw(st.sampled_from([0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1]))
                content = content[:i] + struct.pack("<Q", number) + content[i + 8 :]
    return content


@st.composite
def damaged(draw):
    return changed(draw, WHOLE[draw(st.sampled_from(sorted(WHOLE)))])


@st.composite
def damaged_inside(draw):
    """An entry of an archive is changed, and packed again: its checksum is right."""
    with zipfile.ZipFile(io.BytesIO(WHOLE[draw(st.sampled_from(ZIPS))])) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = draw(st.sampled_from(sorted(entries)))
    return zip_bytes(entries | {name: changed(draw, entries[name])})


INSTRUCTIONS = [bytes([code]) for code in range(256)]
PIECES = st.one_of(
    st.sampled_from(INSTRUCTIONS),
    st.sampled_from([b"h\x00", b"h\x01", b"q\x00", b"q\x01", b"K\x02", b"X\x01\x00\x00\x00w", b"(", b"}", b"]", b")",
                     b"t", b"u", b"s", b"e", b"R", b"b", b"Q", b"\x81", b"\x85", b"\x86", b"\x87", b"N", b"\x88"]),
    st.sampled_from([b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
                     b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"c_codecs\nencode\n",
                     b"cnumpy\nndarray\n", b"cargparse\nNamespace\n", b"cos\nsystem\n"]),
    st.binary(max_size=4),
)
programs = st.lists(PIECES, max_size=40).map(lambda pieces: torch_zip(Raw(b"".join(pieces)), CONTENT))
beginnings = st.sampled_from(
    [b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"{", bytes(8) + b"{"]
)
random_bytes = st.binary(max_size=200) | st.builds(bytes.__add__, beginnings, st.binary(max_size=100))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=500)
@given(damaged() | damaged_inside() | programs | random_bytes)
@example(b"PK\x05\x06" + bytes(18))
def test_readers_give_arrays_or_a_sentence(tmp_path, content):
    path = write(tmp_path, content)
    try:
        weights = read_weights(path)
    except ScratchvitError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        # Every entry can be reached, and there are no more of them than the file can hold.
        with np.errstate(all="ignore"):
            assert all(isinstance(array.sum(dtype=np.float64), np.float64) for array in weights.values())
        limit = zip_files.LARGEST_RATIO * len(content) + zip_files.ALWAYS_ALLOWED
        assert all(array.nbytes <= 2 * limit for array in weights.values())
