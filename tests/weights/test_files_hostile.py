"""PyTorch files that want to run code, or to reach outside of what they hold: nothing runs, and nothing is imported."""

import pickle
import re
import struct
import subprocess
import sys

import numpy as np
import pytest

from scratchvit.weights import unpickler
from scratchvit.weights.files import read_weights
from tests.support.weight_samples import (
    CONTENT,
    WEIGHT,
    Build,
    Call,
    Global,
    Persistent,
    Raw,
    Storage,
    peak_of_refusal,
    pickled,
    refuse,
    tensor,
    tensors,
    torch_legacy,
    torch_zip,
    write,
)

# Gadgets: each tries to create a file, or to reach something that could. Those of INERT use names that are not on the
# list: they stand for something that is never made. Those of GADGETS misuse the machine, or names that are on the list.
# The name is what the sentence must hold.

TOUCH = "touch {canary}"
OPEN = "open({canary!r}, 'w')"


def ordered(*arguments):
    return Call(Global("collections", "OrderedDict"), arguments)


INERT = {
    "os.system": (Call(Global("os", "system"), (TOUCH,)), "os.system"),
    "posix.system": (Call(Global("posix", "system"), (TOUCH,)), "posix.system"),
    "subprocess": (Call(Global("subprocess", "getoutput"), (TOUCH,)), "subprocess.getoutput"),
    "eval": (Call(Global("builtins", "eval"), (OPEN,)), "builtins.eval"),
    "eval of Python 2": (Call(Global("__builtin__", "eval"), (OPEN,)), "__builtin__.eval"),
    "exec": (Call(Global("builtins", "exec"), (OPEN,)), "builtins.exec"),
    "open": (Call(Global("io", "open"), ("{canary}", "w")), "io.open"),
    "partial": (
        Call(Call(Global("functools", "partial"), (Global("os", "system"), TOUCH)), ()), "functools.partial"
    ),
    "getattr": (Call(Global("builtins", "getattr"), (Global("os", "x"), "system")), "builtins.getattr"),
    "import": (Call(Global("builtins", "__import__"), ("os",)), "builtins.__import__"),
    "runpy": (Call(Global("runpy", "run_path"), ("{canary}",)), "runpy.run_path"),
    "Popen": (Call(Global("subprocess", "Popen"), (["touch", "{canary}"],)), "subprocess.Popen"),
    "Popen, new": (Call(Global("subprocess", "Popen"), (["touch"],), pickle.NEWOBJ), "subprocess.Popen"),
    "by attribute": (Call(Global("collections", "OrderedDict.fromkeys"), ()), "collections.OrderedDict.fromkeys"),
    "by attributes": (
        Global("collections", "OrderedDict.__init__.__globals__"), "collections.OrderedDict.__init__.__globals__"
    ),
    "from the stack": (
        Raw(b"\x8c\x02os\x8c\x06system\x93" + b"\x8c\x06" + b"touch " + b"\x85R"), "os.system"
    ),
    "from the stack, dotted": (
        Raw(b"\x8c\x05torch\x8c\x19_utils._rebuild_tensor_v2\x93"), "torch._utils._rebuild_tensor_v2"
    ),
    "load from bytes": (Call(Global("torch.storage", "_load_from_bytes"), (b"x",)), "torch.storage._load_from_bytes"),
    "torch.load": (Call(Global("torch", "load"), ("{canary}",)), "torch.load"),
    "torch.hub": (Call(Global("torch.hub", "load"), ("x/y", "z")), "torch.hub.load"),
    "module": (Call(Global("torch.nn.modules.linear", "Linear"), (), pickle.NEWOBJ), "torch.nn.modules.linear.Linear"),
    "subclass": (Call(Global("torch._tensor", "_rebuild_from_type_v2"), ()), "torch._tensor._rebuild_from_type_v2"),
    "sparse": (Call(Global("torch._utils", "_rebuild_sparse_tensor"), ()), "torch._utils._rebuild_sparse_tensor"),
    "quantised": (Call(Global("torch._utils", "_rebuild_qtensor"), ()), "torch._utils._rebuild_qtensor"),
    "complex": (Global("torch", "ComplexFloatStorage"), "torch.ComplexFloatStorage"),
    "pathlib": (Call(Global("pathlib", "PosixPath"), ("{canary}",)), "pathlib.PosixPath"),
    "yacs": (Call(Global("yacs.config", "CfgNode"), ()), "yacs.config.CfgNode"),
    "copyreg": (Call(Global("copyreg", "_reconstructor"), ()), "copyreg._reconstructor"),
    "codecs": (Call(Global("_codecs", "decode"), (b"x", "zip")), "_codecs.decode"),
    "objects of NumPy": (Call(Global("numpy", "dtype"), ("O8", False, True)), "'O8'"),
    "texts of NumPy": (Call(Global("numpy", "dtype"), ("U5", False, True)), "'U5'"),
    "scalar": (
        Call(Global("numpy.core.multiarray", "scalar"), (Global("torch", "float32"), b"1234")), "core.multiarray.scalar"
    ),
    "set of a text": (Call(Global("builtins", "set"), ("abc",)), "builtins.set"),
}

