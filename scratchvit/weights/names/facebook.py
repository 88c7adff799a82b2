"""DETR as its authors published it, alone or inside their model for panoptic segmentation. The names are ours."""

from scratchvit.weights.names.layout import Layout

SEGMENTATION = (r"mask_head\..+", r"bbox_attention\..+")        # the segmentation head on top of the boxes

DETR = Layout(
    owner="Facebook (DETR)",
    prefix=r"detr\.",
    mark=r"transformer\.decoder\.layers\.0\.multihead_attn\.in_proj_weight",
    names=((r"(.+)", r"\1"),),
    left_out=SEGMENTATION,
)
