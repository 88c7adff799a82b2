"""Batches on their way to a GPU: nothing is overwritten too early, and buffers are made once."""

import cupy
import numpy as np
import pytest
from fakegpu import device

from scratchvit.upload import Upload
from tests.fakegpu.helpers import start

# Uploads batches of several sizes and types while the GPU is behind, as it is in training, and prints how many arrive
# as they were sent. `spoil` is code that leaves out a wait.
PROGRAM = """
import cupy, numpy as np
from scratchvit import upload
{spoil}
rng = np.random.default_rng(0)
batches = [
    rng.integers(0, 256, (1 + number % 3, 50, 40, 3), np.uint8) if number % 4 else rng.random((2, 3, 9, 40), np.float32)
    for number in range(24)
]
take, late, found = upload.Upload(cupy), cupy.zeros(1000), []
for batch in batches:
    late = cupy.sin(late)
    sent = batch.copy()
    found.append(take(sent, lambda x: x + x.dtype.type(1)))
    sent[...] = 0
print(sum(np.array_equal(cupy.asnumpy(y), x + x.dtype.type(1)) for x, y in zip(batches, found)))
"""

@pytest.mark.parametrize("delayed", ["0", "1"])
def test_every_batch_arrives_as_it_was_sent(delayed):
    done = start("-c", PROGRAM.format(spoil=""), FAKEGPU_ASYNC=delayed)
    assert done.stdout == "24\n", done.stderr


@pytest.mark.parametrize("forgotten", [
    "buffer.copied = Unwaited(buffer.copied)",                          # the host, before it writes to a pinned buffer
    "buffer.stream = Hasty(buffer.stream)",                             # a copy, for its buffer to be read
    "cupy.cuda.get_current_stream = lambda: Hasty(default)",            # the reader, for the copy
])
def test_each_of_the_three_waits_is_needed(forgotten):
    spoil = f"""
default, send = cupy.cuda.Stream.null, upload._Buffer.send

class Unwaited:
    def __init__(self, event): self.event = event
    def synchronize(self): pass
    def __getattr__(self, name): return getattr(self.event, name)

class Hasty:
    def __init__(self, stream): self.stream = stream
    def wait_event(self, event): pass
    def __getattr__(self, name): return getattr(self.stream, name)

def spoiled(buffer, *arguments):
    {forgotten}
    return send(buffer, *arguments)

upload._Buffer.send = spoiled
"""
    done = start("-c", PROGRAM.format(spoil=spoil), FAKEGPU_ASYNC="1")
    assert int(done.stdout) < 24, done.stderr


def test_buffers_are_made_once_and_grow_with_the_batches():
    cupy.get_default_pinned_memory_pool().free_all_blocks()     # or they would be made of what other tests left
    take, allocated = Upload(cupy), []
    for rows in (3, 2, 3, 1, 3, 3):     # in turn to the one and to the other
        device.reset()
        take(np.ones((rows, 100, 100, 3), np.uint8), lambda x: x + np.uint8(1))
        allocated.append(device.counts()["host_allocs"])
    assert allocated == [1, 1, 0, 0, 0, 1]
