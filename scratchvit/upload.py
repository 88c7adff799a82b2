"""Taking the images of batches to a GPU beside the work that it does.

    plain       convert(asarray(images))
    problem     a copy in the stream of the computation begins when all earlier work is done, and the GPU computes
                nothing meanwhile. From ordinary memory it is first written to pinned memory, allocated for each copy
    idea        a stream for copies, and buffers that are made once: two in pinned memory and two on the device, used
                in turn. While the GPU computes a step, the batch of the next one is written and copied

Three things have to wait. Writing to a pinned buffer waits for its last copy (`copied`): on the host, mostly for a copy
of two steps ago. The copy waits until the device's buffer has been read (`read`), and reading it waits for the copy
(`copied`): both on the device, the host goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np


class Upload:
    """Takes images to the current GPU. There is one for each GPU, which all loaders share; `backend` makes it."""

    def __init__(self, cupy: Any):
        self._cupy = cupy
        self._lock = threading.Lock()
        self._buffers: list[_Buffer] = []       # the next one first

    def __call__(self, images: np.ndarray, convert: Callable[[Any], Any]) -> Any:
        """convert(images) on the GPU, without waiting for it.

        convert is called with an array of the images' shape and dtype, which is overwritten later: it must return a new
        array, not a view.
        """
        with self._lock:
            if not self._buffers:
                stream = self._cupy.cuda.Stream(non_blocking=True)
                self._buffers = [_Buffer(self._cupy, stream) for _ in range(2)]
            buffer = self._buffers.pop(0)
            self._buffers.append(buffer)
            return buffer.send(images, convert)


class _Buffer:
    """A buffer on the host and one on the device, as large as the largest batch so far."""

    def __init__(self, cupy: Any, stream: Any):
        self.cupy, self.stream = cupy, stream
        self.copied = cupy.cuda.Event(block=True, disable_timing=True)
        self.read = cupy.cuda.Event(disable_timing=True)
        self.on_host = np.empty(0, np.uint8)
        self.on_device: Any = None

    def send(self, images: np.ndarray, convert: Callable[[Any], Any]) -> Any:
        """convert(images) on the device."""
        computing = self.cupy.cuda.get_current_stream()
        self.copied.synchronize()
        if images.nbytes > self.on_host.nbytes:
            self.on_host = np.frombuffer(self.cupy.cuda.alloc_pinned_memory(images.nbytes), np.uint8, images.nbytes)
            self.on_device = self.cupy.empty(images.nbytes, np.uint8)
            self.read.record(computing)         # earlier work may still use the memory of which it was made
        host = self.on_host[: images.nbytes].view(images.dtype).reshape(images.shape)
        there = self.on_device[: images.nbytes].view(images.dtype).reshape(images.shape)
        np.copyto(host, images)
        self.stream.wait_event(self.read)
        there.data.copy_from_host_async(host.ctypes.data, host.nbytes, self.stream)
        self.copied.record(self.stream)
        computing.wait_event(self.copied)
        converted = convert(there)
        self.read.record(computing)
        return converted
