"""Finding the first layer, parameter or gradient with values that are infinite or NaN."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from scratchvit.backend import Array, array_module
from scratchvit.dtypes import is_float
from scratchvit.nn import Module
from scratchvit.parallel.communicator import ALONE, Communicator
from scratchvit.recording import no_grad
from scratchvit.tensor import Tensor


def is_finite(array: Array) -> bool:
    """Whether no entry is infinite or NaN. On the GPU this waits for the device."""
    return bool(array_module(array).isfinite(array).all())


def first_non_finite(
    model: Module, images: Array, inputs: Mapping[str, Any] = MappingProxyType({}), ranks: Communicator = ALONE
) -> str:
    """The first place in the forward pass with an infinite or NaN value, as a sentence.

    This can be the images or a parameter; otherwise the batch is run again, in the current mode of the model. inputs:
    further arguments of the model. ranks: they have the same parameters, and each its images; all call this.
    """
    of_images = _of_ranks(None if is_finite(images) else "the images of the batch are not finite", ranks)
    if of_images:
        return of_images
    for name, parameter in model.named_parameters():
        if not is_finite(parameter.data):
            return f"the parameter {name} is already not finite"
    with no_grad(), _watched(model) as places:
        model(Tensor(images), **inputs)
    return _of_ranks(places[0] if places else None, ranks) or (
        "the outputs of all layers are finite, only the loss is not, as with a label out of range on a GPU"
    )


def first_non_finite_gradient(model: Module, ranks: Communicator = ALONE) -> str:
    """The first gradient in the backward pass that is not finite, as a sentence. ranks: all call this."""
    wrong = (
        name for name, parameter in reversed(list(model.named_parameters()))
        if parameter.grad is not None and not is_finite(parameter.grad)
    )
    name = next(wrong, None)
    text = None if name is None else f"the first gradient in the backward pass that is not finite is that of {name}"
    return _of_ranks(text, ranks) or "all entries are finite, but their norm is too large for float32"


def _of_ranks(text: str | None, ranks: Communicator) -> str | None:
    """The text of the first rank that has one, the same on all ranks."""
    texts = ranks.gather(None if text is None else [text, ranks.host])
    rank = next((rank for rank, found in enumerate(texts) if found), None)
    if rank is None or ranks.size == 1:
        return text
    return f"on rank {rank} ({texts[rank][1]}), {texts[rank][0]}"


@contextlib.contextmanager
def _watched(model: Module) -> Iterator[list[str]]:
    """Context manager; the list gets a sentence for the first layer whose input or output is not finite."""
    places: list[str] = []
    modules = list(model.named_modules())
    for name, module in modules:
        module.forward = _watch(module, name or "the model", places)  # type: ignore[method-assign]
    try:
        yield places
    finally:
        for _, module in modules:
            del module.forward


def _watch(module: Module, name: str, places: list[str]) -> Any:
    forward = module.forward
    what = f"{name} ({type(module).__name__})"

    def watched(*args: Any, **kwargs: Any) -> Any:
        if not places and not _all_finite(args):
            places.append(f"the first layer whose input is not finite is {what}")
        result = forward(*args, **kwargs)
        if not places and not _all_finite((result,)):
            places.append(f"the first layer whose output is not finite is {what}")
        return result

    return watched


def _all_finite(values: tuple[Any, ...]) -> bool:
    return all(is_finite(v.data) for v in values if isinstance(v, Tensor) and is_float(v.dtype))
