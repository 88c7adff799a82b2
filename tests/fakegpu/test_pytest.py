"""`pytest --device gpu` on the stand-in."""

import pytest

from tests.fakegpu.helpers import start

OPTIONS = ["-m", "pytest", "-p", "no:cacheprovider", "--device", "gpu", "tests/test_random.py"]


@pytest.mark.parametrize("workers", [0, 2])
def test_only_tests_with_a_device_run(workers, tmp_path):
    done = start(*OPTIONS, "-n", str(workers), f"--basetemp={tmp_path / 'its'}")
    assert done.returncode == 0, done.stdout
    *_, summary, last = done.stdout.splitlines()
    assert summary.startswith("1 passed")
    assert last.startswith("left out: ") and "tests that are the same without a GPU" in last
