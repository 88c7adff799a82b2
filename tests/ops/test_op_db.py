"""Every op against PyTorch's own samples of its operator: values, gradients, layouts, and calls that must raise.

What differs is in tests/support/op_db_known.py, with the reason. `pytest -s` prints how many samples agreed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest

from scratchvit import ops
from scratchvit.tensor import OPS
from tests.support.op_db import PEERS, WITHOUT_A_PEER, Peer
from tests.support.op_db_compare import Sample, differences, ours, samples, wrong_calls
from tests.support.op_db_known import (
    BEING_MENDED,
    DIFFERENT,
    UNSUPPORTED,
    WRONG_CALLS,
    WRONG_CALLS_BEING_MENDED,
    Known,
)

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

by_op = pytest.mark.parametrize("op", dict.fromkeys(peer.ours for peer in PEERS))
by_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _random_states_as_before(_one_thread):
    """Making the samples seeds the generators of Python, NumPy and PyTorch."""
    import torch

    states = random.getstate(), np.random.get_state()           # noqa: NPY002
    with torch.random.fork_rng():
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])                              # noqa: NPY002


def peers_of(op: str) -> list[Peer]:
    return [peer for peer in PEERS if peer.ours == op]


def assert_explained(op: str, dtype: str, found: Iterable[tuple[str, str]], known: list[Known]) -> None:
    """Every (sample, difference) is explained by an entry, and every entry about this op explains one."""
    used: set[Known] = set()
    unexplained = []
    for sample, difference in found:
        entries = [entry for entry in known if entry.explains(op, dtype, sample, difference)]
        used.update(entries)
        if not entries:
            unexplained.append(f"{sample}: {difference}")
    assert not unexplained, "\n".join([f"{len(unexplained)} differences that no list explains", *unexplained[:20]])
    about_this = [entry for entry in known if entry.op == op and dtype in entry.dtypes]
    stale = [entry for entry in about_this if entry.always and entry not in used]
    assert not stale, f"these differences are gone: remove the entries {stale}"


def assert_supported(sample: Sample) -> None:
    reasons = UNSUPPORTED["*"] | UNSUPPORTED.get(sample.peer.ours, {})
    assert sample.unsupported in reasons, f"{sample.text}: {sample.unsupported} is not supported, for no listed reason"


def test_every_op_has_a_peer() -> None:
    named = {name for name, function in OPS.items() if function.__module__.startswith("scratchvit.")}
    assert named == {peer.ours for peer in PEERS} | set(WITHOUT_A_PEER)
    assert named <= set(vars(ops))


@pytest.mark.slow
@by_op
@by_dtype
def test_values_and_gradients(op: str, dtype: str) -> None:
    found, counts = [], Counter()
    for peer in peers_of(op):
        for sample in samples(peer, dtype):
            if sample.named is None:
                assert_supported(sample)
                counts["unsupported"] += 1
                continue
            unlike = differences(sample)
            counts["differ" if unlike else "agree"] += 1
            found += [(sample.text, f"{name}: {what}") for name, what in unlike.items()]
    print(f"{op} {dtype}: {dict(counts)}")
    assert_explained(op, dtype, found, DIFFERENT + BEING_MENDED)


def fortran(x: np.ndarray) -> np.ndarray:
    return x.copy(order="F")


def gapped(x: np.ndarray) -> np.ndarray:
    view = np.full((*x.shape, 2), 7, x.dtype)[..., 0]
    view[...] = x
    return view


def reversed_in_memory(x: np.ndarray) -> np.ndarray:
    turn = (slice(None, None, -1),) * x.ndim
    return x[turn].copy()[turn]


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = {"fortran": fortran, "negative strides": reversed_in_memory, "gapped": gapped, "read-only": read_only}
WRITES = {("batch_norm", "read-only")}      # to the running statistics, as it must


@pytest.mark.slow
@by_op
def test_layouts_of_the_inputs(op: str) -> None:
    """A few samples of every peer, the empty ones among them."""
    found = []
    for peer in peers_of(op):
        supported = [sample for sample in samples(peer, "float64") if sample.named is not None]
        empty = [sample for sample in supported if any(t.numel() == 0 for t in sample.differentiable)]
        for sample in [*supported[:: max(1, len(supported) // 6)], *empty[:4]]:
            for name, layout in LAYOUTS.items():
                if (op, name) not in WRITES:
                    unlike = differences(sample, layout)
                    found += [(sample.text, f"{what}: {how} ({name})") for what, how in unlike.items()]
    known = [entry for entry in DIFFERENT + BEING_MENDED if entry.op == op]
    unexplained = [pair for pair in found if not any(entry.explains(op, "float64", *pair) for entry in known)]
    assert not unexplained, unexplained[:10]


@pytest.mark.slow
@by_op
def test_wrong_calls_raise_in_a_sentence(op: str) -> None:
    """A ValueError, TypeError or IndexError that begins with the op's name."""
    found = []
    for peer in peers_of(op):
        for sample in wrong_calls(peer):
            if sample.named is None:
                assert_supported(sample)
                continue
            try:
                ours(sample)
            except Exception as error:
                if not isinstance(error, ValueError | TypeError | IndexError) or not str(error).startswith(f"{op}: "):
                    found.append((sample.text, f"{type(error).__name__}: {error}"))
            else:
                found.append((sample.text, "silent"))
    assert_explained(op, "float64", found, WRONG_CALLS + WRONG_CALLS_BEING_MENDED)
