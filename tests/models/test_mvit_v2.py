"""MViTv2: relative positions, residual pooling, growth of channels; against timm and torchvision: logits, gradients."""

import numpy as np
import pytest
import safetensors.numpy

import scratchvit as sv
from scratchvit.costs.counting import cost
from scratchvit.models.mvit import Scale, pool_tokens
from scratchvit.models.mvit_v2 import (
    MViTv2Config,
    RelativeAttention,
    key_places,
    relative_offsets,
    relative_scores,
)
from scratchvit.tensor import Tensor
from scratchvit.weights import model_from_weights
from scratchvit.weights.export import export
from scratchvit.weights.fit import resize_distances
from scratchvit.weights.names import recognise, torchvision
from scratchvit.weights.preprocess import preprocessing_for
from tests.support.margins import agree, assert_close, ulps
from tests.support.model_parity import assert_learns, assert_same_model, images, pair, timms
from tests.support.mvit_samples import check_gradients, randomised, torchvisions, without_weights
from tests.support.peers import import_timm, randomise
from tests.support.seeds import seeded

TINY = {"img_size": 32, "embed_dim": 8, "depths": (1, 2), "num_classes": 5, "drop_rate": 0.0}
CLIP = {**TINY, "img_size": 16, "num_frames": 4}
# A number added to all keys adds one to all scores of a query, and softmax gives the same.
OF_KEYS = ("attn.norm_k.bias",)


@pytest.mark.parametrize(
    ("name", "millions"),       # Table 1 of the paper, and §5.1 for H; torchvision's count of the video model
    [("mvitv2_tiny", 24), ("mvitv2_small", 35), ("mvitv2_base", 52), ("mvitv2_large", 218), ("mvitv2_huge_cls", 667),
     ("mvit_v2_s", 34.537744)],
)
def test_parameter_counts_are_the_papers(name, millions):
    count = without_weights(name).num_parameters() / 1e6
    assert count == millions if isinstance(millions, float) else abs(count - millions) < 0.6


def test_the_scores_need_no_matrix_of_relative_positions():
    """Of 3136 queries and 196 keys, 28 numbers a query; no array has an entry for each pair."""
    found = cost(without_weights("mvitv2_tiny"))
    first = [row for row in found.layers if row.module == "stages.0.blocks.0.attn"]
    attention = next(row for row in first if row.op == "attention")
    assert attention.inputs == ((1, 1, 3136, 96 + 28), (1, 1, 196, 96 + 28), (1, 1, 196, 96))
    assert 3136 * 196 not in {np.prod(shape) for row in first for shape in (*row.inputs, *row.outputs)}


@pytest.mark.parametrize(
    "options",
    [{}, {"use_cls_token": True, "global_pool": "token"}, {"use_cls_token": True}, {"expand_attn": False},
     {"residual_pooling": False}, {"img_size": (40, 24)}, {"in_chans": 1}, {"qkv_bias": False},
     {"num_heads": 2, "depths": (2, 1, 2)}, {"drop_rate": 0.1, "drop_path_rate": 0.1}],
    ids=str,
)
def test_options_train_and_reach_every_parameter(device, options):
    model = sv.create_model("mvitv2_tiny", **{**TINY, **options})
    x = images(4, model.config.in_chans, *model.patch_embed.img_size)
    if model.config.global_pool == "token":     # of the last attention only the class token's query counts
        sv.ops.cross_entropy(model(x), np.array([0, 4, 1, 1])).backward()
        unreached = {name for name, p in model.named_parameters() if not sv.backend.asnumpy(p.grad).any()}
        last = "stages.1.blocks.1.attn."
        assert unreached == {f"{last}rel_pos_h", f"{last}rel_pos_w", f"{last}pool_q.weight"}
    else:
        assert_learns(model, x, np.array([0, 4, 1, 1]), lr=0.05)


def test_clips_train(device):
    model = sv.create_model("mvit_v2_s", **{**CLIP, "global_pool": "avg"})
    assert_learns(model, images(4, 3, 4, 16, 16), np.array([0, 4, 1, 1]), lr=0.05)


