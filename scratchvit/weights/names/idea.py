"""DAB-DETR as its authors (IDEA) published it. The names are ours."""

from __future__ import annotations

import re

from scratchvit.weights.names.layout import Layout, Weights

_OF_THE_DECODER = re.compile(r"(?:.+\.)?decoder\.bbox_embed\.(.+)")


def one_box_head(weights: Weights) -> Weights:
    """Leave out the decoder's box head if the model's is there: they share weights, and files have either or both."""
    others = {name: value for name, value in weights.items() if not _OF_THE_DECODER.fullmatch(name)}
    return others if any(re.match(r"(?:model\.)?bbox_", name) for name in others) else weights


DAB_DETR = Layout(
    owner="IDEA (DAB-DETR)",
    mark=r"transformer\.decoder\.layers\.0\.sa_qcontent_proj\.weight",
    names=((r"(?:transformer\.decoder\.)?(bbox_embed\..+)", r"\1"), (r"(.+)", r"\1")),
    prepare=one_box_head,
)
