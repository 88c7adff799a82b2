"""Reading weight files: what was written comes back, from every format; the rest is a sentence."""

import json
import mmap
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from scratchvit.errors import ScratchvitError
from scratchvit.weights import wrappers
from scratchvit.weights.files import read_weights
from tests.support.processes import alone
from tests.support.seeds import seeded
from tests.support.weight_samples import (
    Build,
    Call,
    Global,
    Storage,
    npz_bytes,
    safetensors_bytes,
    safetensors_of,
    tensor,
    tensors,
    torch_legacy,
    torch_legacy_of,
    torch_zip,
    torch_zip_of,
    write,
    zip_bytes,
)

RNG = seeded(0)
ARRAYS = {
    "patch_embed.proj.weight": RNG.standard_normal((4, 3, 2, 2)).astype(np.float32),
    "blocks.0.attn.qkv.weight": RNG.standard_normal((6, 2)),
    "half": RNG.standard_normal(5).astype(np.float16),
    "scalar": np.array(7),
    "empty": np.zeros((0, 3), np.float32),
    "flags": np.array([True, False, True]),
    "bytes": np.arange(4, dtype=np.uint8),
}
WRITERS = {
    "safetensors": safetensors_of,
    "npz": npz_bytes,
    "npz compressed": lambda arrays: npz_bytes(arrays, compressed=True),
    "torch zip": torch_zip_of,
    "torch zip compressed": lambda arrays: torch_zip_of(arrays, zipfile.ZIP_DEFLATED),
    "torch legacy": torch_legacy_of,
}