def test_without_a_head_features_come_out():
    model = sv.create_model("mvit_v2_s", **{**CLIP, "num_classes": 0})
    assert model(images(2, 3, 4, 16, 16)).shape == (2, 16)
    assert model.forward_features(images(2, 3, 4, 16, 16)).shape == (2, 1 + 2 * 2 * 2, 16)


# --- relative positions ---


@pytest.mark.parametrize(("n", "k"), [(4, 4), (1, 1), (8, 4), (4, 8), (7, 2), (2, 7), (6, 4), (5, 1)])
def test_offsets_are_counted_in_the_finer_grid(n, k):
    offsets = relative_offsets(n, k)
    assert offsets.shape == (n, k) and offsets.dtype.kind == "i"
    m = max(n, k)
    expected = [[int(np.floor(i * m / n + (k - 1 - j) * m / k + 1e-9)) for j in range(k)] for i in range(n)]
    assert offsets.tolist() == expected
    assert offsets[0, -1] == 0 and offsets.max() <= 2 * m - 2
    if n == k:
        assert offsets.max() == 2 * n - 2 and (np.diagonal(offsets) == n - 1).all()


@pytest.mark.parametrize(
    ("size", "keys"), [((6, 4), (3, 4)), ((3, 3), (1, 2)), ((2, 4, 3), (2, 2, 3)), ((1, 2, 4), (1, 4, 8))]
)
def test_scores_are_those_of_a_table_of_all_pairs(device, size, keys):
    """Query by query and key by key, R of their offset along each axis looked up and added."""
    rng = seeded(0)
    B, h, d, N = 2, 3, 5, int(np.prod(size))
    q = rng.standard_normal((B, h, N, d))
    tables = [rng.standard_normal((2 * max(n, k) - 1, d)) for n, k in zip(size, keys)]
    offsets = [relative_offsets(n, k) for n, k in zip(size, keys)]
    scores = relative_scores(Tensor(q), size, [Tensor(t) for t in tables], [Tensor(o) for o in offsets]).numpy()
    found = scores @ key_places(keys, 0).T                                  # (B, h, N, M)
    for i, place in enumerate(np.ndindex(*size)):
        for j, key in enumerate(np.ndindex(*keys)):
            R = 0
            for table, a, b, n, k in zip(tables, place, key, size, keys):
                step, key_step = max(k / n, 1), max(n / k, 1)               # as the paper's code has it
                R = R + table[int(a * step - (b - (k - 1)) * key_step)]
            assert_close(found[:, :, i, j], q[:, :, i] @ R, ulps(scores, 8, np.float64))    # products of 5 terms


def test_key_places():
    assert key_places((2, 3), 1).tolist() == [
        [0, 0, 0, 0, 0],
        [1, 0, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 0, 1],
        [0, 1, 1, 0, 0], [0, 1, 0, 1, 0], [0, 1, 0, 0, 1],
    ]


SCALE = Scale(dim=6, dim_out=8, num_heads=2, size=(4, 6), stride_q=(2, 2), stride_kv=(1, 2), drop_path=0.0)
IN_TIME = Scale(
    dim=6, dim_out=8, num_heads=2, size=(2, 4, 3), stride_q=(1, 2, 2), stride_kv=(1, 2, 1), drop_path=0.0
)
KINDS = [
    (SCALE, {}), (SCALE, {"use_cls_token": True}), (SCALE, {"residual_pooling": False}),
    (IN_TIME, {"use_cls_token": True, "cls_residual": False, "kernel_qkv": (3, 3, 3)}),
]


