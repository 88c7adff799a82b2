"""What the ranks of a run agree on: that all go on or all end, and that their models are equal.

A rank that raises an error would leave the others waiting in their next collective. So what may fail on one rank only,
such as reading a picture or writing a file, is tried by `together`: it ends with a collective, after which all ranks
have the error.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from scratchvit import optim
from scratchvit.backend import Array, array_module, asnumpy
from scratchvit.dtypes import is_float
from scratchvit.errors import ScratchvitError
from scratchvit.kernels import updates
from scratchvit.nn import Module
from scratchvit.parallel.communicator import Communicator

T = TypeVar("T")


def together(ranks: Communicator, act: Callable[[], T]) -> T:
    """Call act() on every rank. If it raises a ScratchvitError on one of them, all raise one, which names this rank."""
    failure, result = None, None
    try:
        result = act()
    except ScratchvitError as error:
        failure = error
    raise_together(ranks, failure)
    return cast(T, result)


def on_rank_0(ranks: Communicator, act: Callable[[], Any]) -> None:
    """Call act(), which writes files, on rank 0 only. A ScratchvitError of it is raised on all ranks."""
    together(ranks, act if ranks.rank == 0 else lambda: None)


def raise_together(ranks: Communicator, failure: ScratchvitError | None) -> None:
    """Raise a ScratchvitError on all ranks if one of them has one. failure: that of this rank, or None."""
    if error := first_error(ranks.gather(report_of(failure, ranks)), failure, ranks.rank):
        raise error


def report_of(failure: ScratchvitError | None, ranks: Communicator) -> list[str] | None:
    """What the other ranks have to know of an error, or of none, for `first_error`."""
    return None if failure is None else [str(failure), ranks.host]


def first_error(
    reports: Sequence[list[str] | None], own: ScratchvitError | None, rank: int
) -> ScratchvitError | None:
    """The error that ends the run, if any rank has one: that of the first rank, which it names unless it is rank 0.

    It has the same text on all ranks, so that it is printed once. own: that of this rank, or None.
    """
    for number, report in enumerate(reports):
        if report is not None:
            if number == rank == 0:
                return own
            error = ScratchvitError(report[0] if number == 0 else f"rank {number} on {report[1]}: {report[0]}")
            error.__cause__ = own
            return error
    return None


def check_alike(ranks: Communicator, what: Mapping[str, Any]) -> None:
    """Raise ScratchvitError on all ranks unless all were given the same. what: {name: what JSON can say}."""
    first, *others = ranks.gather([ranks.host, what])
    for rank, (host, theirs) in enumerate(others, 1):
        for name, thing in theirs.items():
            if thing != first[1][name]:
                raise ScratchvitError(
                    f"rank {rank} on {host} has other {name} than rank 0 on {first[0]}: they must be the same on all "
                    "machines"
                )


# --- equal models -----------------------------------------------------------------------------------------------------


def _state_of(model: Module, ema: optim.EMA | None) -> Iterator[tuple[str, Array]]:
    """(name, array) of all that is to be equal."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield name, tensor.data
    for name, average in (ema.averages if ema else {}).items():
        yield f"the average of {name}", average


def start_equal(model: Module, ema: optim.EMA | None, ranks: Communicator) -> None:
    """Give all ranks the parameters, buffers and averages of rank 0."""
    if ranks.size == 1:
        return
    for _, array in _state_of(model, ema):
        sent = array if array.flags.c_contiguous else array_module(array).asarray(array, order="C")
        ranks.broadcast(sent)
        if sent is not array:
            array[...] = sent
    for _, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.mark_changed()


def check_equal(model: Module, ema: optim.EMA | None, ranks: Communicator) -> None:
    """Raise ScratchvitError unless parameters, buffers and averages of all ranks are equal, bit for bit."""
    if ranks.size == 1:
        return
    mine = {name: _checksum(array) for name, array in _state_of(model, ema)}
    first, *others = ranks.gather([ranks.host, mine])
    for rank, (host, theirs) in enumerate(others, 1):
        name = next((name for name in first[1] if theirs.get(name) != first[1][name]), None)
        if name is not None:
            raise ScratchvitError(
                f"the ranks no longer have the same model: {name} of rank {rank} on {host} is not that of rank 0 on "
                f"{first[0]}; nothing was saved. Resume the run; if that happens again, one of the machines computes "
                "wrong, or has other versions of the libraries"
            )


def average_statistics(model: Module, ema: optim.EMA | None, ranks: Communicator) -> None:
    """Replace the floating-point buffers in which ranks differ by their means over ranks: running statistics of batch
    norms, which each rank has of its own images."""
    if ranks.size == 1:
        return
    buffers = {name: tensor for name, tensor in model.named_buffers() if is_float(tensor.dtype)}
    mine = {name: _checksum(buffer.data) for name, buffer in buffers.items()}
    everyone = ranks.gather(mine)
    for name, buffer in buffers.items():
        if len({of_rank[name] for of_rank in everyone}) > 1:
            ranks.sum(buffer.data)
            buffer.data /= ranks.size
            buffer.mark_changed()
            if ema:
                updates.copy([(ema.averages[name], buffer.data)])


def _checksum(array: Array) -> int:
    return zlib.crc32(np.ascontiguousarray(asnumpy(array)).reshape(-1).view(np.uint8).data)
