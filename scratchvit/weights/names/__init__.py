"""Parameter names of other libraries and projects, a file for each.

Ours are timm's, so timm's own files need no table; nor do those of DeiT's authors, nor torchvision's ResNets.
"""

from __future__ import annotations

from collections.abc import Iterable

from scratchvit.weights.names import facebook, google, huggingface, idea, microsoft, own, torchvision
from scratchvit.weights.names.layout import COMPUTED, Layout, Renamed, Weights

TIMM = Layout(
    owner="timm",
    mark=r".*",
    left_out=(COMPUTED, r"pre_logits\..+"),     # pre_logits: a layer that timm has removed from its ViTs
)

LAYOUTS = (
    own.CHECKPOINT, google.VIT, google.BIT, huggingface.VIT, huggingface.RESNET, huggingface.BIT, huggingface.SWIN_V2,
    huggingface.SWIN, huggingface.IMAGE_GPT, huggingface.DETR, huggingface.DAB_DETR, torchvision.VIT, torchvision.SWIN,
    torchvision.MVIT, torchvision.MVIT_V2, microsoft.SWIN, facebook.DETR, idea.DAB_DETR, TIMM,
)


def recognise(names: Iterable[str]) -> Layout:
    """The layout of these names: the first whose mark is among them, otherwise timm's."""
    names = list(names)
    return next((layout for layout in LAYOUTS if layout.recognises(names)), TIMM)
