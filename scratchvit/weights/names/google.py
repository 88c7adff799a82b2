"""Google's .npz files: ViT, augreg and hybrids from Flax (`vision_transformer`, `big_vision`), BiT from TensorFlow.

Their matrices are (in, out), their kernels (height, width, in, out), and attention has an axis for the heads:

    query, key, value    kernel (D, heads, d), bias (heads, d)
    out                  kernel (heads, d, D), bias (D,)
"""

from __future__ import annotations

import math
import re

import numpy as np

from scratchvit.weights.names.layout import Layout, Weights

MOST_BLOCKS = 128       # in one stack (ViT-22B has 48); a longer axis is not one of blocks


def _as_pytorch_stores_it(name: str, value: np.ndarray) -> np.ndarray:
    """Transpose (…, in, out) to (out, in, …); flatten biases and scales."""
    kind = name.rsplit("/", 1)[-1]
    if kind in ("bias", "scale", "gamma", "beta"):
        return value.reshape(-1)                                # (heads, d), or (1, 1, 1, C) in hybrids
    if kind != "kernel" or value.ndim < 2:
        return value
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)                      # (height, width, in, out) → (out, in, height, width)
    if name.endswith("/out/kernel"):
        return value.reshape(math.prod(value.shape[:-1]), value.shape[-1]).T        # (heads, d, D) → (D, heads · d)
    return value.reshape(len(value), math.prod(value.shape[1:])).T      # (in, out) or (D, heads, d) → (out, in)


def _unstacked(weights: Weights) -> Weights:
    """Split blocks that big_vision has stacked along a first axis: `encoderblock/` → `encoderblock_0/`, …"""
    apart: Weights = {}
    for name, value in weights.items():
        if "/encoderblock/" in name and value.ndim > 1 and value.size and len(value) <= MOST_BLOCKS:
            apart |= {name.replace("/encoderblock/", f"/encoderblock_{i}/"): block for i, block in enumerate(value)}
        else:
            apart[name] = value
    return apart


def _stem_or_backbone(weights: Weights) -> str:
    """Rename the stem of a hybrid without stages (R+Ti/16): there the stem is the whole backbone."""
    backbone, stem = "patch_embed.backbone.", "patch_embed.backbone.stem."
    if not any(name.startswith(f"{backbone}stages.") for name in weights):
        for name in [name for name in weights if name.startswith(stem)]:
            weights[name.replace(stem, backbone)] = weights.pop(name)
    return ""


def _counted_from_zero(name: str) -> str:
    """Use PyTorch's words (weight, bias), and count a ResNet from 0: block1/unit01 → block0/unit0."""
    name = re.sub(r"/(kernel|scale|gamma)$", ".weight", name)
    name = re.sub(r"/(bias|beta)$", ".bias", name)
    return re.sub(r"\b(block|unit)(\d{1,9})(?=/)", lambda match: f"{match[1]}{int(match[2]) - 1}", name)


_BLOCK = r"Transformer/encoderblock_(\d+)/"
_ATTENTION = _BLOCK + r"MultiHeadDotProductAttention_[01]/"     # 1, 2, 3 before Flax counted each kind apart
_UNIT = r"block(\d+)/unit(\d+)/"
_STAGES = r"patch_embed.backbone.stages"

VIT = Layout(
    owner="Google (ViT)",
    prefix=r"opt/target/|params/img/|params/",
    mark=r"embedding/kernel",
    names=(
        (r"conv_root\.(.+)",                                    r"patch_embed.backbone.stem.conv.\1"),
        (r"gn_root\.(.+)",                                      r"patch_embed.backbone.stem.norm.\1"),
        (_UNIT + r"conv_proj\.(.+)",                            _STAGES + r".\1.blocks.\2.downsample.conv.\3"),
        (_UNIT + r"gn_proj\.(.+)",                              _STAGES + r".\1.blocks.\2.downsample.norm.\3"),
        (_UNIT + r"conv(\d)\.(.+)",                             _STAGES + r".\1.blocks.\2.conv\3.\4"),
        (_UNIT + r"gn(\d)\.(.+)",                               _STAGES + r".\1.blocks.\2.norm\3.\4"),
        (r"embedding\.(.+)",                                    r"patch_embed.proj.\1"),
        (r"cls",                                                r"cls_token"),
        (r"(?:Transformer/posembed_input/)?pos_embedding",      r"pos_embed"),
        (_BLOCK + r"LayerNorm_0\.(.+)",                         r"blocks.\1.norm1.\2"),
        (_ATTENTION + r"query\.(.+)",                           r"blocks.\1.attn.qkv.\2:0"),
        (_ATTENTION + r"key\.(.+)",                             r"blocks.\1.attn.qkv.\2:1"),
        (_ATTENTION + r"value\.(.+)",                           r"blocks.\1.attn.qkv.\2:2"),
        (_ATTENTION + r"out\.(.+)",                             r"blocks.\1.attn.proj.\2"),
        (_BLOCK + r"LayerNorm_[12]\.(.+)",                      r"blocks.\1.norm2.\2"),
        (_BLOCK + r"MlpBlock_[03]/Dense_0\.(.+)",               r"blocks.\1.mlp.fc1.\2"),
        (_BLOCK + r"MlpBlock_[03]/Dense_1\.(.+)",               r"blocks.\1.mlp.fc2.\2"),
        (r"Transformer/encoder_norm\.(.+)",                     r"norm.\1"),
        (r"head\.(.+)",                                         r"head.\1"),
    ),
    # A layer that no model here has, the state of the optimiser, and the text part of a model of images and texts.
    left_out=(r"pre_logits/.+", r"opt/.+", r"txt/.+", r"[tb]"),
    prepare=_unstacked,
    spell=_counted_from_zero,
    store=_as_pytorch_stores_it,
    finish=_stem_or_backbone,
)

BIT = Layout(
    owner="Google (BiT)",
    prefix=r"resnet/",
    mark=r"root_block/standardized_conv2d/kernel",
    names=(
        (r"root_block/standardized_conv2d\.(.+)",               r"stem.conv.\1"),
        (_UNIT + r"a/proj/standardized_conv2d\.(.+)",           r"stages.\1.blocks.\2.downsample.conv.\3"),
        (_UNIT + r"a/group_norm\.(.+)",                         r"stages.\1.blocks.\2.norm1.\3"),
        (_UNIT + r"a/standardized_conv2d\.(.+)",                r"stages.\1.blocks.\2.conv1.\3"),
        (_UNIT + r"b/group_norm\.(.+)",                         r"stages.\1.blocks.\2.norm2.\3"),
        (_UNIT + r"b/standardized_conv2d\.(.+)",                r"stages.\1.blocks.\2.conv2.\3"),
        (_UNIT + r"c/group_norm\.(.+)",                         r"stages.\1.blocks.\2.norm3.\3"),
        (_UNIT + r"c/standardized_conv2d\.(.+)",                r"stages.\1.blocks.\2.conv3.\3"),
        (r"group_norm\.(.+)",                                   r"norm.\1"),
        (r"head/conv2d\.(.+)",                                  r"head.fc.\1"),
    ),
    spell=_counted_from_zero,
    store=_as_pytorch_stores_it,
)
