"""timm's config.json: `architecture`, `model_args` and `pretrained_cfg`. `scratchvit export` writes the same.

What timm's functions have no argument for, `scratchvit export` writes into a part of its own, `scratchvit`, which timm
does not read.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from scratchvit.errors import ScratchvitError
from scratchvit.models import list_models, model_config
from scratchvit.models.hybrid import HybridConfig
from scratchvit.models.mvit_v2 import MViTv2Config
from scratchvit.models.resnet import ResNetConfig
from scratchvit.models.resnet_v2 import ResNetV2Config
from scratchvit.models.swin import SwinConfig
from scratchvit.models.swin_v2 import SwinV2Config
from scratchvit.models.vit import ViTConfig
from scratchvit.weights.configs.fields import Described, Fields, unknown_fields

OURS = "scratchvit"     # the key of options that timm does not have
BESIDE_TIMMS = ("norm_eps", "window_rule")      # these options

_ROOT = (
    "architecture", "num_classes", "num_features", "global_pool", "model_args", "pretrained_cfg", "label_names",
    "label_descriptions", "labels", OURS,
)
# The pretrained_cfg, which older files have instead of the rest: preprocessing, names, and where the weights are from.
_PRETRAINED = (
    "input_size", "test_input_size", "min_input_size", "fixed_input_size", "interpolation", "crop_pct", "test_crop_pct",
    "crop_mode", "mean", "std", "pool_size", "test_pool_size", "first_conv", "classifier", "license", "origin_url",
    "paper_ids", "paper_name", "notes", "tag", "custom_load", "label_offset", "url", "file", "hf_hub_id",
    "hf_hub_filename", "source", "state_dict",
)
_LAYER_NORMS = (None, "layernorm")

_TRAINING = ("zero_init_last", "drop_block_rate", "patch_drop_rate", "device", "dtype", "pretrained_strict")
_ANY_SIZE = ("strict_img_size", "dynamic_img_size", "dynamic_img_pad", "dynamic_mask")      # ours has one size


def _fields(kind: type, absent: tuple[str, ...], required: Mapping[str, tuple[Any, ...]]) -> Fields:
    """honoured: the options that our configuration has too, without those that timm's function does not take."""
    ours = {f.name: f.default for f in dataclasses.fields(kind) if f.name not in (*absent, *BESIDE_TIMMS)}
    return Fields(
        {name: default for name, default in ours.items() if name not in required}, required,
        (*_TRAINING, *_ANY_SIZE, "weight_init", "fix_init"),
    )


_VIT: dict[str, tuple[Any, ...]] = {
    "pos_embed": ("learn",), "qk_norm": (False,), "scale_attn_norm": (False,), "scale_mlp_norm": (False,),
    "proj_bias": (True,), "init_values": (None,), "no_embed_class": (False,), "reg_tokens": (0,), "pre_norm": (False,),
    "final_norm": (True,), "fc_norm": (None,), "pool_include_prefix": (False,), "embed_norm_layer": (None,),
    "norm_layer": _LAYER_NORMS, "act_layer": (None, "gelu"), "representation_size": (None, 0),
}
_SWIN: dict[str, tuple[Any, ...]] = {
    "global_pool": ("avg",), "always_partition": (False,), "norm_layer": _LAYER_NORMS[:1],
}

FIELDS = {
    ViTConfig: _fields(ViTConfig, ("weight_init",), _VIT),
    HybridConfig: _fields(HybridConfig, ("weight_init", "layers", "width_factor"), _VIT),
    SwinConfig: _fields(SwinConfig, ("weight_init",), _SWIN | {"head_dim": (None,)}),
    SwinV2Config: _fields(SwinV2Config, ("weight_init",), _SWIN | {"act_layer": ("gelu",)}),
    MViTv2Config: _fields(
        MViTv2Config,
        ("num_frames", "depths", "embed_dim", "num_heads", "mlp_ratio", "qkv_bias", "expand_attn", "residual_pooling",
         "use_cls_token", "cls_residual", "patch_kernel", "patch_stride", "kernel_qkv", "stride_kv"),
        {},
    ),
    ResNetConfig: _fields(
        ResNetConfig,
        ("bottleneck", "small_stem", "features_only", "out_indices", "frozen_bn", "zero_init_last"),
        {
            "global_pool": ("avg",), "cardinality": (1,), "base_width": (64,), "stem_width": (64,), "stem_type": ("",),
            "replace_stem_pool": (False,), "block_reduce_first": (1,), "down_kernel_size": (1,), "avg_down": (False,),
            "act_layer": (None, "relu"), "norm_layer": (None, "batchnorm", "batchnorm2d"), "aa_layer": (None, ""),
            "block_args": (None, {}),
        },
    ),
    ResNetV2Config: _fields(
        ResNetV2Config,
        ("features_only", "out_indices", "preact", "padding_same"),
        {
            "output_stride": (32,), "stem_chs": (64,), "stem_type": ("",), "avg_down": (False,), "preact": (True,),
            "basic": (False,), "bottle_ratio": (0.25,), "act_layer": (None, "relu"),
        },
    ),
}


def described(config: Mapping[str, Any]) -> Described:
    """The model that a config.json of timm describes, or one written by `scratchvit export`.

    Raises ScratchvitError for a model that is not here, and for an argument that it does not have here.
    """
    architecture = str(config["architecture"]).partition(".")[0]         # without the tag of the weights
    # In timm, the same model at another image size has another name: vit_base_patch16_384.
    name = architecture if architecture in list_models() else re.sub(r"_\d+$", "_224", architecture)
    if name not in list_models():
        raise ScratchvitError(f"there is no model {architecture!r} here; `scratchvit models` lists those there are")
    pretrained = config.get("pretrained_cfg") or config
    args = {key: value for key, value in (config.get("model_args") or {}).items() if value is not None}
    preset = model_config(name)
    fields = FIELDS.get(type(preset))
    if fields is None:                      # a model that timm does not have, written by hand
        options = args
    else:
        if (pool := pretrained.get("global_pool")) and "global_pool" in fields.names:
            args.setdefault("global_pool", pool)
        fields.read(args)
        if unknown := fields.unknown(args):
            raise ScratchvitError(
                f"its model_args have {unknown[0]!r}, which the models here do not know; of {name} they know "
                f"{', '.join(sorted(fields.names))}"
            )
        options = {key: value for key, value in args.items() if key in fields.honoured}
    if size := pretrained.get("input_size"):
        options.setdefault("img_size", size[1] if size[1] == size[2] else tuple(size[1:]))
    options |= {key: value for key, value in (config.get(OURS) or {}).items() if key in BESIDE_TIMMS}
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return Described(name, options, unknown_fields([key for key in config if key not in (*_ROOT, *_PRETRAINED)]))
