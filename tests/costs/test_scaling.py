"""The predicted step of several ranks: against algorithms that are carried out, and a backward pass that tells."""

import numpy as np
import pytest

from scratchvit import backend, nn
from scratchvit.costs import scaling
from scratchvit.costs.counting import standing_in
from scratchvit.costs.profiling import BACKWARD, Stopwatch
from scratchvit.costs.scaling import GradientBucket, Network, gradient_buckets, predict
from scratchvit.costs.step import training_loss
from scratchvit.errors import ScratchvitError
from scratchvit.graph import telling
from scratchvit.models import create_model
from scratchvit.parallel import buckets
from scratchvit.parallel.buckets import grouped

NETWORK = Network(latency=3e-6, bandwidth=2e9)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_the_ring_is_one_that_is_carried_out(ranks):
    """Patarasuk & Yuan's, round by round: everybody sends a part to its neighbour, all at the same time."""
    rows = np.random.default_rng(0).standard_normal((ranks, ranks * 5))
    parts = rows.reshape(ranks, ranks, 5).copy()
    seconds, halfway = 0.0, None
    for turn in range(2 * (ranks - 1)):
        if turn == ranks - 1:
            halfway = seconds
        adds = turn < ranks - 1
        sent = [((rank - turn + (0 if adds else ranks)) % ranks) for rank in range(ranks)]
        messages = [parts[rank, sent[rank]].copy() for rank in range(ranks)]
        for rank, message in enumerate(messages):
            place = parts[(rank + 1) % ranks, sent[rank]]
            place[...] = place + message if adds else message
        seconds += NETWORK.latency + messages[0].nbytes / NETWORK.bandwidth
    np.testing.assert_allclose(parts.reshape(ranks, -1), np.broadcast_to(rows.sum(0), rows.shape))
    assert NETWORK.ring(rows[0].nbytes, ranks) == pytest.approx(seconds)
    assert NETWORK.half_of_ring(rows[0].nbytes, ranks) == pytest.approx(halfway or 0.0)


def parent_in_tree(rank, ranks):
    """That of NCCL's ncclGetBtree: leaves are the odd ranks. None for the root, rank 0."""
    bit = 1
    while bit < ranks and not rank & bit:
        bit <<= 1
    if rank == 0:
        return None
    up = (rank ^ bit) | (bit << 1)
    return up if up < ranks else rank ^ bit


@pytest.mark.parametrize("ranks", [4, 8, 64, 512])
def test_the_trees_are_those_of_nccl(ranks):
    """The rank that sends most sends 2 n bytes, and the longest way to the root has log₂ N links."""
    n, sent, deepest = 1000, [0] * ranks, 0
    for mirrored in (False, True):
        for rank in range(ranks):
            up = parent_in_tree(rank, ranks)
            if up is not None:
                ends = (ranks - 1 - rank, ranks - 1 - up) if mirrored else (rank, up)
                for end in ends:        # its half goes up from one end and down from the other
                    sent[end] += n // 2
            links = 0
            while up is not None:
                up, links = parent_in_tree(up, ranks), links + 1
            deepest = max(deepest, links)
    assert NETWORK.tree(n, ranks) == pytest.approx(2 * deepest * NETWORK.latency + max(sent) / NETWORK.bandwidth)


def test_the_quicker_way_is_taken():
    assert NETWORK.sum(100e6, 8) == NETWORK.ring(100e6, 8) < NETWORK.tree(100e6, 8)
    assert NETWORK.sum(1e3, 64) == NETWORK.tree(1e3, 64) < NETWORK.ring(1e3, 64)
    assert NETWORK.sum(1e6, 1) == NETWORK.ring(1e6, 1) == NETWORK.tree(1e6, 1) == 0


def test_sums_overlap_with_the_backward_pass(monkeypatch):
    """By hand. Computing takes 9 s, 6 of them backward; a sum over two ranks takes as long as its bytes say."""
    monkeypatch.setattr(scaling, "SMALL", 0)
    network = Network(latency=1e-12, bandwidth=1.0)
    found = predict([GradientBucket(2, 0.5), GradientBucket(3, 0.6), GradientBucket(1, 1.0)], 2, 9.0, network)
    # The first is ready at 6 and done at 8, the second ready at 6.6 and done at 11, the third done at 12.
    assert found.seconds == pytest.approx(12) and found.exposed == pytest.approx(3)
    assert found.efficiency == pytest.approx(9 / 12) and found.in_turn == pytest.approx(15)
    # Reduce-scatters of 1, 1.5 and 0.5 s end at 9.5; 3 s of all-gathers follow.
    assert found.sharded == pytest.approx(12.5)
    # In three parts, the last backward pass is from 7 to 9: ready at 8, 8.2 and 9.
    assert predict([GradientBucket(2, 0.5)], 2, 9.0, network, accumulate=3).seconds == pytest.approx(10)


def test_one_rank_exchanges_nothing():
    found = predict([GradientBucket(10**9, 1.0)], 1, 0.1, NETWORK)
    assert found.seconds == found.in_turn == found.sharded == 0.1 and found.efficiency == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2, "num_classes": 5}),
        ("resnet18", {"img_size": 32, "num_classes": 5}),
        ("swin_tiny_patch4_window7_224", {"img_size": 32, "window_size": 4, "depths": (1, 1), "num_heads": (1, 2)}),
    ],
)
def test_gradients_are_complete_when_a_backward_pass_says_so(name, options, monkeypatch):
    """The share of multiply-adds that a real backward pass has made when it tells that a gradient is complete."""
    monkeypatch.setattr(buckets, "BUCKET_BYTES", 200_000)
    model = create_model(name, **options)
    stopwatch, told = Stopwatch(backend.current()), {}

    def made():
        return sum(call.macs for call in stopwatch.calls if call.direction == BACKWARD)

    with standing_in(model, stopwatch.call, training=True, device=backend.current()):
        images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
        loss = training_loss(model, images)
        with telling(lambda leaf: told.setdefault(id(leaf), made())):
            loss.backward()
    found, expected = gradient_buckets(model), []
    for group in grouped(list(model.parameters())[::-1]):
        nbytes = sum(parameter.data.nbytes for parameter in group.parameters)
        expected.append((max(told[id(parameter)] for parameter in group.parameters) / made(), nbytes))
    expected.sort(key=lambda pair: pair[0])
    assert len(found) > 1 and sorted(bucket.nbytes for bucket in found) == sorted(nbytes for _, nbytes in expected)
    for bucket, (ready, _) in zip(found, expected):     # the engine may take two branches in another order
        assert bucket.ready == pytest.approx(ready, abs=0.07)
    equal = sum(bucket.ready == pytest.approx(ready, abs=1e-9) for bucket, (ready, _) in zip(found, expected))
    assert equal > len(found) / 2


def test_a_model_without_products_is_refused():
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(np.zeros(3, np.float32))

        def forward(self, x):
            return x + self.shift.reshape(3, 1, 1)

    with pytest.raises(ScratchvitError, match="no matrix product"):
        gradient_buckets(Shift(), (3, 4, 4))