GADGETS = {
    "instance": (Raw(b"(X\x01\x00\x00\x00xios\nsystem\n"), "b'i'"),
    "object": (Raw(b"(cos\nsystem\nX\x01\x00\x00\x00xo"), "b'o'"),
    "extension": (Raw(b"\x82\x01"), "x82"),
    "from the stack, no text": (Raw(b"K\x01\x8c\x06system\x93"), "not a string"),
    "encode with a codec": (Call(Global("_codecs", "encode"), ("x", "rot13")), "_codecs.encode"),
    "encode of no text": (Call(Global("_codecs", "encode"), (3, "latin1")), "_codecs.encode"),
    "encode beyond": (Call(Global("_codecs", "encode"), ("\u20ac", "latin1")), "_codecs.encode"),
    "type that is no text": (Call(Global("numpy", "dtype"), (3,)), "numpy.dtype"),
    "array of a class": (
        Call(Global("numpy.core.multiarray", "_reconstruct"), (Global("collections", "OrderedDict"), (0,), b"b")),
        "numpy._reconstruct",
    ),
    "array of objects": (
        Build(
            Call(Global("numpy.core.multiarray", "_reconstruct"), (Global("numpy", "ndarray"), (0,), b"b")),
            (1, (1,), Call(Global("numpy", "dtype"), ("f8",)), False, [1]),
        ),
        "numpy.ndarray",
    ),
    "state of a type": (Build(Call(Global("numpy", "dtype"), ("f8",)), ({}, 3)), "numpy.dtype"),
    "state of a dict": (Build({}, {"__setstate__": 1}), "sets the state of a dict"),
    "state of a list": (Build([], {"append": 1}), "sets the state of a list"),
    "state of a tensor": (Build(tensor(Storage("0", "<f4", 6)), {"__class__": 1}), "sets the state of a Tensor"),
    "state of a function": (Build(Global("torch.storage", "UntypedStorage"), {"dtype": 1}), "state of a StorageType"),
    "call of a type": (Call(Global("torch", "FloatStorage"), (6,)), "calls a StorageType"),
    "call of a value": (Call("os.system", (TOUCH,)), "calls a str"),
    "call of a result": (Call(ordered(), ()), "calls a OrderedDict"),
    "call without a tuple": (Call(Global("collections", "OrderedDict"), []), "without a tuple of arguments"),
    "dict of a text": (ordered("ab"), "collections.OrderedDict"),
    "dict of triples": (ordered([[1, 2, 3]]), "collections.OrderedDict"),
    "dict with two arguments": (ordered([], []), "too many or too few"),
    "tensor without arguments": (Call(Global("torch._utils", "_rebuild_tensor_v2"), ()), "too many or too few"),
    "parameter of a list": (Call(Global("torch._utils", "_rebuild_parameter"), ([], True, None)), "_rebuild_parameter"),
    "negated": (
        Call(Global("torch._utils", "_rebuild_tensor_v2"),
             (Storage("0", "<f4", 6), 0, (2,), (1,), False, None, {"neg": True})),
        "negated",
    ),
    "bytes of a number": (Call(Global("builtins", "bytes"), (1 << 40,)), "builtins.bytes"),
}

