"""Reading the model and its sizes from a config.json in timm's format (which ours is too) or Hugging Face's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scratchvit.errors import ScratchvitError
from scratchvit.models import list_models, model_config
from scratchvit.weights.arrays import short

# Limits of a configuration. The largest ViTs have 48 blocks, 6,144 dimensions and images of 1,024 × 1,024.
MOST_BLOCKS = 1000
LARGEST = 1 << 15


@dataclass(frozen=True)
class Described:
    """A model: its name in `list_models`, and the options that differ from its preset."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


def image_size(weights_path: Path) -> tuple[int, int] | None:
    """The image size (height, width) in the config.json in the folder of the weights, or None if it has none."""
    _, config = _config_beside(weights_path)
    size = config.get("image_size")
    pretrained = config.get("pretrained_cfg", config)
    if isinstance(pretrained, Mapping) and isinstance(input_size := pretrained.get("input_size"), list):
        size = input_size[1:]
    sides = tuple(size) if isinstance(size, list) else (size, size)
    return sides if len(sides) == 2 and all(isinstance(n, int) and 0 < n <= LARGEST for n in sides) else None


def _config_beside(weights_path: Path) -> tuple[Path, dict[str, Any]]:
    """(path, content) of the config.json in the folder of the weights; the content is {} if there is no such file."""
    # Imported here, because `import scratchvit` imports this file and must not need Pillow.
    from scratchvit.weights.preprocess import folder_of, read_config

    path = folder_of(weights_path) / "config.json"
    return path, read_config(path) or {}


def describe(weights_path: Path) -> Described | None:
    """The model that the config.json in the folder of the weights describes; None without one, or if it names none.

    Raises ScratchvitError, which names the file, for an unknown model or an invalid configuration.
    """
    path, config = _config_beside(weights_path)
    try:
        if "architecture" in config:
            return _checked(_from_timm(config))
        if "model_type" in config:
            return _checked(_from_huggingface(config))
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ScratchvitError(f"{path} cannot be used ({error!r}): correct it or move it away") from error
    except ScratchvitError as error:
        raise ScratchvitError(f"{path}: {error}") from error
    return None


def _checked(found: Described) -> Described:
    """Return `found`. Raises ScratchvitError if an option has another type than in the preset, or is out of range."""
    for key, value in found.options.items():
        preset = getattr(model_config(found.name), key, None)       # None: no such option; create_model will raise
        if preset is not None and not _is_like(preset, key, value):
            raise ScratchvitError(f"its {key} is {short(str(value))}, expected one like the {preset} of {found.name}")
    return found


def _is_like(preset: Any, key: str, value: Any) -> bool:
    def fits(number: Any, smallest: int = 0) -> bool:
        largest = MOST_BLOCKS if key in ("depth", "depths", "layers", "enc_layers", "dec_layers") else LARGEST
        return type(number) in (int, float) and smallest <= number <= largest

    match preset:
        case bool() | str():
            return type(value) is type(preset)
        case float():
            return fits(value)
        case tuple():
            return isinstance(value, tuple) and all(type(n) is int and fits(n) for n in value)
    if key.endswith("_size") and isinstance(value, tuple):      # (height, width)
        return len(value) == 2 and all(type(n) is int and fits(n, 1) for n in value)
    return type(value) is int and fits(value, 0 if key == "num_classes" else 1)


def _from_timm(config: Mapping[str, Any]) -> Described:
    architecture = str(config["architecture"]).partition(".")[0]         # without the tag of the weights
    # In timm, the same model at another image size has another name: vit_base_patch16_384.
    name = architecture if architecture in list_models() else re.sub(r"_\d+$", "_224", architecture)
    if name not in list_models():
        raise ScratchvitError(f"there is no model {architecture!r} here; `scratchvit models` lists those there are")
    options = dict(config.get("model_args") or {})
    if options.get("global_pool") == "avg" and not hasattr(model_config(name), "global_pool"):
        del options["global_pool"]          # timm writes this for ResNets, where it is not an option here
    if size := (config.get("pretrained_cfg") or config).get("input_size"):
        options.setdefault("img_size", size[1] if size[1] == size[2] else tuple(size[1:]))
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return Described(name, options)


