"""Configurations of every family and origin, one field varied at a time and several at random, against the origin.

A folder that the library itself has written is opened without another word, and its logits are the library's to 1e-5,
both computed in float64 (DAB-DETR's in float32, to which the library casts its positions); or it is refused with a
sentence that names the field.
"""

import inspect
import json

import numpy as np
import pytest
import safetensors.numpy

from scratchvit.errors import ScratchvitError
from scratchvit.weights.configs import huggingface, timm
from scratchvit.weights.load import open_model
from tests.support import peers
from tests.support.model_parity import in_float64
from tests.support.seeds import seeded

pytestmark = pytest.mark.parity

REFUSED = "refused"         # what is expected instead of logits
COMBINATIONS = 4            # of three fields each, for every family


def logits_of(peer, x):
    """What is compared: logits, for a detector with its boxes. In the precision of x."""
    import torch

    with torch.no_grad():
        output = (peer.double() if x.dtype == np.float64 else peer)(torch.from_numpy(x))
    output = getattr(output, "logits", output) if not hasattr(output, "pred_boxes") else output
    parts = [output.logits, output.pred_boxes] if hasattr(output, "pred_boxes") else [output]
    return [part.detach().numpy() for part in parts]


def ours_of(model, x):
    output = (in_float64(model) if x.dtype == np.float64 else model)(x)
    parts = [output["pred_logits"], output["pred_boxes"]] if isinstance(output, dict) else [output]
    return [part.numpy() for part in parts]


def assert_same(theirs, ours):
    for expected, found in zip(theirs, ours, strict=True):
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def pictures(channels, size, seed=0):
    return seeded(seed).standard_normal((2, channels, *size))


def cases(table):
    """(family, {field: value}, expected) for each field of a table {family: {field: value or (value, REFUSED)}}.

    Then combinations of three fields that are not refused, drawn at random.
    """
    rng = seeded(5)
    for family, varied in table.items():
        for field, value in varied.items():
            refused = isinstance(value, tuple) and value[-1] == REFUSED
            yield pytest.param(family, {field: value[0] if refused else value}, field if refused else None,
                               id=f"{family}-{field}")
        free = [field for field, value in varied.items() if not (isinstance(value, tuple) and value[-1] == REFUSED)]
        for number in range(COMBINATIONS):
            chosen = {field: varied[field] for field in rng.choice(free, 3, replace=False).tolist()}
            yield pytest.param(family, chosen, None, id=f"{family}-{number}: {', '.join(chosen)}")


# --- Hugging Face ---

_LABELS = {str(i): f"LABEL_{i}" for i in range(3)}
_VIT = {
    "image_size": 24, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 40, "num_labels": 3,
}
_SWIN = {
    "image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4,
    "num_labels": 3,
}
_CNN = {"depths": [1, 1, 1, 1], "num_labels": 3}
_RESNET = {**_CNN, "hidden_sizes": [16, 32, 64, 128]}
_DETECTOR = {
    "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_queries": 5, "num_labels": 3, "backbone_config": {
        "model_type": "resnet", **_RESNET, "layer_type": "basic", "hidden_sizes": [64, 16, 16, 32],
        "out_features": ["stage4"],
    },
}
BASES = {
    "ViT": _VIT, "DeiT": _VIT, "Swin": _SWIN, "Swinv2": _SWIN | {"pretrained_window_sizes": [0, 0]},
    "ResNet": _RESNET, "Bit": {**_CNN, "hidden_sizes": [128, 128, 128, 256]},
    "ImageGPT": {"vocab_size": 9, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "num_labels": 3},
    "Detr": {**_DETECTOR, "d_model": 16}, "DabDetr": {**_DETECTOR, "hidden_size": 16},
}
TASKS = {"Detr": "ForObjectDetection", "DabDetr": "ForObjectDetection"}

