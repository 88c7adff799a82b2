"""The configurations of Hugging Face's models (`model_type`), in the names and with the defaults of transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from scratchvit.errors import ScratchvitError
from scratchvit.models import list_models, model_config
from scratchvit.weights.arrays import short
from scratchvit.weights.configs.fields import Described, Fields, require, unknown_fields

# --- the fields of every model ---

COMMON = Fields(
    honoured={"model_type": ""},
    required={"pruned_heads": ({}, None), "quantization_config": (None,)},
    no_effect=(
        "architectures", "transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "dtype",
        "torch_dtype", "torchscript", "use_bfloat16", "tf_legacy_loss", "attn_implementation", "_attn_implementation",
        "_attn_implementation_autoset", "output_attentions", "output_hidden_states", "return_dict", "use_return_dict",
        "use_cache", "chunk_size_feed_forward", "gradient_checkpointing", "is_encoder_decoder", "is_decoder",
        "cross_attention_hidden_size", "tie_encoder_decoder", "tie_word_embeddings",
        "id2label", "label2id", "num_labels", "problem_type",
        "finetuning_task", "task_specific_params", "tokenizer_class", "prefix", "bos_token_id", "eos_token_id",
        "pad_token_id", "sep_token_id", "decoder_start_token_id", "initializer_range",
    ),
)

# --- the fields of each ---

_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
_OF_A_BACKBONE = ("stage_names", "out_features", "out_indices", "_out_features", "_out_indices")
_GELU = ("gelu", "gelu_python")         # two spellings of the exact form

VIT = Fields(
    honoured={
        "image_size": 224, "patch_size": 16, "num_channels": 3, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072, "qkv_bias": True, "layer_norm_eps": 1e-12,
        "head_dim": None,
    },
    required={"hidden_act": _GELU},
    no_effect=(*_DROPOUT, "encoder_stride", "pooler_output_size", "pooler_act"),
)
SWIN = Fields(
    honoured={
        "image_size": 224, "patch_size": 4, "num_channels": 3, "embed_dim": 96, "depths": [2, 2, 6, 2],
        "num_heads": [3, 6, 12, 24], "window_size": 7, "mlp_ratio": 4.0, "qkv_bias": True, "layer_norm_eps": 1e-5,
    },
    required={"hidden_act": _GELU, "use_absolute_embeddings": (False,)},
    no_effect=(
        *_DROPOUT, "drop_path_rate", "encoder_stride", "num_layers", "hidden_size", "path_norm",
        *_OF_A_BACKBONE,
    ),
)
SWIN_V2 = Fields({**SWIN.honoured, "pretrained_window_sizes": [0, 0, 0, 0]}, SWIN.required, SWIN.no_effect)
RESNET = Fields(
    honoured={
        "num_channels": 3, "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3], "layer_type": "bottleneck",
    },
    required={
        "embedding_size": (64,), "hidden_act": ("relu",), "downsample_in_first_stage": (False,),
        "downsample_in_bottleneck": (False,),
    },
    no_effect=_OF_A_BACKBONE,
)
BIT = Fields(
    honoured={
        "num_channels": 3, "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3], "width_factor": 1,
    },
    required={      # with global_padding "SAME", its max pooling pads with zeros, even where all values are negative
        "global_padding": (None,), "embedding_dynamic_padding": (False,),
        "embedding_size": (64,), "layer_type": ("preactivation",), "hidden_act": ("relu",), "num_groups": (32,),
        "output_stride": (32,),
    },
    no_effect=("drop_path_rate", *_OF_A_BACKBONE),
)
IMAGE_GPT = Fields(
    honoured={
        "vocab_size": 513, "n_positions": 1024, "n_embd": 512, "n_layer": 24, "n_head": 8, "n_inner": None,
        "layer_norm_epsilon": 1e-5,
    },
    required={
        "activation_function": ("quick_gelu",), "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,), "tie_word_embeddings": (False,),
    },
    no_effect=("resid_pdrop", "embd_pdrop", "attn_pdrop", "reorder_and_upcast_attn"),
)
_OF_BOTH_DETRS = {
    "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 8, "decoder_attention_heads": 8,
    "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048, "dropout": 0.1, "dilation": False, "backbone_config": None,
    "backbone": "resnet50", "backbone_kwargs": None,
}
_TRAINING_OF_DETRS = (
    "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop", "classifier_dropout",
    "init_std", "init_xavier_std", "class_cost", "bbox_cost", "giou_cost", "mask_loss_coefficient",
    "dice_loss_coefficient", "cls_loss_coefficient", "bbox_loss_coefficient", "giou_loss_coefficient",
    "eos_coefficient", "focal_alpha", "use_timm_backbone", "use_pretrained_backbone", "num_hidden_layers",
    "max_position_embeddings", "scale_embedding",
)
DETR = Fields(
    honoured=_OF_BOTH_DETRS | {"num_channels": 3, "num_queries": 100, "d_model": 256},
    required={      # with auxiliary_loss, its decoder's layers are normalised once more, in evaluation too
        "activation_function": ("relu",), "position_embedding_type": ("sine",), "auxiliary_loss": (False,),
    },
    no_effect=_TRAINING_OF_DETRS,
)
DAB_DETR = Fields(
    honoured=_OF_BOTH_DETRS | {"num_channels": 3, "num_queries": 300, "hidden_size": 256},
    required={
        "activation_function": ("prelu",), "position_embedding_type": ("sine",), "temperature_height": (20,),
        "temperature_width": (20,), "sine_position_embedding_scale": (None,), "keep_query_pos": (False,),
        "num_patterns": (0,), "normalize_before": (False,), "query_dim": (4,), "tie_word_embeddings": (True,),
    },
    no_effect=(*_TRAINING_OF_DETRS, "auxiliary_loss", "random_refpoints_xy", "initializer_bias_prior_prob"),
)
TIMM_BACKBONE = Fields(
    honoured={"backbone": None, "output_stride": None, "out_indices": None},
    required={"features_only": (True,)},
    no_effect=("num_channels", "freeze_batch_norm_2d", "use_pretrained_backbone", "use_timm_backbone", "out_features"),
)


class Kind(NamedTuple):
    """The name of a kind in the documentation, its fields, and what turns them into options.

    options: honoured fields → (pattern of the presets' names, options of the model)
    """

    title: str
    fields: Fields
    options: Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]


def described(config: Mapping[str, Any]) -> Described:
    """The model that a config.json of Hugging Face describes.

    Raises ScratchvitError for a kind that is not supported, and for a field with a value that no model here computes.
    """
    kind = KINDS.get(config["model_type"]) if isinstance(config["model_type"], str) else None
    if kind is None:
        raise ScratchvitError(
            f"Hugging Face's {config['model_type']!r} is not supported; "
            "ViT, DeiT, ResNet, BiT, Swin, Swin V2, ImageGPT, DETR and DAB-DETR are"
        )
    COMMON.read(config)
    pattern, options = kind.options(kind.fields.read(config))
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    notes = unknown_fields([name for name in kind.fields.unknown(config) if name not in COMMON.names])
    if (problem := config.get("problem_type")) not in (None, "single_label_classification"):
        notes += (
            f"its problem_type is {short(str(problem))}: its logits are right, but the softmax probabilities "
            "printed here assume that each image belongs to exactly one class",
        )
    return Described(_nearest(pattern, options), options, notes)


def _vit(given: Mapping[str, Any], names: str = "vit_*_patch*") -> tuple[str, dict[str, Any]]:
    D, heads = given["hidden_size"], given["num_attention_heads"]
    require("head_dim", given["head_dim"], None, D // heads)
    return names, _of_an_image(given) | {
        "embed_dim": D, "depth": given["num_hidden_layers"], "num_heads": heads,
        "mlp_ratio": _ratio(given["intermediate_size"], D), "qkv_bias": given["qkv_bias"],
    }


def _deit(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return _vit(given, "deit_*_distilled_*")


def _of_an_image(given: Mapping[str, Any]) -> dict[str, Any]:
    """What ViTs and Swins have in common."""
    return {
        "img_size": given["image_size"], "patch_size": given["patch_size"], "in_chans": given["num_channels"],
        "norm_eps": given["layer_norm_eps"],
    }


def _ratio(hidden: int, dim: int) -> float:
    """The mlp_ratio for which int(dim * ratio) is `hidden`: the quotient, or the next float if that is rounded down."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def _swin(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    same = ("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "qkv_bias")
    return "swin_*", _of_an_image(given) | {key: given[key] for key in same}


