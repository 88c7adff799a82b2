"""An optimiser whose state is divided among the ranks of a run: stage 1 of ZeRO.

Rajbhandari et al. 2020, arXiv 1910.02054, §5.1 (P_os). Every rank has all weights, but only 1/N of AdamW's moments:

    on each of N ranks                              bytes per weight (AdamW, float32)
    weights, gradients                              4 + 4
    gradients of the pieces of this rank, summed    4 / N
    moments of the pieces of this rank              8 / N, instead of 8

    backward        a rank's own gradients, of its images
    reduce-scatter  the sum of all ranks' gradients, of the pieces of this rank     parallel/buckets.py
    step            the new weights of the pieces of this rank                      here
    all-gather      all new weights                                                 parallel/buckets.py

That is as much communication as an all-reduce, which consists of the same two halves. If the sums of gradients are the
same, so are the weights, bit for bit, since optimisers compute entry by entry. Only the norm of all gradients is
rounded differently, because it is a sum over pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from scratchvit.backend import Array, array_module, asnumpy
from scratchvit.errors import ScratchvitError, WrongState, WrongValue
from scratchvit.optim.decision import Decision
from scratchvit.optim.gradients import grad_norm
from scratchvit.optim.optimizers import Optimizer
from scratchvit.parallel.buckets import Buckets
from scratchvit.tensor import Tensor


class Sharded:
    """An optimiser whose state is divided among ranks; on every rank the same calls, in the same order.

        buckets = Buckets(model.parameters(), ranks, sharded=True)
        optimizer = Sharded(lambda groups: AdamW(groups, lr=1e-3), param_groups(model, 0.05), buckets)
        loss.backward(); buckets.finish()
        optimizer.step(clip_factor(optimizer.grad_norm(), 1.0))

    make: makes the optimiser of given parameter groups: an AdamW, Adam or SGD.
    groups: of all parameters, as for that optimiser, which determines their weight decay and learning rates.
    buckets: has the gradients, summed over ranks, and all parameters of the groups that require a gradient.

    The rest is as of `Optimizer`: `lr` can be changed between steps, and parameters without a gradient are not changed;
    after `Buckets.finish`, all ranks have the same of them. Steps cannot be captured (replay.py).
    Raises ScratchvitError as the optimiser does; WrongValue for a parameter that is not in the buckets.
    """

    def __init__(
        self, make: Callable[[list[dict[str, Any]]], Optimizer], groups: Iterable[Any], buckets: Buckets
    ):
        self._whole = make(list(groups))    # of all parameters: it checks the groups, and never makes a step
        slots = self._whole._slots
        self._parameters = [slot.parameter for slot in slots]
        self._arrays = [parameter.data for parameter in self._parameters]
        self._buckets, self._ranks = buckets, buckets.ranks
        number = {id(parameter): i for i, parameter in enumerate(self._parameters)}
        self._own = [piece for piece in buckets.own if id(piece.parameter) in number]
        self._numbers = [number[id(piece.parameter)] for piece in self._own]
        self._tensors = [Tensor(piece.values, requires_grad=True) for piece in self._own]
        part: list[dict[str, Any]] = [{"params": []}]       # a rank may have nothing but padding
        part += [
            {"params": [tensor], "weight_decay": slots[i].weight_decay, "lr_scale": slots[i].lr_scale}
            for i, tensor in zip(self._numbers, self._tensors)
        ]
        self._part = make(part)
        self._check_places()

    def _check_places(self) -> None:
        """Raise WrongValue unless the pieces of all ranks, in their order, are all entries of the parameters."""
        ends: list[list[int]] = [[0] for _ in self._parameters]
        for of_rank in self._ranks.gather([[i, p.start, p.stop] for i, p in zip(self._numbers, self._own)]):
            for i, start, stop in of_rank:
                ends[i] += start, stop
        for i, parameter in enumerate(self._parameters):
            starts, stops = [*ends[i][1::2], parameter.size], ends[i][::2]
            if parameter.requires_grad and starts != stops:
                raise WrongValue(
                    f"Sharded: parameter {i} of its groups, of shape {parameter.shape}, is not in the buckets, or not "
                    "all of it: make Buckets of all parameters of the groups, with sharded=True"
                )

    @property
    def lr(self) -> float:
        """The learning rate. That of a group is lr · lr_scale."""
        return self._part.lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self._part.lr = self._whole.lr = lr

    def __repr__(self) -> str:
        own = sum(tensor.size for tensor in self._tensors)
        return f"{self._whole!r}, of which {own:,} are those of rank {self._ranks.rank} of {self._ranks.size}"

    @property
    def pieces(self) -> list[Tensor]:
        """The pieces of this rank: flat Tensors with their values and their gradients, which are summed over ranks.

        Both are views. The gradient is None if the parameter has none.
        """
        self._give_gradients()
        return self._tensors

    def _give_gradients(self) -> None:
        for tensor, piece in zip(self._tensors, self._own):
            tensor.grad = None if piece.parameter.grad is None else piece.gradient

    def grad_norm(self) -> Array:
        """The total norm of all gradients of all ranks, as `optim.grad_norm`: the same on all ranks, bit for bit."""
        norm = grad_norm(self.pieces)
        xp = array_module(norm)
        square = xp.square(norm.astype("float64")).reshape(1)
        self._ranks.sum(square)
        return xp.sqrt(square).astype(self._parameters[0].dtype).reshape(())

    def step(self, factor: Array | None = None, decision: Decision | None = None) -> None:
        """Update the pieces of this rank, then join those of all ranks. factor, decision: as of `Optimizer.step`.

        Raises WrongState if a parameter no longer has the array that the buckets are made of.
        """
        if any(parameter.data is not array for parameter, array in zip(self._parameters, self._arrays)):
            raise WrongState(
                "Sharded: a parameter was given another array after the optimiser was made, so the pieces are no "
                "longer those of the model: change it in place, by overwrite() or load_state_dict()"
            )
        self._give_gradients()
        self._part.step(factor, decision)
        self._buckets.join()
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.mark_changed()        # so that its 16-bit shadow is cast again

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        self._whole.zero_grad()
        self._part.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The state of all parameters, as that of the optimiser in one process: on rank 0. {} on the other ranks.

        All ranks have to call it. Moments are gathered one parameter after the other, so that the other ranks need
        little memory for them.
        """
        self._part._take_back()
        own = [(i, slot) for i, slot in zip(self._numbers, self._part._slots) if slot.steps]
        steps = {i: n for of_rank in self._ranks.gather([[i, slot.steps] for i, slot in own]) for i, n in of_rank}
        state: dict[str, Any] = {}
        for i in sorted(steps):
            state[f"step.{i}"] = steps[i]
            for m, name in enumerate(self._whole.moment_names):
                pieces = [asnumpy(slot.moments[m]) for number, slot in own if number == i]
                rows = self._ranks.gather_rows(np.concatenate([np.empty(0, self._parameters[i].dtype), *pieces]))
                if self._ranks.rank == 0:
                    state[f"{name}.{i}"] = rows.reshape(self._parameters[i].shape)
        return state if self._ranks.rank == 0 else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of all parameters, which was saved by any number of ranks, or by one process.

        All ranks have to call it, with the same state. Raises ScratchvitError, before anything is changed, if these
        differ, or if it does not fit.
        """
        steps = {name: int(value) for name, value in state.items() if name.startswith("step.")}
        if any(theirs != steps for theirs in self._ranks.gather(steps)):
            raise ScratchvitError(
                "the ranks were given different states of the optimiser: give all of them that of rank 0, as from a "
                "checkpoint"
            )
        self._whole.check_state(state)
        part: dict[str, Any] = {}
        for j, (i, piece) in enumerate(zip(self._numbers, self._own)):
            if f"step.{i}" in state:
                part[f"step.{j}"] = state[f"step.{i}"]
                for name in self._whole.moment_names:
                    part[f"{name}.{j}"] = np.asarray(state[f"{name}.{i}"]).reshape(-1)[piece.start : piece.stop]
        self._part.load_state_dict(part)
