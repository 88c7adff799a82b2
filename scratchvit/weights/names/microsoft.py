"""Swin and Swin V2 as their authors published them. timm's own files from before 0.9 have these names too."""

from scratchvit.weights.names.layout import COMPUTED, Layout, merged_at_the_start

SWIN = Layout(
    owner="Microsoft (Swin)",
    mark=r"layers\.0\.downsample\.reduction\.weight",
    names=(
        (r"(layers\.\d+\.downsample\..+)",     r"\1"),
        (r"head\.(weight|bias)",               r"head.fc.\1"),
    ),
    left_out=(COMPUTED,),
    spell=merged_at_the_start,
)
