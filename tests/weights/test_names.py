"""Everybody's checkpoints: files written by each library load here, and the logits agree."""

import numpy as np
import pytest

from scratchvit.errors import ScratchvitError
from scratchvit.weights import model_from_weights
from scratchvit.weights.names import TIMM, google, huggingface, own, recognise, torchvision
from tests.support import peers
from tests.support.margins import agree
from tests.support.model_parity import assert_same_model, full_size, random_peer, timms
from tests.support.seeds import seeded


def images(size=224, channels=3):
    size = (size, size) if isinstance(size, int) else size
    return seeded(0).standard_normal((1, channels, *size), dtype=np.float32)


def rename(*names):
    """{theirs: ours} for a file of such names."""
    weights = {name: np.full((1, 1), i) for i, name in enumerate(names)}
    renamed = recognise(weights).rename(weights).weights
    by_number = {int(np.ravel(value)[0]): name for name, value in renamed.items()}
    return {name: by_number.get(i) for i, name in enumerate(names)}


# --- recognising and renaming, without anybody's library ---


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (["pos_embed", "blocks.0.attn.qkv.weight"], TIMM),
        (["conv1.weight", "layer1.0.conv1.weight"], TIMM),
        (["encoder.pos_embedding", "conv_proj.weight"], torchvision.VIT),
        (["vit.embeddings.cls_token"], huggingface.VIT),
        (["embeddings.cls_token"], huggingface.VIT),
        (["deit.embeddings.cls_token"], huggingface.VIT),
        (["resnet.embedder.embedder.convolution.weight"], huggingface.RESNET),
        (["bit.embedder.convolution.weight"], huggingface.BIT),
        (["embedding/kernel"], google.VIT),
        (["opt/target/embedding/kernel"], google.VIT),
        (["params/img/embedding/kernel"], google.VIT),
        (["resnet/root_block/standardized_conv2d/kernel"], google.BIT),
        (["model.pos_embed", "ema.pos_embed", "optimizer.m.pos_embed"], own.CHECKPOINT),
    ],
)
def test_a_layout_is_recognised_by_its_names(names, layout):
    assert recognise(names) is layout


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("vit.encoder.layer.11.output.dense.bias", "blocks.11.mlp.fc2.bias"),
        ("vit.encoder.layer.11.attention.output.dense.bias", "blocks.11.attn.proj.bias"),
        ("vit.layers.3.attention.o_proj.weight", "blocks.3.attn.proj.weight"),
        ("vit.layers.3.mlp.fc1.weight", "blocks.3.mlp.fc1.weight"),
        ("classifier.weight", "head.weight"),
    ],
)
def test_hugging_faces_names_of_version_4_and_5(theirs, ours):
    assert rename("vit.embeddings.cls_token", theirs)[theirs] == ours


def test_torchvisions_older_names():
    layer = "encoder.layers.encoder_layer_0.mlp."
    found = rename("encoder.pos_embedding", layer + "linear_1.weight", layer + "3.bias")
    assert found == {
        "encoder.pos_embedding": "pos_embed",
        layer + "linear_1.weight": "blocks.0.mlp.fc1.weight",
        layer + "3.bias": "blocks.0.mlp.fc2.bias",
    }


def test_names_that_no_row_knows_stay_whole():
    assert rename("vit.embeddings.cls_token", "vit.extra.weight")["vit.extra.weight"] == "vit.extra.weight"
    resnet = "resnet.encoder.stages.0.layers.0.layer.9.gate"
    assert rename("resnet.embedder.embedder.convolution.weight", resnet)[resnet] == resnet


def test_a_q_without_its_k_and_v_keeps_its_name():
    q = "vit.encoder.layer.0.attention.attention.query.weight"
    assert rename("vit.embeddings.cls_token", q)[q] == q


def test_two_models_in_one_file_are_refused():
    weights = {"vit.embeddings.cls_token": np.zeros((1, 1, 4)), "embeddings.cls_token": np.zeros((1, 1, 4))}
    with pytest.raises(ScratchvitError, match=r"are both cls_token here: the file contains two models"):
        recognise(weights).rename(weights)


