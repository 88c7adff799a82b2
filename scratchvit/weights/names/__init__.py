"""Everybody's names for the weights of the same models, a file for each project that publishes them.

Ours are timm's, so timm's own files need no table; nor do those of DeiT's authors, nor torchvision's ResNets.
"""

from __future__ import annotations

from collections.abc import Iterable

from scratchvit.weights.names import facebook, google, huggingface, idea, microsoft, own, torchvision
from scratchvit.weights.names.layout import COMPUTED, Layout, Renamed, Weights

TIMM = Layout(
    owner="timm",
    mark=r".*",
    left_out=(COMPUTED, r"pre_logits\..+"),     # the latter a layer that timm itself has removed from its ViTs
)

LAYOUTS = (
    own.CHECKPOINT, google.VIT, google.BIT, huggingface.VIT, huggingface.RESNET, huggingface.BIT, huggingface.SWIN_V2,
    huggingface.SWIN, huggingface.IMAGE_GPT, huggingface.DETR, huggingface.DAB_DETR, torchvision.VIT, torchvision.SWIN,
    torchvision.MVIT, torchvision.MVIT_V2, microsoft.SWIN, facebook.DETR, idea.DAB_DETR, TIMM,
)


def recognise(names: Iterable[str]) -> Layout:
    """Whose names these are; timm's, where nobody else's mark is among them."""
    names = list(names)
    return next((layout for layout in LAYOUTS if layout.recognises(names)), TIMM)
