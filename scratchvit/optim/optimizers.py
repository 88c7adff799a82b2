"""The optimisers SGD, Adam and AdamW, by PyTorch's formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from scratchvit.backend import Array, array_module, asarray, asnumpy
from scratchvit.errors import ScratchvitError
from scratchvit.kernels import updates
from scratchvit.optim.decision import Decision
from scratchvit.optim.gradients import contiguous
from scratchvit.replay import every_time, is_capturing
from scratchvit.shadow import Shadow
from scratchvit.tensor import Tensor


@dataclass(eq=False)
class _Slot:
    """The state of an optimiser for one parameter."""

    parameter: Tensor
    weight_decay: float
    lr_scale: float
    steps: int = 0
    moments: list[Array] = field(default_factory=list)      # flat, created with the first gradient

    def row(self, moments: int) -> updates.Row:
        """Parameter, gradient and moments, as many as are asked for."""
        p = self.parameter
        assert p.grad is not None
        p.data, p.grad = contiguous(p.data), contiguous(p.grad)
        if not self.moments:
            self.moments = [array_module(p.data).zeros(p.size, dtype=p.dtype) for _ in range(moments)]
        return p.data, p.grad, *self.moments

    def shadow(self) -> Shadow | None:
        """The shadow of the parameter that the step writes too (shadow.py), or None."""
        shadows = getattr(self.parameter, "shadows", None)
        return shadows and shadows.written_by_steps()


_NEEDED = "an optimiser needs parameters: model.parameters() or param_groups(model, …)"


def _listed(params: Any) -> list[Any]:
    return list(params) if hasattr(params, "__iter__") else [params]


class Optimizer:
    """Base class of optimisers. A subclass names its moments and its `_update`, the formula of a step in
    kernels/updates.py, and implements `_settings`, the formula's numbers.

    params: Parameters, or groups `{"params": Parameters, "weight_decay": number, "lr_scale": number}` as made by
    `param_groups`; the learning rate of a group is lr · lr_scale (default 1). `lr` can be changed between steps.
    Parameters whose gradient is None are not changed, as in PyTorch.
    Raises ScratchvitError for an empty list, a parameter that occurs twice, and settings out of range.
    """

    moment_names: ClassVar[tuple[str, ...]] = ()
    _update: ClassVar[Callable[..., None]]

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float):
        self.lr = lr
        groups = _listed(params)
        if not groups:
            raise ScratchvitError(_NEEDED)
        if not isinstance(groups[0], Mapping):
            groups = [{"params": groups}]
        self._slots: list[_Slot] = []
        for group in groups:
            if not {"params"} <= group.keys() <= {"params", "weight_decay", "lr_scale"}:
                raise ScratchvitError(
                    'a parameter group has "params", and may have "weight_decay" and "lr_scale", '
                    f"not {', '.join(sorted(group.keys() - {'params', 'weight_decay', 'lr_scale'})) or 'these alone'}"
                )
            decay, lr_scale = group.get("weight_decay", weight_decay), group.get("lr_scale", 1.0)
            if lr < 0 or decay < 0 or lr_scale < 0:
                raise ScratchvitError(f"lr {lr}, weight_decay {decay} and lr_scale {lr_scale} must not be negative")
            for parameter in _listed(group["params"]):
                if not isinstance(parameter, Tensor):
                    raise ScratchvitError(f"{_NEEDED}, not {type(parameter).__name__}")
                self._slots.append(_Slot(parameter, decay, lr_scale))
        self._decision: Decision | None = None      # about the steps that these slots have counted
        self._decided: list[_Slot] = []
        if len({id(slot.parameter) for slot in self._slots}) < len(self._slots):
            raise ScratchvitError("a parameter occurs twice in the optimiser's groups: put it in one group only")

    def __repr__(self) -> str:
        settings = {name: value for name, value in vars(self).items() if name[0] != "_" and name != "moment_names"}
        decays = sorted({slot.weight_decay for slot in self._slots})
        settings["weight_decay"] = decays[0] if len(decays) == 1 else decays
        numbers = sum(slot.parameter.size for slot in self._slots)
        text = ", ".join(f"{name}={value}" for name, value in settings.items())
        return f"{type(self).__name__}({text})  {len(self._slots)} parameters, {numbers:,} numbers"

    def _settings(self, steps: int, lr: float, weight_decay: float) -> tuple[float, ...]:
        """The numbers of `_update` for parameters whose number of steps, including this one, is `steps`."""
        raise NotImplementedError

    def step(self, factor: Array | None = None, decision: Decision | None = None) -> None:
        """Update every parameter that has a gradient, in place.

        factor: what all gradients are multiplied by, as by `clip_factor`: a 0-d array on their device. The gradients
        themselves do not change. decision: about this step, which changes nothing, not even the number of steps, if it
        is to be skipped. `unmade` of this decision belongs to this optimiser.
        """
        slots = [slot for slot in self._slots if slot.parameter.grad is not None]
        if not slots:
            return
        if not is_capturing():
            self._decided_by(decision, slots, is_judged=True)
        alike: dict[Any, int] = {}          # {what the numbers of a slot depend on: their index}
        groups = [
            alike.setdefault((slot.steps, slot.lr_scale, slot.weight_decay, slot.parameter.dtype), len(alike))
            for slot in slots
        ]
        first = [slots[groups.index(group)] for group in range(len(alike))]
        shadows = [slot.shadow() for slot in slots]

        def count() -> None:
            self._decided_by(decision, slots, is_judged=False)      # before a replay, if it was not done above
            for slot, shadow in zip(slots, shadows):
                slot.steps += 1
                slot.parameter.mark_changed()
                if shadow is not None:
                    shadow.note(slot.parameter)

        def numbers() -> list[Any]:
            return [self._settings(slot.steps, self.lr * slot.lr_scale, slot.weight_decay) for slot in first]

        every_time(count)
        rows = [slot.row(len(self.moment_names)) for slot in slots]
        about = (decision.made, decision.unmade) if decision else (None, None)
        self._update(rows, groups, numbers, factor, *about, [shadow and shadow.array for shadow in shadows])

    def _decided_by(self, decision: Decision | None, slots: list[_Slot], is_judged: bool) -> None:
        """From now on, these slots count steps, and this is about them. is_judged: about the next of them already."""
        if decision is not self._decision or slots != self._decided:
            is_about_next = is_judged and decision is not None and decision is self._decision
            self._take_back(int(decision.skipped) if decision and is_about_next else 0)
            self._decision, self._decided = decision, slots

    def _take_back(self, but: int = 0) -> None:
        """Subtract the steps that the slots have counted but that were skipped, except the last `but` ones, which they
        have not counted yet. On a GPU this waits for the device."""
        if self._decision and (unmade := int(self._decision.unmade)):
            for slot in self._decided:
                slot.steps -= unmade - but
            self._decision.change(unmade=but)

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for slot in self._slots:
            slot.parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The state {"step.<i>": int, "<moment>.<i>": NumPy array like the parameter} of parameters with steps."""
        self._take_back()
        state: dict[str, Any] = {}
        for i, slot in enumerate(self._slots):
            if slot.steps:
                state[f"step.{i}"] = slot.steps
                for name, moment in zip(self.moment_names, slot.moments):
                    state[f"{name}.{i}"] = asnumpy(moment).reshape(slot.parameter.shape).copy()
        return state

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ScratchvitError if a saved state does not fit this optimiser and its parameters."""
        expected: dict[str, tuple[int, ...]] = {
            f"{name}.{i}": slot.parameter.shape
            for i, slot in enumerate(self._slots)
            if f"step.{i}" in state
            for name in self.moment_names
        }
        expected |= {f"step.{i}": () for i in range(len(self._slots)) if f"step.{i}" in state}
        given = {name: np.shape(value) for name, value in state.items()}
        if expected != given:
            wrong = min(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
            raise ScratchvitError(
                f"this optimiser state does not fit {type(self).__name__} and its {len(self._slots)} parameters "
                f"(first difference: {wrong}): it is from another model or optimiser"
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state. Raises ScratchvitError, before anything is changed, if it does not fit."""
        self.check_state(state)
        self._take_back()       # what was counted before is not about these steps
        for i, slot in enumerate(self._slots):
            slot.steps = state.get(f"step.{i}", 0)
            slot.moments = [
                asarray(state[f"{name}.{i}"], slot.parameter.dtype).reshape(-1).copy()
                for name in self.moment_names
                if slot.steps
            ]


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, in PyTorch's form.

        g ← g + λ θ;  b ← μ b + g;  θ ← θ - η b, or with Nesterov momentum θ - η (g + μ b)

    μ is momentum, λ weight_decay and η lr, which is not included in b. Raises ScratchvitError for nesterov without
    momentum.
    """

    _update = staticmethod(updates.sgd)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        if nesterov and not momentum:
            raise ScratchvitError("nesterov needs momentum: set momentum > 0")
        super().__init__(params, lr, weight_decay)
        self.momentum, self.nesterov = momentum, nesterov
        self.moment_names = ("momentum_buffer",) if momentum else ()  # type: ignore[misc]

    def _settings(self, steps: int, lr: float, weight_decay: float) -> updates.SGDNumbers:
        return updates.SGDNumbers(lr, weight_decay, self.momentum, self.nesterov)


class Adam(Optimizer):
    """Adam (Kingma & Ba, ICLR 2015, arXiv 1412.6980, algorithm 1).

    m ← β₁ m + (1 - β₁) g;  v ← β₂ v + (1 - β₂) g²;  θ ← θ - η m̂ / (√v̂ + ε) with m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ).
    Weight decay is added to the gradient, g + λ θ, and is therefore scaled by 1 / √v̂ as well.
    """

    moment_names = ("exp_avg", "exp_avg_sq")
    _update = staticmethod(updates.adam)
    decoupled: ClassVar[bool] = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        if not all(0 <= beta < 1 for beta in betas):
            raise ScratchvitError(f"betas must be in [0, 1), not {betas}")
        super().__init__(params, lr, weight_decay)
        self.betas, self.eps = betas, eps

    def _settings(self, steps: int, lr: float, weight_decay: float) -> updates.AdamNumbers:
        beta1, beta2 = self.betas
        return updates.AdamNumbers(
            lr=lr,
            eps=self.eps,
            shrink=1 - lr * weight_decay if self.decoupled else 1.0,
            decay=0.0 if self.decoupled else weight_decay,
            beta1=beta1,
            beta2=beta2,
            steps=steps,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay: θ ← (1 - η λ) θ before each step (Loshchilov & Hutter 2019).

    arXiv 1711.05101, algorithm 2 in PyTorch's form, where λ is multiplied by the learning rate.
    """

    decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.05,
    ):
        super().__init__(params, lr, betas, eps, weight_decay)
