"""Checkpoints of DETR: the authors' names, Hugging Face's two spellings, other heads; and what is found in images."""

import json

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.detection.postprocess import postprocess
from scratchvit.nn import init
from scratchvit.weights import model_from_weights
from scratchvit.weights.names import facebook, huggingface, recognise
from tests.support import peers
from tests.support.detr_samples import by_module, everything, peers_gradients, values
from tests.support.margins import agree, assert_close, ulps
from tests.support.model_parity import images, in_float64
from tests.support.seeds import seeded

SMALL = {"layers": (1, 1, 1, 1), "hidden_dim": 32, "nheads": 4, "enc_layers": 1, "dec_layers": 2,
         "dim_feedforward": 48, "num_queries": 6, "num_classes": 5}


def small(seed=0, **options):
    return sv.create_model("detr_resnet18", seed=seed, **{**SMALL, **options})


def saved(tmp_path, state, name="weights.npz"):
    np.savez(tmp_path / name, **state)
    return tmp_path / name


# --- names ----------------------------------------------------------------------------------------------------------


def test_the_authors_names_are_ours():
    state = small().state_dict()
    assert recognise(state) is facebook.DETR
    renamed = facebook.DETR.rename(state)
    assert renamed.weights.keys() == state.keys() and renamed.left_out == []
    panoptic = {f"detr.{name}": value for name, value in state.items()} | {"mask_head.lay1.weight": np.zeros(2)}
    panoptic["bbox_attention.q_linear.bias"] = np.zeros(2)
    renamed = recognise(panoptic).rename(panoptic)
    assert renamed.weights.keys() == state.keys()
    assert renamed.left_out == ["mask_head.lay1.weight", "bbox_attention.q_linear.bias"]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("model.backbone.conv_encoder.model.layer1.0.conv1.weight", "backbone.0.body.layer1.0.conv1.weight"),
     ("model.backbone.model.bn1.running_var", "backbone.0.body.bn1.running_var"),
     ("model.backbone.conv_encoder.model.embedder.embedder.convolution.weight", "backbone.0.body.conv1.weight"),
     ("model.backbone.model.encoder.stages.2.layers.1.layer.0.normalization.bias", "backbone.0.body.layer3.1.bn1.bias"),
     ("model.encoder.layers.3.self_attn.o_proj.weight", "transformer.encoder.layers.3.self_attn.out_proj.weight"),
     ("model.encoder.layers.3.fc1.bias", "transformer.encoder.layers.3.linear1.bias"),
     ("model.encoder.layers.3.final_layer_norm.bias", "transformer.encoder.layers.3.norm2.bias"),
     ("model.decoder.layers.0.mlp.fc2.bias", "transformer.decoder.layers.0.linear2.bias"),
     ("model.decoder.layers.0.encoder_attn_layer_norm.bias", "transformer.decoder.layers.0.norm2.bias"),
     ("model.decoder.layers.0.final_layer_norm.bias", "transformer.decoder.layers.0.norm3.bias"),
     ("model.decoder.layernorm.weight", "transformer.decoder.norm.weight"),
     ("detr.model.input_projection.weight", "input_proj.weight"),
     ("class_labels_classifier.bias", "class_embed.bias"), ("detr.bbox_predictor.layers.2.bias",
                                                             "bbox_embed.layers.2.bias")],
)
def test_hugging_faces_names(theirs, ours):
    weights = {"model.query_position_embeddings.weight": np.zeros((2, 2)), theirs: np.ones(2)}
    assert recognise(weights) is huggingface.DETR
    assert recognise(weights).rename(weights).weights[ours].all()


def test_q_k_and_v_of_hugging_face_are_joined():
    weights = {"model.query_position_embeddings.weight": np.zeros((2, 2))}
    for i, name in ((2, "v"), (0, "q"), (1, "k")):
        weights[f"model.decoder.layers.0.encoder_attn.{name}_proj.bias"] = np.full(2, i)
    joined = recognise(weights).rename(weights).weights["transformer.decoder.layers.0.multihead_attn.in_proj_bias"]
    assert joined.tolist() == [0, 0, 1, 1, 2, 2]


# --- loading --------------------------------------------------------------------------------------------------------