def test_joined_in_the_order_q_k_v():
    layer = "vit.encoder.layer.0.attention.attention."
    weights = {"vit.embeddings.cls_token": np.zeros((1, 1, 2))}
    weights |= {f"{layer}{name}.bias": np.full(2, i) for i, name in ((1, "key"), (0, "query"), (2, "value"))}
    renamed = recognise(weights).rename(weights)
    assert renamed.weights["blocks.0.attn.qkv.bias"].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_checkpoint_of_a_run_gives_its_averaged_weights():
    both = {"model.a": np.zeros(1), "ema.a": np.ones(1), "optimizer.exp_avg.a": np.zeros(1)}
    assert recognise(both).rename(both).weights == {"a": 1}
    plain = {name: value for name, value in both.items() if not name.startswith("ema.")}
    assert recognise(plain).rename(plain).weights == {"a": 0}


def test_a_class_head_alone_is_doubled_and_said_to_be():
    weights = {f"deit.embeddings.{name}": np.zeros((1, 1, 2)) for name in ("cls_token", "distillation_token")}
    weights |= {"classifier.weight": np.ones((3, 2)), "classifier.bias": np.ones(3)}
    renamed = recognise(weights).rename(weights)
    assert (renamed.weights["head.weight"] == 2).all() and not renamed.weights["head_dist.bias"].any()
    assert "head: doubled" in renamed.note


def test_the_picture_half_of_a_model_of_pictures_and_texts():
    weights = {name: np.zeros(2) for name in ("params/img/embedding/kernel", "params/txt/head/bias", "params/t")}
    renamed = recognise(weights).rename(weights)
    assert list(renamed.weights) == ["patch_embed.proj.weight"]
    assert renamed.left_out == ["params/txt/head/bias", "params/t"]


def test_broken_shapes_do_not_break_the_renaming():
    for shape in ((), (0,), (2, 0), (1, 1, 1, 1, 1)):
        names = ("kernel", "bias", "scale")
        weights = {f"Transformer/encoderblock_0/MlpBlock_3/Dense_0/{name}": np.zeros(shape) for name in names[:2]}
        weights |= {"embedding/kernel": np.zeros(shape), "Transformer/encoderblock/LayerNorm_0/bias": np.zeros(shape)}
        weights |= {f"Transformer/encoderblock_0/MultiHeadDotProductAttention_1/{name}/kernel": np.zeros(shape)
                    for name in ("query", "key", "value", "out")}
        assert "patch_embed.proj.weight" in recognise(weights).rename(weights).weights


# --- timm ---

# Every preset up to B that timm has. Two sizes that only differ in the number of tokens stand for one another, so those
# of B are read at 224 pixels only; tests/costs/test_cost.py compares parameters and multiply-adds at 384.
UP_TO_B = [
    "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_small_patch32_224", "vit_base_patch16_224",
    "vit_base_patch32_224", "deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224",
    "deit_tiny_distilled_patch16_224", "deit_small_distilled_patch16_224", "deit_base_distilled_patch16_224",
    "vit_tiny_r_s16_p8_224", "vit_tiny_r_s16_p8_384", "vit_small_r26_s32_224", "vit_small_r26_s32_384",
    "vit_base_r26_s32_224", "vit_base_r50_s16_224", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnetv2_50x1_bit", "resnetv2_101x1_bit",
]


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("name", [n if "tiny" in n or n == "resnet18" else full_size(n) for n in UP_TO_B])
def test_timms_files_load_and_logits_agree(name, tmp_path):
    make = timms(name)
    from safetensors.torch import save_file

    peer = random_peer(make)
    save_file(peer.state_dict(), tmp_path / "model.safetensors")
    model, _ = model_from_weights(tmp_path / "model.safetensors", name)
    size = 224 if name.startswith("resnet") else model.config.img_size
    assert_same_model(model, peer, images(size), gradients=False)