_OF_VITS = {
    "image_size": [16, 40], "patch_size": 4, "num_channels": 1, "hidden_size": 36, "num_hidden_layers": 3,
    "num_attention_heads": 6, "intermediate_size": 49, "qkv_bias": False, "layer_norm_eps": 0.1, "num_labels": 5,
    "hidden_act": ("relu", REFUSED), "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2,
    "initializer_range": 0.5, "encoder_stride": 4, "pooler_output_size": 12, "pooler_act": "relu",
    "head_dim": (4, REFUSED),
}
_OF_SWINS = {
    "image_size": 36, "patch_size": 2, "num_channels": 1, "embed_dim": 12, "depths": [1, 3], "num_heads": [2, 4],
    "window_size": 3, "mlp_ratio": 2.3, "qkv_bias": False, "layer_norm_eps": 0.1, "num_labels": 5,
    "hidden_act": ("relu", REFUSED), "use_absolute_embeddings": (True, REFUSED), "hidden_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.2, "drop_path_rate": 0.3, "initializer_range": 0.5, "encoder_stride": 4,
}
_OF_DETRS = {
    "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": (4, REFUSED),
    "decoder_ffn_dim": (40, REFUSED), "num_queries": 7, "dropout": 0.3, "attention_dropout": 0.3,
    "activation_dropout": 0.3, "auxiliary_loss": True, "class_cost": 3, "giou_loss_coefficient": 4, "num_labels": 2,
    "init_std": 0.3,
    "backbone_config": {"model_type": "resnet", **_RESNET, "depths": [1, 2, 1, 1], "out_indices": [2, 4]},
}
HUGGING_FACE = {
    "ViT": _OF_VITS,
    "DeiT": _OF_VITS,
    "Swin": _OF_SWINS,
    "Swinv2": _OF_SWINS | {"pretrained_window_sizes": [6, 3]},
    "ResNet": {
        "num_channels": 1, "embedding_size": (32, REFUSED), "hidden_sizes": [32, 64, 128, 64], "depths": [2, 1, 1, 2],
        "layer_type": "basic", "hidden_act": ("gelu", REFUSED), "downsample_in_first_stage": (True, REFUSED),
        "downsample_in_bottleneck": (True, REFUSED), "num_labels": 5, "initializer_range": 0.5,
        "out_features": ["stage2"], "output_hidden_states": True,
    },
    "Bit": {
        "num_channels": 1, "embedding_size": (32, REFUSED), "hidden_sizes": [256, 128, 256, 128],
        "depths": [2, 1, 1, 2],
        "layer_type": ("bottleneck", REFUSED), "hidden_act": ("gelu", REFUSED), "num_groups": (16, REFUSED),
        "global_padding": ("VALID", REFUSED), "embedding_dynamic_padding": (True, REFUSED),
        "output_stride": (16, REFUSED), "drop_path_rate": 0.2, "num_labels": 5, "out_indices": [2],
    },
    "ImageGPT": {
        "vocab_size": 13, "n_positions": 25, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_inner": (24, REFUSED),
        "activation_function": ("gelu", REFUSED), "resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2,
        "layer_norm_epsilon": 0.1, "initializer_range": 0.5, "scale_attn_weights": (False, REFUSED),
        "scale_attn_by_inverse_layer_idx": (True, REFUSED), "reorder_and_upcast_attn": True, "num_labels": 5,
    },
    "Detr": _OF_DETRS | {
        "d_model": 24, "activation_function": ("gelu", REFUSED), "position_embedding_type": ("learned", REFUSED),
        "auxiliary_loss": (True, REFUSED),
    },
    "DabDetr": _OF_DETRS | {
        "hidden_size": 24, "activation_function": ("relu", REFUSED), "temperature_height": (40, REFUSED),
        "keep_query_pos": (True, REFUSED), "normalize_before": (True, REFUSED),
        "sine_position_embedding_scale": (3.0, REFUSED), "num_patterns": (2, REFUSED), "random_refpoints_xy": True,
    },
}
# Fields that go together.
PAIRS = [
    pytest.param("Bit", {"global_padding": "SAME", "embedding_dynamic_padding": True}, "global_padding", id="Bit-SAME"),
    pytest.param("Detr", {"encoder_attention_heads": 4, "decoder_attention_heads": 4}, None, id="Detr-heads"),
    pytest.param("DabDetr", {"encoder_ffn_dim": 40, "decoder_ffn_dim": 40}, None, id="DabDetr-ffn"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")           # transformers warns of what it deprecates
@pytest.mark.parametrize(("family", "changes", "refused"), [*cases(HUGGING_FACE), *PAIRS])
def test_hugging_face(family, changes, refused, tmp_path):
    transformers = peers.import_transformers()
    config = getattr(transformers, f"{family}Config")(**BASES[family] | changes)
    task = TASKS.get(family, "ForImageClassification")
    if refused:         # some of these the library itself cannot build: the configuration is enough
        config.save_pretrained(tmp_path)
        safetensors.numpy.save_file({"x": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
        with pytest.raises(ScratchvitError, match=f"its .*{refused.partition('_')[2] or refused}"):
            open_model(tmp_path)
        return
    peer = peers.randomise(getattr(transformers, f"{family}{task}")(config))
    peer.save_pretrained(tmp_path)
    if family == "ImageGPT":
        _compare_tokens(peer, config, tmp_path)
        return
    model, _, report = open_model(tmp_path)
    assert not report.notes
    size = getattr(config, "image_size", 64)
    x = pictures(model.config.in_chans, size if isinstance(size, list) else (size, size))
    x = x.astype(np.float32) if family == "DabDetr" else x
    assert_same(logits_of(peer, x), ours_of(model, x))


def _compare_tokens(peer, config, folder):
    """ImageGPT reads colours by number; our model finds them in a palette, here grey levels."""
    levels = np.linspace(-1, 1, config.vocab_size - 1, dtype=np.float32)
    palette = [[float(level)] * 3 for level in levels]
    (folder / "preprocessor_config.json").write_text(json.dumps({"clusters": palette}))
    model, _, _ = open_model(folder)
    side = model.config.img_size
    tokens = seeded(1).integers(0, len(levels), (2, side * side))
    x = np.repeat(levels[tokens].reshape(2, 1, side, side), 3, axis=1)
    start = np.full((2, 1), len(levels))            # ours puts the start token first, as the authors do
    peer, model, tokens = peer.double(), in_float64(model), np.concatenate([start, tokens[:, :-1]], axis=1)
    assert_same(logits_of(peer, tokens), ours_of(model, x.astype(np.float64)))


@pytest.mark.parametrize("kind", huggingface.KINDS)
def test_every_field_of_the_library_is_in_the_table_with_its_default(kind):
    transformers = peers.import_transformers()
    config = transformers.AutoConfig.for_model(kind).to_dict()
    fields = huggingface.KINDS[kind].fields
    assert not [name for name in fields.unknown(config) if name not in huggingface.COMMON.names]
    defaults = {**fields.honoured, **{name: values[0] for name, values in fields.required.items()}}
    # What the library no longer writes (backbone, …), and the backbone that it now writes in full.
    compared = defaults.keys() & config.keys() - {"backbone_config"}
    assert {name: list(config[name]) if isinstance(config[name], tuple) else config[name] for name in compared} == {
        name: defaults[name] for name in compared
    }
    if "backbone_config" in config:
        assert not [
            name for name in huggingface.TIMM_BACKBONE.unknown(config["backbone_config"])
            if name not in huggingface.COMMON.names
        ]


# --- timm ---

_OF_TIMMS_VITS = {
    "img_size": [16, 40], "patch_size": 4, "in_chans": 1, "num_classes": 5, "embed_dim": 36, "depth": 3, "num_heads": 6,
    "mlp_ratio": 2.3, "qkv_bias": False, "drop_path_rate": 0.2, "proj_drop_rate": 0.2, "patch_drop_rate": 0.2,
    "weight_init": "jax", "init_values": (0.1, REFUSED), "reg_tokens": (2, REFUSED), "qk_norm": (True, REFUSED),
    "act_layer": ("relu", REFUSED), "pre_norm": (True, REFUSED), "no_embed_class": (True, REFUSED),
    "final_norm": (False, REFUSED), "fc_norm": (True, REFUSED), "proj_bias": (False, REFUSED),
}
_TIMMS_SWIN = {
    "img_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4,
    "num_classes": 3,
}
_OF_TIMMS_SWINS = {
    "img_size": 36, "patch_size": 2, "in_chans": 1, "num_classes": 5, "embed_dim": 12, "depths": [1, 3],
    "num_heads": [2, 4], "window_size": 3, "mlp_ratio": 2.3, "qkv_bias": False, "drop_path_rate": 0.3, "drop_rate": 0.2,
    "strict_img_size": False, "always_partition": (True, REFUSED), "global_pool": ("max", REFUSED),
}
_TIMMS_CNN = {"layers": [1, 1, 1, 1], "num_classes": 3}
TIMM = {
    "vit_tiny_patch16_224": (
        {"img_size": 24, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 3},
        _OF_TIMMS_VITS | {"global_pool": "avg"},
    ),
    "deit_tiny_distilled_patch16_224": (
        {"img_size": 24, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 3},
        _OF_TIMMS_VITS,
    ),
    "vit_tiny_r_s16_p8_224": (
        {"img_size": 64, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 3},
        _OF_TIMMS_VITS | {"img_size": [64, 96], "global_pool": "avg"},
    ),
    "swin_tiny_patch4_window7_224": (_TIMMS_SWIN, _OF_TIMMS_SWINS | {"head_dim": (8, REFUSED)}),
    "swinv2_tiny_window8_256": (
        _TIMMS_SWIN, _OF_TIMMS_SWINS | {"pretrained_window_sizes": [6, 3], "act_layer": ("relu", REFUSED)},
    ),
    "resnet50": (
        _TIMMS_CNN,
        {
            "layers": [1, 2, 1, 1], "in_chans": 1, "num_classes": 5, "output_stride": 16, "channels": [16, 32, 48, 64],
            "drop_rate": 0.2, "drop_path_rate": 0.2, "zero_init_last": False, "global_pool": ("max", REFUSED),
            "cardinality": (32, REFUSED), "stem_type": ("deep", REFUSED), "avg_down": (True, REFUSED),
            "act_layer": ("gelu", REFUSED), "block_reduce_first": (2, REFUSED), "aa_layer": ("blur", REFUSED),
        },
    ),
    "resnetv2_50x1_bit": (
        {"num_classes": 3},
        {
            "in_chans": 1, "num_classes": 5, "drop_rate": 0.2, "drop_path_rate": 0.2, "zero_init_last": True,
            "output_stride": (16, REFUSED), "stem_chs": (32, REFUSED), "avg_down": (True, REFUSED),
            "basic": (True, REFUSED), "bottle_ratio": (0.5, REFUSED), "act_layer": ("gelu", REFUSED),
            "stem_type": ("deep", REFUSED), "preact": (False, REFUSED),
        },
    ),
    "mvitv2_tiny": (
        {"num_classes": 3},
        {
            "img_size": 64, "in_chans": 1, "num_classes": 5, "drop_rate": 0.2, "drop_path_rate": 0.2,
            "norm_eps": (0.1, REFUSED),
        },
    ),
}


def timm_cases():
    for name, (_, varied) in TIMM.items():
        yield from cases({name: varied})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "changes", "refused"), timm_cases())
def test_timm(name, changes, refused, tmp_path):
    timm_ = peers.import_timm()
    args = {"img_size": 224, "in_chans": 3, **TIMM[name][0], **changes}
    if refused:
        config = {"architecture": name, "model_args": args}
        (tmp_path / "config.json").write_text(json.dumps(config))
        safetensors.numpy.save_file({"x": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
        with pytest.raises(ScratchvitError, match=refused):
            open_model(tmp_path)
        return
    sized = timm_.models.get_arch_name(name).startswith(("vit", "deit", "swin", "mvit"))
    size = args["img_size"] if sized else args.pop("img_size") and 32
    peer = peers.randomise(timm_.create_model(name, **args))
    height, width = size if isinstance(size, list) else (size, size)
    config = {
        "architecture": name, "num_classes": peer.num_classes, "global_pool": "token",          # not what it goes by
        "model_args": args, "pretrained_cfg": {"input_size": [args["in_chans"], height, width]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = {key: value.numpy() for key, value in peer.state_dict().items()}
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    model, found, report = open_model(tmp_path)
    assert found == name and not report.notes
    x = pictures(args["in_chans"], (height, width))
    assert_same(logits_of(peer, x), ours_of(model, x))


def test_every_argument_of_timms_models_is_in_the_table():
    models = peers.import_timm().models
    classes = {
        "ViTConfig": models.vision_transformer.VisionTransformer, "SwinConfig": models.swin_transformer.SwinTransformer,
        "SwinV2Config": models.swin_transformer_v2.SwinTransformerV2, "MViTv2Config": models.mvitv2.MultiScaleVit,
        "ResNetConfig": models.resnet.ResNet, "ResNetV2Config": models.resnetv2.ResNetV2,
    }
    # Modules, which no JSON can hold; timm's functions set the block, and the configuration of an MViT.
    code = {"self", "embed_layer", "block_fn", "mlp_layer", "attn_layer", "block", "cfg", "conv_layer"}
    for config, fields in timm.FIELDS.items():
        if peer := classes.get(config.__name__):
            arguments = inspect.signature(peer.__init__).parameters.keys() - code - {"norm_layer"}
            fixed = {"layers", "channels", "width_factor"} if config.__name__ == "ResNetV2Config" else set()
            assert not arguments - fields.names - fixed, config.__name__


# --- torchvision, whose files say nothing but their names ---


def _torchvisions_vit(**args):
    from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

    given = {"image_size": 24, "patch_size": 8, "num_layers": 2, "num_heads": 3, "hidden_dim": 24, "mlp_dim": 40,
             "num_classes": 3} | args
    if "conv_stem_configs" in given:
        given["conv_stem_configs"] = [ConvStemConfig(8, 3, 8)]
    ours = {"embed_dim": given["hidden_dim"], "depth": given["num_layers"], "num_heads": given["num_heads"],
            "mlp_ratio": given["mlp_dim"] / given["hidden_dim"]}
    return VisionTransformer(**given), "vit_tiny_patch16_224", ours, given["image_size"]


def _torchvisions_swin(second=False, image_size=32, **args):
    from torchvision.models import swin_transformer as swin

    given = {"patch_size": [4, 4], "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": [4, 4],
             "num_classes": 3} | args
    kind = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2} if second else {}
    ours = {key: tuple(given[key]) for key in ("depths", "num_heads", "window_size")}
    ours |= {"embed_dim": given["embed_dim"], "mlp_ratio": given.get("mlp_ratio", 4.0), "img_size": image_size}
    peer = swin.SwinTransformer(**given, **kind)
    return peer, "swinv2_tiny_window8_256" if second else "swin_tiny_patch4_window7_224", ours, image_size


def _torchvisions_swin_v2(**args):
    return _torchvisions_swin(second=True, **args)


def _torchvisions_resnet(bottleneck=False, **args):
    from torchvision.models import resnet

    given = {"layers": [1, 1, 1, 1], "num_classes": 3} | args
    dilated = given.get("replace_stride_with_dilation")
    ours = {"layers": tuple(given["layers"]), "output_stride": 32 >> sum(dilated or ())}
    peer = resnet.ResNet(resnet.Bottleneck if bottleneck else resnet.BasicBlock, **given)
    return peer, "resnet50" if bottleneck else "resnet18", ours, 40


TORCHVISION = {
    "vit": (_torchvisions_vit, {
        "image_size": 40, "patch_size": 4, "num_layers": 3, "num_heads": 6, "hidden_dim": 36, "mlp_dim": 60,
        "dropout": 0.2, "attention_dropout": 0.2, "num_classes": 5, "representation_size": (12, REFUSED),
        "conv_stem_configs": ("a stem", REFUSED),
    }),
    "swin": (_torchvisions_swin, {
        "image_size": 36, "patch_size": [2, 4], "embed_dim": 12, "depths": [1, 3], "num_heads": [2, 4],
        "window_size": [3, 5], "mlp_ratio": 2.3, "dropout": 0.2, "attention_dropout": 0.2, "stochastic_depth_prob": 0.3,
        "num_classes": 5,
    }),
    "swin_v2": (_torchvisions_swin_v2, {
        "image_size": 36, "patch_size": [2, 4], "embed_dim": 12, "depths": [1, 3], "num_heads": [2, 4],
        "window_size": [3, 5], "mlp_ratio": 2.3, "dropout": 0.2, "attention_dropout": 0.2, "stochastic_depth_prob": 0.3,
        "num_classes": 5,
    }),
    "resnet": (_torchvisions_resnet, {
        "layers": [2, 1, 1, 2], "num_classes": 5, "bottleneck": True, "zero_init_residual": True,
    }),
}


def torchvision_cases():
    for family, (_, varied) in TORCHVISION.items():
        yield from cases({family: varied})
    changes = {"bottleneck": True, "replace_stride_with_dilation": [False, True, True]}
    yield pytest.param("resnet", changes, None, id="resnet-dilated")
    yield pytest.param("resnet", {"bottleneck": True, "width_per_group": 128}, "mis-shaped", id="resnet-wide")
    yield pytest.param("resnet", {"bottleneck": True, "groups": 2}, "mis-shaped", id="resnet-groups")


@pytest.mark.slow
@pytest.mark.parametrize(("family", "changes", "refused"), torchvision_cases())
def test_torchvision(family, changes, refused, tmp_path):
    peers.import_torchvision()
    import torch

    peer, name, ours, side = TORCHVISION[family][0](**changes)
    tables = {key: value.clone() for key, value in peer.named_buffers() if "relative" in key}
    peers.randomise(peer)
    for key, value in tables.items():
        peer.get_buffer(key).copy_(value)
    torch.save(peer.state_dict(), tmp_path / "model.pth")
    if refused:
        told = {"representation_size": "hidden layer", "conv_stem_configs": "missing: patch_embed.proj.weight"}
        with pytest.raises(ScratchvitError, match=told.get(refused, refused)):
            open_model(tmp_path / "model.pth", name, **ours)
        return
    model, _, _ = open_model(tmp_path / "model.pth", name, **ours)
    x = pictures(3, (side, side))
    assert_same(logits_of(peer, x), ours_of(model, x))
