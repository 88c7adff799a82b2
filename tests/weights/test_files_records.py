"""Objects that training scripts save beside the weights: never made; refused only where weights are expected."""

import collections
import dataclasses
import datetime
import enum
import functools
import pathlib
import sys
import types
import uuid

import numpy as np
import pytest

from scratchvit.errors import ScratchvitError
from scratchvit.weights.files import read_weights

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


MADE = []       # what the objects below do when they are made


class Loud:
    """Says when it is made, and when its state is set."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return _made, ("reduce",), {"state": 1}, iter([1, 2]), iter([("a", 1)])

    def append(self, value):
        MADE.append("append")

    def __setitem__(self, key, value):
        MADE.append("set")

    def __setstate__(self, state):
        MADE.append("state")


def _made(what):
    MADE.append(what)
    return Loud()


class WithKeywords(tuple):
    """Protocol 4 makes it with keywords: NEWOBJ_EX."""

    def __new__(cls, *, values=()):
        MADE.append("new")
        return super().__new__(cls, values)

    def __getnewargs_ex__(self):
        return (), {"values": tuple(self)}


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntFlag):
    LOW = 1
    HIGH = 2


@dataclasses.dataclass
class Options:
    lr: float = 0.1
    names: tuple = ("cat", "dog")


class Settings(dict):
    """As yacs.CfgNode, EasyDict and addict.Dict are."""


Pair = collections.namedtuple("Pair", "a b")
RECORDS = {
    "a path": lambda torch: pathlib.PurePosixPath("runs/1"),
    "a path of Windows": lambda torch: pathlib.PureWindowsPath("C:/runs"),
    "a path that is not UTF-8": lambda torch: pathlib.PurePosixPath("runs/\udcff"),
    "a date": lambda torch: datetime.datetime(2026, 11, 30, tzinfo=datetime.UTC),
    "a duration": lambda torch: datetime.timedelta(seconds=3),
    "an enum": lambda torch: Colour.RED,
    "flags": lambda torch: Level.LOW | Level.HIGH,
    "a namespace": lambda torch: types.SimpleNamespace(a=[1], b=types.SimpleNamespace(c=2)),
    "a dataclass": lambda torch: Options(),
    "a named tuple": lambda torch: Pair(1, 2),
    "a queue": lambda torch: collections.deque([1, 2], maxlen=3),
    "counts": lambda torch: collections.Counter("abc"),
    "sets": lambda torch: [{1, 2}, frozenset("ab")],
    "defaults": lambda torch: collections.defaultdict(list, a=[1]),
    "a dict of a class": lambda torch: Settings(a=1, b=Settings(c=2)),
    "a number of NumPy": lambda torch: [np.float32(1), np.bool_(True), np.str_("a"), np.datetime64(3, "s")],
    "texts of NumPy": lambda torch: np.array(["cat", "dog"]),
    "objects of NumPy": lambda torch: np.array([{"a": 1}, None], dtype=object),
    "records of NumPy": lambda torch: np.zeros(2, [("a", "<f4"), ("b", "<i4")]),
    "a matrix of NumPy": lambda torch: np.ma.masked_array([1, 2], [True, False]),
    "a generator of NumPy": lambda torch: np.random.default_rng(0),
    "a version": lambda torch: torch.torch_version.TorchVersion("2.1.0+cpu"),
    "a device": lambda torch: torch.device("cuda", 1),
    "a module": lambda torch: torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)),
    "a function": lambda torch: torch.nn.functional.relu,
    "part of a function": lambda torch: functools.partial(torch.nn.functional.gelu, approximate="tanh"),
    "a range, a slice": lambda torch: [range(3), slice(1, 2), complex(1, 2), bytearray(b"abc"), ...],
    "an id": lambda torch: uuid.UUID(int=3),
    "keys that are no names": lambda torch: {(1, 2): 1, 0.5: 2, b"c": 3, Colour.RED: 4, pathlib.PurePosixPath("a"): 5},
    "what makes noise": lambda torch: Loud(),
    "keywords": lambda torch: WithKeywords(values=(1, 2)),
}


@pytest.mark.filterwarnings("ignore")           # PyTorch's own, of pickled modules and matrices
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", RECORDS)
def test_records_beside_the_weights_are_passed_over(tmp_path, torch, kind, zipped, protocol):
    record, path = RECORDS[kind](torch), tmp_path / "w.pth"
    if isinstance(record, WithKeywords) and protocol < 4:
        pytest.skip("protocol 2 makes it by a function")
    weights = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.float64)}
    torch.save(
        {"args": record, "model": weights, "more": [{"x": (record, record)}]}, path,
        pickle_protocol=protocol, _use_new_zipfile_serialization=zipped,
    )
    MADE.clear()
    found = read_weights(path)
    assert list(found) == list(weights) and all(np.array_equal(found[name], weights[name]) for name in weights)
    assert not MADE


def test_the_objects_are_made_where_pickles_are_trusted(tmp_path, torch):
    """So that the test above could fail."""
    torch.save([Loud()], tmp_path / "w.pth")
    MADE.clear()
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert MADE == ["reduce", "append", "append", "set", "state"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_model_is_refused_by_its_class(tmp_path, torch, zipped):
    module, path = torch.nn.Linear(2, 3), tmp_path / "w.pth"
    for saved in (module, {"model": module, "epoch": 3}, {"ema": module, "model": None, "sizes": {"a": torch.ones(2)}}):
        torch.save(saved, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ScratchvitError, match=r"torch\.nn\.modules\.linear\.Linear.* is not loaded.*state_dict"):
            read_weights(path)


def test_an_entry_that_is_an_object_is_refused_by_its_class(tmp_path, torch):
    torch.save({"state_dict": {"w": torch.ones(2)}, "teacher": torch.nn.Linear(2, 3)}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth")["w"].tolist() == [1, 1]
    with pytest.raises(ScratchvitError, match=r"its 'teacher' is a 'torch\.nn\.modules\.linear\.Linear'"):
        read_weights(tmp_path / "w.pth", entry="teacher")


def test_a_state_dict_in_a_dict_of_a_class_is_refused_by_that_name(tmp_path, torch):
    torch.save({"model": Settings(w=torch.ones(2))}, tmp_path / "w.pth")
    with pytest.raises(ScratchvitError, match=r"its 'model' is a '.*test_files_records\.Settings'"):
        read_weights(tmp_path / "w.pth")


def test_weights_in_a_dict_with_defaults(tmp_path, torch):
    torch.save(collections.defaultdict(dict, model=collections.defaultdict(int, w=torch.ones(2))), tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth")["w"].tolist() == [1, 1]


def test_options_of_omegaconf(tmp_path, torch):
    omegaconf = pytest.importorskip("omegaconf")
    torch.save({"state_dict": {"w": torch.ones(2)}, "cfg": omegaconf.OmegaConf.create({"a": [1, {"b": "${a}"}]})},
               tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth")["w"].tolist() == [1, 1]


def test_nothing_is_imported(tmp_path, torch):
    """A class of a module that is not loaded when the file is read."""
    module = types.ModuleType("nowhere_to_be_found")
    kind = type("Config", (), {"__module__": module.__name__})
    module.Config = kind
    sys.modules[module.__name__] = module
    try:
        torch.save({"model": {"w": torch.ones(2)}, "config": kind()}, tmp_path / "w.pth")
    finally:
        del sys.modules[module.__name__]
    loaded = set(sys.modules)
    assert read_weights(tmp_path / "w.pth")["w"].tolist() == [1, 1]
    assert not set(sys.modules) - loaded