@pytest.mark.parametrize(("scale", "options"), KINDS, ids=str)
def test_attention_is_softmax_of_products_and_a_matrix_of_relative_positions(scale, options):
    """Equations 1 to 5 with E^(rel) made: the pooled q, k and v are the module's own."""
    config = MViTv2Config(**options)
    attention = randomised(RelativeAttention(config, scale))
    prefix, N = int(config.use_cls_token), int(np.prod(scale.size))
    x = seeded(1).standard_normal((2, prefix + N, 6))
    qkv = (x @ attention.qkv.weight.numpy().T + attention.qkv.bias.numpy()).reshape(2, prefix + N, 3, 2, 4)
    tables = [getattr(attention, name).numpy() for name in ("rel_pos_t", "rel_pos_h", "rel_pos_w")[-len(scale.size) :]]
    outputs = np.zeros((2, prefix + int(np.prod(scale.q_size)), 8))
    for b in range(2):
        for head in range(2):
            q, k, v = (
                norm(pool_tokens(Tensor(qkv[b : b + 1, :, i, head]), scale.size, prefix, pool)).numpy()[0]
                for i, (pool, norm) in enumerate(((attention.pool_q, attention.norm_q),
                                                  (attention.pool_k, attention.norm_k),
                                                  (attention.pool_v, attention.norm_v)))
            )
            E = np.zeros((len(q), len(k)))
            for i, place in enumerate(np.ndindex(*scale.q_size), start=prefix):
                for j, key in enumerate(np.ndindex(*scale.kv_size), start=prefix):
                    for table, a, c, n, m in zip(tables, place, key, scale.q_size, scale.kv_size):
                        E[i, j] += q[i] @ table[int(a * max(m / n, 1) + (m - 1 - c) * max(n / m, 1))]
            p = np.exp(q @ k.T / 2 + E)
            z = p / p.sum(axis=1, keepdims=True) @ v
            if config.residual_pooling:
                z[0 if config.cls_residual else prefix :] += q[0 if config.cls_residual else prefix :]
            outputs[b, :, 4 * head : 4 * head + 4] = z
    expected = outputs @ attention.proj.weight.numpy().T + attention.proj.bias.numpy()
    agree(lambda: attention(Tensor(x)), expected, dtype=np.float64)


@pytest.mark.parametrize(("scale", "options"), KINDS[1:], ids=str)
def test_finite_differences_of_attention(device, scale, options):
    attention = randomised(RelativeAttention(MViTv2Config(**options), scale))
    N = int("use_cls_token" in options) + int(np.prod(scale.size))
    check_gradients(attention, seeded(1).standard_normal((2, N, 6)))


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "message"),
    [({"patch_kernel": (7,)}, "two numbers for images, or three for clips"), ({"num_frames": 4}, "clips need kernels"),
     ({"kernel_qkv": (3, 3, 3)}, "kernel_qkv must be 2 positive numbers"), ({"global_pool": "max"}, '"avg" or "token"'),
     ({"global_pool": "token"}, "needs a class token"), ({"num_heads": 3}, "is not divisible by 3 heads")],
    ids=str,
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(sv.ScratchvitError, match=message):
        sv.create_model("mvitv2_tiny", **{**TINY, **options})


def test_other_pictures_than_the_models():
    with pytest.raises(sv.ScratchvitError, match=r"images of shape \(B, 3, 32, 32\), it was given \(1, 3, 32, 40\)"):
        sv.create_model("mvitv2_tiny", **TINY)(images(1, 3, 32, 40))
    with pytest.raises(sv.ScratchvitError, match=r"clips of shape \(B, 3, 4, 16, 16\), it was given \(1, 3, 16, 16\)"):
        sv.create_model("mvit_v2_s", **CLIP)(images(1, 3, 16, 16))


# --- weights ---


def test_tables_are_brought_to_the_models_size(tmp_path):
    small, large = (sv.create_model("mvitv2_tiny", **{**TINY, "img_size": size}) for size in (32, (64, 32)))
    safetensors.numpy.save_file(small.state_dict(), tmp_path / "small.safetensors")
    report = str(sv.load_weights(large, tmp_path / "small.safetensors"))
    assert "3 tables of relative positions" in report           # rows: 8 → 16, then 4 → 8; columns are as many
    attention, before = (next(iter(model.stages[1].blocks)).attn for model in (large, small))
    assert np.array_equal(attention.rel_pos_h.numpy(), resize_distances(before.rel_pos_h.numpy(), 15))
    assert np.array_equal(attention.rel_pos_w.numpy(), before.rel_pos_w.numpy())


