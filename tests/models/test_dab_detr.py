"""DAB-DETR: against transformers', whose files load here; its authors' names; what anchors promise."""

import json
import re

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.detection.postprocess import postprocess
from scratchvit.models.dab_detr import moved, unsigmoid
from scratchvit.nn import init
from scratchvit.ops import record_attention
from scratchvit.weights import model_from_weights
from scratchvit.weights.names import huggingface, idea, recognise
from tests.support import peers, seeds
from tests.support.detr_samples import answers, by_module, everything, module_of, padding, peers_gradients, values
from tests.support.margins import agree, assert_close, rounding, ulps
from tests.support.model_parity import images, in_float64
from tests.support.seeds import seeded

SMALL = {
    "layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "hidden_dim": 32, "nheads": 4, "enc_layers": 2,
    "dec_layers": 3, "dim_feedforward": 48, "num_queries": 6, "num_classes": 5,
}


def small(seed=0, **options):
    return sv.create_model("dab_detr_tiny", seed=seed, **{**SMALL, **options})


def with_a_box_head(model, seed=0):
    """The same, with a box head that moves boxes: in the beginning it leaves them where they are."""
    last = model.bbox_embed.layers[-1]
    last.weight.assign(seeded(seed).standard_normal(last.weight.shape, dtype=np.float32) * 0.1)
    return model


# --- what comes out -------------------------------------------------------------------------------------------------


def test_outputs_have_the_shapes_that_are_promised(device):
    model = small()
    for mask in (None, padding((64, 96), (40, 50))):
        with record_attention() as maps:
            outputs = model(images(2, 3, 64, 96), mask=mask)
        assert list(outputs) == ["pred_logits", "pred_boxes", "aux_outputs"] and len(outputs["aux_outputs"]) == 2
        for layer in (outputs, *outputs["aux_outputs"]):
            assert layer["pred_logits"].shape == (2, 6, 5) and layer["pred_boxes"].shape == (2, 6, 4)
            assert layer["pred_logits"].dtype == layer["pred_boxes"].dtype == np.float32
        assert [p.shape for p in maps] == [(2, 4, 96, 96)] * 2 + [(2, 4, 6, 6), (2, 4, 6, 96)] * 3
    assert small(focal=False)(images(1, 3, 64, 64))["pred_logits"].shape == (1, 6, 5 + 1)


def test_both_devices_give_the_same(device):
    sv.use("cpu")
    x, mask = images(2, 3, 64, 96), padding((64, 96), (40, 50))
    expected = values(with_a_box_head(small()), x, mask)
    bounds = rounding(lambda: values(with_a_box_head(small()), x, mask))
    if device == "strict":
        from tests.support.strict_array import STRICT

        sv.use(STRICT)
    for ours, cpus, bound in zip(values(with_a_box_head(small()), x, mask), expected, bounds.values()):
        assert_close(ours, cpus, bound, device)


def test_boxes_begin_at_the_anchors_whatever_the_picture():
    """As the box head's last layer begins as zeros: no object is far from all boxes by an accident of the head."""
    model, x = small(), images(2, 3, 64, 64)
    anchors = np.broadcast_to(1 / (1 + np.exp(-model.refpoint_embed.weight.numpy().astype(float))), (2, 6, 4))
    agree(lambda: values(model, x)[1::2], [anchors] * 3, "boxes")


def test_every_layer_begins_where_the_one_before_ended(device):
    """A box head that adds b before the sigmoid: after layer i boxes are where i·b has moved the anchors (§4.3)."""
    model = small()
    step = np.array([0.3, -0.2, 0.5, 0.1], np.float32)
    model.bbox_embed.layers[-1].bias.assign(step)
    start, x = model.refpoint_embed.weight.numpy().astype(float), images(1, 3, 64, 64)
    expected = [1 / (1 + np.exp(-(start + number * step))) for number in (1, 2, 3)]
    agree(lambda: [boxes[0] for boxes in values(model, x)[1::2]], expected, "layer")


