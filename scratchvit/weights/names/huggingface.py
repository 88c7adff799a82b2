"""Hugging Face transformers: ViT, DeiT, ResNet, BiT, Swin, Swin V2, ImageGPT, DETR, DAB-DETR, with and without a head.

transformers 5 renamed the insides of its ViTs (`layers.0.attention.q_proj`), of Swin and of DETR, but goes on writing
files with the names of version 4 (`encoder.layer.0.attention.attention.query`). The new ones are found in a state
dictionary that somebody saved by hand. Both are here.
"""

from __future__ import annotations

import re

import numpy as np

from scratchvit.weights.names.facebook import SEGMENTATION
from scratchvit.weights.names.idea import one_box_head
from scratchvit.weights.names.layout import COMPUTED, Layout, Weights, merged_at_the_start

_LAYER = r"(?:encoder\.layer|layers)\.(\d+)\."


def _head_of_the_class_token(weights: Weights) -> str:
    """DeiTForImageClassification has the distillation token, but its logits are the class head's alone.

    Here (and in timm) they are the mean of two heads: (2 head + 0) / 2 is the same.
    """
    if "dist_token" not in weights or "head.weight" not in weights or "head_dist.weight" in weights:
        return ""
    for name in [name for name in weights if name.startswith("head.")]:
        weights |= {name: 2 * weights[name], name.replace("head.", "head_dist."): np.zeros_like(weights[name])}
    return "head: doubled, and head_dist: zeros, as this file's logits are the class head's alone"


VIT = Layout(
    owner="Hugging Face (ViT, DeiT)",
    prefix=r"vit\.|deit\.",
    mark=r"embeddings\.cls_token",
    names=(
        (r"embeddings\.cls_token",                                          r"cls_token"),
        (r"embeddings\.distillation_token",                                 r"dist_token"),
        (r"embeddings\.position_embeddings",                                r"pos_embed"),
        (r"embeddings\.patch_embeddings\.projection\.(.+)",                 r"patch_embed.proj.\1"),
        (_LAYER + r"layernorm_before\.(.+)",                                r"blocks.\1.norm1.\2"),
        (_LAYER + r"attention\.(?:attention\.query|q_proj)\.(.+)",          r"blocks.\1.attn.qkv.\2:0"),
        (_LAYER + r"attention\.(?:attention\.key|k_proj)\.(.+)",            r"blocks.\1.attn.qkv.\2:1"),
        (_LAYER + r"attention\.(?:attention\.value|v_proj)\.(.+)",          r"blocks.\1.attn.qkv.\2:2"),
        (_LAYER + r"attention\.(?:output\.dense|o_proj)\.(.+)",             r"blocks.\1.attn.proj.\2"),
        (_LAYER + r"layernorm_after\.(.+)",                                 r"blocks.\1.norm2.\2"),
        (_LAYER + r"(?:intermediate\.dense|mlp\.fc1)\.(.+)",                r"blocks.\1.mlp.fc1.\2"),
        (_LAYER + r"(?:output\.dense|mlp\.fc2)\.(.+)",                      r"blocks.\1.mlp.fc2.\2"),
        (r"layernorm\.(.+)",                                                r"norm.\1"),
        (r"(?:cls_)?classifier\.(.+)",                                      r"head.\1"),
        (r"distillation_classifier\.(.+)",                                  r"head_dist.\1"),
    ),
    # The pooler of a bare ViTModel, and what fills in masked patches.
    left_out=(r"pooler\..+", r"embeddings\.mask_token", r"decoder\..+"),
    options={"norm_eps": 1e-12},
    finish=_head_of_the_class_token,
)


def _counted_from_one(name: str) -> str:
    """They count stages and convolutions from 0, a ResNet from 1."""
    return re.sub(r"\b(stages|layer)\.(\d{1,9})\b", lambda match: f"{match[1]}.{int(match[2]) + 1}", name)


_UNIT = r"encoder\.stages\.(\d+)\.layers\.(\d+)\."

RESNET = Layout(
    owner="Hugging Face (ResNet)",
    prefix=r"resnet\.",
    mark=r"embedder\.embedder\.convolution\.weight",
    names=(
        (r"embedder\.embedder\.convolution\.(.+)",         r"conv1.\1"),
        (r"embedder\.embedder\.normalization\.(.+)",       r"bn1.\1"),
        (_UNIT + r"shortcut\.convolution\.(.+)",           r"layer\1.\2.downsample.0.\3"),
        (_UNIT + r"shortcut\.normalization\.(.+)",         r"layer\1.\2.downsample.1.\3"),
        (_UNIT + r"layer\.(\d)\.convolution\.(.+)",        r"layer\1.\2.conv\3.\4"),
        (_UNIT + r"layer\.(\d)\.normalization\.(.+)",      r"layer\1.\2.bn\3.\4"),
        (r"classifier\.1\.(.+)",                           r"fc.\1"),
    ),
    spell=_counted_from_one,
)


