"""Which device the tests run on: the CPU and the strict stand-in for a GPU, or with `pytest --device gpu` the GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import scratchvit as sv
from tests.support.strict_array import STRICT


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", choices=("cpu", "strict", "gpu"),
        help="run the device tests there only (default: on cpu and on strict, the stand-in for a GPU)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") == "gpu":
        try:
            sv.use("gpu")
        except sv.ScratchvitError as error:
            raise pytest.UsageError(f"--device gpu: {error}") from None
    sv.use("cpu")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--device")
        metafunc.parametrize("device", [chosen] if chosen else ["cpu", "strict"], indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device in use during the test: "cpu" and "strict" in turn, or what --device names."""
    sv.use(STRICT if request.param == "strict" else request.param)
    yield request.param
    sv.use("cpu")


@pytest.fixture(autouse=True)
def _every_test_leaves_the_cpu_in_use() -> Iterator[None]:
    yield
    left = sv.device()
    sv.use("cpu")       # so that one offender does not fail the tests after it
    assert left == "cpu", f"the test left the device {left!r} in use"
