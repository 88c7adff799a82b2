"""The scripts that measure several ranks: what they fit, and both with real ranks at the smallest size."""

import json

import pytest

from scratchvit.costs.scaling import Network
from scratchvit.parallel import ALONE
from tests.support.mpiexec import needs_mpi, run_mpi
from tests.support.peers import import_timm
from tests.support.ranks import run_ranks
from tests.support.scripts import SCRIPTS, import_script

measuring = import_script("measure_allreduce.py")


@pytest.mark.parametrize("ranks", [2, 4])
def test_what_a_ring_takes_gives_its_latency_and_bandwidth(ranks):
    network = Network(latency=7e-6, bandwidth=3e9)
    times = {size: network.ring(size, ranks) for size in measuring.SIZES}
    found = measuring.fitted(times, ranks)
    assert found.latency == pytest.approx(7e-6, rel=1e-6) and found.bandwidth == pytest.approx(3e9, rel=1e-6)
    assert measuring.command(found, ranks).endswith(f"--bandwidth 3GB/s --latency 7us --ranks {ranks}")


def test_all_ranks_measure_the_same(monkeypatch):
    monkeypatch.setattr(measuring, "SIZES", [4, 4096])
    first, second = run_ranks(2, lambda ranks: measuring.measure(ranks, 0.0))
    assert first == second and set(first) == {4, 4096} and min(first.values()) > 0


@needs_mpi
@pytest.mark.slow
def test_allreduce_with_real_ranks(tmp_path):
    words = [SCRIPTS / "measure_allreduce.py", "--seconds", "0.001", "--json", tmp_path / "found.json"]
    done = run_mpi(2, words, seconds=600)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert record["ranks"] == 2 and record["machines"] == 1 and len(record["seconds"]) == 13
    assert record["command"].startswith("OMP_NUM_THREADS=1 mpiexec -n 2 python scripts/measure_allreduce.py")
    assert done.stdout.splitlines()[-1].startswith("scratchvit cost ")


@needs_mpi
@pytest.mark.slow
@pytest.mark.parity
def test_scaling_with_real_ranks(tmp_path):
    """It compares the losses of both libraries itself, on one rank and on two."""
    import_timm()
    small = ["--img-size", "32", "--depth", "1", "--batch", "2", "--steps", "1", "--rounds", "1"]
    done = run_mpi(2, [SCRIPTS / "bench_scaling.py", *small, "--json", tmp_path / "found.json"], seconds=600)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert set(record["seconds"]) == {"alone", "apart", "together", "DDP", "DDP alone"}
    assert min(found["least"] for found in record["seconds"].values()) > 0 and record["predicted"]["seconds"] > 0


@pytest.mark.parametrize("script", ["measure_allreduce.py", "bench_scaling.py"])
def test_one_process_is_told_how_to_begin(script, monkeypatch):
    module = import_script(script)
    monkeypatch.setattr(module, "world", lambda: ALONE)
    monkeypatch.setattr("sys.argv", [script])
    with pytest.raises(SystemExit, match="begin with mpiexec -n 2"):
        module.main()
