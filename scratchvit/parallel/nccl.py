"""Collectives of arrays on GPUs, by NCCL through CuPy. What stays on the host is the host's communicator's.

NCCL computes on a stream of its own, beside the operations of the model. Before a collective, this stream waits for the
one in use, which has written the array; whoever waits for a request lets the stream in use wait for NCCL's. The host
waits for neither.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchvit.backend import Array, backend_of
from scratchvit.errors import DeviceFailed, WrongValue, missing
from scratchvit.parallel.communicator import Communicator, Request

_TYPES = {"int32": "NCCL_INT32", "int64": "NCCL_INT64", "float32": "NCCL_FLOAT32", "float64": "NCCL_FLOAT64"}


class _OnStream(Request):
    """A collective on NCCL's stream. It keeps the arrays, whose memory nothing else may get before it is done."""

    def __init__(self, event: Any, *arrays: Array) -> None:
        self._event, self._arrays = event, arrays

    def done(self) -> bool:
        return bool(self._event.done)

    def wait(self) -> None:
        import cupy

        cupy.cuda.get_current_stream().wait_event(self._event)


class NCCL(Communicator):
    """The communicator of ranks with a GPU each, the one that is in use when it is made.

    hosts: a communicator of the same ranks, for arrays of the host and everything else. Making it is a collective.
    Raises ScratchvitError if NCCL is not installed, and DeviceFailed if it does not start.
    """

    def __init__(self, hosts: Communicator) -> None:
        import cupy
        from cupy.cuda import nccl

        if not nccl.available:
            raise missing("several GPUs need NCCL, which CuPy does not find", f"nvidia-nccl-cu{_cuda_major(cupy)}")
        self.hosts, self.rank, self.size = hosts, hosts.rank, hosts.size
        self.local_rank, self.local_size, self.host = hosts.local_rank, hosts.local_size, hosts.host
        self._nccl = nccl
        identifier = hosts.gather(nccl.get_unique_id().hex() if self.rank == 0 else None)[0]
        try:
            self._communicator = nccl.NcclCommunicator(self.size, bytes.fromhex(identifier), self.rank)
        except nccl.NcclError as error:
            raise DeviceFailed(
                f"NCCL does not start on rank {self.rank} on {self.host} ({error}): NCCL_DEBUG=WARN makes it say why"
            ) from error
        self._stream = cupy.cuda.Stream(non_blocking=True)

    def start_sum(self, array: Array) -> Request:
        if not backend_of(array).has_cuda:
            return self.hosts.start_sum(array)
        return self._start("allReduce", array, array, array.size, self._type(array), self._nccl.NCCL_SUM)

    def start_sum_of_part(self, array: Array, part: Array) -> Request:
        if not backend_of(array).has_cuda:
            return self.hosts.start_sum_of_part(array, part)
        return self._start("reduceScatter", array, part, part.size, self._type(array), self._nccl.NCCL_SUM)

    def start_join(self, part: Array, array: Array) -> Request:
        if not backend_of(array).has_cuda:
            return self.hosts.start_join(part, array)
        return self._start("allGather", part, array, part.nbytes, self._nccl.NCCL_UINT8)

    def broadcast(self, array: Array) -> None:
        if not backend_of(array).has_cuda:
            return self.hosts.broadcast(array)
        self._start("broadcast", array, array, array.nbytes, self._nccl.NCCL_UINT8, 0).wait()

    def gather(self, thing: Any) -> list[Any]:
        return self.hosts.gather(thing)

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        return self.hosts.gather_rows(rows)

    def abort(self, status: int) -> None:
        self._communicator.abort()
        self.hosts.abort(status)

    def _start(self, name: str, source: Array, target: Array, *arguments: Any) -> Request:
        """Start a collective after what the stream in use has to do so far."""
        import cupy

        for array in (source, target):
            if not array.flags.c_contiguous:
                raise WrongValue(f"NCCL needs contiguous arrays: shape {array.shape} has strides {array.strides}")
        self._stream.wait_event(cupy.cuda.get_current_stream().record())
        getattr(self._communicator, name)(source.data.ptr, target.data.ptr, *arguments, self._stream.ptr)
        return _OnStream(self._stream.record(), source, target)

    def _type(self, array: Array) -> int:
        if array.dtype.name not in _TYPES:
            raise WrongValue(f"ranks add arrays of {', '.join(_TYPES)}, not of {array.dtype}")
        return getattr(self._nccl, _TYPES[array.dtype.name])


def _cuda_major(cupy: Any) -> int:
    """The version of CUDA that CuPy was built for, as in the names of packages."""
    return cupy.cuda.runtime.runtimeGetVersion() // 1000
