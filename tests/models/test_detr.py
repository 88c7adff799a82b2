"""DETR: what it promises, checked by hand, and against a transcription in PyTorch's own layers."""

import math

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import nn
from scratchvit.cli import main
from scratchvit.models.detr import sine_positions, visible_features
from scratchvit.models.detr_transformer import MultiheadAttention
from scratchvit.nn import init
from scratchvit.ops import record_attention
from tests.support.detr_samples import answers, by_module, everything, padding, peers_gradients, values
from tests.support.margins import agree, assert_close, rounding, ulps
from tests.support.model_parity import give, images, in_float64, pair
from tests.support.seeds import moved, seeded
from tests.support.strict_array import no_transfers

SMALL = {
    "layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "hidden_dim": 32, "nheads": 4, "enc_layers": 2,
    "dec_layers": 3, "dim_feedforward": 48, "num_queries": 6, "num_classes": 5,
}


def small(seed=0, **options):
    return sv.create_model("detr_tiny", seed=seed, **{**SMALL, **options})


# --- what comes out -------------------------------------------------------------------------------------------------


def test_outputs_have_the_shapes_that_are_promised(device):
    model = small()
    for mask in (None, padding((64, 96), (40, 50))):
        outputs = model(images(2, 3, 64, 96), mask=mask)
        assert list(outputs) == ["pred_logits", "pred_boxes", "aux_outputs"] and len(outputs["aux_outputs"]) == 2
        for layer in (outputs, *outputs["aux_outputs"]):
            assert layer["pred_logits"].shape == (2, 6, 5 + 1) and layer["pred_boxes"].shape == (2, 6, 4)
            assert layer["pred_logits"].dtype == layer["pred_boxes"].dtype == np.float32
            boxes = layer["pred_boxes"].numpy()
            assert (boxes > 0).all() and (boxes < 1).all()
    assert small(aux_loss=False)(images(1, 3, 64, 64))["aux_outputs"] == []


def test_both_devices_give_the_same(device):
    sv.use("cpu")
    x, mask = images(2, 3, 64, 96), padding((64, 96), (40, 50))
    expected = values(small(), x, mask)
    if device == "cpu":
        assert all(np.array_equal(a, b) for a, b in zip(values(small(), x, mask), expected))
        return
    from tests.support.strict_array import STRICT

    bounds = rounding(lambda: values(small(), x, mask))
    sv.use(STRICT)
    for ours, cpus, bound in zip(values(small(), x, mask), expected, bounds.values()):
        assert_close(ours, cpus, bound, device)
    on_device = sv.backend.asarray(mask)
    with no_transfers(), nn.module.evaluating(model := small()):
        outputs = model(x, mask=on_device)
    assert_close(outputs["pred_boxes"], expected[-1], bound, "a mask that is on the device")