def is_mapped(array):
    """Whether the memory of an array is a memory map's."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    return array is not None


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])      # the content tells, not the name
def test_what_was_written_comes_back(tmp_path, kind, suffix):
    weights = read_weights(str(write(tmp_path, WRITERS[kind](ARRAYS), f"weights{suffix}")))
    assert list(weights) == list(ARRAYS)
    assert all(same(weights[name], array) for name, array in ARRAYS.items())
    assert not any(array.flags.writeable for array in weights.values())


@pytest.mark.parametrize("kind", WRITERS)
def test_stored_arrays_are_views_of_the_mapped_file(tmp_path, kind):
    weights = read_weights(write(tmp_path, WRITERS[kind](ARRAYS)))
    name = "patch_embed.proj.weight"
    assert is_mapped(weights[name]) == ("compressed" not in kind)


BF16 = np.array([[1.0, -2.5, 3.140625], [np.inf, 1e-40, np.nan]], np.float32)   # 1e-40: denormal
BF16_BITS = (BF16.view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("kind", WRITERS)
def test_bfloat16_becomes_float32_exactly(tmp_path, kind):
    found = read_weights(write(tmp_path, WRITERS[kind]({"w": BF16_BITS.view("V2"), "b": BF16_BITS[0].view("V2")})))
    assert found["w"].dtype == np.float32 and found["w"].shape == (2, 3)
    assert np.array_equal(found["w"].view(np.uint32) >> 16, BF16_BITS)
    assert not (found["w"].view(np.uint32) & 0xFFFF).any()
    assert np.array_equal(found["b"], [1.0, -2.5, 3.140625])


def test_npz_in_fortran_order_and_of_another_byte_order(tmp_path):
    name = "Transformer/encoderblock_0/x"
    arrays = {name: np.asfortranarray(np.arange(6.0).reshape(2, 3)), "big": np.arange(3, dtype=">f4")}
    found = read_weights(write(tmp_path, npz_bytes(arrays)))
    assert np.array_equal(found[name], arrays[name])
    assert found["big"].dtype == np.float32 and found["big"].dtype.isnative
    assert np.array_equal(found["big"], [0, 1, 2])


@pytest.mark.parametrize("legacy", [False, True])
def test_strided_tensors_share_their_storage(tmp_path, legacy):
    base = np.arange(12, dtype=np.float32)
    stored = Storage("0", "<f4", 12)
    saved = {
        "whole": tensor(stored, 0, (3, 4), (4, 1)),
        "transposed": tensor(stored, 0, (4, 3), (1, 4)),
        "column": tensor(stored, 2, (3,), (4,)),
        "expanded": tensor(stored, 5, (2, 3), (0, 0)),
        "last": tensor(stored, 11, (), ()),
    }
    content = torch_legacy(saved, {"0": base}) if legacy else torch_zip(saved, {"0": base.tobytes()})
    found = read_weights(write(tmp_path, content))
    assert np.array_equal(found["whole"], base.reshape(3, 4))
    assert np.array_equal(found["transposed"], base.reshape(3, 4).T)
    assert np.array_equal(found["column"], [2, 6, 10])
    assert np.array_equal(found["expanded"], np.full((2, 3), 5))
    assert same(found["last"], np.array(11, np.float32))
    assert np.shares_memory(found["whole"], found["column"])


def test_bfloat16_tensors_share_their_storage(tmp_path):
    stored = Storage("0", "|V2", 6)
    saved = {"whole": tensor(stored, 0, (2, 3), (3, 1)), "transposed": tensor(stored, 0, (3, 2), (1, 3))}
    found = read_weights(write(tmp_path, torch_zip(saved, {"0": BF16_BITS.tobytes()})))
    assert np.array_equal(found["whole"].view(np.uint32) >> 16, BF16_BITS)
    assert np.array_equal(found["transposed"].view(np.uint32) >> 16, BF16_BITS.T)
    assert np.shares_memory(found["whole"], found["transposed"])


# What training scripts put beside the weights. Each is read and set aside.
NAMESPACE = Build(Call(Global("argparse", "Namespace"), (), b"\x81"), {"lr": 0.1, "device": None})
NUMPY_TYPE = Build(Call(Global("numpy", "dtype"), ("f8", False, True)), (3, "<", None, None, None, -1, -1, 0))
BYTES = Call(Global("_codecs", "encode"), ("\x00" * 6 + "\xf0?", "latin1"))
NUMPY_ARRAY = Build(
    Call(Global("numpy.core.multiarray", "_reconstruct"), (Global("numpy", "ndarray"), (0,), b"b")),
    (1, (1,), NUMPY_TYPE, False, BYTES),
)
BESIDE = {
    "epoch": 3,
    "args": NAMESPACE,
    "best": Call(Global("numpy._core.multiarray", "scalar"), (NUMPY_TYPE, BYTES)),
    "random": ["MT19937", NUMPY_ARRAY],
    "device": Call(Global("torch", "device"), ("cuda", 0)),
    "dtype": Global("torch", "float16"),
    "size": Call(Global("torch", "Size"), ((1, 2),)),
    "milestones": Call(Global("collections", "Counter"), ({3: 1, 5: 2},)),
    "seen": Call(Global("__builtin__", "set"), ([1, 2],)),
    "nothing": Call(Global("__builtin__", "bytes"), ()),
}
WEIGHT = {"head.weight": np.arange(4, dtype=np.float32)}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "module.model."])
@pytest.mark.parametrize("wrapper", [*wrappers.EMA_KEYS, *wrappers.PLAIN_KEYS, None])
def test_wrapped_state_dicts_are_opened(tmp_path, wrapper, prefix):
    ordered = Build(Call(Global("collections", "OrderedDict"), ()), {"_metadata": {"": {"version": 1}}})
    inside = tensors({f"{prefix}head.weight": WEIGHT["head.weight"]})
    saved = {wrapper: inside, "optimizer": ordered, **BESIDE} if wrapper else inside
    found = read_weights(write(tmp_path, torch_zip(saved, {"0": WEIGHT["head.weight"].tobytes()})))
    assert list(found) == ["head.weight"] and same(found["head.weight"], WEIGHT["head.weight"])


def test_an_ordered_dict_with_metadata_and_numpy_arrays_in_it(tmp_path):
    ordered = Call(Global("collections", "OrderedDict"), ([["a", NUMPY_ARRAY], ["b", NUMPY_ARRAY]],))
    found = read_weights(write(tmp_path, torch_zip(Build(ordered, {"_metadata": {}}))))
    assert {name: array.tolist() for name, array in found.items()} == {"a": [1.0], "b": [1.0]}


@pytest.mark.parametrize(("use_ema", "expected"), [(True, 2.0), (False, 1.0)])
@pytest.mark.parametrize(
    ("plain", "average"), [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("student", "teacher")]
)
def test_averaged_weights_are_preferred_unless_told_otherwise(tmp_path, plain, average, use_ema, expected):
    stored = Storage("0", "<f4", 2)
    saved = {plain: {"w": tensor(stored, 0, (1,))}, average: {"w": tensor(stored, 1, (1,))}}
    path = write(tmp_path, torch_zip(saved, {"0": np.array([1, 2], np.float32).tobytes()}))
    assert read_weights(path, use_ema=use_ema)["w"].tolist() == [expected]


def test_an_average_that_was_not_kept_is_passed_over(tmp_path):
    saved = {"model": tensors(WEIGHT), "model_ema": None, "state_dict_ema": {}}
    assert "head.weight" in read_weights(write(tmp_path, torch_zip(saved, {"0": WEIGHT["head.weight"].tobytes()})))


def test_a_prefix_stays_if_one_name_lacks_it(tmp_path):
    names = {"model.weight": np.ones(1), "head.weight": np.ones(1)}
    assert list(read_weights(write(tmp_path, safetensors_of(names)))) == list(names)


class CountedName(str):
    """Counts the characters that are copied when names are cut, and refuses to copy more than the allowance."""

    allowance = 0

    def _copy(self, text):
        CountedName.allowance -= len(text)
        assert CountedName.allowance >= 0, "names are copied more often than once"
        return CountedName(text)

    def __getitem__(self, key):
        return self._copy(super().__getitem__(key))

    def removeprefix(self, prefix):
        return self._copy(super().removeprefix(prefix))

    def partition(self, separator):
        return tuple(map(self._copy, super().partition(separator)))


@pytest.mark.parametrize("cut", [lambda n: n[7:], lambda n: n.removeprefix("module."), lambda n: n.partition(".")[2]])
def test_the_count_of_copies_sees_each_way_to_cut(cut):
    name = CountedName("module." * 5 + "a")
    CountedName.allowance = len(name)
    with pytest.raises(AssertionError, match="more often than once"):
        for _ in range(5):
            name = cut(name)


def test_a_prefix_a_million_times_is_cut_at_once(monkeypatch):
    """Prefix by prefix, 7 MB would be copied a million times, which takes an hour."""
    names = [CountedName("module." * 1_000_000 + end) for end in ("a", "b")]
    monkeypatch.setattr(CountedName, "allowance", sum(map(len, names)))
    assert wrappers.without_prefix(dict.fromkeys(names)) == {"a": None, "b": None}
    assert wrappers.without_prefix({"module.": 1, "module.a": 2}) == {"module.": 1, "module.a": 2}


def test_only_what_is_used_must_be_whole(tmp_path):
    """The optimizer's arrays may be most of the file: they are not even looked at."""
    saved = {"model": tensors(WEIGHT), "optimizer": {"state": {0: {"exp_avg": tensor(Storage("absent", "<f4", 2))}}}}
    assert "head.weight" in read_weights(write(tmp_path, torch_zip(saved, {"0": WEIGHT["head.weight"].tobytes()})))


