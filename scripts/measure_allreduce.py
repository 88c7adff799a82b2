"""How long does a sum over ranks take, by its size? Latency and bandwidth of it, for `scratchvit cost`.

    mpiexec -n 2 python scripts/measure_allreduce.py
    mpiexec -n 2 python scripts/measure_allreduce.py --json allreduce.json      # also writes a record of it

It sums float32 arrays of 4 B to 64 MiB with the communicator of training (parallel/mpi.py), one after another, and
takes for each size the shortest of all repeats; a repeat has ended when the last rank has its sum. Latency α and
bandwidth B are those for which 2 (N - 1) α + 2 (N - 1) / N · n / B, the time of a ring (scratchvit/costs/scaling.py),
has the least squares of relative errors. They include everything: the additions too, and between ranks on one machine
the copies in its memory. For two ranks the formula is that of every way to sum, for more of the ring alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scratchvit.costs.scaling import Network
from scratchvit.errors import ScratchvitError
from scratchvit.files import counted
from scratchvit.parallel import Communicator, world
from scripts import records

SIZES = [4 << (2 * i) for i in range(13)]       # bytes: 4 B to 64 MiB, each four times the one before
SECONDS = 1.0                                   # for each size
FEWEST, MOST = 5, 1000                          # repeats


def main() -> None:
    """Measure; print on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a record of the result into this file")
    args = parser.parse_args()
    try:
        ranks = world()
        if ranks.size == 1:
            raise ScratchvitError("one process has nothing to exchange: begin with mpiexec -n 2")
        hosts = len(set(ranks.gather(ranks.host)))
        times = measure(ranks, args.seconds)
        if ranks.rank == 0:
            report(ranks.size, hosts, times, args.json)
        ranks.gather(None)          # here ranks wait asleep; in MPI's end they would occupy their cores
    except ScratchvitError as error:
        raise SystemExit(str(error)) from None


def measure(ranks: Communicator, seconds: float) -> dict[int, float]:
    """{bytes: seconds of the quickest sum}, the same on all ranks."""
    return {size: _quickest(ranks, size, seconds) for size in SIZES}


def _quickest(ranks: Communicator, size: int, seconds: float) -> float:
    array = np.zeros(size // 4, np.float32)
    own: list[float] = []
    repeats = MOST
    while len(own) < repeats:
        ranks.gather(None)                      # all begin together
        start = time.perf_counter()
        ranks.sum(array)
        own.append(time.perf_counter() - start)
        if len(own) == FEWEST:                  # a number that all ranks have, from their first repeats
            one = max(ranks.gather(min(own)))
            repeats = min(MOST, max(FEWEST, int(seconds / one)))
    return float(np.max(ranks.gather(own), axis=0).min())       # of each repeat, the rank that was last


def fitted(times: dict[int, float], ranks: int) -> Network:
    """The latency and bandwidth of a ring that fit best, in relative terms. Neither is less than 0."""
    import scipy.optimize

    sizes, seconds = np.array(list(times)), np.array(list(times.values()))
    rows = np.stack([2 * (ranks - 1) / seconds, 2 * (ranks - 1) / ranks * sizes / seconds], axis=1)
    scale = rows.max(axis=0)                    # the two columns have very different sizes
    latency, per_byte = scipy.optimize.nnls(rows / scale, np.ones(len(rows)))[0] / scale
    return Network(float(latency), float(1 / per_byte) if per_byte else float("inf"))


def report(ranks: int, hosts: int, times: dict[int, float], path: Path | None) -> None:
    """Print the table and the command that uses the result, and write the record."""
    network = fitted(times, ranks)
    print(f"{ranks} ranks on {counted(hosts, 'machine')}\n{'bytes':>12}{'µs':>12}{'GB/s':>9}{'fit, µs':>12}")
    for size, seconds in times.items():
        fit = 1e6 * network.ring(size, ranks)
        print(f"{size:12,}{1e6 * seconds:12,.1f}{size / seconds / 1e9:9.2f}{fit:12,.1f}")
    print(f"latency {1e6 * network.latency:.3g} µs, bandwidth {network.bandwidth / 1e9:.3g} GB/s")
    print(command(network, ranks))
    if path:
        record = {
            "ranks": ranks, "machines": hosts, "latency": network.latency, "bandwidth": network.bandwidth,
            "seconds": {str(size): round(seconds, 9) for size, seconds in times.items()},
            **records.origin(started_with(ranks)),
        }
        path.write_text(json.dumps(record), encoding="utf-8")


def started_with(ranks: int) -> str:
    """This program's command, as it is recorded."""
    return records.command_line().replace("python ", f"mpiexec -n {ranks} python ", 1)


def command(network: Network, ranks: int) -> str:
    """The `scratchvit cost` that uses what was measured."""
    options = f"--bandwidth {network.bandwidth / 1e9:.3g}GB/s --latency {1e6 * network.latency:.3g}us"
    return f"scratchvit cost vit_tiny_patch16_224 --batch-size 32 {options} --ranks {ranks}"


if __name__ == "__main__":
    main()