def test_maps_have_the_strides_that_are_promised():
    for options, stride in (({}, 8), ({"dilation": False}, 16), ({"stages": 4}, 16),
                            ({"stages": 4, "dilation": False}, 32)):
        features, visible = small(**options).backbone[0](images(1, 3, 64, 96), padding((33, 96)))
        assert features.shape == (1, 16, 64 // stride, 96 // stride)
        assert np.array_equal(visible[0], np.arange(0, 64, stride)[:, None] < np.full(96 // stride, 33))


def test_an_auxiliary_output_is_what_a_decoder_that_ends_there_gives():
    """So every layer is asked by the same heads and behind the same norm, and what goes on is not normalised twice."""
    model, x, mask = small(seed=1), images(2, 3, 64, 64), padding((64, 64), (40, 64), size=(64, 64))
    rng = seeded(0)
    model.transformer.decoder.norm.weight.assign(rng.uniform(0.5, 2, 32))
    given = values(model, x, mask)
    for depth in (1, 2, 3):
        shorter = small(seed=1, dec_layers=depth)
        shorter.load_state_dict({name: value for name, value in model.state_dict().items()
                                 if name in shorter.state_dict()})
        agree(
            lambda model=shorter: values(model, x, mask)[-2:], given[2 * depth - 2 : 2 * depth], f"layer {depth}"
        )


def test_queries_that_change_places_change_answers():
    model, x = small(), images(1, 3, 64, 64)
    before, order = values(model, x), [3, 1, 2, 0, 5, 4]
    model.query_embed.weight.assign(model.query_embed.weight.numpy()[order])
    agree(lambda: values(model, x), [expected[:, order] for expected in before], "exchanged")
    assert np.abs(before[-2][:, 0] - before[-2][:, 3]).max() > 1e-3


# --- positions and padding ------------------------------------------------------------------------------------------


def test_sine_positions_by_hand(device):
    """Each number by the formula, for an image of 2×3 features in a map of 3×4; scale 2π, temperature 10,000."""
    visible = sv.backend.asarray(~padding((3, 4), (2, 3), size=(3, 4)))
    expected = np.zeros((2, 3, 4, 16))
    for image, (height, width) in enumerate([(3, 4), (2, 3)]):
        for row in range(height):
            for column in range(width):
                y, x = ((i + 1) / (n + 1e-6) * 2 * math.pi for i, n in ((row, height), (column, width)))
                angles = [place / 10_000 ** (k / 4) for place in (y, x) for k in range(4)]
                expected[image, row, column] = [wave(angle) for angle in angles for wave in (math.sin, math.cos)]
    shown = expected.any(axis=-1, keepdims=True)
    agree(
        lambda: sv.backend.asnumpy(sine_positions(visible, 16, np.float64)).reshape(2, 3, 4, 16) * shown,
        expected, "positions", dtype=np.float64,
    )
    assert sine_positions(visible, 16, np.float32).dtype == np.float32


def test_a_mask_without_padding_is_no_mask():
    model, x = small(), images(2, 3, 64, 96)
    agree(lambda: values(model, x, np.zeros((2, 64, 96), bool)), values(model, x), "no padding")


def test_what_stands_in_the_padding_changes_nothing():
    model = small().eval()
    memory_at = {}
    x, mask = images(2, 3, 64, 96), padding((64, 96), (40, 50))
    features, visible = model.backbone[0](x, mask)
    for what in ("as it is", "noise"):
        noise = images(*features.shape, seed=5) * ~visible[:, None] if what == "noise" else 0
        changed = sv.Tensor(features.numpy() + 100 * noise)
        model.backbone[0].forward = lambda *_, changed=changed: (changed, visible)
        memory = model.encode(*model.backbone[0](x, mask)).features.numpy().reshape(2, *visible.shape[1:], -1)
        memory_at[what] = memory, values(model, x)
    (before, boxes), (after, boxes_after) = memory_at.values()
    assert np.array_equal(before[visible], after[visible]) and not np.allclose(before[~visible], after[~visible])
    assert all(np.array_equal(a, b) for a, b in zip(boxes, boxes_after))


def test_positions_say_where_to_look_and_are_never_looked_at():
    """With q and k switched off everybody looks everywhere alike, and then no position can be noticed."""
    model, x = small(enc_layers=1), images(1, 3, 64, 64)
    layer = model.transformer.encoder.layers[0]
    tokens, pos = (sv.Tensor(images(1, 20, 32, seed=seed)) for seed in (1, 2))
    nowhere = sv.Tensor(np.zeros((1, 20, 32), np.float32))
    assert np.abs(layer(tokens, pos, None).numpy() - layer(tokens, nowhere, None).numpy()).max() > 1e-3
    for attention in model.transformer.modules():
        if isinstance(attention, MultiheadAttention):
            attention.in_proj_weight.assign(attention.in_proj_weight.numpy() * np.repeat([0, 0, 1], 32)[:, None])
    np.testing.assert_array_equal(
        layer.eval()(tokens, pos, None).numpy(), layer(tokens, nowhere, None).numpy()
    )
    boxes = values(model, x)[-1]            # of queries that are all the same when nobody can ask
    agree(lambda: values(model, x)[-1], np.broadcast_to(boxes[:, :1], boxes.shape), "all queries alike")


def test_the_nearest_pixel_says_what_a_feature_shows():
    """13 pixels for 4 features: those at ⌊i · 13 / 4⌋ = 0, 3, 6, 9."""
    mask = np.zeros((1, 13, 13), bool)
    mask[0, 4:6] = mask[0, 9:, :] = mask[0, :, 7:9] = True
    visible = visible_features(mask, (1, 3, 13, 13), (1, 8, 4, 4))
    assert visible[0].tolist() == [[True] * 4] * 3 + [[False] * 4]


def test_attention_is_called_in_the_order_that_is_promised():
    model = small().eval()
    with record_attention() as maps, sv.no_grad():
        model(images(2, 3, 64, 64), mask=padding((64, 64), (32, 64), size=(64, 64)))
    encoder, decoder = maps[:2], maps[2:]
    assert [p.shape for p in encoder] == [(2, 4, 64, 64)] * 2
    assert [p.shape for p in decoder] == [(2, 4, 6, 6), (2, 4, 6, 64)] * 3
    for p in (*encoder, *decoder[1::2]):
        assert_close(p.sum(-1), np.ones(p.shape[:-1]), ulps(1, 8), "a sum of probabilities")
        assert not p[1, ..., 32:].any() and p[1, ..., :32].all()            # the lower half is padding


# --- weights and modes ----------------------------------------------------------------------------------------------


def test_sizes_are_the_papers():
    """Table 1: 41 and 60 million. The authors' log counts 41,302,368, without conv1 and layer1, which they freeze."""
    with init.without_weights():
        sizes = {name: sv.create_model(name).num_parameters() for name in sv.list_models("detr_resnet*")}
        model = sv.create_model("detr_resnet50")
    assert sizes["detr_resnet50"] == sizes["detr_resnet50_dc5"] == 41_302_368 + 9_408 + 212_992
    assert sizes["detr_resnet101"] == sizes["detr_resnet101_dc5"] and round(sizes["detr_resnet101"] / 1e6) == 60
    assert model.state_dict()["class_embed.weight"].shape == (92, 256)
    assert not any(name.endswith("num_batches_tracked") for name in model.state_dict())


def test_initial_weights():
    model = sv.create_model("detr_tiny", seed=3)
    state = model.state_dict()
    D, F = 128, 256
    layer = "transformer.decoder.layers.1."
    bounds = {
        layer + "self_attn.in_proj_weight": math.sqrt(6 / (D + 3 * D)),         # Glorot's, of the matrix as it is kept
        layer + "multihead_attn.out_proj.weight": math.sqrt(6 / (D + D)),
        layer + "linear1.weight": math.sqrt(6 / (D + F)), layer + "linear2.bias": F**-0.5,
        "input_proj.weight": D**-0.5, "class_embed.weight": D**-0.5, "bbox_embed.layers.2.weight": D**-0.5,
    }
    for name, bound in bounds.items():
        assert 0.9 * bound < np.abs(state[name]).max() <= bound, name
    for name in ("multihead_attn.in_proj_bias", "self_attn.out_proj.bias"):
        assert not state[layer + name].any()
    assert state["query_embed.weight"].std() == pytest.approx(1, abs=0.05)
    again, other = (sv.create_model("detr_tiny", seed=seed).state_dict() for seed in (3, 4))
    assert all(np.array_equal(value, again[name]) for name, value in state.items())
    for name in ("transformer.encoder.layers.0.self_attn.in_proj_weight", "backbone.0.body.layer1.0.conv1.weight"):
        assert not np.array_equal(state[name], other[name])


def test_norms_before_need_one_at_the_end():
    assert "transformer.encoder.norm.weight" in small(normalize_before=True).state_dict()
    assert "transformer.encoder.norm.weight" not in small().state_dict()


def test_a_frozen_norm_stays_and_the_rest_learns():
    model, x, mask = small(frozen_bn=True), images(2, 3, 64, 64), padding((64, 64), (48, 64), size=(64, 64))
    before = model.state_dict()
    optimizer = sv.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    for _ in range(3):
        model.set_generator(sv.random.Generator(moved(3)))
        optimizer.zero_grad()
        outputs = answers(model.train()(x, mask=mask))
        loss = sum((y * y).mean() for y in outputs)
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    # Not from the first step on: in the first decoder layer all queries are zeros, and while biases are zeros too they
    # find nothing in each other. (Without dropout, never: wherever they look, they find the same.)
    assert [name for name, p in model.named_parameters() if not p.grad.any()] == []
    for name, value in model.state_dict().items():
        is_norm_of_the_cnn = "backbone" in name and (".bn" in name or "downsample.1" in name)
        assert np.array_equal(value, before[name]) == is_norm_of_the_cnn, name
    live = small().train()
    live(x)
    assert live.state_dict()["backbone.0.body.bn1.running_mean"].any()


def test_dropout_drops_in_training_alone():
    model, x = small(frozen_bn=True, dropout=0.1), images(1, 3, 64, 64)

    def boxes(train, seed):
        model.train(train).set_generator(sv.random.Generator(moved(seed)))
        return model(x)["pred_boxes"].numpy()

    assert np.array_equal(boxes(True, 1), boxes(True, 1)) and not np.array_equal(boxes(True, 1), boxes(True, 2))
    assert np.array_equal(boxes(False, 1), boxes(False, 2))


def test_queries_norms_and_biases_do_not_decay():
    model = small()
    decayed, kept = sv.optim.param_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in kept["params"] if p.ndim > 1} == {"query_embed.weight"}
    assert all(p.ndim > 1 for p in decayed["params"])


# --- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [({"hidden_dim": 30, "nheads": 3}, "multiple of 4"), ({"nheads": 5}, "is not divisible by 5 heads"),
     ({"dropout": 1.0}, "dropout is a probability"), ({"stages": 2}, "stages must be 4 or 3, .* not 2"),
     ({"num_queries": 0}, "num_queries must be at least 1"), ({"num_classes": 0}, "num_classes must be at least 1"),
     ({"dec_layers": 0}, "dec_layers must be at least 1"), ({"enc_layers": -1}, "not -1"),
     ({"layers": (2, 2)}, "four stages"), ({"channels": (8, 8, 8, 0)}, "channels must be the widths of four stages"),
     ({"in_chans": 0}, "in_chans"), ({"num_query": 5}, "did you mean 'num_queries'")],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options, text):
    with pytest.raises(sv.ScratchvitError, match=text):
        small(**options)