def _from_huggingface(config: Mapping[str, Any]) -> Described:
    kind = config["model_type"]
    if kind in ("vit", "deit"):
        return _from_huggingface_vit(_VIT | dict(config), distilled=kind == "deit")
    if kind == "resnet":
        return _from_huggingface_resnet(_RESNET | dict(config))
    if kind == "bit":
        return _from_huggingface_bit(_BIT | dict(config))
    if kind in ("swin", "swinv2"):
        return _from_huggingface_swin(_SWIN | dict(config), second=kind == "swinv2")
    if kind == "imagegpt":
        return _from_huggingface_imagegpt(_IMAGEGPT | dict(config))
    if kind == "detr":
        return _from_huggingface_detr(_DETR | dict(config))
    if kind == "dab-detr":
        return _from_huggingface_dab_detr(_DAB_DETR | dict(config))
    raise ScratchvitError(
        f"Hugging Face's {kind!r} is not supported; "
        "ViT, DeiT, ResNet, BiT, Swin, Swin V2, ImageGPT, DETR and DAB-DETR are"
    )


#  defaults of the configurations
_VIT = {
    "image_size": 224, "patch_size": 16, "num_channels": 3, "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "intermediate_size": 3072, "qkv_bias": True, "hidden_act": "gelu",
}
_RESNET = {
    "embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3], "layer_type": "bottleneck",
    "hidden_act": "relu", "downsample_in_first_stage": False, "downsample_in_bottleneck": False,
}
_BIT = {
    "embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3], "width_factor": 1,
    "layer_type": "preactivation", "hidden_act": "relu", "num_groups": 32, "output_stride": 32,
    "global_padding": None, "embedding_dynamic_padding": False,
}
_IMAGEGPT = {
    "vocab_size": 513, "n_positions": 1024, "n_embd": 512, "n_layer": 24, "n_head": 8, "n_inner": None,
    "activation_function": "quick_gelu", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
}
_DETR = {
    "num_channels": 3, "num_queries": 100, "d_model": 256, "encoder_layers": 6, "decoder_layers": 6,
    "encoder_attention_heads": 8, "decoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048,
    "activation_function": "relu", "position_embedding_type": "sine", "dropout": 0.1, "dilation": False,
    "backbone": "resnet50", "backbone_config": None,
}
_DAB_DETR = _DETR | {
    "num_queries": 300, "hidden_size": 256, "activation_function": "prelu", "temperature_height": 20,
    "temperature_width": 20, "sine_position_embedding_scale": None, "keep_query_pos": False, "num_patterns": 0,
    "normalize_before": False,
}
_SWIN = {
    "image_size": 224, "patch_size": 4, "num_channels": 3, "embed_dim": 96, "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24], "window_size": 7, "mlp_ratio": 4.0, "qkv_bias": True, "hidden_act": "gelu",
    "use_absolute_embeddings": False,
}


def _from_huggingface_vit(given: Mapping[str, Any], distilled: bool) -> Described:
    _require(given, hidden_act="gelu")
    D = given["hidden_size"]
    options = {
        "img_size": given["image_size"], "patch_size": given["patch_size"], "in_chans": given["num_channels"],
        "embed_dim": D, "depth": given["num_hidden_layers"], "num_heads": given["num_attention_heads"],
        "mlp_ratio": given["intermediate_size"] / D, "qkv_bias": given["qkv_bias"],
    }
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return _nearest("deit_*_distilled_*" if distilled else "vit_*_patch*", options)


def _from_huggingface_resnet(given: Mapping[str, Any]) -> Described:
    bottleneck = given["layer_type"] == "bottleneck"
    widths = [256, 512, 1024, 2048] if bottleneck else [64, 128, 256, 512]
    _require(
        given, embedding_size=64, hidden_sizes=widths, hidden_act="relu", downsample_in_first_stage=False,
        downsample_in_bottleneck=False,
    )
    return _nearest("resnet[0-9]*", {"layers": tuple(given["depths"]), "bottleneck": bottleneck})