def test_torchvisions_names():
    names = {
        "conv_proj.weight": "patch_embed.proj.weight", "pos_encoding.class_token": "cls_token",
        "blocks.0.attn.rel_pos_t": "stages.0.blocks.0.attn.rel_pos_t", "blocks.1.project.bias":
        "stages.1.blocks.0.shortcut_proj_attn.bias", "blocks.2.attn.pool_k.pool.weight":
        "stages.1.blocks.1.attn.pool_k.weight", "blocks.2.attn.pool_q.norm_act.0.bias":
        "stages.1.blocks.1.attn.norm_q.bias", "blocks.3.project.weight":
        "stages.2.blocks.0.shortcut_proj_attn.weight", "blocks.12.mlp.3.bias": "stages.2.blocks.9.mlp.fc2.bias",
        "blocks.12.mlp.0.bias": "stages.2.blocks.9.mlp.fc1.bias", "blocks.3.attn.project.0.weight":
        "stages.2.blocks.0.attn.proj.weight", "head.1.weight": "head.fc.weight", "norm.bias": "norm.bias",
        "blocks.1.project.weight": "stages.1.blocks.0.shortcut_proj_attn.weight",
    }
    weights = {name: np.full((1, 1), i) for i, name in enumerate(names)}
    weights |= {f"blocks.{i}.norm1.bias": np.full(1, 99) for i in range(4, 12)}
    assert recognise(weights) is torchvision.MVIT_V2
    renamed = torchvision.MVIT_V2.rename(weights).weights
    found = {int(np.ravel(value)[0]): name for name, value in renamed.items() if np.ravel(value)[0] != 99}
    assert {name: found[i] for i, name in enumerate(names)} == names
    assert renamed["cls_token"].shape == (1, 1, 1)


def test_pictures_and_frames_are_scaled_as_in_the_training():
    assert preprocessing_for("mvit_v2_s").mean == preprocessing_for("mvit_v1_b").mean == (0.45, 0.45, 0.45)
    assert preprocessing_for("mvitv2_tiny").mean == preprocessing_for("mvit_v1_b_image").mean == (0.485, 0.456, 0.406)


def test_what_timm_cannot_build_is_not_exported(tmp_path):
    for name, options, message in (
        ("mvitv2_tiny", {"img_size": (64, 32)}, "squares of a multiple of 32"),
        ("mvit_v2_s", {"img_size": 32, "num_frames": 2}, "timm has no model like this mvit_v2_s"),
    ):
        with pytest.raises(sv.ScratchvitError, match=message):
            export(without_weights(name, **options), name, tmp_path / "out", preprocessing_for(name))
    assert not (tmp_path / "out").exists()


# --- against timm ---


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "size"),
    [("mvitv2_tiny", 224), ("mvitv2_tiny", 160), ("mvitv2_small", 160), ("mvitv2_base", 160)],
)
def test_logits_and_gradients_equal_timms(name, size):
    """Of squares: timm's has no other."""
    model, peer = pair(timms(name, img_size=size), name, img_size=size)
    assert_same_model(model, peer, images(1, 3, size, size), idle=OF_KEYS)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("options", [
    {"expand_attn": False, "embed_dim": 48, "num_heads": 2}, {"use_cls_token": True}, {"use_cls_token": True,
    "global_pool": "avg"}, {"residual_pooling": False, "qkv_bias": False, "mlp_ratio": 2.0},
], ids=str)
def test_options_equal_timms(options):
    """As of the models L and …_cls, whose full sizes are large; of depth 1, 2, 1, 2."""
    import_timm()
    from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg

    pool = {key: options[key] for key in ("global_pool",) if key in options}
    sizes = {"depths": (1, 2, 1, 2), "embed_dim": 32, **{k: v for k, v in options.items() if k not in pool}}
    chosen = {"global_pool": "token" if "use_cls_token" in options else "avg", **pool}
    model, peer = pair(
        lambda: MultiScaleVit(MultiScaleVitCfg(**sizes), img_size=(96, 96), num_classes=10, **pool),
        "mvitv2_tiny", img_size=96, num_classes=10, **sizes, **chosen,
    )
    assert_same_model(model, peer, images(2, 3, 96, 96), idle=OF_KEYS)