def test_images_and_masks_that_do_not_fit_are_refused():
    model, x = small(), images(2, 3, 64, 96)
    with pytest.raises(sv.ScratchvitError, match=r"\(B, 3, height, width\), it was given"):
        model(images(2, 1, 64, 96))
    for mask in (np.zeros((2, 96, 64), bool), np.zeros((64, 96), bool), np.zeros((1, 64, 96), bool)):
        with pytest.raises(sv.ScratchvitError, match=r"bool of shape \(2, 64, 96\), True on padding"):
            model(x, mask=mask)
    with pytest.raises(sv.ScratchvitError, match=r"opposite of Hugging Face's pixel_mask\), not int64"):
        model(x, mask=np.ones((2, 64, 96), np.int64))
    with pytest.raises(sv.ScratchvitError, match="image 1 of the batch is padding in all of its 8×12 features"):
        model(x, mask=padding((64, 96), (0, 96)))


def test_commands_for_classifiers_refuse_a_detector(tmp_path, capsys):
    assert main(["train", "--model", "detr_tiny", "--out", str(tmp_path / "run")]) == 1
    assert "detr_tiny is a detector" in (text := capsys.readouterr().err) and "`scratchvit detect-train`" in text
    assert not (tmp_path / "run").exists()
    np.savez(tmp_path / "weights.npz", **sv.create_model("detr_tiny").state_dict())
    words = ["predict", "a.png", "--checkpoint", str(tmp_path / "weights.npz"), "--model", "detr_tiny"]
    assert main(words) == 1
    assert "detr_tiny is a detector" in capsys.readouterr().err