MALFORMED = {
    "key that is a list": (Raw(b"}" + b"]" + b"N" + b"s"), "has a list as a key"),
    "key that is enormous": (Raw(b"}\x8a\x09" + bytes(8) + b"\x01" + b"Ns"), "has a int as a key"),
    "append to a tuple": (Raw(b")Na"), "appends to a tuple"),
    "entries of a list": (Raw(b"]NNs"), "sets entries of a list"),
    "odd entries": (Raw(b"}(Nu"), "sets entries"),
    "unknown memory": (Raw(b"h\x63"), "not in its memo"),
    "no mark": (Raw(b"t"), "was not begun"),
    "empty stack": (Raw(b"0"), "b'0'"),
    "protocol 9": (Raw(b"\x80\x09N"), "unknown protocol"),
    "left over": (Raw(b"N(N"), "left over"),
}


def with_canary(value, canary):
    """The same instructions with {canary} in their texts replaced by a file's name."""
    match value:
        case str():
            return value.replace("{canary!r}", repr(str(canary))).replace("{canary}", str(canary))
        case tuple() | list():
            return type(value)(with_canary(part, canary) for part in value)
        case dict():
            return {key: with_canary(part, canary) for key, part in value.items()}
        case Call():
            return Call(with_canary(value.function, canary), with_canary(value.arguments, canary), value.instruction)
        case Build():
            return Build(with_canary(value.target, canary), with_canary(value.state, canary))
    return value


NESTINGS = {
    "alone": lambda gadget: gadget,
    "in a checkpoint": lambda gadget: {"model": tensors({"w": WEIGHT}), "args": [({"x": gadget},)]},
    "in a dict's arguments": lambda gadget: ordered([["w", gadget]]),
    "in a tensor's hooks": lambda gadget: {"w": tensor(Storage("0", "<f4", 6), hooks=gadget)},
    "in a namespace's state": lambda gadget: Build(Call(Global("argparse", "Namespace"), (), b"\x81"), {"x": gadget}),
    "in a dict's state": lambda gadget: Build(ordered(), {"_metadata": gadget}),
    "in a persistent id": lambda gadget: Persistent(("storage", gadget, "0", "cpu", 6)),
}


BESIDE = {"in a checkpoint": 6, "in a tensor's hooks": 2}        # the weights; the number of entries that are read
INSTEAD = ("alone", "in a dict's arguments")                    # of the weights


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("gadget", INERT)
def test_names_that_are_not_on_the_list_do_nothing(tmp_path, gadget, nesting):
    """Beside the weights they are passed over, instead of them they are refused by name; nothing is imported."""
    canary = tmp_path / "canary"
    value, name = INERT[gadget]
    saved = NESTINGS[nesting](with_canary(value, canary))
    read_weights(write(tmp_path, torch_zip(tensors({"w": WEIGHT}), CONTENT)))      # which imports what reading needs
    loaded = set(sys.modules)
    for content in (torch_zip(saved, CONTENT), torch_legacy(saved, {"0": WEIGHT} if nesting in BESIDE else {})):
        if nesting in BESIDE:
            assert np.array_equal(read_weights(write(tmp_path, content))["w"], WEIGHT[: BESIDE[nesting]])
        else:
            refuse(tmp_path, content, re.escape(name) if nesting in INSTEAD else None)
    assert not canary.exists() and not set(sys.modules) - loaded


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("gadget", GADGETS)
def test_gadgets_are_refused_by_name_and_nothing_runs(tmp_path, gadget, nesting):
    canary = tmp_path / "canary"
    value, name = GADGETS[gadget]
    saved = NESTINGS[nesting](with_canary(value, canary))
    refuse(tmp_path, torch_zip(saved, CONTENT), re.escape(name))
    refuse(tmp_path, torch_legacy(saved), re.escape(name))
    refuse(tmp_path, pickled(saved), "a bare pickle")
    assert not canary.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="they call touch(1), and the module posix")
