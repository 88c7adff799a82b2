"""Parameter groups, for weight decay and layer-wise learning rates."""

from __future__ import annotations

from typing import Any

from scratchvit.errors import ScratchvitError
from scratchvit.models.interface import ExemptsFromDecay, LayeredModel
from scratchvit.nn.module import Module, Parameter


def param_groups(model: Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Divide the parameters of a model into groups for an optimiser: {"params", "weight_decay", "lr_scale"}.

    weight_decay: of matrices and kernels; not applied to norms and biases (1-D) and to `model.no_weight_decay()`.
    layer_decay: the learning rate of layer l of n is multiplied by layer_decay^(n - 1 - l), so that the first layers,
        whose features are useful for every task, change less in fine-tuning (BEiT, arXiv 2106.08254). 1: equal
        learning rates.
    Raises ScratchvitError for a layer_decay outside (0, 1], and for a model without `layer_names()` unless it is 1.
    """
    if not 0 < layer_decay <= 1:
        raise ScratchvitError(f"layer_decay must be in (0, 1], 1 for equal learning rates, not {layer_decay}")
    exempt = model.no_weight_decay() if isinstance(model, ExemptsFromDecay) else set()
    parameters = dict(model.named_parameters())
    layer = dict.fromkeys(parameters, 0) if layer_decay == 1 else layers_by_name(model)
    last = max(layer.values(), default=0)
    groups: dict[tuple[int, bool], list[Parameter]] = {}
    for name, parameter in parameters.items():
        decays = parameter.ndim > 1 and name not in exempt
        groups.setdefault((layer[name], not decays), []).append(parameter)
    return [
        {"params": params, "weight_decay": 0.0 if exempted else weight_decay, "lr_scale": layer_decay ** (last - index)}
        for (index, exempted), params in sorted(groups.items())
    ]


def layers_by_name(model: Module) -> dict[str, int]:
    """{name of a parameter: its layer}, with layer 0 at the image, according to `model.layer_names()`.

    Raises ScratchvitError for a model without that method, and for a parameter that is in no layer.
    """
    if not isinstance(model, LayeredModel):
        raise ScratchvitError(f"{type(model).__name__} has no layer_names(): use layer_decay=1")
    layers: dict[str, int] = {}
    unplaced = [name for name, _ in model.named_parameters()]
    for number, paths in enumerate(model.layer_names()):
        inside = [name for name in unplaced if any(name == path or name.startswith(f"{path}.") for path in paths)]
        layers |= dict.fromkeys(inside, number)
        unplaced = [name for name in unplaced if name not in layers]
    if unplaced:
        raise ScratchvitError(f"{type(model).__name__}.layer_names() has no layer for {', '.join(unplaced)}")
    return layers