# --- against PyTorch ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "options", "train"),
    [("detr_resnet50_dc5", {"enc_layers": 2, "dec_layers": 2, "normalize_before": True, "frozen_bn": False}, True),
     ("detr_resnet34", {"enc_layers": 2, "dec_layers": 3}, False),
     ("detr_resnet18", {"enc_layers": 0, "dec_layers": 1, "hidden_dim": 64, "nheads": 2, "frozen_bn": False}, True)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_and_gradients_equal_pytorchs(name, options, train):
    """Of every decoder layer, with padding; the authors' names load here, and ours there, strictly."""
    torch = pytest.importorskip("torch")
    from tests.support.detr_in_torch import DETR

    options = {"num_classes": 4, "dropout": 0.0, **options}
    model, peer = pair(lambda: DETR(sv.models.model_config(name, **options)), name, **options)
    x, mask = images(2, 3, 72, 104), padding((72, 104), (50, 60), size=(72, 104))
    model.train(train), peer.train(train)
    with torch.no_grad():
        theirs = peer(torch.from_numpy(x), torch.from_numpy(mask))
    saved = peer.state_dict()
    statistics = {name: saved[name] for name, _ in model.named_buffers()}
    agree(lambda: everything(model, x, mask), {"answers": theirs, "statistics": statistics}, "in float32:", samples=1)

    give(in_float64(model), peer.double())          # ReLUs: see `assert_same_cnn`
    x, rng = x.astype(np.float64), seeded(3)
    theirs = peer(torch.from_numpy(x), torch.from_numpy(mask))
    cotangents = [rng.standard_normal(y.shape) for y in theirs]
    expected = {"answers": theirs, "gradients": by_module(peers_gradients(peer, theirs, cotangents))}
    agree(lambda: everything(model, x, mask, cotangents), expected, "in float64:", dtype=np.float64, samples=1)