def _from_huggingface_bit(given: Mapping[str, Any]) -> Described:
    same = str(given["global_padding"]).upper() == "SAME"
    _require(
        given, embedding_size=64, layer_type="preactivation", hidden_act="relu", num_groups=32, output_stride=32,
        hidden_sizes=[256, 512, 1024, 2048], embedding_dynamic_padding=same,
    )
    options = {"layers": tuple(given["depths"]), "width_factor": given["width_factor"], "padding_same": same}
    return _nearest("resnetv2_*", options)


def _from_huggingface_swin(given: Mapping[str, Any], second: bool) -> Described:
    _require(given, hidden_act="gelu", use_absolute_embeddings=False)
    options = {
        "img_size": given["image_size"], "patch_size": given["patch_size"], "in_chans": given["num_channels"],
        **{key: given[key] for key in ("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "qkv_bias")},
    }
    if second:
        sizes = given.get("pretrained_window_sizes", ())        # four zeros whatever the number of stages
        options["pretrained_window_sizes"] = tuple(sizes) if any(sizes) else ()
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return _nearest("swinv2_*" if second else "swin_*", options)


def _from_huggingface_imagegpt(given: Mapping[str, Any]) -> Described:
    _require(
        given, activation_function="quick_gelu", layer_norm_epsilon=1e-5, scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False, add_cross_attention=False,
    )
    D, side = given["n_embd"], math.isqrt(given["n_positions"])
    _require(given, n_positions=side * side)
    if given["n_inner"] is not None:
        _require(given, n_inner=4 * D)
    options = {
        "img_size": side, "num_colors": given["vocab_size"] - 1, "embed_dim": D, "depth": given["n_layer"],
        "num_heads": given["n_head"],
    }
    return _nearest("igpt_*", options)


def _from_huggingface_detr(given: Mapping[str, Any]) -> Described:
    _require(given, activation_function="relu")
    return _nearest("detr_*", _options_of_detr(given))


def _from_huggingface_dab_detr(given: Mapping[str, Any]) -> Described:
    _require(
        given, activation_function="prelu", temperature_height=20, temperature_width=20,
        sine_position_embedding_scale=None, keep_query_pos=False, num_patterns=0, normalize_before=False,
    )
    return _nearest("dab_detr_*", _options_of_detr({**given, "d_model": given["hidden_size"]}))


def _options_of_detr(given: Mapping[str, Any]) -> dict[str, Any]:
    _require(
        given, position_embedding_type="sine", decoder_attention_heads=given["encoder_attention_heads"],
        decoder_ffn_dim=given["encoder_ffn_dim"],
    )
    cnn = dict(given["backbone_config"] or {})
    if cnn.get("model_type") == "resnet":
        resnet, dilation = _from_huggingface_resnet(_RESNET | cnn).options, False
    else:                       # a model of timm, by name
        name = cnn.get("backbone") or given["backbone"]
        if name not in list_models("resnet*"):
            raise ScratchvitError(f"its backbone is {short(str(name))}; a DETR here needs a ResNet")
        dilation = bool(given["dilation"]) or cnn.get("output_stride", 32) == 16
        resnet = {key: getattr(model_config(name), key) for key in ("layers", "bottleneck")}
    return {
        **resnet, "dilation": dilation, "in_chans": given["num_channels"], "num_queries": given["num_queries"],
        "hidden_dim": given["d_model"], "nheads": given["encoder_attention_heads"], "dropout": given["dropout"],
        "enc_layers": given["encoder_layers"], "dec_layers": given["decoder_layers"],
        "dim_feedforward": given["encoder_ffn_dim"],
    }


def _require(given: Mapping[str, Any], **expected: Any) -> None:
    for key, value in expected.items():
        if given[key] != value:
            raise ScratchvitError(f"its {key} is {given[key]}; the models here only support {value}")


def _nearest(pattern: str, options: dict[str, Any]) -> Described:
    """The preset, of those whose name matches, that has most values in common with these options."""
    presets = {name: model_config(name) for name in list_models(pattern)}
    name = max(presets, key=lambda name: sum(getattr(presets[name], key) == options[key] for key in options))
    return Described(name, options)