@pytest.mark.parity
@pytest.mark.parametrize("file", ["model.pth", "legacy.pth", "wrapped.bin", "half.safetensors"])
def test_the_same_names_in_every_kind_of_file(file, tmp_path):
    timm = peers.import_timm()
    import torch
    from safetensors.torch import save_file

    options = {"depth": 2, "img_size": 64, "num_classes": 7, "in_chans": 1}
    peer = peers.randomise(timm.create_model("deit_tiny_distilled_patch16_224", **options))
    if file == "half.safetensors":
        peer.load_state_dict({name: value.half() for name, value in peer.state_dict().items()})
        save_file({name: value.half() for name, value in peer.state_dict().items()}, tmp_path / file)
    else:
        wrap = {"model": peer.state_dict(), "epoch": 3} if file == "wrapped.bin" else peer.state_dict()
        torch.save(wrap, tmp_path / file, _use_new_zipfile_serialization=file != "legacy.pth")
    model, _ = model_from_weights(tmp_path / file, "deit_tiny_distilled_patch16_224", depth=2, img_size=64)
    assert (model.config.num_classes, model.config.in_chans) == (7, 1)      # from the tensors
    assert model.head.weight.dtype == np.float32
    assert_same_model(model, peer, images(64, channels=1), gradients=False)


# --- torchvision ---


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("resnet18", "resnet18"), full_size("vit_b_16", "vit_base_patch16_224"),
     full_size("vit_b_32", "vit_base_patch32_224"),
     *(full_size(name, name) for name in ("resnet34", "resnet50", "resnet101", "resnet152"))],
)
def test_torchvisions_files(theirs, ours, tmp_path):
    models = peers.import_torchvision().models
    import torch

    peer = random_peer(lambda: models.get_model(theirs))
    torch.save(peer.state_dict(), tmp_path / "model.pth")
    model, _ = model_from_weights(tmp_path / "model.pth", ours)
    assert_same_model(model, peer, images(), gradients=False)


# --- Hugging Face ---

_TINY = {"num_hidden_layers": 2, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
HUGGING_FACE = [
    ("ViTForImageClassification", "ViTConfig", _TINY, "vit_tiny_patch16_224"),
    ("ViTForImageClassification", "ViTConfig", {**_TINY, "qkv_bias": False, "patch_size": 32, "image_size": 64,
                                               "num_channels": 1}, "vit_tiny_patch32_224"),
    ("ViTForImageClassification", "ViTConfig", {}, "vit_base_patch16_224"),
    ("DeiTForImageClassificationWithTeacher", "DeiTConfig", {**_TINY, "num_hidden_layers": 12},
     "deit_tiny_distilled_patch16_224"),
    ("DeiTForImageClassification", "DeiTConfig", {**_TINY, "image_size": 96}, "deit_tiny_distilled_patch16_224"),
    ("ResNetForImageClassification", "ResNetConfig",
     {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}, "resnet18"),
    ("ResNetForImageClassification", "ResNetConfig", {}, "resnet50"),
    ("BitForImageClassification", "BitConfig", {"depths": [1, 1, 2, 1]}, "resnetv2_50x1_bit"),
]


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("kind", "config", "options", "name", "saved_by"),
    [(*case, "save_pretrained") if case[2] else full_size(*case, "save_pretrained") for case in HUGGING_FACE]
    + [(*case, "torch.save") for case in HUGGING_FACE if case[2]],
    ids=lambda value: str(value)[:40],
)
def test_hugging_faces_files_say_which_model_they_are(kind, config, options, name, saved_by, tmp_path):
    transformers = peers.import_transformers()
    import torch

    peer = peers.randomise(getattr(transformers, kind)(getattr(transformers, config)(num_labels=5, **options)))
    if saved_by == "save_pretrained":
        peer.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
    else:       # the names of transformers 5, which its own files do not have
        peer.config.save_pretrained(tmp_path)
        path = tmp_path / "pytorch_model.bin"
        torch.save(peer.state_dict(), path)
    model, found = model_from_weights(path)
    assert found == name
    size = 64 if name.startswith("resnet") else options.get("image_size", 224)
    assert_same_model(model, peer, images(size, options.get("num_channels", 3)), gradients=False)


@pytest.mark.parity
def test_a_bare_vit_of_hugging_face_gives_features(tmp_path):
    transformers = peers.import_transformers()
    import torch

    peer = peers.randomise(transformers.ViTModel(transformers.ViTConfig(**_TINY, image_size=64)))
    peer.save_pretrained(tmp_path)
    model, _ = model_from_weights(tmp_path)
    assert model.config.num_classes == 0
    x = images(64)
    with torch.no_grad():
        theirs = peer(torch.from_numpy(x)).last_hidden_state
    agree(lambda: model.forward_features(x), theirs)
