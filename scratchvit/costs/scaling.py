"""How long a training step takes on N ranks, from the speed of one and that of the network.

    work = gradient_buckets(model)                      # bytes of each bucket, and when its gradients are there
    step = predict(work, ranks=64, compute=0.3, network=Network(latency=2e-6, bandwidth=25e9))
    step.seconds, step.efficiency, step.exposed         # exposed: seconds in which only the network works

A message of n bytes takes α + n / B seconds with the latency α and the bandwidth B (Hockney 1994). All links are alike,
carry B in each direction at the same time, and are not shared. A sum (all-reduce) of n bytes over N ranks then takes

    ring    2 (N - 1) α + 2 (N - 1) / N · n / B     N - 1 steps to sum parts of n / N bytes, as many to send them round
    tree    2 ⌈log₂ N⌉ α + 2 n / B                  up and down two trees, each for a half of the bytes, in small pieces

The ring moves as few bytes as any all-reduce can (Patarasuk & Yuan 2009, §3); the model of costs is that of Thakur,
Rabenseifner & Gropp 2005, §3. NCCL's trees are the double binary trees of Sanders, Speck & Träff 2009. For every bucket
the quicker of the two is taken, as MPI libraries and NCCL choose by size. Recursive halving and doubling (Rabenseifner)
would need 2 ⌈log₂ N⌉ α and the bytes of the ring; but its ranks exchange with distant ones all at once, for which few
networks have the bandwidth.

The halves of the ring, reduce-scatter and all-gather, take half its time each. So a sharded optimiser (ZeRO-1, arXiv
1910.02054, §7) moves as many bytes as an all-reduce by a ring, but only the first half can overlap with the backward
pass; the second comes after the update.

The backward pass takes two thirds of the computing, in proportion to the multiply-adds of its layers. A bucket's sum
begins when its last gradient is there and the sum before it has ended (buckets.py):

    compute   |- forward -|-------- backward --------|
    network                     |- b0 -| |- b1 -|  |- b2 -|
                                                     |    | exposed

Not counted: the optimiser's update, adding in the processors (a bandwidth that was measured with an all-reduce includes
it), processor time for sending, ranks that are slower than others, and reading the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scratchvit.costs.counting import OpCost, configured_shape, cost
from scratchvit.errors import ScratchvitError
from scratchvit.nn import Module
from scratchvit.parallel.buckets import grouped

BACKWARD = 2 / 3        # of the computing: two products for each one of the forward pass
SMALL = 2               # sums of a few bytes in a step: to agree that all go on, and the loss


@dataclass(frozen=True)
class Network:
    """latency: seconds that a message takes however short it is. bandwidth: bytes/s of a link, in each direction."""

    latency: float
    bandwidth: float

    def ring(self, nbytes: float, ranks: int) -> float:
        """Seconds of an all-reduce by a ring."""
        return 2 * self.half_of_ring(nbytes, ranks)

    def half_of_ring(self, nbytes: float, ranks: int) -> float:
        """Seconds of a reduce-scatter or an all-gather by a ring."""
        return (ranks - 1) * (self.latency + nbytes / ranks / self.bandwidth)

    def tree(self, nbytes: float, ranks: int) -> float:
        """Seconds of an all-reduce by two binary trees."""
        if ranks == 1:
            return 0.0
        return 2 * (math.ceil(math.log2(ranks)) * self.latency + nbytes / self.bandwidth)

    def sum(self, nbytes: float, ranks: int) -> float:
        """Seconds of an all-reduce by the quicker of the two."""
        return min(self.ring(nbytes, ranks), self.tree(nbytes, ranks))


@dataclass(frozen=True)
class GradientBucket:
    """nbytes: of its gradients. ready: the share of the backward pass after which the last of them is complete."""

    nbytes: int
    ready: float


@dataclass(frozen=True)
class PredictedStep:
    """Seconds of a step. The sums are those of all buckets, as if nothing else were to be done meanwhile."""

    ranks: int
    compute: float          # forward and backward of a rank
    ring: float             # of all sums by rings
    tree: float             # of all sums by trees
    seconds: float          # of the step, whose sums overlap with the backward pass
    in_turn: float          # of the step if they began after it
    sharded: float          # of the step with a sharded optimiser

    @property
    def exposed(self) -> float:
        """Seconds in which only the network works."""
        return self.seconds - self.compute

    @property
    def efficiency(self) -> float:
        """The share of the step in which the ranks compute: what N ranks do, over N times what one does alone."""
        return self.compute / self.seconds


def gradient_buckets(model: Module, image_shape: Sequence[int] | None = None) -> list[GradientBucket]:
    """The buckets in which the gradients of a model are summed, in the order in which they are complete.

    image_shape: as for `cost`. Raises the errors of `cost`, and ScratchvitError for a model without multiply-adds.
    """
    shape = tuple(configured_shape(model) if image_shape is None else image_shape)
    layers = cost(model, shape).layers
    done = _done_after(layers, shape)
    path_of = {id(parameter): name.rpartition(".")[0] for name, parameter in model.named_parameters()}
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buckets = [
        GradientBucket(
            sum(parameter.size * parameter.dtype.itemsize for parameter in group.parameters),
            max(_ready(path_of[id(parameter)], layers, done) for parameter in group.parameters),
        )
        for group in grouped(learned[::-1])
    ]
    return sorted(buckets, key=lambda bucket: bucket.ready)


def _done_after(layers: Sequence[OpCost], image: tuple[int, ...]) -> list[float]:
    """For each op, the share of the backward pass after which its own is done. The images need no gradient."""
    work = [op.macs * (1 if op.inputs and op.inputs[0][1:] == image else 2) for op in layers]
    total = sum(work)
    if not total:
        raise ScratchvitError("the model has no matrix product or convolution whose time could be predicted")
    return [sum(work[i:]) / total for i in range(len(work))]


def _ready(path: str, layers: Sequence[OpCost], done: Sequence[float]) -> float:
    """When the gradients of a module's parameters are complete: after its first call has gone back."""
    return next((share for op, share in zip(layers, done) if op.module == path), 1.0)


def predict(
    buckets: Sequence[GradientBucket], ranks: int, compute: float, network: Network, accumulate: int = 1
) -> PredictedStep:
    """The step of a rank that computes for so many seconds, forward and backward, without an exchange.

    accumulate: the parts of its batch; sums can only overlap with the backward pass of the last one.
    """
    last_backward = compute * BACKWARD / accumulate
    ready = [compute - last_backward * (1 - bucket.ready) for bucket in buckets]
    small = SMALL * network.sum(0, ranks)
    sums = [network.sum(bucket.nbytes, ranks) for bucket in buckets]
    halves = [network.half_of_ring(bucket.nbytes, ranks) for bucket in buckets]
    return PredictedStep(
        ranks, compute,
        ring=sum(network.ring(bucket.nbytes, ranks) for bucket in buckets),
        tree=sum(network.tree(bucket.nbytes, ranks) for bucket in buckets),
        seconds=max(compute, _one_after_another(ready, sums)) + small,
        in_turn=compute + sum(sums) + small,
        sharded=max(compute, _one_after_another(ready, halves)) + sum(halves) + small,
    )


def _one_after_another(ready: Sequence[float], seconds: Sequence[float]) -> float:
    """When the last of some sums ends, of which each begins when it is ready and the one before it has ended."""
    end = 0.0
    for begin, duration in zip(ready, seconds):
        end = max(begin, end) + duration
    return end
