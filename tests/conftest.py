"""Options of the suite, what is true before every test and must be true after it, and what is said at the end.

    pytest                      the quick part, in a worker process per core; `-n 0`: in this process
    pytest -m slow              training to an accuracy, figures, kills, memory at full size
    pytest -m parity            the comparison with PyTorch, torchvision, timm, transformers and CuPy
    pytest --margins            which comparisons came closest to their error bounds (support/margins.py)
    pytest --seed 3             every generator of the suite moved (support/seeds.py)
    pytest --device strict      the device tests on the strict stand-in for a GPU only; or cpu
    pytest --device gpu         the device tests only, on a GPU; without one: tests/fakegpu/run pytest --device gpu
"""

from __future__ import annotations

import os

# One thread of BLAS for each worker process, before NumPy is imported: workers beside each other keep all cores busy.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import scratchvit as sv
from scratchvit import backend
from scratchvit.plain import plain_forms
from tests.support import leftovers, margins, seeds
from tests.support.strict_array import STRICT

LEFT_OUT = {
    "slow": "slow tests (training, figures, kills, memory: pytest -m slow)",
    "parity": "comparisons with PyTorch, timm and CuPy (pytest -m parity)",
    "no device": "tests that are the same without a GPU (pytest without --device gpu)",
    "cuda": "tests of CUDA kernels (tests/fakegpu/run pytest --device gpu)",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", choices=("cpu", "strict", "gpu"),
        help="run the device tests there only (default: on cpu and on strict, NumPy as strict as CuPy); gpu: no others",
    )
    parser.addoption("--seed", type=int, default=0, metavar="N", help="move every random generator of the suite")
    parser.addoption("--margins", action="store_true", help="print which comparisons came closest to their bounds")


@pytest.hookimpl(tryfirst=True)         # before Hypothesis reads its option
def pytest_configure(config: pytest.Config) -> None:
    os.environ[seeds.VARIABLE] = str(config.getoption("--seed"))
    if getattr(config.option, "hypothesis_seed", "") is None:   # or every run tries other examples, and some fail
        config.option.hypothesis_seed = str(config.getoption("--seed"))
    seeds.install()
    # Training asks for it, and it holds for the whole process: this one would never give memory back.
    backend.keep_freed_memory = lambda: False
    if config.getoption("--device") == "gpu":
        try:
            sv.use("gpu")
        except sv.ScratchvitError as error:
            raise pytest.UsageError(f"--device gpu: {error}") from None
    sv.use("cpu")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """No worker processes for a few chosen tests, which start faster without, nor for the one GPU.

    With tests/fakegpu every process has a GPU of its own.
    """
    chosen = config.args != config.getini("testpaths") or config.option.keyword
    one_gpu = config.getoption("--device") == "gpu" and "fakegpu" not in sys.modules
    return 0 if chosen or one_gpu else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--device")
        metafunc.parametrize("device", [chosen] if chosen else ["cpu", "strict"], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    belongs = _uses_device if config.getoption("--device") == "gpu" else _runs_without_gpu
    config.hook.pytest_deselected(items=[item for item in items if not belongs(item)])
    items[:] = filter(belongs, items)


def _uses_device(item: pytest.Item) -> bool:
    return "device" in getattr(item, "fixturenames", ())


def _runs_without_gpu(item: pytest.Item) -> bool:
    return "cuda" not in getattr(item, "fixturenames", ())


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Every later collection of garbage passes over the modules and the thousands of tests that stay to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device in use during the test: "cpu" and "strict" in turn, or what --device names."""
    sv.use(STRICT if request.param == "strict" else request.param)
    yield request.param
    sv.use("cpu")


@pytest.fixture
def cuda(device: str, kernels: None) -> str:
    """The test is about CUDA kernels: it runs with --device gpu only, on a GPU or on tests/fakegpu."""
    return device


@pytest.fixture
def kernels() -> Iterator[None]:
    """The test is about kernels, also if the suite runs with SCRATCHVIT_PLAIN=1."""
    with plain_forms(False):
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_folder_for_temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a forgotten temporary file is seen, and is not one of another process."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any) -> None:
    """What a module's fixture draws without a seed depends on the fixture, not on the test that came first."""
    if fixturedef.scope != "function":
        seeds.begin(f"{fixturedef.baseid}::{fixturedef.argname}")


@pytest.fixture(autouse=True)
def _every_test_begins_alike_and_leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Random numbers that depend on the test alone; afterwards, device, flags, files and random states as before."""
    seeds.begin(request.node.nodeid)
    margins.records.clear()
    before = leftovers.state()
    yield
    if margins.records:
        request.node.user_properties.append(("margin", (*max(margins.records), len(margins.records))))
    found = leftovers.differences(before, leftovers.state())
    if found:
        gc.collect()    # a traceback may still hold a loader, and this its thread
        found = leftovers.differences(before, leftovers.state())
    sv.use("cpu")       # so that one offender does not fail the tests after it
    assert not found, "the test left something behind: " + "; ".join(found)


# --- what is said at the end ----------------------------------------------------------------------------------------

_deselected: Counter[str] = Counter()
_margins: list[tuple[float, str, int, str]] = []       # of a test: the largest quotient, of what, of how many, the test


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        if item.config.getoption("--device") == "gpu" and not _uses_device(item):
            _deselected["no device"] += 1
        elif not _runs_without_gpu(item):
            _deselected["cuda"] += 1
        else:               # a comparison of a large model is slow too, and counted once
            _deselected.update([name for name in LEFT_OUT if item.get_closest_marker(name)][-1:])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        _margins.extend((*value, report.nodeid) for name, value in report.user_properties if name == "margin")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not terminalreporter.config.getoption("--margins"):
        return
    compared = sum(count for *_, count, _ in _margins)
    terminalreporter.section(f"measured / allowed in {compared:,} comparisons of {len(_margins):,} tests")
    for quotient, what, _, test in sorted(_margins, reverse=True)[:20]:
        terminalreporter.line(f"{quotient:6.3f}  {test}  {what}".rstrip())


@pytest.hookimpl(wrapper=True, tryfirst=True)     # so that this is the very last line
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    is_worker = hasattr(session.config, "workeroutput")
    if is_worker:
        session.config.workeroutput["deselected"] = dict(_deselected)
    result = yield
    if _deselected and not is_worker:
        left = ", ".join(f"{count:,} {LEFT_OUT[name]}" for name, count in sorted(_deselected.items()))
        session.config.pluginmanager.get_plugin("terminalreporter").write_line(f"left out: {left}")
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker of pytest-xdist has left out the same tests; the last one's count is as good as any."""
    _deselected.clear()
    _deselected.update(node.workeroutput.get("deselected", {}))