def test_a_box_at_the_border_is_moved_and_has_a_gradient(device):
    """In the sigmoid's flat ends numbers are held at ±11.5, so that nothing is infinite."""
    ends = sv.Tensor(sv.backend.asarray(np.array([0, 1e-7, 0.5, 1], np.float32)), requires_grad=True)
    assert_close(unsigmoid(ends), np.log([1e-5, 1e-5, 1, 1e5]), ulps(np.log(1e5), 1), "ends")
    boxes = moved(ends, sv.Tensor(sv.backend.asarray(np.full(4, 2, np.float32))))
    boxes.sum().backward()
    assert np.isfinite(sv.backend.asnumpy(ends.grad)).all()
    assert_close(boxes.numpy()[2], 1 / (1 + np.exp(-2)), ulps(1, 2), "from the middle")


def test_a_layers_boxes_teach_the_layer_before_but_where_it_looks_does_not():
    """Boxes of layer 2 are those of layer 1, moved; what layer 2 sees from there is no matter of layer 1's head.

    So the head's last bias gets no gradient from layer 2's logits, and twice that of a head alone from its boxes.
    """
    model = with_a_box_head(small(dec_layers=2)).eval()
    bias = model.bbox_embed.layers[-1].bias
    outputs = model(images(1, 3, 64, 64))
    outputs["pred_logits"].sum().backward()
    assert bias.grad is None or not bias.grad.any()
    assert model.transformer.decoder.ref_point_head.layers[0].weight.grad.any()         # though it looked somewhere
    model.zero_grad()
    in_float64(model)
    x = images(1, 3, 64, 64).astype(np.float64)

    def gradient():
        model.zero_grad()
        model(x)["pred_boxes"].sum().backward()
        return bias.grad

    boxes = values(model, x)[-1]
    slope = (boxes * (1 - boxes)).sum((0, 1))       # the sigmoid's, by which one head moves a box
    agree(gradient, 2 * slope, "the head moves them twice, here and in the layer before", dtype=np.float64)


# --- weights --------------------------------------------------------------------------------------------------------


def test_sizes_are_the_papers():
    """Table 2: 44 and 63 million."""
    with init.without_weights():
        sizes = {name: sv.create_model(name).num_parameters() for name in sv.list_models("dab_detr_resnet*")}
    assert {name: round(size / 1e6) for name, size in sizes.items()} == {
        "dab_detr_resnet50": 44, "dab_detr_resnet50_dc5": 44, "dab_detr_resnet101": 63, "dab_detr_resnet101_dc5": 63,
    }


def test_the_authors_names_are_ours():
    state = small(enc_layers=1, dec_layers=2).state_dict()
    linear = [f"{name}.{kind}" for name in (
        "sa_qcontent_proj", "sa_qpos_proj", "sa_kcontent_proj", "sa_kpos_proj", "sa_v_proj", "self_attn.out_proj",
        "ca_qcontent_proj", "ca_qpos_proj", "ca_kcontent_proj", "ca_kpos_proj", "ca_v_proj", "ca_qpos_sine_proj",
        "cross_attn.out_proj", "linear1", "linear2", "norm1", "norm2", "norm3",
    ) for kind in ("weight", "bias")]
    shared = [f"{name}.layers.{i}.{kind}" for name in (
        "decoder.query_scale", "decoder.ref_point_head", "decoder.ref_anchor_head", "encoder.query_scale",
    ) for i in (0, 1) for kind in ("weight", "bias")]
    of_encoder = ["self_attn.in_proj_weight", "self_attn.in_proj_bias", "activation.weight", *(
        f"{name}.{kind}" for name in ("self_attn.out_proj", "linear1", "linear2", "norm1", "norm2")
        for kind in ("weight", "bias")
    )]
    expected = {
        "decoder.norm.weight", "decoder.norm.bias", *shared, *(f"encoder.layers.0.{name}" for name in of_encoder),
        *(f"decoder.layers.{i}.{name}" for i in (0, 1) for name in [*linear, "activation.weight"]
          if (i, name.partition(".")[0]) != (1, "ca_qpos_proj")),
    }
    assert {name.removeprefix("transformer.") for name in state if name.startswith("transformer.")} == expected
    others = {name for name in state if not name.startswith(("transformer.", "backbone.0.body."))}
    assert others == {f"{name}.{kind}" for name in ("input_proj", "class_embed") for kind in ("weight", "bias")} | {
        "refpoint_embed.weight", *(f"bbox_embed.layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias"))
    }
    # Their decoder holds the model's box head too, under a second name.
    theirs = state | {f"transformer.decoder.{name}": state[name] for name in others if name.startswith("bbox")}
    assert recognise(theirs) is idea.DAB_DETR
    assert recognise(theirs).rename(theirs).weights.keys() == state.keys()


