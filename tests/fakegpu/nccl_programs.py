"""What ranks do in test_nccl.py, with a device each: `python -m tests.fakegpu.nccl_programs NAME`."""

from __future__ import annotations

import json
import sys
from typing import Any

import cupy

from scratchvit import backend
from scratchvit.parallel import Communicator, world
from scratchvit.parallel.nccl import NCCL
from scratchvit.training import ClassificationTask, TrainingLoop
from tests.support.collectives import all_collectives
from tests.support.runs import EVERYTHING

LARGE = 300_000     # numbers, which the stand-in exchanges in several rounds


def collectives(ranks: Communicator) -> dict[str, Any]:
    """Of the dtypes that ranks add."""
    return {name: all_collectives(ranks, name, cupy) for name in ("float32", "float64", "int64")}


def large(ranks: Communicator) -> list[bool]:
    """Whether sums, parts and joined parts of large arrays are what they should be; on the device named."""
    total = ranks.size * (ranks.size + 1) / 2
    numbers = cupy.arange(ranks.size * LARGE, dtype="float64")
    x, part = numbers * (ranks.rank + 1), cupy.empty(LARGE)
    ranks.start_sum_of_part(x, part).wait()
    joined = cupy.empty_like(x)
    ranks.start_join(part, joined).wait()
    ranks.sum(x)
    return [bool((found == numbers * total).all()) for found in (x, joined)] + [cupy.cuda.Device().id == ranks.rank]


def waits(ranks: Communicator, does_wait: int) -> float:
    """The sum of a product that the device may compute late. With does_wait = 0, nobody waits for the sum."""
    x = cupy.ones((64, 64))
    x = x @ x
    request = ranks.start_sum(x)
    if does_wait:
        request.wait()
    y = x * 1       # on the stream in use, which has to wait for NCCL's
    found = float(y[0, 0])
    request.wait()
    cupy.cuda.get_current_stream().synchronize()        # before the arrays are freed
    return found


def refused(ranks: Communicator) -> list[str]:
    """The errors for arrays that NCCL cannot take."""
    errors = []
    for array in (cupy.zeros(4, bool), cupy.zeros((4, 4))[:, 1]):
        try:
            ranks.sum(array)
        except ValueError as error:
            errors.append(str(error))
    return errors


def train(hosts: Communicator, is_sharded: str, folder: str) -> int:
    """A run, after which the number of this rank's device is returned."""
    config = EVERYTHING.replace(device="gpu", epochs=1, epoch_images=192, batch_size=64)
    config = config.replace(shard_optimizer=is_sharded == "1")
    loop = TrainingLoop(ClassificationTask(config), config, folder, log=lambda line: None, ranks=hosts)
    with loop.folder:
        loop.run()
    return cupy.cuda.Device().id


def main() -> None:
    """Call the program with the communicator and the words that follow its name; train makes that of NCCL itself."""
    name, *words = sys.argv[1:]
    hosts = world()
    if name == "train":
        done: Any = train(hosts, *words)
    else:
        backend.use(f"gpu:{hosts.local_rank}")
        done = globals()[name](NCCL(hosts), *map(int, words))
    print(json.dumps([hosts.rank, done]) + "\n", end="", flush=True)     # in one write, also where Python has no buffer
    if hosts.size > 1:
        hosts.close()


if __name__ == "__main__":
    main()