@pytest.mark.slow
@pytest.mark.parity
def test_tables_are_resized_as_timm_does_it(tmp_path):
    torch = pytest.importorskip("torch")
    timm = import_timm()
    small = randomise(timm.create_model("mvitv2_tiny", img_size=64, num_classes=10))
    torch.save(small.state_dict(), tmp_path / "small.pth")
    peer = timm.create_model("mvitv2_tiny", img_size=128, num_classes=10, checkpoint_path="")
    peer.load_state_dict(timm.models.mvitv2.checkpoint_filter_fn(dict(small.state_dict()), peer))
    model = sv.create_model("mvitv2_tiny", img_size=128, num_classes=10)
    sv.load_weights(model, tmp_path / "small.pth")
    assert_same_model(model, peer, images(1, 3, 128, 128), gradients=False)


@pytest.mark.slow
@pytest.mark.parity
def test_an_exported_model_is_timms(tmp_path):
    name, options = "mvitv2_tiny", {"img_size": 64, "num_classes": 7}
    model = randomised_model(sv.create_model(name, **options))
    export(model, name, tmp_path / "out", preprocessing_for(name, img_size=64))
    peer = import_timm().create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    x = images(1, 3, 64, 64)
    assert_same_model(model, peer, x, gradients=False)
    again, found = model_from_weights(tmp_path / "out")
    assert found == name and np.array_equal(again(x).numpy(), model(x).numpy())


def randomised_model(model):
    rng = seeded(0)
    for parameter in model.parameters():
        parameter.assign(parameter.numpy() + 0.1 * rng.standard_normal(parameter.shape))
    return model.eval()


# --- against torchvision ---


@pytest.mark.slow
@pytest.mark.parity
def test_clips_equal_torchvisions(monkeypatch, tmp_path):
    """Its file loads by name, resized for no axis; logits and the gradient of every parameter agree."""
    torch = pytest.importorskip("torch")
    peer = randomise(torchvisions(monkeypatch, "mvit_v2_s", spatial_size=(64, 64), temporal_size=4)())
    torch.save(peer.state_dict(), tmp_path / "mvit.pth")
    model, _ = model_from_weights(tmp_path / "mvit.pth", "mvit_v2_s", img_size=64, num_frames=4)
    assert_same_model(model, peer, images(2, 3, 4, 64, 64), renamed=our_names, idle=OF_KEYS)


def our_names(gradients):
    return torchvision.MVIT_V2.rename(gradients).weights


@pytest.mark.slow
@pytest.mark.parity
def test_frames_that_are_not_square_equal_torchvisions(monkeypatch, tmp_path):
    """torchvision's tables are as long as the longer side needs, and resized each time; here they are resized once."""
    torch = pytest.importorskip("torch")
    peer = randomise(torchvisions(monkeypatch, "mvit_v2_s", spatial_size=(64, 96), temporal_size=4)())
    torch.save(peer.state_dict(), tmp_path / "mvit.pth")
    model = sv.create_model("mvit_v2_s", img_size=(64, 96), num_frames=4)
    assert "tables of relative positions" in str(sv.load_weights(model, tmp_path / "mvit.pth"))
    assert_same_model(model, peer, images(1, 3, 4, 64, 96), gradients=False)


@pytest.mark.slow
@pytest.mark.parity
def test_logits_of_a_whole_clip(monkeypatch, tmp_path):
    """16 frames of 224×224. Gradients are compared on smaller clips: biases are sums over 25,088 tokens (issue 13)."""
    torch = pytest.importorskip("torch")
    peer = randomise(torchvisions(monkeypatch, "mvit_v2_s")())
    torch.save(peer.state_dict(), tmp_path / "mvit.pth")
    model, _ = model_from_weights(tmp_path / "mvit.pth", "mvit_v2_s")
    assert_same_model(model, peer, images(1, 3, 16, 224, 224), gradients=False)
