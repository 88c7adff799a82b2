"""DAB-DETR as its authors (IDEA) published it. The names are ours."""

from __future__ import annotations

import re

import numpy as np

from scratchvit.errors import ScratchvitError
from scratchvit.weights.names.layout import Layout, Weights

_OF_THE_MODEL = re.compile(r"(?:model\.)?bbox_(?:embed|predictor)\.(.+)")
_OF_THE_DECODER = re.compile(r"(?:.+\.)?decoder\.bbox_embed\.(.+)")


def one_box_head(weights: Weights) -> Weights:
    """Leave out the decoder's box head if the model's is there: they share weights, and files have either or both.

    Raises ScratchvitError if both are there and differ.
    """
    decoders = {match[1]: value for name, value in weights.items() if (match := _OF_THE_DECODER.fullmatch(name))}
    others = {name: value for name, value in weights.items() if not _OF_THE_DECODER.fullmatch(name)}
    heads = {match[1]: value for name, value in others.items() if (match := _OF_THE_MODEL.fullmatch(name))}
    if any(not np.array_equal(value, decoders[name]) for name, value in heads.items() if name in decoders):
        raise ScratchvitError(
            "the box head of its decoder (decoder.bbox_embed) is not that of the model: here they share their weights, "
            "so use a checkpoint that was trained that way"
        )
    return others if heads else weights


DAB_DETR = Layout(
    owner="IDEA (DAB-DETR)",
    mark=r"transformer\.decoder\.layers\.0\.sa_qcontent_proj\.weight",
    names=((r"(?:transformer\.decoder\.)?(bbox_embed\..+)", r"\1"), (r"(.+)", r"\1")),
    prepare=one_box_head,
)
