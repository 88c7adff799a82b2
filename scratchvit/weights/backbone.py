"""A classifier's weights as a detector's backbone: a DETR has its ResNet under `backbone.0.body.`, without a head."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from scratchvit.weights.names import Renamed

BODY = "backbone.0.body."
FIRST = "conv1.weight"
_BLOCK = re.compile(r"layer([1-4])\.(\d{1,4})\.conv2\.weight")


def is_resnet(names: Iterable[str]) -> bool:
    """Whether these are the names of a ResNet that classifies."""
    return {FIRST, "layer1.0.conv1.weight", "layer1.0.conv2.weight"} <= set(names)


def has_backbone(names: Iterable[str]) -> bool:
    """Whether these are the names of a model with a ResNet as its backbone."""
    return f"{BODY}{FIRST}" in names


def as_backbone(renamed: Renamed, own: Mapping[str, Any]) -> Renamed:
    """A ResNet's weights under the names of a DETR's backbone.

    own: {name: tensor} of the model, which may have fewer stages. What it does not have, the head and the stages after
    its last, is left out.
    """
    weights, left_out = {}, list(renamed.left_out)
    deepest = max((int(match[1]) for name in own if (match := _BLOCK.fullmatch(name.removeprefix(BODY)))), default=4)
    for name, value in renamed.weights.items():
        stage = re.match(r"layer([1-4])\.", name)
        if name.startswith("fc.") or (stage and int(stage[1]) > deepest):
            left_out.append(name)
        else:
            weights[BODY + name] = value
    return dataclasses.replace(renamed, weights=weights, left_out=left_out)


def options_of_resnet(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The options of a DETR whose backbone is this ResNet, with its batch norms frozen.

    shapes: {name: shape} of the ResNet's tensors. {} if they are not those of a ResNet with four stages.
    """
    blocks: dict[int, dict[int, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if match := _BLOCK.fullmatch(name):
            blocks.setdefault(int(match[1]), {})[int(match[2])] = shape
    if not is_resnet(shapes) or sorted(blocks) != [1, 2, 3, 4]:
        return {}
    stages = [blocks[stage] for stage in (1, 2, 3, 4)]
    return {
        "layers": tuple(len(stage) for stage in stages),
        "bottleneck": "layer1.0.conv3.weight" in shapes,
        "channels": tuple(next(iter(stage.values()), (0,))[0] for stage in stages),
        "frozen_bn": True,
    }