def test_a_file_says_how_many_classes_and_queries_it_has(tmp_path):
    state = small(num_classes=3, num_queries=4, in_chans=1).state_dict()
    options = {key: SMALL[key] for key in SMALL if key not in ("num_classes", "num_queries")}
    model, _ = model_from_weights(saved(tmp_path, state), "detr_resnet18", **options)
    config = model.config
    assert (config.num_classes, config.num_queries, config.in_chans) == (3, 4, 1)
    assert all(np.array_equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_new_head_is_one_of_classes_alone(tmp_path):
    state = small(seed=1, num_classes=3).state_dict()
    path = saved(tmp_path, state)
    model = small(num_classes=5)
    with pytest.raises(sv.ScratchvitError, match=r"its head has 3 classes, the model's 5: .* num_classes=3"):
        sv.load_weights(model, path)
    drawn = model.class_embed.weight.numpy().copy()
    report = sv.load_weights(model, path, new_head=True)
    assert report.as_drawn == ["class_embed.weight", "class_embed.bias"]
    assert np.array_equal(model.class_embed.weight.numpy(), drawn)
    assert np.array_equal(model.state_dict()["bbox_embed.layers.2.weight"], state["bbox_embed.layers.2.weight"])


def test_a_trained_classifier_becomes_the_backbone(tmp_path):
    resnet = sv.create_model("resnet18", layers=(1, 1, 1, 1), seed=7).state_dict()
    model = small()
    report = sv.load_weights(model.backbone[0].body, saved(tmp_path, resnet))
    assert report.left_out == ["fc.weight", "fc.bias"]
    for name, value in model.backbone[0].body.state_dict().items():
        assert np.array_equal(value, resnet[name]), name


def test_a_file_of_another_kind_is_named(tmp_path):
    with pytest.raises(sv.ScratchvitError, match="this file looks like resnet18"):
        sv.load_weights(small(), saved(tmp_path, sv.create_model("resnet18", num_classes=2).state_dict()))
    with pytest.raises(sv.ScratchvitError, match=r"unexpected: .*transformer\.decoder\.layers\.1"):
        sv.load_weights(small(dec_layers=1), saved(tmp_path, small().state_dict()))


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"backbone": "resnet101", "dilation": True}, ("detr_resnet101_dc5", (3, 4, 23, 3), True)),
     ({"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet50", "output_stride": 16}},
      ("detr_resnet50_dc5", (3, 4, 6, 3), True)),
     ({"backbone_config": {"model_type": "resnet", "depths": [2, 2, 2, 2], "layer_type": "basic",
                           "hidden_sizes": [64, 128, 256, 512]}}, ("detr_resnet18", (2, 2, 2, 2), False))],
)
def test_hugging_faces_configurations(change, expected, tmp_path):
    """Of the published files: those before 2026 name timm's ResNet as `backbone`."""
    config = {"model_type": "detr", "num_queries": 50, "encoder_layers": 3, "dilation": False, **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    from scratchvit.weights.describe import describe

    found = describe(tmp_path / "model.safetensors")
    with init.without_weights():
        config = sv.create_model(found.name, **found.options).config
    assert (found.name, config.layers, config.dilation) == expected
    assert (config.num_queries, config.enc_layers, config.dec_layers) == (50, 3, 6)


@pytest.mark.parametrize(
    ("change", "text"),
    [({"backbone": "resnest50"}, "its backbone is 'resnest50'; a DETR here needs a ResNet"),
     ({"position_embedding_type": "learned"}, "position_embedding_type is learned"),
     ({"decoder_attention_heads": 4}, "decoder_attention_heads is 4"),
     ({"encoder_layers": 10**9}, "its enc_layers is '1000000000'")],
)
def test_what_is_no_detr_here_is_refused(change, text, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "detr", **change}))
    path = saved(tmp_path, {"model.query_position_embeddings.weight": np.zeros((2, 2))})
    with pytest.raises(sv.ScratchvitError, match=text):
        model_from_weights(path)


# --- what is found --------------------------------------------------------------------------------------------------