def _swin_v2(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    sizes = given["pretrained_window_sizes"]                    # four zeros whatever the number of stages
    return "swinv2_*", _swin(given)[1] | {"pretrained_window_sizes": tuple(sizes) if any(sizes) else ()}


def _resnet(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    require("layer_type", given["layer_type"], "bottleneck", "basic")
    bottleneck, widths = given["layer_type"] == "bottleneck", given["hidden_sizes"]
    if bottleneck:
        if any(width % 4 for width in widths):
            raise ScratchvitError(f"its hidden_sizes are {widths}; in bottleneck blocks they are multiples of 4")
        widths = [width // 4 for width in widths]
    return "resnet[0-9]*", {"layers": tuple(given["depths"]), "bottleneck": bottleneck, "channels": tuple(widths)}


def _bit(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return "resnetv2_*", {
        "layers": tuple(given["depths"]), "channels": tuple(given["hidden_sizes"]),
        "width_factor": given["width_factor"], "padding_same": False,
    }


def _image_gpt(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    D, side = given["n_embd"], math.isqrt(given["n_positions"])
    require("n_positions", given["n_positions"], side * side)
    require("n_inner", given["n_inner"], None, 4 * D)
    return "igpt_*", {
        "img_size": side, "num_colors": given["vocab_size"] - 1, "embed_dim": D, "depth": given["n_layer"],
        "num_heads": given["n_head"], "norm_eps": given["layer_norm_epsilon"],
    }


def _detr(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return "detr_*", _of_a_detr(given)


def _dab_detr(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return "dab_detr_*", _of_a_detr({**given, "d_model": given["hidden_size"]})


def _of_a_detr(given: Mapping[str, Any]) -> dict[str, Any]:
    require("decoder_attention_heads", given["decoder_attention_heads"], given["encoder_attention_heads"])
    require("decoder_ffn_dim", given["decoder_ffn_dim"], given["encoder_ffn_dim"])
    return _backbone(given) | {
        "stages": 4, "frozen_bn": True, "normalize_before": False,
        "in_chans": given["num_channels"], "num_queries": given["num_queries"], "hidden_dim": given["d_model"],
        "nheads": given["encoder_attention_heads"], "dropout": given["dropout"],
        "enc_layers": given["encoder_layers"], "dec_layers": given["decoder_layers"],
        "dim_feedforward": given["encoder_ffn_dim"],
    }


def _backbone(given: Mapping[str, Any]) -> dict[str, Any]:
    """The ResNet of a DETR: Hugging Face's own, with a configuration, or timm's, by name."""
    config = dict(given["backbone_config"] or {})
    if config.get("model_type") == "resnet":
        _require_last_stage(config.get("out_indices"), config.get("out_features"))
        return _resnet(RESNET.read(config))[1] | {"dilation": False}
    cnn = TIMM_BACKBONE.read((given["backbone_kwargs"] or {}) | config)
    _require_last_stage(cnn["out_indices"], None)
    require("output_stride", cnn["output_stride"], None, 32, 16)
    name = cnn["backbone"] or given["backbone"]
    if name not in list_models("resnet*"):
        raise ScratchvitError(f"its backbone is {short(str(name))}; a DETR here needs a ResNet")
    preset = model_config(name)
    resnet = {key: getattr(preset, key) for key in ("layers", "bottleneck", "channels")}
    return resnet | {"dilation": bool(given["dilation"]) or cnn["output_stride"] == 16}


def _require_last_stage(indices: Any, features: Any) -> None:
    """Of the maps that a backbone returns, a DETR reads the last."""
    if indices:
        require("out_indices", list(indices)[-1], 4, -1)
    if features:
        require("out_features", list(features)[-1], "stage4")


def _nearest(pattern: str, options: dict[str, Any]) -> str:
    """The preset, of those whose name matches, that has most values in common with these options."""
    presets = {name: model_config(name) for name in list_models(pattern)}
    return max(presets, key=lambda name: sum(getattr(presets[name], key) == options[key] for key in options))


KINDS = {
    "vit": Kind("ViT", VIT, _vit),
    "deit": Kind("DeiT", VIT, _deit),
    "swin": Kind("Swin", SWIN, _swin),
    "swinv2": Kind("Swin V2", SWIN_V2, _swin_v2),
    "resnet": Kind("ResNet", RESNET, _resnet),
    "bit": Kind("BiT", BIT, _bit),
    "imagegpt": Kind("ImageGPT", IMAGE_GPT, _image_gpt),
    "detr": Kind("DETR", DETR, _detr),
    "dab-detr": Kind("DAB-DETR", DAB_DETR, _dab_detr),
}