def test_the_seed_decides_everything_that_is_drawn():
    state, again, other = (small(seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(np.array_equal(value, again[name]) for name, value in state.items())
    same = {name for name, value in state.items() if np.array_equal(value, other[name])}
    assert not any(name.endswith("weight") and state[name].ndim > 1 for name in same - {"bbox_embed.layers.2.weight"})
    for name in ("encoder.layers.0.self_attn", "decoder.layers.1.self_attn", "decoder.layers.0.cross_attn"):
        assert not state[f"transformer.{name}.out_proj.bias"].any()
    assert (state["transformer.encoder.layers.1.activation.weight"] == 0.25).all()
    assert_close(state["class_embed.bias"], np.full(5, -np.log(99)), ulps(np.log(99), 1), "a probability of 1 %")


def test_every_parameter_has_a_layer_and_learns():
    model, x, mask = small(frozen_bn=True, denoising=2, query_groups=2), images(2, 3, 64, 64), None
    rows = model.layer_names()
    for name, _ in model.named_parameters():
        assert sum(any(name == row or name.startswith(f"{row}.") for row in names) for names in rows) == 1, name
    decayed, kept = sv.optim.param_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in kept["params"] if p.ndim > 1} == {"refpoint_embed.weight", "label_enc.weight"}
    assert all(p.ndim > 1 for p in decayed["params"])

    targets = [{"labels": np.array([1, 2]), "boxes": np.array([[0.3, 0.4, 0.2, 0.3], [0.7, 0.5, 0.2, 0.2]])}] * 2
    optimizer, losses = sv.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0), []
    for _ in range(3):
        optimizer.zero_grad()
        model.set_generator(sv.random.Generator(seeds.moved(3)))
        outputs = model.train()(x, mask=mask, targets=targets)
        parts = (outputs, *outputs["group_outputs"], outputs["denoising"])
        loss = sum((y * y).mean() for part in parts for y in answers(part))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(sv.ScratchvitError, match="leave out normalize_before, which is only for DETR"):
        small(normalize_before=True)


