"""Worker processes that prepare batches. Each is a Python process that communicates through its stdin and stdout.

Design, and what follows for the user:

- Nothing is forked. A forked process with BLAS or CUDA threads can deadlock on their locks.
- The user's script is not run again in a worker, as `multiprocessing` does, so it needs no `if __name__ ==
  "__main__"`. But a worker can only import: a data set or transform that is defined in the script, in a notebook or
  in a function raises an error.
- A worker whose parent has ended, or was killed, reads the end of its stdin and ends too.
- Pictures in memory are stored once, shared by all workers (`memfd_create`, Linux; elsewhere each gets a copy).

Batches are returned through pipes, as uint8 if they are normalised at the end. Sending and receiving together then take
2 µs for a picture of 32 × 32 and 50 µs for one of 224 × 224. Pickles are exchanged only between a program and
its own child processes.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import pickle
import queue
import signal
import subprocess
import sys
import traceback
import weakref
from collections.abc import Iterable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from scratchvit.data.datasets import Pictures
from scratchvit.data.transforms import Transform
from scratchvit.errors import ScratchvitError

_Process = subprocess.Popen[bytes]
_ALIGNMENT = 64     # bytes: alignment of arrays in shared memory, as NumPy's own
_PROGRAM = "import sys; sys.path[:] = {path!r}; from scratchvit.data.workers import work; work({memory!r})"


class Workers:
    """A pool of `count` processes that compute batches; see `Loader`.

    Raises ScratchvitError if they cannot be started, or if the data set or the transform cannot be sent to them.
    """

    def __init__(self, count: int, dataset: Pictures, transform: Transform):
        self._processes: list[_Process] = []
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._stop = weakref.finalize(self, _kill, self._processes)     # called at program exit, if not before
        try:
            self._start(count, (dataset, transform))
        except BaseException:
            self.close()
            raise

    def make(self, indices: NDArray[np.intp], rng: Any) -> Any:
        """Compute transform(dataset.images(indices), rng) in an idle process. Can be called from several threads.

        Exceptions of the worker are raised here. Raises ScratchvitError if the process dies.
        """
        process = self._idle.get()
        try:
            return self._ask(process, (indices, rng))
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """Stop the processes, even in the middle of a batch."""
        self._stop()

    def _start(self, count: int, task: tuple[Pictures, Transform]) -> None:
        try:
            parts = _pickled(task)
        except Exception as error:      # PicklingError, AttributeError, TypeError, …
            raise _not_importable(error) from error
        memory = _lay_out(parts) if hasattr(os, "memfd_create") else None
        try:
            for _ in range(count):
                self._processes.append(_start_process(memory))
        finally:
            if memory is not None:
                os.close(memory)        # the workers have it
        for process in self._processes:     # in a second loop, so that the processes start in parallel
            try:
                self._ask(process, task if memory is None else _sizes(parts))
            except _CannotLoad as error:
                raise _not_importable(error) from None
            self._idle.put(process)

    def _ask(self, process: _Process, question: Any) -> Any:
        assert process.stdin and process.stdout
        try:
            _send(process.stdin, question)
            answer, error = _receive(process.stdout)
        except (EOFError, OSError) as broken:
            raise self._died(process) from broken
        if error is not None:
            raise error
        return answer

    def _died(self, process: _Process) -> ScratchvitError:
        status = process.wait()
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        place = f"{self._processes.index(process) + 1} of {len(self._processes)}"
        return ScratchvitError(
            f"worker process {place} (pid {process.pid}) of the loader {how}; if memory ran out, use fewer workers "
            "(--workers), as each holds a batch, or a smaller batch_size"
        )


class _CannotLoad(Exception):
    """A worker could not unpickle the data set or the transform."""


def _not_importable(error: Exception) -> ScratchvitError:
    return ScratchvitError(
        f"Loader: the data set or the transform cannot be sent to a worker process ({error}); define their classes "
        "and functions at the top level of an importable module, not in the script itself or in a function, or use "
        "workers=0"
    )


def _start_process(memory: int | None) -> _Process:
    """Start a Python process that runs `work(memory)`."""
    program = _PROGRAM.format(path=sys.path, memory=memory)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    try:
        return subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | threads,
            pass_fds=() if memory is None else (memory,),
            # Ctrl-C at the terminal must reach the parent only: give the worker its own process group.
            process_group=None if os.name == "nt" else 0,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
    except OSError as error:
        raise ScratchvitError(
            f"Loader: a worker process could not be started ({error.strerror}); use fewer workers, or workers=0"
        ) from error


def _kill(processes: list[_Process]) -> None:
    for process in processes:
        process.kill()      # a worker has no state to save
    for process in processes:
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream
            with contextlib.suppress(OSError):      # unsent data in the buffer
                stream.close()


# In a worker


def work(memory: int | None) -> None:
    """Main loop of a worker: receive data set and transform, then compute batches until the parent has ended."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)       # the parent decides when to stop
    questions = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)       # output that a transform prints must not mix with the answers
    try:
        try:
            task = _receive(questions)
            dataset, transform = task if memory is None else _look_up(memory, task)
        except (AttributeError, ImportError) as error:
            return _send(answers, (None, _CannotLoad(str(error))))
        _send(answers, (None, None))
        while True:
            indices, rng = _receive(questions)
            try:
                answer: tuple[Any, Any] = transform(dataset.images(indices), rng), None
            except Exception as error:
                answer = None, _portable(error)
            _send(answers, answer)
    except (EOFError, OSError) as error:
        # End silently if the parent has closed the pipe, which is EINVAL on Windows.
        if isinstance(error, EOFError | BrokenPipeError) or error.errno == errno.EINVAL:
            os._exit(0)
        raise


