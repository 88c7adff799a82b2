"""Module, the base class of layers and models: a tree of modules with parameters. Names are paths, as in PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from scratchvit.backend import Array
from scratchvit.errors import ScratchvitError, WrongType
from scratchvit.nn import init
from scratchvit.precision import Half
from scratchvit.random import Generator
from scratchvit.recording import no_grad
from scratchvit.shadow import Shadows
from scratchvit.tensor import Tensor


class Parameter(Tensor):
    """A learned Tensor of a module, floating-point and of any shape. Raises TypeError for integers.

    Inside `autocast` it stays in float32, and products take its `shadow`.
    """

    __slots__ = ("shadows",)

    def __init__(self, data: Any, requires_grad: bool = True):
        super().__init__(data, requires_grad)
        self.shadows: Shadows | None = None     # made when first used; see shadow.py

    def shadow(self, half: Half) -> Array:
        """The values as 16-bit numbers, an array that is overwritten when they change. Do not write to it."""
        if self.shadows is None:
            self.shadows = Shadows()
        return self.shadows.get(self, half)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Any = super().__deepcopy__(memo)
        copied.shadows = None
        return copied

    def assign(self, values: Any) -> None:
        """Overwrite the values in place, with an array or one number. Does nothing inside `init.without_weights()`."""
        if init.is_drawing():
            self.overwrite(values)


class Buffer(Tensor):
    """A Tensor that is part of the state but not learned, such as running statistics and counters."""

    __slots__ = ()


class Module:
    """Base class of layers and models. A subclass assigns parameters and modules in `__init__` and defines `forward`.

    Attributes that are a Parameter, a Buffer or a Module are registered in the order of assignment.
    """

    training = True
    optional_state: tuple[str, ...] = ()    # names that may be missing in a state dictionary

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute.

        Raises TypeError if a Parameter, Buffer or Module would be replaced by another type (except None): it would
        silently disappear from `parameters()` and the saved state.
        """
        before = vars(self).get(name)
        if isinstance(before, Parameter | Buffer | Module) and value is not None:
            kind = next(kind for kind in (Parameter, Buffer, Module) if isinstance(before, kind))
            if not isinstance(value, kind):
                raise WrongType(
                    f"{type(self).__name__}.{name} is a {kind.__name__} and cannot become a {type(value).__name__}: "
                    f"it would no longer belong to the model; assign a {kind.__name__}, or change it in place"
                )
        super().__setattr__(name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The computation of the module, defined by every subclass. Raises TypeError if it is not."""
        raise WrongType(f"{type(self).__name__} has no forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    # --- modules, parameters and buffers ---

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Iterate over (name, module) of the direct children."""
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Iterate over (path, module) of this module and all below it."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """Iterate over this module and all below it."""
        return (module for _, module in self.named_modules())

    def _named_tensors(self, *kinds: type[Tensor]) -> Iterator[tuple[str, Any]]:
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, kinds):
                    yield f"{path}.{name}" if path else name, value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Iterate over (path, parameter). A shared parameter is returned once, with its first path."""
        seen = set()
        for path, parameter in self._named_tensors(Parameter):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield path, parameter

    def parameters(self) -> Iterator[Parameter]:
        """Iterate over all parameters, each once."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """Iterate over (path, buffer)."""
        return self._named_tensors(Buffer)

    def num_parameters(self) -> int:
        """The total number of entries of all parameters."""
        return sum(parameter.size for parameter in self.parameters())

    # --- modes ---

    def train(self, mode: bool = True) -> Module:
        """Set training mode, which dropout and batch norm depend on. mode=False: evaluation mode."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Set evaluation mode: no dropout, and batch norm uses its running statistics."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for parameter in self.parameters():
            parameter.grad = None

    def set_generator(self, generator: Generator) -> None:
        """Use this generator in all layers of this module that draw random numbers."""
        for module in self.modules():
            if hasattr(module, "generator"):
                module.generator = generator

    # --- state ---

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers on the host: {path: NumPy array}."""
        return {path: tensor.numpy().copy() for path, tensor in self._named_tensors(Parameter, Buffer)}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> tuple[list[str], list[str]]:
        """Load the values of a state dictionary and return the (missing, unexpected) names. Dtypes do not change.

        Raises ScratchvitError, before anything is changed, if a shape differs, or, if strict, if a name is missing or
        unexpected. Names in the `optional_state` of a module may be missing.
        """
        own: dict[str, Any] = dict(self._named_tensors(Parameter, Buffer))
        optional = {
            f"{path}.{name}" if path else name
            for path, module in self.named_modules()
            for name in module.optional_state
        }
        missing = [name for name in own if name not in state and name not in optional]
        unexpected = [name for name in state if name not in own and name not in optional]
        misshaped = [
            f"{name} (given {tuple(np.shape(state[name]))}, the model has {tensor.shape})"
            for name, tensor in own.items()
            if name in state and tuple(np.shape(state[name])) != tensor.shape
        ]
        complaints = [("mis-shaped", misshaped)]
        if strict:
            complaints += [("missing", missing), ("unexpected", unexpected)]
        if any(names for _, names in complaints):
            text = "; ".join(f"{len(names)} {what}: {', '.join(names)}" for what, names in complaints if names)
            raise ScratchvitError(f"this state does not fit {type(self).__name__}: {text}")
        for name, tensor in own.items():
            if name in state:
                tensor.overwrite(state[name])
        return missing, unexpected

    # --- repr ---

    def extra_repr(self) -> str:
        """Sizes and settings of this module, for `repr`."""
        return ""

    def __repr__(self) -> str:
        count = self.num_parameters()
        head = f"{type(self).__name__}({self.extra_repr()})" + (f"  {count:,} parameters" if count else "")
        lines = [head]
        for name, text in _merge_alike([(name, repr(child)) for name, child in self.named_children()]):
            first, *rest = text.split("\n")
            lines += [f"  {name}: {first}", *(f"  {line}" for line in rest)]
        return "\n".join(lines)


def _merge_alike(children: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Merge equal consecutive children into one, named "0…11", for `repr`."""
    merged: list[tuple[list[str], str]] = []
    for name, text in children:
        if merged and merged[-1][1] == text:
            merged[-1][0].append(name)
        else:
            merged.append(([name], text))
    return [(names[0] if len(names) == 1 else f"{names[0]}…{names[-1]}", text) for names, text in merged]


class ModuleList(Module):
    """A list of modules, named 0, 1, 2, …"""

    def __init__(self, modules: Any = ()):
        for i, module in enumerate(modules):
            setattr(self, str(i), module)

    def __iter__(self) -> Iterator[Any]:
        return (module for _, module in self.named_children())

    def __len__(self) -> int:
        return len(list(self.named_children()))

    def __getitem__(self, index: int) -> Any:
        return list(self)[index]


class Sequential(ModuleList):
    """Modules that are applied one after the other."""

    def __init__(self, *modules: Module):
        super().__init__(modules)

    def forward(self, x: Tensor | Array) -> Tensor:
        for module in self:
            x = module(x)
        return x


@contextlib.contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Context manager in which a model is in evaluation mode and no graph is recorded; then its mode is restored."""
    was_training = model.training
    model.eval()
    try:
        with no_grad():
            yield
    finally:
        model.train(was_training)