def _head_as_convolution(name: str, value: np.ndarray) -> np.ndarray:
    """BiT's head is a 1×1 convolution here: (classes, C) → (classes, C, 1, 1)."""
    return value[:, :, None, None] if name == "classifier.1.weight" and value.ndim == 2 else value


BIT = Layout(
    owner="Hugging Face (BiT)",
    prefix=r"bit\.",
    mark=r"embedder\.convolution\.weight",
    names=(
        (r"embedder\.convolution\.(.+)",                    r"stem.conv.\1"),
        (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(.+)",    r"stages.\1.blocks.\2.\3"),
        (r"norm\.(.+)",                                     r"norm.\1"),
        (r"classifier\.1\.(.+)",                            r"head.fc.\1"),
    ),
    store=_head_as_convolution,
)


_BLOCK = r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."

_OF_BOTH_SWINS = (
    (r"embeddings\.patch_embeddings\.projection\.(.+)",                     r"patch_embed.proj.\1"),
    (r"embeddings\.norm\.(.+)",                                            r"patch_embed.norm.\1"),
    (r"encoder\.(layers\.\d+\.downsample\..+)",                            r"\1"),
    (_BLOCK + r"layernorm_before\.(.+)",                                   r"layers.\1.blocks.\2.norm1.\3"),
    (_BLOCK + r"attention\.(?:self\.query|q_proj)\.(.+)",                  r"layers.\1.blocks.\2.attn.qkv.\3:0"),
    (_BLOCK + r"attention\.(?:self\.key|k_proj)\.(.+)",                    r"layers.\1.blocks.\2.attn.qkv.\3:1"),
    (_BLOCK + r"attention\.(?:self\.value|v_proj)\.(.+)",                  r"layers.\1.blocks.\2.attn.qkv.\3:2"),
    (_BLOCK + r"attention\.(?:output\.dense|o_proj)\.(.+)",                r"layers.\1.blocks.\2.attn.proj.\3"),
    (_BLOCK + r"layernorm_after\.(.+)",                                    r"layers.\1.blocks.\2.norm2.\3"),
    (_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.(.+)",                   r"layers.\1.blocks.\2.mlp.fc1.\3"),
    (_BLOCK + r"(?:output\.dense|mlp\.fc2)\.(.+)",                         r"layers.\1.blocks.\2.mlp.fc2.\3"),
    (r"layernorm\.(.+)",                                                   r"norm.\1"),
    (r"classifier\.(.+)",                                                  r"head.fc.\1"),
)

SWIN = Layout(
    owner="Hugging Face (Swin)",
    prefix=r"swin\.",
    mark=r"encoder\.layers\.0\.blocks\.0\.layernorm_before\.weight",
    names=(
        (_BLOCK + r"attention\.(?:self|relative_position_bias)\.(relative_position_bias_table)",
                                                                           r"layers.\1.blocks.\2.attn.\3"),
        *_OF_BOTH_SWINS,
    ),
    left_out=(COMPUTED, r"embeddings\.mask_token", r"decoder\..+"),
    options={"window_rule": "huggingface"},
    spell=merged_at_the_start,
)

SWIN_V2 = Layout(
    owner="Hugging Face (Swin V2)",
    prefix=r"swinv2\.",
    mark=r"encoder\.layers\.0\.blocks\.0\.attention\.self\.logit_scale",
    names=(
        (_BLOCK + r"attention\.self\.query\.bias",                          r"layers.\1.blocks.\2.attn.q_bias"),
        (_BLOCK + r"attention\.self\.value\.bias",                          r"layers.\1.blocks.\2.attn.v_bias"),
        (_BLOCK + r"attention\.self\.logit_scale",                          r"layers.\1.blocks.\2.attn.logit_scale"),
        (_BLOCK + r"attention\.self\.continuous_position_bias_mlp\.(.+)",   r"layers.\1.blocks.\2.attn.cpb_mlp.\3"),
        *_OF_BOTH_SWINS,
    ),
    left_out=(COMPUTED, r"embeddings\.mask_token", r"decoder\..+"),
    options={"window_rule": "huggingface"},
    spell=merged_at_the_start,
)

# Whose names are ours, once the model around it has given them its prefix.
IMAGE_GPT = Layout(
    owner="Hugging Face (ImageGPT)",
    prefix=r"transformer\.",
    mark=r"wte\.weight",
    names=((r"((?:wte|wpe|h|ln_f)\..+)", r"transformer.\1"),),
    left_out=(r"h\.\d+\.attn\.(?:masked_)?bias",),        # causal masks, in files of version 4
)


_CNN = r"backbone\.(?:conv_encoder\.)?model\.(?:_backbone\.)?"
_OF_DETR = r"(encoder|decoder)\.layers\.(\d+)\."

DETR = Layout(
    owner="Hugging Face (DETR)",
    prefix=r"detr\.model\.|detr\.|model\.",
    mark=r"query_position_embeddings\.weight",
    names=(
        *((_CNN + theirs, f"backbone.0.body.{ours}") for theirs, ours in RESNET.names),     # of their own ResNet,
        (_CNN + r"(.+)",                                r"backbone.0.body.\1"),             # of timm's
        (r"input_projection\.(.+)",                     r"input_proj.\1"),
        (r"query_position_embeddings\.(.+)",            r"query_embed.\1"),
        (_OF_DETR + r"self_attn\.q_proj\.(.+)",         r"transformer.\1.layers.\2.self_attn.in_proj_\3:0"),
        (_OF_DETR + r"self_attn\.k_proj\.(.+)",         r"transformer.\1.layers.\2.self_attn.in_proj_\3:1"),
        (_OF_DETR + r"self_attn\.v_proj\.(.+)",         r"transformer.\1.layers.\2.self_attn.in_proj_\3:2"),
        (_OF_DETR + r"self_attn\.(?:out|o)_proj\.(.+)", r"transformer.\1.layers.\2.self_attn.out_proj.\3"),
        (_OF_DETR + r"encoder_attn\.q_proj\.(.+)",      r"transformer.\1.layers.\2.multihead_attn.in_proj_\3:0"),
        (_OF_DETR + r"encoder_attn\.k_proj\.(.+)",      r"transformer.\1.layers.\2.multihead_attn.in_proj_\3:1"),
        (_OF_DETR + r"encoder_attn\.v_proj\.(.+)",      r"transformer.\1.layers.\2.multihead_attn.in_proj_\3:2"),
        (_OF_DETR + r"encoder_attn\.(?:out|o)_proj\.(.+)", r"transformer.\1.layers.\2.multihead_attn.out_proj.\3"),
        (_OF_DETR + r"(?:mlp\.)?fc([12])\.(.+)",        r"transformer.\1.layers.\2.linear\3.\4"),
        (_OF_DETR + r"self_attn_layer_norm\.(.+)",      r"transformer.\1.layers.\2.norm1.\3"),
        (_OF_DETR + r"encoder_attn_layer_norm\.(.+)",   r"transformer.\1.layers.\2.norm2.\3"),
        (r"encoder\.layers\.(\d+)\.final_layer_norm\.(.+)", r"transformer.encoder.layers.\1.norm2.\2"),
        (r"decoder\.layers\.(\d+)\.final_layer_norm\.(.+)", r"transformer.decoder.layers.\1.norm3.\2"),
        (r"decoder\.layernorm\.(.+)",                   r"transformer.decoder.norm.\1"),
        (r"class_labels_classifier\.(.+)",              r"class_embed.\1"),
        (r"bbox_predictor\.(.+)",                       r"bbox_embed.\1"),
    ),
    left_out=SEGMENTATION,
    spell=_counted_from_one,
)

_ENCODER, _DECODER = r"encoder\.layers\.(\d+)\.", r"decoder\.layers\.(\d+)\."
_SELF, _CROSS = _DECODER + r"self_attn\.self_attn", _DECODER + r"cross_attn\.cross_attn"

DAB_DETR = Layout(
    owner="Hugging Face (DAB-DETR)",
    prefix=r"model\.",
    mark=r"query_refpoint_embeddings\.weight",
    names=(
        (r"query_refpoint_embeddings\.(.+)",            r"refpoint_embed.\1"),
        (_ENCODER + r"activation_fn\.(.+)",             r"transformer.encoder.layers.\1.activation.\2"),
        (r"encoder\.(query_scale\..+)",                r"transformer.encoder.\1"),
        (_SELF + r"_(q|k)(?:uery|ey)_(content|pos)_proj\.(.+)",
                                                        r"transformer.decoder.layers.\1.sa_\2\3_proj.\4"),
        (_SELF + r"_value_proj\.(.+)",                  r"transformer.decoder.layers.\1.sa_v_proj.\2"),
        (_SELF + r"\.output_proj\.(.+)",                r"transformer.decoder.layers.\1.self_attn.out_proj.\2"),
        (_SELF + r"_layer_norm\.(.+)",                  r"transformer.decoder.layers.\1.norm1.\2"),
        (_CROSS + r"_(q|k)(?:uery|ey)_(content|pos|pos_sine)_proj\.(.+)",
                                                        r"transformer.decoder.layers.\1.ca_\2\3_proj.\4"),
        (_CROSS + r"_value_proj\.(.+)",                 r"transformer.decoder.layers.\1.ca_v_proj.\2"),
        (_CROSS + r"\.output_proj\.(.+)",               r"transformer.decoder.layers.\1.cross_attn.out_proj.\2"),
        (_CROSS + r"_layer_norm\.(.+)",                 r"transformer.decoder.layers.\1.norm2.\2"),
        (_DECODER + r"mlp\.final_layer_norm\.(.+)",     r"transformer.decoder.layers.\1.norm3.\2"),
        (_DECODER + r"mlp\.activation_fn\.(.+)",        r"transformer.decoder.layers.\1.activation.\2"),
        (r"decoder\.((?:query_scale|ref_point_head|ref_anchor_head)\..+)", r"transformer.decoder.\1"),
        (r"decoder\.(bbox_embed\..+)",                  r"\1"),
        *DETR.names,
    ),
    prepare=one_box_head,
    spell=_counted_from_one,
)
