"""torchvision's ViT, as `vit_b_16` and its siblings save it. (Its ResNets have timm's names.)"""

from scratchvit.weights.names.layout import Layout

_LAYER = r"encoder\.layers\.encoder_layer_(\d+)\."

VIT = Layout(
    owner="torchvision",
    mark=r"encoder\.pos_embedding",
    names=(
        (r"class_token",                                r"cls_token"),
        (r"conv_proj\.(.+)",                            r"patch_embed.proj.\1"),
        (r"encoder\.pos_embedding",                     r"pos_embed"),
        (_LAYER + r"ln_([12])\.(.+)",                   r"blocks.\1.norm\2.\3"),
        (_LAYER + r"self_attention\.in_proj_(.+)",      r"blocks.\1.attn.qkv.\2"),
        (_LAYER + r"self_attention\.out_proj\.(.+)",    r"blocks.\1.attn.proj.\2"),
        (_LAYER + r"mlp\.(?:0|linear_1)\.(.+)",         r"blocks.\1.mlp.fc1.\2"),     # linear_1, linear_2: before 0.13
        (_LAYER + r"mlp\.(?:3|linear_2)\.(.+)",         r"blocks.\1.mlp.fc2.\2"),
        (r"encoder\.ln\.(.+)",                          r"norm.\1"),
        (r"heads\.head\.(.+)",                          r"head.\1"),
    ),
    left_out=(r"heads\.pre_logits\..+",),
)  # fmt: skip