@pytest.mark.parametrize("gadget", ["os.system", "posix.system", "subprocess", "Popen", "eval", "exec", "partial"])
def test_the_gadgets_do_run_where_pickles_are_trusted(tmp_path, gadget):
    """So that the test above is one that could fail."""
    canary = tmp_path / "canary"
    code = "import pickle, sys; value = pickle.loads(sys.stdin.buffer.read()); getattr(value, 'wait', int)()"
    subprocess.run([sys.executable, "-c", code], input=pickled(with_canary(INERT[gadget][0], canary)), check=True)
    assert canary.exists()


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_pickles_are_refused(tmp_path, case):
    saved, message = MALFORMED[case]
    refuse(tmp_path, torch_zip(saved), message)
    refuse(tmp_path, torch_legacy(saved), message)


SAVED_IDS = {
    "a text": "0",
    "a number": 3,
    "a module": ("module", Global("torch", "FloatStorage"), "0", "cpu", 6),
    "no type": ("storage", "FloatStorage", "0", "cpu", 6),
    "a number for a key": ("storage", Global("torch", "FloatStorage"), 0, "cpu", 6),
    "a negative size": ("storage", Global("torch", "FloatStorage"), "0", "cpu", -6),
    "a broken size": ("storage", Global("torch", "FloatStorage"), "0", "cpu", 6.0),
    "too little": ("storage", Global("torch", "FloatStorage"), "0"),
    "nothing": (),
    "a view": ("storage", Global("torch", "FloatStorage"), "0", "cpu", 6, ("1", 0, 3)),
}


@pytest.mark.parametrize("saved_id", SAVED_IDS)
def test_persistent_ids_of_other_kinds_are_refused(tmp_path, saved_id):
    saved = {"w": tensor(Persistent(SAVED_IDS[saved_id]))}
    refuse(tmp_path, torch_zip(saved, CONTENT), "has a storage id of an unknown form")
    refuse(tmp_path, torch_legacy(saved, {"0": WEIGHT}), "has a storage id of an unknown form")


@pytest.mark.parametrize("key", ["../data.pkl", "/etc/passwd", "1", ""])
def test_a_storage_is_only_ever_an_entry_of_the_file(tmp_path, key):
    saved = {"w": tensor(Storage(key, "<f4", 6))}
    refuse(tmp_path, torch_zip(saved, CONTENT), "it has no entry 'archive/data/")


