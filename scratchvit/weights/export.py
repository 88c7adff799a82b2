"""Writing a model in timm's format: model.safetensors, and a config.json with architecture and preprocessing.

`timm.create_model("local-dir:DIR", pretrained=True)` loads the folder; so does `model_from_weights` here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from scratchvit.errors import ScratchvitError
from scratchvit.files import write_atomically
from scratchvit.models import list_models, model_config
from scratchvit.models.hybrid import HybridConfig
from scratchvit.models.mvit_v2 import MViTv2Config
from scratchvit.models.resnet import ResNetConfig
from scratchvit.models.resnet_v2 import ResNetV2Config
from scratchvit.models.swin import SwinConfig, SwinTransformer
from scratchvit.models.swin_v2 import SwinV2Config
from scratchvit.models.vit import VisionTransformer, ViTConfig, pair
from scratchvit.models.windows import window_and_shift
from scratchvit.nn import Module, Parameter
from scratchvit.weights.configs.timm import BESIDE_TIMMS, OURS
from scratchvit.weights.misfit import FIRST_KERNELS, HEAD
from scratchvit.weights.preprocess import Preprocessing


class _Family(NamedTuple):
    """How the options of a configuration correspond to those of timm's function of the same name.

    ours    options that timm does not have; its model computes the same without them
    fixed   options that timm's function sets itself, to the value of the preset
    Except for `BESIDE_TIMMS`, which are written beside timm's, all others are options of timm with the same name.
    """

    ours: tuple[str, ...]
    fixed: tuple[str, ...] = ()


_FAMILIES = {
    ViTConfig: _Family(ours=("pos_embed", "weight_init")),
    HybridConfig: _Family(ours=("pos_embed", "weight_init"), fixed=("layers", "width_factor")),
    SwinConfig: _Family(ours=("weight_init",)),
    SwinV2Config: _Family(ours=("weight_init",)),
    MViTv2Config: _Family(
        ours=(),
        fixed=(
            "num_frames", "depths", "embed_dim", "num_heads", "mlp_ratio", "qkv_bias", "expand_attn",
            "residual_pooling", "use_cls_token", "cls_residual", "patch_kernel", "patch_stride", "kernel_qkv",
            "stride_kv",
        ),
    ),
    ResNetConfig: _Family(
        ours=("img_size", "out_indices", "frozen_bn"), fixed=("bottleneck", "small_stem", "features_only")
    ),
    ResNetV2Config: _Family(
        ours=("img_size", "out_indices"),
        fixed=("layers", "channels", "width_factor", "preact", "padding_same", "global_pool", "features_only"),
    ),
}

# Without a function in timm: some sizes of ViT that complete the table here, and a model for clips.
_NOT_IN_TIMM = {
    "vit_tiny_patch32_224", "vit_tiny_patch14_224", "vit_small_patch14_224", "vit_base_patch14_224",
    "vit_huge_patch32_224", "vit_huge_patch16_224", "mvit_v2_s",
}


def export(
    model: Module, name: str, folder: str | Path, preprocessing: Preprocessing, class_names: Sequence[str] = ()
) -> list[Path]:
    """Write model.safetensors and config.json into a folder, which is created if necessary; returns their paths.

    name: name of the model in `list_models`.  class_names: names of the head's outputs, or none.
    Raises ScratchvitError, before anything is written, for a model that timm cannot build, and for a folder that
    already has such files: they may be the weights that this model was loaded from. If writing fails, no file is left.
    """
    folder = Path(folder)
    for file in (folder / "model.safetensors", folder / "config.json"):
        if file.exists():
            raise ScratchvitError(f"{file} already exists: choose another folder, or move it away")
    config = timm_config(model, name, preprocessing, class_names)
    content = {
        folder / "model.safetensors": safetensors.numpy.save(timm_state(model), {"format": "pt"}),
        folder / "config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScratchvitError(f"{folder} cannot be created ({error.strerror}): choose another folder") from error
    try:
        for path, text in content.items():
            write_atomically(path, text)
    except BaseException:
        for path in content:
            path.unlink(missing_ok=True)
        raise
    return list(content)


def timm_state(model: Any) -> dict[str, np.ndarray]:
    """The state dict {name: array} of timm's equivalent model. Tables that are computed here are included."""
    state = model.state_dict()
    if isinstance(model, VisionTransformer) and not isinstance(model.pos_embed, Parameter):
        state["pos_embed"] = model.pos_embed.numpy().copy()     # fixed sines and cosines: timm only has tables
    if getattr(model.config, "frozen_bn", False):
        norms = [key.removesuffix("running_mean") for key in state if key.endswith("running_mean")]
        state |= {f"{norm}num_batches_tracked": np.zeros((), np.int64) for norm in norms}
    return {key: np.asarray(value, order="C") for key, value in state.items()}


