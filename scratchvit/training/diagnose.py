"""Where do numbers stop being finite? Asked when a loss or a gradient already did."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from scratchvit.backend import Array, array_module
from scratchvit.nn import Module
from scratchvit.recording import no_grad
from scratchvit.tensor import Tensor


def is_finite(array: Array) -> bool:
    """Whether no entry is infinite or NaN. On the GPU this waits for the device."""
    return bool(array_module(array).isfinite(array).all())


def first_non_finite(model: Module, images: Array, inputs: Mapping[str, Any] = MappingProxyType({})) -> str:
    """The first place, on the way through the model, where an entry is infinite or NaN, in words.

    The images, or a parameter, if they are so already; otherwise the batch is run once more, in the model's present
    mode. inputs: what the model is called with beside the images.
    """
    if not is_finite(images):
        return "the images of the batch are not finite"
    for name, parameter in model.named_parameters():
        if not is_finite(parameter.data):
            return f"the parameter {name} is already not finite"
    with no_grad(), _watched(model) as places:
        model(Tensor(images), **inputs)
    return places[0] if places else "every layer's output is finite, only the loss is not"


def first_non_finite_gradient(model: Module) -> str:
    """The parameter nearest to the loss, so the first on the way back, whose gradient is not finite, in words."""
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not is_finite(parameter.grad):
            return f"on the way back, the first gradient that is not finite is that of {name}"
    return "every entry of it is, but all together are longer than float32 can tell"


@contextlib.contextmanager
def _watched(model: Module) -> Iterator[list[str]]:
    """Inside, each call of a layer that takes or gives a value that is not finite adds its place to the list."""
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
    return all(is_finite(v.data) for v in values if isinstance(v, Tensor) and v.dtype.kind == "f")