def test_postprocess_by_hand(device):
    """Two images, two queries, two classes; no object is the third."""
    probabilities = [[[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], [[0.2, 0.4, 0.4], [0.5, 0.25, 0.25]]]
    outputs = {
        "pred_logits": sv.Tensor(np.log(probabilities) + 3, dtype=np.float32),
        "pred_boxes": sv.Tensor([[[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 0.2]], [[0.1, 0.1, 0.4, 0.4], [1, 1, 0, 0]]]),
    }
    first, second = postprocess(outputs, [(100, 200), (10, 20)])
    # Logits of up to 3, which are rounded, and so is what is taken off them.
    assert_close(first["scores"], [0.7, 0.3], ulps(3, 2))
    assert_close(second["scores"], [0.4, 0.5], ulps(3, 2))
    assert first["labels"].tolist() == [0, 1] and second["labels"].tolist() == [1, 0]
    assert_close(first["boxes"], [[0, 0, 200, 100], [0, 40, 100, 60]], ulps(200, 2))
    assert_close(second["boxes"], [[-2, -1, 6, 3], [20, 10, 20, 10]], ulps(20, 2))
    assert first["queries"].tolist() == second["queries"].tolist() == [0, 1]
    assert [type(x) for x in first.values()] == [np.ndarray] * 4
    assert [x.dtype for x in first.values()] == [np.float32, np.int64, np.float32, np.int64]
    for sizes in ([(100, 200)], [(1, 2, 3)] * 2, [5, 6]):
        with pytest.raises(sv.ScratchvitError, match="2 images need a"):
            postprocess(outputs, sizes)


# --- against transformers -------------------------------------------------------------------------------------------


def hugging_faces(transformers, own_resnet, **options):
    """Its model of random weights that add little in each block of the ResNet, all parameters learning."""
    torch = pytest.importorskip("torch")
    if own_resnet:
        options["backbone_config"] = transformers.ResNetConfig(depths=[1, 1, 1, 1], out_features=["stage4"])
    config = transformers.DetrConfig(num_labels=7, attn_implementation="eager", **options)
    with torch.device("meta"):
        peer = transformers.DetrForObjectDetection(config)
    peers.randomise(peer.to_empty(device="cpu")).requires_grad_()
    for name, value in peer.state_dict().items():
        if name.endswith(("layer.2.normalization.weight", "bn3.weight")):       # the last norms of the blocks
            value.mul_(0.2)
    return peer


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("own_resnet", "saved_by"), [(False, "save_pretrained"), (True, "save_pretrained"), (True, "torch.save")]
)
def test_hugging_faces_files_load_by_their_configuration(own_resnet, saved_by, tmp_path):
    """The names of version 4, which it goes on writing, and of 5; its own ResNet, and timm's."""
    transformers = peers.import_transformers()
    import torch

    sizes = {"encoder_layers": 1, "decoder_layers": 1, "num_queries": 5}
    peer = hugging_faces(transformers, own_resnet, **sizes)
    path = tmp_path
    if saved_by == "save_pretrained":
        peer.save_pretrained(tmp_path)
    else:
        peer.config.save_pretrained(tmp_path)
        path = tmp_path / "pytorch_model.bin"
        torch.save(peer.state_dict(), path)
    model, name = model_from_weights(path)
    assert name == "detr_resnet50" and model.config.num_classes == 7 and model.config.num_queries == 5
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        theirs = peer(torch.from_numpy(x))
    agree(lambda: values(model, x), [theirs.logits, theirs.pred_boxes], samples=1)


@pytest.mark.slow
@pytest.mark.parity
def test_outputs_and_gradients_equal_hugging_faces():
    """ResNet-50, 6 + 6 layers, two images with padding: outputs in float32, gradients of all parameters in float64.

    (ReLUs forbid float32: see `assert_same_cnn`.) Gradients come home by the map of names.
    """
    transformers = peers.import_transformers()
    import torch

    peer = hugging_faces(transformers, own_resnet=False)
    with init.without_weights():
        model = sv.create_model("detr_resnet50", num_classes=7, aux_loss=False).eval()
    for _, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.data = np.array(tensor.data)         # room for what is loaded
    state = {name: value.numpy() for name, value in peer.state_dict().items()}
    assert model.load_state_dict(recognise(state).rename(state).weights) == ([], [])
    x, mask = images(2, 3, 72, 104), np.ones((2, 72, 104), bool)
    mask[0], mask[1, :50, :60] = False, False

    def theirs(x):
        found = peer(torch.from_numpy(x), pixel_mask=torch.from_numpy(~mask))
        return [found.logits, found.pred_boxes]

    with torch.no_grad():
        agree(lambda: values(model, x, mask), theirs(x), "in float32:", samples=1)

    in_float64(model), peer.double()
    x, rng = x.astype(np.float64), seeded(3)
    given = theirs(x)
    cotangents = [rng.standard_normal(y.shape) for y in given]
    gradients = huggingface.DETR.rename(peers_gradients(peer, given, cotangents)).weights
    agree(
        lambda: everything(model, x, mask, cotangents), {"answers": given, "gradients": by_module(gradients)},
        "in float64:", dtype=np.float64, samples=1,
    )


@pytest.mark.parity
def test_what_is_found_equals_hugging_faces():
    transformers = peers.import_transformers()
    import torch
    from transformers.models.detr.modeling_detr import DetrObjectDetectionOutput

    rng = seeded(0)
    logits, boxes = rng.standard_normal((2, 9, 6), dtype=np.float32) * 3, rng.random((2, 9, 4), dtype=np.float32)
    sizes = [(480, 640), (333, 77)]
    theirs = transformers.DetrImageProcessor().post_process_object_detection(
        DetrObjectDetectionOutput(logits=torch.from_numpy(logits), pred_boxes=torch.from_numpy(boxes)),
        threshold=0.0, target_sizes=sizes,
    )
    ours = postprocess({"pred_logits": sv.Tensor(logits), "pred_boxes": sv.Tensor(boxes)}, sizes)
    for found, expected in zip(ours, theirs, strict=True):
        assert found["labels"].tolist() == expected["labels"].tolist()
        assert_close(found["scores"], expected["scores"], ulps(logits, 2), "scores")    # their logits round, too
        assert_close(found["boxes"], expected["boxes"], ulps(expected["boxes"], 2), "boxes")