def _portable(error: Exception) -> Exception:
    """The error in a form that can be pickled, with the worker's traceback as a note."""
    error.add_note(f"in a worker process of the loader:\n{''.join(traceback.format_exception(error))}")
    try:
        _unpickled(pickle.dumps(error))
    except Exception:       # a class that cannot be imported, or whose constructor takes other arguments
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


# The messages: pickles with the arrays out of band (PEP 574), which avoids a copy

_Part = bytes | memoryview


def _pickled(thing: Any) -> list[_Part]:
    """The pickle, followed by the buffer of each array in it."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(thing, protocol=5, buffer_callback=buffers.append)
    return [pickled, *(buffer.raw() for buffer in buffers)]


def _unpickled(pickled: _Part, buffers: Iterable[Any] = ()) -> Any:
    return pickle.loads(pickled, buffers=buffers)  # noqa: S301  from this program or its own child, never from a file


def _sizes(parts: list[_Part]) -> NDArray[np.int64]:
    return np.array([len(part) for part in parts], np.int64)


def _send(stream: IO[bytes], thing: Any) -> None:
    parts = _pickled(thing)
    sizes = _sizes(parts)
    for part in (len(sizes).to_bytes(8, "little"), sizes.tobytes(), *parts):
        stream.write(part)
    stream.flush()


def _receive(stream: Any) -> Any:
    """Receive one message. Raises EOFError at the end of the stream."""

    def read(size: int) -> NDArray[np.uint8]:
        memory = np.empty(size, np.uint8)
        if stream.readinto(memory) < size:
            raise EOFError
        return memory

    sizes = read(8 * int.from_bytes(read(8).tobytes(), "little")).view(np.int64)
    pickled, *buffers = [read(size) for size in sizes]
    return _unpickled(pickled.tobytes(), buffers)


def _lay_out(parts: list[_Part]) -> int:
    """Write the parts into shared memory and return its file descriptor."""
    memory = os.memfd_create("scratchvit-pictures")
    try:
        with open(memory, "wb", closefd=False) as file:
            for part in parts:
                file.write(part)
                file.write(bytes(-len(part) % _ALIGNMENT))
    except OSError as error:
        os.close(memory)
        raise ScratchvitError(
            f"Loader: not enough shared memory for the pictures ({error.strerror}); use workers=0"
        ) from error
    return memory


def _look_up(memory: int, sizes: NDArray[np.int64]) -> Any:
    """Unpickle the parts of the given sizes from shared memory, without a copy; writes stay private (copy-on-write)."""
    shared = memoryview(mmap.mmap(memory, 0, access=mmap.ACCESS_COPY))
    starts = np.cumsum(sizes + -sizes % _ALIGNMENT) - (sizes + -sizes % _ALIGNMENT)
    pickled, *buffers = [shared[start : start + size] for start, size in zip(starts.tolist(), sizes.tolist())]
    return _unpickled(pickled, buffers)
