"""The peak memory of a model on a GPU, measured by running it.

    model = create_model("vit_base_patch16_224")    # after use("gpu")
    found = measured_memory(model, batch_size=32)
    found.training, found.inference                 # bytes of all arrays at the peak, as in `memory.PeakMemory`
    found.held                                      # bytes that CuPy's pool took from the device for that

`memory.py` predicts what the kernels of the CPU need. Those of a GPU have other temporary arrays: they compute with
whole arrays what the CPU computes in blocks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchvit import backend
from scratchvit.backend import CPU, asarray
from scratchvit.costs.counting import configured_shape
from scratchvit.costs.memory import MOMENTS, bytes_of_shadows
from scratchvit.costs.step import training_loss
from scratchvit.errors import ScratchvitError
from scratchvit.gpu import explain
from scratchvit.nn import Module, evaluating
from scratchvit.optim import AdamW
from scratchvit.precision import computing_in
from scratchvit.recording import no_grad
from scratchvit.tensor import Tensor


@dataclass(frozen=True)
class MeasuredMemory:
    """Peak memory for a batch, in bytes. `training` includes weights, gradients and moments."""

    weights: int            # parameters and buffers
    moments: int            # AdamW's moments
    training: int           # peak of a whole step
    inference: int          # peak of a forward pass without a graph
    shadows: int            # 16-bit copies of weights, part of training and inference
    held: int               # what CuPy's pool has taken from the device; it keeps freed memory for later arrays
    batch_size: int

    @property
    def activations(self) -> int:
        """Memory at the peak of training without weights and moments: images, activations, gradients so far."""
        return self.training - self.weights - self.moments - self.shadows


def measured_memory(
    model: Module, image_shape: Sequence[int] | None = None, batch_size: int = 1, precision: str = "float32"
) -> MeasuredMemory:
    """The peak memory of training and inference with a batch size, on the GPU in use, where the model's weights are.

    It makes two forward passes, and two training steps with AdamW and a learning rate of 0, on random images, and
    measures the second ones: what is made once, such as the workspace of cuBLAS, is only part of `held`. The loss of a
    detector is without matching. image_shape: as for `cost`; precision: that of a run. Afterwards the model is in
    training mode and has gradients. Raises ScratchvitError on the CPU, and if the memory of the GPU is not enough.
    """
    device = backend.current()
    if device is CPU or not hasattr(device.xp, "cuda"):
        raise ScratchvitError(f'memory is measured on a GPU, not on {device.name!r}: call use("gpu") first')
    shape = configured_shape(model) if image_shape is None else image_shape
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    images = np.random.default_rng(0).standard_normal((batch_size, *shape)).astype(parameters[0].dtype)
    optimizer = AdamW(parameters, lr=0.0)

    def step() -> None:
        optimizer.zero_grad()
        training_loss(model, asarray(images)).backward()
        optimizer.step()

    weights = sum(x.data.nbytes for x in (*model.parameters(), *(buffer for _, buffer in model.named_buffers())))
    pool = device.xp.get_default_memory_pool()
    pool.free_all_blocks()
    try:
        with computing_in(precision):
            with evaluating(model), no_grad():
                model(Tensor(asarray(images)))
                shadows = bytes_of_shadows(model)
                with peak_of(device.xp, weights + shadows) as inference:
                    model(Tensor(asarray(images)))
            model.train()
            step()
            optimizer.zero_grad()
            moments = MOMENTS * sum(parameter.data.nbytes for parameter in parameters)
            shadows = bytes_of_shadows(model)
            with peak_of(device.xp, weights + moments + shadows) as training:
                step()
    except Exception as error:
        sentence = explain(error, batch_size)
        if sentence is None:
            raise
        raise ScratchvitError(sentence) from error
    return MeasuredMemory(weights, moments, training.most, inference.most, shadows, pool.total_bytes(), batch_size)


@dataclass
class Peak:
    """Bytes of arrays: now, and the most there have been."""

    now: int
    most: int


@contextlib.contextmanager
def peak_of(cupy: Any, now: int) -> Iterator[Peak]:
    """Count the bytes that CuPy's pool gives out and takes back in this block. now: those of arrays before it."""
    peak = Peak(now, now)

    class Counting(cupy.cuda.MemoryHook):
        name = "peak"

        def malloc_postprocess(self, mem_size: int, **about: Any) -> None:
            peak.now += mem_size
            peak.most = max(peak.most, peak.now)

        def free_postprocess(self, mem_size: int, **about: Any) -> None:
            peak.now -= mem_size

    with Counting():
        yield peak