# (offset, shape, stride) over a storage of 6 entries; the bounds must hold before there is any view.
OUTSIDE = {
    "beyond": ((0, (7,), (1,)), "beyond its storage of 6 entries"),
    "offset beyond": ((6, (1,), (1,)), "beyond its storage"),
    "offset far beyond": ((1 << 62, (1,), (1,)), "beyond its storage"),
    "offset before": ((-1, (2,), (1,)), "inconsistent shape, stride and offset"),
    "stride beyond": ((0, (2,), (1 << 61,)), "beyond its storage"),
    "stride that overflows": ((0, (3,), (1 << 63,)), "beyond its storage"),
    "stride backwards": ((5, (2,), (-1,)), "inconsistent shape, stride and offset"),
    "both strides": ((0, (3, 3), (2, 1)), "beyond its storage"),
    "too few strides": ((0, (2, 3), (1,)), "inconsistent shape, stride and offset"),
    "too many strides": ((0, (2,), (1, 1)), "inconsistent shape, stride and offset"),
    "negative shape": ((0, (-2,), (1,)), "impossible shape"),
    "repeated 10¹² times": ((0, (10**6, 10**6), (0, 0)), "larger than the file"),
    "enormous": ((0, (1 << 40, 1 << 40), (0, 0)), "impossible shape"),
    "enormous and empty": ((0, (0, 1 << 40, 1 << 40), (1, 1, 1)), "impossible shape"),
    "65 axes": ((0, (1,) * 65, (1,) * 65), "impossible shape"),
    "a list for a shape": ((0, [2], (1,)), "not a tuple of integers"),
    "texts for a shape": ((0, ("2",), (1,)), "not a tuple of integers"),
    "a fraction for an offset": ((0.0, (2,), (1,)), "_rebuild_tensor"),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("case", OUTSIDE)
def test_no_view_reaches_outside_its_storage(tmp_path, case, legacy):
    where, message = OUTSIDE[case]
    saved = {"w": tensor(Storage("0", "<f4", 6), *where)}
    refuse(tmp_path, torch_legacy(saved, {"0": WEIGHT}) if legacy else torch_zip(saved, CONTENT), message)


def test_an_untyped_storage_is_measured_in_bytes(tmp_path):
    stored = Persistent(("storage", Global("torch.storage", "UntypedStorage"), "0", "cpu", 24))

    def typed(entries, dtype):
        function = Global("torch._utils", "_rebuild_tensor_v3")
        return {"w": Call(function, (stored, 0, (entries,), (1,), False, None, Global("torch", dtype)))}

    assert np.array_equal(read_weights(write(tmp_path, torch_zip(typed(6, "float32"), CONTENT)))["w"], WEIGHT)
    refuse(tmp_path, torch_zip(typed(7, "float32"), CONTENT), "beyond its storage of 6 entries")
    refuse(tmp_path, torch_zip(typed(4, "float64"), CONTENT), "beyond its storage of 3 entries")


@pytest.mark.parametrize("size", [5, 7, 10**12])
def test_a_storage_of_another_size_than_announced(tmp_path, size):
    refuse(tmp_path, torch_zip({"w": tensor(Storage("0", "<f4", size))}, CONTENT), "has 24 bytes, expected")
    saved = {"w": tensor(Storage("0", "<f4", size))}
    refuse(tmp_path, torch_legacy(saved, {"0": WEIGHT}), "does not have the announced size|ends in the middle")


def test_legacy_storages_that_do_not_belong(tmp_path):
    stored = Storage("0", "<f4", 6)
    refuse(tmp_path, torch_legacy({"w": tensor(stored)}, {}), "list of storages")
    refuse(tmp_path, torch_legacy({"w": tensor(stored)}, {"1": WEIGHT}), "list of storages")
    refuse(tmp_path, torch_legacy({"w": tensor(stored)}, {"0": WEIGHT, "1": WEIGHT}), "list of storages")
    refuse(tmp_path, torch_legacy({"w": tensor(stored)}, {"0": WEIGHT}) + b"\0", "1 bytes follow its last storage")
    twice = {"w": tensor(stored), "v": tensor(Storage("0", "<f4", 5))}
    refuse(tmp_path, torch_legacy(twice, {"0": WEIGHT}), "two types or sizes")


# What takes no size, but much time, memory or stack.


def test_a_pickle_cannot_multiply_what_it_holds(tmp_path):
    """Each call would copy a text of 100 kB, or a list of 10,000 pairs, and takes a few bytes: 100,000 are 10 GB."""
    text = b"X" + struct.pack("<I", 100_000) + b"a" * 100_000
    names = b"c_codecs\nencode\nq\x00" + text + b"q\x01\x8c\x06latin1q\x02"
    calls = b"h\x00h\x01h\x02\x86R" * 100_000
    assert peak_of_refusal(tmp_path, torch_zip(Raw(names + calls)), "copies more bytes than it contains") < 32 << 20
    pairs = b"](" + b"".join(b"(J" + struct.pack("<i", i) + b"Nt" for i in range(10_000)) + b"eq\x00"
    calls = b"ccollections\nOrderedDict\nq\x01" + b"h\x01h\x00\x85R" * 100_000
    assert peak_of_refusal(tmp_path, torch_zip(Raw(pairs + calls)), "copies more bytes than it contains") < 32 << 20


INERT_BOMBS = {
    "a new name from the stack each time": (
        b"X" + struct.pack("<I", 200) + b"m" * 200 + b"q\x00" + b"X" + struct.pack("<I", 200) + b"n" * 200 + b"q\x01"
        + b"h\x00h\x01\x93" * 100_000
    ),
    "calls of calls": b"ca\nb\n" + b")R" * 200_000,
    "states": b"ca\nb\n" + b"}b" * 200_000,
    "entries that are dropped": b"ca\nb\nq\x00(" + b"h\x00K\x01" * 100_000 + b"u",
    "keys that are dropped": b"ca\nb\nq\x00}(" + b"h\x00K\x01" * 100_000 + b"u",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", INERT_BOMBS)
def test_inert_objects_cost_what_they_take_in_the_file(tmp_path, kind):
    content = torch_zip(Raw(b"(" + INERT_BOMBS[kind] + b"t"))
    assert peak_of_refusal(tmp_path, content, "it contains a tuple|never made") < 32 << 20


def test_a_long_name_is_refused(tmp_path):
    """Names are put together, so a long one that is used 100,000 times would take 20 GB."""
    name = b"X" + struct.pack("<I", 100_000) + b"a" * 100_000
    code = name + b"q\x00" + name + b"q\x01" + b"h\x00h\x01\x93" * 100_000
    assert peak_of_refusal(tmp_path, torch_zip(Raw(code)), "a name in its pickle has 200000 characters") < 32 << 20


def test_lists_of_lists_of_lists(tmp_path):
    """Ten times the same list, ten times that, …: 10³⁰ entries to whoever walks them all. Nobody does."""
    laughs = b"(](K\x01e" + b"".join(b"q%c](" % i + b"h%c" % i * 10 + b"e" for i in range(30)) + b"t"
    weights = read_weights(write(tmp_path, torch_zip({"model": tensors({"w": WEIGHT}), "lol": Raw(laughs)}, CONTENT)))
    assert np.array_equal(weights["w"], WEIGHT)


@pytest.mark.parametrize("level", [b"]\x85", b"\x85", b"](", b"}X\x01\x00\x00\x00a"])
def test_deep_nesting_ends_no_interpreter(level):
    """Tuples, lists and dicts 100,000 deep, in a process of its own: the C stack must not run out, whatever happens."""
    close = {b"\x85": b"\x85", b"]\x85": b"\x85", b"](": b"e", b"}X\x01\x00\x00\x00a": b"s"}[level]
    inner = (b"N" + close * 100_000) if level in (b"\x85", b"]\x85") else level * 100_000 + b"N" + close * 100_000
    content = torch_zip({"model": tensors({"w": WEIGHT}), "deep": Raw(inner)}, CONTENT)
    code = """if True:
        import sys
        from pathlib import Path
        from tempfile import TemporaryDirectory
        from scratchvit.weights.files import read_weights
        with TemporaryDirectory() as folder:
            path = Path(folder) / "deep.pth"
            path.write_bytes(sys.stdin.buffer.read())
            print(read_weights(path)["w"].sum())
        """
    run = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True)
    assert run.stdout.strip() == b"15.0", run.stderr.decode()[-500:]


def test_a_dict_may_hold_itself(tmp_path):
    saved = Raw(b"}q\x00X\x05\x00\x00\x00model" + b"h\x00s")
    refuse(tmp_path, torch_zip(saved), "no arrays")


def test_endless_pickles_end(tmp_path, monkeypatch):
    monkeypatch.setattr(unpickler, "MOST_INSTRUCTIONS", 1000)
    refuse(tmp_path, torch_zip(Raw(b"N" * 2000)), "more than 1000 instructions")
