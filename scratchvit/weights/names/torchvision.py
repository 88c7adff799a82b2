"""torchvision's ViT, Swin and MViT, as `vit_b_16`, `swin_t`, `mvit_v2_s` save them. (Its ResNets have timm's names.)"""

import re

import numpy as np

from scratchvit.weights.names.layout import COMPUTED, Layout, Weights

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
)


def _by_stage(name: str) -> str:
    """features.0 leads to a stage, features.1 is the stage, and so on: features.4 → to.2, features.5 → stage.2."""

    def spelled(match: re.Match[str]) -> str:
        stage, is_stage = divmod(int(match[1]), 2)
        return f"{'stage' if is_stage else 'to'}.{stage}."

    return re.sub(r"^features\.(\d{1,9})\.", spelled, name)


def _without_the_bias_of_k(weights: Weights) -> Weights:
    """Swin V2's q, k and v have one bias there, whose part of k is set to zero before it is used."""
    apart: Weights = {}
    for name, value in weights.items():
        attention = name.removesuffix("qkv.bias")
        if f"{attention}logit_scale" in weights and name != attention and value.ndim == 1:
            third = len(value) // 3
            apart |= {f"{attention}q_bias": value[:third], f"{attention}v_bias": value[2 * third :]}
        else:
            apart[name] = value
    return apart


_BLOCK = r"stage\.(\d+)\.(\d+)\."

SWIN = Layout(
    owner="torchvision",
    mark=r"features\.1\.0\.attn\.qkv\.weight",
    names=(
        (r"to\.0\.0\.(.+)",             r"patch_embed.proj.\1"),
        (r"to\.0\.2\.(.+)",             r"patch_embed.norm.\1"),
        (r"to\.(\d+)\.(.+)",            r"layers.\1.downsample.\2"),
        (_BLOCK + r"mlp\.0\.(.+)",      r"layers.\1.blocks.\2.mlp.fc1.\3"),
        (_BLOCK + r"mlp\.3\.(.+)",      r"layers.\1.blocks.\2.mlp.fc2.\3"),
        (_BLOCK + r"(.+)",               r"layers.\1.blocks.\2.\3"),
        (r"head\.(.+)",                 r"head.fc.\1"),
    ),
    left_out=(COMPUTED,),
    options={"window_rule": "torchvision"},
    prepare=_without_the_bias_of_k,
    spell=_by_stage,
)

MVIT = Layout(owner="torchvision", mark=r"pos_encoding\.spatial_pos")       # its names are ours

_NUMBERED = re.compile(r"^blocks\.(0|[1-9][0-9]{0,3})\.")


def _in_stages(weights: Weights) -> Weights:
    """blocks.3 becomes stages.2.blocks.0: a stage begins with the block that projects its input to more channels."""
    blocks = {int(match[1]) for name in weights if (match := _NUMBERED.match(name))}
    places: dict[int, str] = {}
    stage = first = 0
    for block in sorted(blocks):
        if f"blocks.{block}.project.weight" in weights:
            stage, first = stage + 1, block
        places[block] = f"stages.{stage}.blocks.{block - first}."
    return {_NUMBERED.sub(lambda match: places[int(match[1])], name): value for name, value in weights.items()}


def _class_token(name: str, value: np.ndarray) -> np.ndarray:
    return value.reshape(1, 1, -1) if name == "pos_encoding.class_token" else value


_IN_STAGE = r"(stages\.\d+\.blocks\.\d+\.)"

MVIT_V2 = Layout(
    owner="torchvision",
    mark=r"blocks\.0\.attn\.rel_pos_t",
    names=(
        (r"conv_proj\.(.+)",                            r"patch_embed.proj.\1"),
        (r"pos_encoding\.class_token",                  r"cls_token"),
        (_IN_STAGE + r"attn\.pool_([qkv])\.pool\.(.+)",  r"\1attn.pool_\2.\3"),
        (_IN_STAGE + r"attn\.pool_([qkv])\.norm_act\.0\.(.+)", r"\1attn.norm_\2.\3"),
        (_IN_STAGE + r"attn\.project\.0\.(.+)",         r"\1attn.proj.\2"),
        (_IN_STAGE + r"mlp\.0\.(.+)",                   r"\1mlp.fc1.\2"),
        (_IN_STAGE + r"mlp\.3\.(.+)",                   r"\1mlp.fc2.\2"),
        (_IN_STAGE + r"project\.(.+)",                  r"\1shortcut_proj_attn.\2"),
        (r"head\.1\.(.+)",                              r"head.fc.\1"),
    ),
    prepare=_in_stages,
    store=_class_token,
)
