"""Everybody's names for the weights of the same models, a file for each project that publishes them.

Ours are timm's, so timm's own files need no table; nor do those of DeiT's authors, nor torchvision's ResNets.
"""

from __future__ import annotations

from collections.abc import Iterable

from scratchvit.weights.names import google, huggingface, own, torchvision
from scratchvit.weights.names.layout import Layout, Renamed, Weights

TIMM = Layout(
    owner="timm",
    mark=r".*",
    # Tables that follow from the sizes and are computed here, and a layer that timm itself has removed from its ViTs.
    left_out=(r"(?:.+\.)?(?:relative_position_index|relative_coords_table|attn_mask)", r"pre_logits\..+"),
)

LAYOUTS = (
    own.CHECKPOINT, google.VIT, google.BIT, huggingface.VIT, huggingface.RESNET, huggingface.BIT, torchvision.VIT, TIMM,
)  # fmt: skip


def recognise(names: Iterable[str]) -> Layout:
    """Whose names these are; timm's, where nobody else's mark is among them."""
    names = list(names)
    return next((layout for layout in LAYOUTS if layout.recognises(names)), TIMM)