STATUS = Path("/proc/self/status")


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells")
@pytest.mark.parametrize("kind", ["safetensors", "npz", "torch zip", "torch legacy"])
def test_a_large_file_costs_no_memory(tmp_path, kind):
    path = write(tmp_path, WRITERS[kind]({"w": np.ones(1 << 23, np.float32)}))         # 32 MiB
    assert alone(growth_of_reading, str(path)) < 4 << 20


def growth_of_reading(path):
    before = private_memory()
    weights = read_weights(path)
    assert weights["w"][-1] == 1
    return private_memory() - before


def private_memory():
    """Bytes of memory that are this process's own, not pages of a file."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) << 10


# Weights in several files.


def shards(folder, places, **files):
    for name, arrays in files.items():
        (folder / f"{name}.safetensors").write_bytes(safetensors_of(arrays))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("given", ["index", "folder"])
def test_shards_are_merged(tmp_path, given):
    index = shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"},
                   one={"a": np.ones(2), "c": np.zeros(1)}, two={"b": np.arange(3)})
    found = read_weights(index if given == "index" else tmp_path)
    assert sorted(found) == ["a", "b", "c"] and found["b"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a": "../one.safetensors"}, r"names '\.\./one\.safetensors', not a file in its folder"),
        ({"a": "/etc/passwd"}, "not a file in its folder"),
        ({"a": ".."}, "not a file in its folder"),
        ({"a": "sub\\one.safetensors"}, "not a file in its folder"),
        ({"a": ""}, "not a file in its folder"),
        ({"a": 3}, "does not map names to files"),
        (["a"], "does not map names to files"),
        ({"a": "absent.safetensors"}, r"absent\.safetensors: there is no such file"),
        ({"a": "one.safetensors", "b": "one.safetensors"}, "'b' is missing from one.safetensors"),
        ({"z": "two.safetensors"}, "'a' is also in two.safetensors|'z' is missing"),
        ({"a": "model.safetensors.index.json"}, "not a weight file of a known format"),
        ({}, "no arrays"),
    ],
)
def test_an_index_that_is_wrong(tmp_path, places, message):
    (tmp_path / "folder").mkdir()
    index = shards(tmp_path / "folder", places, one={"a": np.ones(2)}, two={"a": np.ones(2)})
    (tmp_path / "one.safetensors").write_bytes(safetensors_of({"a": np.ones(2)}))
    with pytest.raises(ScratchvitError, match=message):
        read_weights(index)


@pytest.mark.parametrize("content", [b"{", b"{}", b'{"weight_map"', b"{" + b"[" * 100_000, b'{"a": \xff}'])
def test_an_index_that_is_damaged(tmp_path, content):
    with pytest.raises(ScratchvitError, match=r"index\.json: it is not an index of weights in several files"):
        read_weights(write(tmp_path, content, "model.safetensors.index.json"))


@pytest.mark.parametrize("content", [b"{}", b'{"images": []}'])
def test_json_that_is_no_index(tmp_path, content):
    with pytest.raises(ScratchvitError, match=r'which has a "weight_map"; name the weights themselves$'):
        read_weights(write(tmp_path, content, "model.safetensors.index.json"))


def test_a_safetensors_header_as_long_as_a_brace_is_no_index(tmp_path):
    content = safetensors_of(WEIGHT)
    header = content[8 : 8 + content[0]].ljust(ord("{"))
    assert "head.weight" in read_weights(write(tmp_path, safetensors_bytes(header, content[8 + content[0] :])))


# What is no weight file.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"hello", "not a weight file of a known format"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (b"<!doctype html><html>", "a web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
        (b"\x1f\x8b" + bytes(40), "gunzip"),
        (b"\x93NUMPY" + bytes(40), "numpy.savez"),
        (b"\x80\x02}q\x00.", "a bare pickle"),
        (bytes(257) + b"ustar" + bytes(250), "tar archive"),
        (zip_bytes({"word/document.xml": b"<x/>"}), "not of PyTorch or NumPy; it contains 'word/document.xml'"),
        (zip_bytes({}), "no arrays"),
        (safetensors_of({}), "no arrays"),
        (torch_zip({}), "no arrays"),
        (torch_zip({"epoch": 3, "weights": {}}), "no arrays where weights .* its entries are 'epoch, weights'"),
        (torch_zip([1, 2]), "contains a list, not a dictionary"),
        (torch_zip({"model": {0: tensor(Storage("0", "<f4", 2))}}), "numbers instead of names"),
        (zip_bytes({"m/data.pkl": b"", "m/constants.pkl": b"", "m/code/x.py": b""}), "TorchScript"),
        (zip_bytes({"m/data.pkl": b"", "n/data.pkl": b""}), "2 files named data.pkl"),
        (zip_bytes({"m/data.pkl": b"", "m/byteorder": b"big"}), "big-endian"),
        (torch_legacy({}, little_endian=False), "big-endian"),
        (
            safetensors_bytes({"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}, b"12"),
            "'w' is of type 'F8_E4M3', which NumPy does not have",
        ),
    ],
)
def test_what_is_no_weight_file_is_a_sentence(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(ScratchvitError, match=message) as caught:
        read_weights(path)
    assert str(caught.value).startswith(f"{path}: ") and not str(caught.value).endswith(".")


def test_what_is_missing_or_no_file_is_a_sentence(tmp_path):
    with pytest.raises(ScratchvitError, match=r"absent\.pth: there is no such file"):
        read_weights(tmp_path / "absent.pth")
    with pytest.raises(ScratchvitError, match=r"this folder has none of model\.safetensors"):
        read_weights(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ScratchvitError, match="this is not a file"):
            read_weights(tmp_path / "pipe")