def timm_config(
    model: Any, name: str, preprocessing: Preprocessing, class_names: Sequence[str] = ()
) -> dict[str, Any]:
    """The content of timm's config.json: how to build the model, and the preprocessing of pictures."""
    config = model.config
    _require_timms_windows(model)
    architecture, model_args = _in_timms_words(name, config)
    state = {key: value.shape for key, value in model.state_dict().items()}
    heads = list(dict.fromkeys(key.rsplit(".", 1)[0] for key in state if HEAD.fullmatch(key)))
    first = next(key for key in FIRST_KERNELS if key in state).removesuffix(".weight")
    found: dict[str, Any] = {"architecture": architecture, "num_classes": config.num_classes}
    if heads:
        found["num_features"] = state[f"{heads[0]}.weight"][1]
    found["global_pool"] = getattr(config, "global_pool", "avg")
    if class_names:
        found["label_names"] = list(class_names)
    if model_args:
        found["model_args"] = model_args
    if beside := _beside_timms(config, model_config(architecture)):
        found[OURS] = beside
    found["pretrained_cfg"] = preprocessing.to_timm() | {
        "fixed_input_size": isinstance(config, ViTConfig | SwinConfig | MViTv2Config),
        "num_classes": config.num_classes,
        "first_conv": first,
        "classifier": heads[0] if len(heads) == 1 else heads,
    }
    return found


def _beside_timms(config: Any, preset: Any) -> dict[str, Any]:
    """The options that differ from those of timm's function, which has no argument for them."""
    return {key: value for key in BESIDE_TIMMS if (value := getattr(config, key, None)) != getattr(preset, key, None)}


def differs_in_timm(model: Any, name: str) -> list[str]:
    """What timm's model computes differently, as sentences. Loaded here, the exported folder gives the same model."""
    return [
        f"timm's model has {key} {getattr(model_config(name), key)}, this one {value}: their outputs differ"
        for key, value in _beside_timms(model.config, model_config(name)).items() if key != "window_rule"
    ]


def _require_timms_windows(model: Any) -> None:
    """Raise ScratchvitError if a Swin's windows at the edge of a map are not timm's (see models/windows.py)."""
    if not isinstance(model, SwinTransformer):
        return
    config, size = model.config, model.patch_embed.grid_size
    for stage in model.layers:
        for number, block in enumerate(stage.blocks):
            timms = window_and_shift(size, pair(config.window_size), shifted=number % 2 == 1)
            padded = any(n % m for n, m in zip(size, block.window))
            if (block.window, block.shift) != timms or (block.pads_first and padded and any(block.shift)):
                raise ScratchvitError(
                    f"timm would use other windows than this model (window_rule {config.window_rule}) on a map of "
                    f"{size[0]}×{size[1]} tokens, so its outputs would differ: export it with an img_size whose "
                    f"maps windows of {block.window[0]}×{block.window[1]} divide"
                )
        size = (size[0] + 1) // 2, (size[1] + 1) // 2


def can_export(config: Any) -> bool:
    """Whether timm has models with a configuration of this kind."""
    return type(config) in _FAMILIES


def _in_timms_words(name: str, config: Any) -> tuple[str, dict[str, Any]]:
    """(the function of timm that builds such a model, the arguments that differ from its defaults)."""
    family = _FAMILIES.get(type(config))
    if family is None:
        raise ScratchvitError(
            f"{name} cannot be exported; supported are ViT, DeiT, hybrids, ResNet, ResNetV2, Swin, Swin V2 and MViTv2"
        )
    if isinstance(config, MViTv2Config) and config.num_frames == 1:
        H, W = pair(config.img_size)
        if H != W or H % 32:
            raise ScratchvitError(f"timm's {name} takes squares of a multiple of 32 pixels, this model takes {H}×{W}")

    def builds(candidate: str) -> bool:
        preset = model_config(candidate)
        return (
            candidate not in _NOT_IN_TIMM
            and type(preset) is type(config)
            and ("distilled" in candidate) == ("distilled" in name)
            and all(getattr(preset, key) == getattr(config, key) for key in family.fixed)
        )

    architecture = next(filter(builds, (name, *_alike_first(name))), None)
    if architecture is None:
        options = ", ".join(f"{key}={getattr(config, key)}" for key in family.fixed)
        raise ScratchvitError(f"timm has no model like this {name}: none of its functions builds one with {options}")
    preset = model_config(architecture)
    passed = [field.name for field in fields(config) if field.name not in family.ours + family.fixed + BESIDE_TIMMS]
    values = {key: getattr(config, key) for key in passed if getattr(config, key) != getattr(preset, key)}
    return architecture, {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _alike_first(name: str) -> list[str]:
    """The names of all models, sorted so that those of the same kind and size come first."""
    kind = "_".join(name.split("_")[:2])
    return sorted(list_models(), key=lambda other: not other.startswith(kind))
