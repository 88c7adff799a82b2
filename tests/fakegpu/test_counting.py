"""Counting and tracing what the device is asked to do."""

import json

import cupy
import numpy as np
import pytest
from fakegpu import device

from tests.fakegpu.helpers import start


def test_counts_of_an_expression():
    a = cupy.ones((8, 8), np.float32)
    a @ a + 1
    device.reset()
    cupy.asnumpy(a @ a + 1)
    counts = device.counts()
    assert (counts["launches"], counts["gemms"], counts["d2h"], counts["d2h_bytes"]) == (1, 1, 1, 256)


def test_a_trace_names_what_was_done():
    a, seen = cupy.ones((8, 8), np.float32), []
    a @ a + 1
    device.trace(lambda what, name, x, y: seen.append((what, name)))
    try:
        a @ a + 1
    finally:
        device.trace(None)
    a @ a
    work = [(what, name) for what, name in seen if what in ("gemm", "launch")]
    assert [what for what, _ in work] == ["gemm", "launch"] and work[0][1].startswith("cublas")


def test_only_counting_compiles_and_computes_nothing():
    """The same numbers as when it is done, and no kernel is built: there is no compiler."""
    code = """
import json, os
import cupy
from fakegpu import compiler, device
compiler.build = None
a = cupy.ones((8, 8), "f")
device.reset()
b = a @ a + 1
print(json.dumps(device.counts()))
"""
    done = start("-c", code, FAKEGPU_COUNT="1")
    counts = json.loads(done.stdout)
    assert (counts["launches"], counts["gemms"]) == (1, 1), done.stderr


@pytest.mark.parametrize("execute", [[], ["--execute"]])
def test_the_operations_of_a_training_step(execute, tmp_path):
    """The script counts what is done, and the same number if nothing is done."""
    found, small = tmp_path / "counts.json", ["--img-size", "32", "--batch", "1"]
    done = start("scripts/count_device_ops.py", *small, "--json", str(found), *execute)
    assert done.returncode == 0, done.stderr
    counts = json.loads(found.read_text())
    assert counts["operations"]["backward"] > counts["operations"]["forward"] > 12 * 8      # of 12 blocks
    assert counts["calls"]["forward gemm"] >= 12 * 6 and "backward memcpyAsync d2h" not in counts["calls"]
    assert (counts["host_ms"] is None) == bool(execute)