def test_a_file_says_how_many_classes_and_queries_it_has(tmp_path):
    state = small(num_classes=3, num_queries=4, in_chans=1).state_dict()
    np.savez(tmp_path / "weights.npz", **state)
    options = {key: SMALL[key] for key in SMALL if key not in ("num_classes", "num_queries")}
    model, _ = model_from_weights(tmp_path / "weights.npz", "dab_detr_tiny", **options)
    assert (model.config.num_classes, model.config.num_queries, model.config.in_chans) == (3, 4, 1)
    assert all(np.array_equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(sv.ScratchvitError, match=r"its head has 3 classes, the model's 5: .* num_classes=3"):
        sv.load_weights(small(num_queries=4, in_chans=1), tmp_path / "weights.npz")


def test_sigmoid_heads_of_detr_are_counted_without_no_object(tmp_path):
    """By the options: nothing in the file tells that the last row is a class as the others are."""
    options = {**SMALL, "focal": True, "query_groups": 3}
    np.savez(tmp_path / "weights.npz", **sv.create_model("detr_tiny", **options).state_dict())
    asked = {key: value for key, value in options.items() if key not in ("num_classes", "num_queries")}
    model, _ = model_from_weights(tmp_path / "weights.npz", "detr_tiny", **asked)
    assert (model.config.num_classes, model.config.num_queries) == (5, 6)


def test_what_is_found_by_sigmoids(device):
    """The best pairs of a query and a class: probabilities need not sum to one, and the last class is as the others.

    A query that holds two classes leaves no room for the one that holds none; as many are found as there are queries.
    """
    probabilities = np.array(
        [[[0.9, 0.2, 0.8], [0.1, 0.05, 0.02]], [[0.1, 0.2, 0.3], [0.25, 0.15, 0.7]]], np.float32
    )
    boxes = np.array([[0.5, 0.5, 1, 1], [0.25, 0.5, 0.5, 0.2]], np.float32)
    outputs = {
        "pred_logits": sv.Tensor(sv.backend.asarray(np.log(probabilities / (1 - probabilities)))),
        "pred_boxes": sv.Tensor(sv.backend.asarray(np.stack([boxes, boxes]))),
    }
    first, second = postprocess(outputs, [(100, 200), (10, 20)], focal=True)
    for found, scores, labels, queries in ((first, [0.9, 0.8], [0, 2], [0, 0]), (second, [0.7, 0.3], [2, 2], [1, 0])):
        assert_close(found["scores"], scores, ulps(1, 2), "scores")             # of logits that are rounded
        assert found["labels"].tolist() == labels and found["queries"].tolist() == queries
        assert [type(x) for x in found.values()] == [np.ndarray] * 4
        assert [x.dtype for x in found.values()] == [np.float32, np.int64, np.float32, np.int64]
    assert_close(first["boxes"], [[0, 0, 200, 100], [0, 0, 200, 100]], ulps(200, 2), "boxes")
    assert_close(second["boxes"], [[0, 4, 10, 6], [0, 0, 20, 10]], ulps(20, 2), "boxes")


def test_what_is_no_number_is_not_lost_among_the_best():
    """So that results_of can tell that a model has diverged."""
    logits = np.zeros((1, 3, 4), np.float32)
    logits[0, 1, 2] = np.nan
    outputs = {"pred_logits": sv.Tensor(logits), "pred_boxes": sv.Tensor(np.full((1, 3, 4), 0.5, np.float32))}
    [found] = postprocess(outputs, [(8, 8)], focal=True)
    assert np.isnan(found["scores"]).sum() == 1


# --- against transformers -------------------------------------------------------------------------------------------


def hugging_faces(**options):
    """Its model of random weights that add little in each block of the ResNet, all parameters learning."""
    transformers = peers.import_transformers()
    import torch

    config = transformers.DabDetrConfig(num_labels=7, attn_implementation="eager", auxiliary_loss=True, **options)
    with torch.device("meta"):
        peer = transformers.DabDetrForObjectDetection(config)
    peer.to_empty(device="cpu")
    peer.tie_weights()                              # the decoder's box head and the model's, which the move has parted
    peers.randomise(peer).requires_grad_()
    for name, value in peer.state_dict().items():
        if name.endswith(("layer.2.normalization.weight", "bn3.weight")):       # the last norms of the blocks
            value.mul_(0.2)
        if name.endswith("activation_fn.weight"):                               # slopes that are not nearly 1
            value.mul_(0.25)
    return peer


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("saved_by", ["save_pretrained", "torch.save"])
def test_hugging_faces_files_load_by_their_configuration(saved_by, tmp_path):
    peer = hugging_faces(encoder_layers=1, decoder_layers=2, num_queries=5)
    import torch

    path = tmp_path
    if saved_by == "save_pretrained":
        peer.save_pretrained(tmp_path)
    else:                                           # with the box head under both of its names
        peer.config.save_pretrained(tmp_path)
        path = tmp_path / "pytorch_model.bin"
        torch.save(peer.state_dict(), path)
    model, name = model_from_weights(path)
    assert name == "dab_detr_resnet50" and model.config.num_classes == 7 and model.config.num_queries == 5
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        theirs = peer(torch.from_numpy(x))
    agree(lambda: values(model, x)[-2:], [theirs.logits, theirs.pred_boxes], samples=1)


@pytest.mark.parity
def test_what_is_found_equals_conditional_detrs():
    """Its image processor is DAB-DETR's, too."""
    transformers = peers.import_transformers()
    import torch
    from transformers.models.dab_detr.modeling_dab_detr import DabDetrObjectDetectionOutput

    rng = seeded(0)
    logits, boxes = rng.standard_normal((2, 9, 6), dtype=np.float32) * 3, rng.random((2, 9, 4), dtype=np.float32)
    sizes = [(480, 640), (333, 77)]
    theirs = transformers.ConditionalDetrImageProcessor().post_process_object_detection(
        DabDetrObjectDetectionOutput(logits=torch.from_numpy(logits), pred_boxes=torch.from_numpy(boxes)),
        threshold=0.0, target_sizes=sizes, top_k=9,
    )
    ours = postprocess({"pred_logits": sv.Tensor(logits), "pred_boxes": sv.Tensor(boxes)}, sizes, focal=True)
    for found, expected in zip(ours, theirs, strict=True):
        assert found["labels"].tolist() == expected["labels"].tolist()
        assert_close(found["scores"], expected["scores"], ulps(1, 2), "scores")
        assert_close(found["boxes"], expected["boxes"], ulps(expected["boxes"], 2), "boxes")


@pytest.mark.parametrize("kept", ["bbox_predictor", "model.decoder.bbox_embed"])
def test_either_name_of_the_box_head_will_do(kept):
    weights = {"model.query_refpoint_embeddings.weight": np.zeros((2, 4)), f"{kept}.layers.2.bias": np.ones(4)}
    assert recognise(weights) is huggingface.DAB_DETR
    assert recognise(weights).rename(weights).weights["bbox_embed.layers.2.bias"].all()


@pytest.mark.parametrize(
    ("change", "text"),
    [({"temperature_height": 10}, "temperature_height is 10"), ({"num_patterns": 3}, "num_patterns is 3"),
     ({"activation_function": "relu"}, "activation_function is relu"), ({"keep_query_pos": True}, "keep_query_pos"),
     ({"normalize_before": True}, "normalize_before is True")],
)
def test_what_is_no_dab_detr_here_is_refused(change, text, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dab-detr", **change}))
    np.savez(tmp_path / "weights.npz", **{"model.query_refpoint_embeddings.weight": np.zeros((2, 4))})
    with pytest.raises(sv.ScratchvitError, match=text):
        model_from_weights(tmp_path / "weights.npz")


@pytest.mark.slow
@pytest.mark.parity
def test_outputs_and_gradients_equal_hugging_faces(monkeypatch):
    """ResNet-50, 2 + 3 layers, padding: outputs of all layers in float32, gradients of all parameters in float64.

    (ReLUs forbid float32: see `assert_same_cnn`.) Theirs makes positions and takes every softmax in float32, but not
    here: of the decoder's self-attention, whose gradients are 10⁻³ of others, float32 leaves three digits.
    """
    peer = hugging_faces(encoder_layers=2, decoder_layers=3, num_queries=6)
    import torch

    with init.without_weights():
        model = sv.create_model("dab_detr_resnet50", num_classes=7, enc_layers=2, dec_layers=3, num_queries=6).eval()
    for _, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.data = np.array(tensor.data)         # room for what is loaded
    state = {name: value.numpy() for name, value in peer.state_dict().items()}
    assert model.load_state_dict(recognise(state).rename(state).weights) == ([], [])
    x, mask = images(2, 3, 72, 104), padding((72, 104), (50, 60), size=(72, 104))

    def theirs(x):
        """All its logits and boxes; it gives those of all layers only to who gives labels."""
        box = torch.full((1, 4), 0.5, dtype=torch.from_numpy(x).dtype)
        labels = [{"class_labels": torch.tensor([1]), "boxes": box}] * 2
        found = peer(torch.from_numpy(x), pixel_mask=torch.from_numpy(~mask), labels=labels)
        layers = [*found.auxiliary_outputs, {"logits": found.logits, "pred_boxes": found.pred_boxes}]
        return [layer[key] for layer in layers for key in ("logits", "pred_boxes")]

    with torch.no_grad():
        agree(lambda: values(model, x, mask), theirs(x), "in float32:", samples=1)

    in_float64(model), peer.double()
    x, rng, float32 = x.astype(np.float64), seeded(3), torch.float32
    with monkeypatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)      # of its positions and softmaxes
        torch.set_default_dtype(torch.float64)              # of the zeros that its decoder begins with
        try:
            given = theirs(x)
        finally:
            torch.set_default_dtype(float32)
    cotangents = [rng.standard_normal(y.shape) for y in given]
    gradients = huggingface.DAB_DETR.rename(peers_gradients(peer, given, cotangents)).weights

    def module(name):
        """Queries, keys and values have modules of their own here, and are judged together all the same."""
        found = re.match(r"(.*\.(sa|ca)_)[qk]", name)
        return found[1] + "v_proj" if found else module_of(name)

    agree(
        lambda: everything(model, x, mask, cotangents, module),
        {"answers": given, "gradients": by_module(gradients, module)}, "in float64:", dtype=np.float64,
    )
