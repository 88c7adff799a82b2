"""MViT: the pyramid, pooling attention, clips and images, bad input; against torchvision: names, logits, gradients."""

import numpy as np
import pytest
import safetensors.numpy

import scratchvit as sv
from scratchvit import ops
from scratchvit.costs.counting import cost
from scratchvit.models.mvit import MViTConfig, PoolingAttention, Scale, max_pool_tokens, pool_tokens, pooled, pyramid
from scratchvit.tensor import Tensor
from scratchvit.weights import model_from_weights
from scratchvit.weights.fit import resize_distances, resize_positions
from tests.support.margins import agree, assert_close, ulps
from tests.support.model_parity import assert_learns, assert_same_model, images, pair
from tests.support.mvit_samples import check_gradients, randomised, torchvisions, without_weights
from tests.support.peers import import_torchvision, randomise
from tests.support.seeds import seeded

TINY = {"img_size": 16, "num_frames": 4, "embed_dim": 8, "depths": (1, 2), "num_classes": 5}
IMAGE = {"img_size": 16, "embed_dim": 8, "depths": (1, 2), "num_classes": 5}


@pytest.mark.parametrize(
    ("name", "parameters", "gmacs"),        # torchvision's count of the first; the paper's of the second: 37.0 M, 7.8
    [("mvit_v1_b", 36_610_672, 70.6), ("mvit_v1_b_image", 36_982_696, 7.8)],
)
def test_parameters_and_multiply_adds(name, parameters, gmacs):
    found = cost(without_weights(name))
    assert found.parameters == parameters
    assert round(found.macs / 1e9, 1) == gmacs


def test_the_pyramid_is_the_papers():
    stages = list(pyramid(MViTConfig(), (8, 56, 56), expand_first=False))
    assert [len(stage) for stage in stages] == [1, 2, 11, 2]
    first_and_last = [[(s.dim, s.dim_out, s.num_heads, s.q_size, s.kv_size) for s in (stage[0], stage[-1])]
                      for stage in stages]
    assert first_and_last == [
        [(96, 192, 1, (8, 56, 56), (8, 7, 7))] * 2,
        [(192, 192, 2, (8, 28, 28), (8, 14, 14)), (192, 384, 2, (8, 28, 28), (8, 7, 7))],
        [(384, 384, 4, (8, 14, 14), (8, 14, 14)), (384, 768, 4, (8, 14, 14), (8, 7, 7))],
        [(768, 768, 8, (8, 7, 7), (8, 14, 14)), (768, 768, 8, (8, 7, 7), (8, 7, 7))],
    ]
    rates = np.linspace(0, 0.2, 16)
    assert_close([s.drop_path for stage in stages for s in stage], rates, ulps(rates, 2, np.float64))


def test_channels_may_grow_in_a_stages_first_block():
    stages = list(pyramid(MViTConfig(depths=(2, 2)), (4, 8, 8), expand_first=True))
    assert [[(s.dim, s.dim_out, s.q_size) for s in stage] for stage in stages] == [
        [(96, 96, (4, 8, 8))] * 2, [(96, 192, (4, 4, 4)), (192, 192, (4, 4, 4))],
    ]


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [("mvit_v1_b", {}, (4, 16, 16)), ("mvit_v1_b", {"img_size": (12, 20), "num_frames": 3}, (3, 12, 20)),
     ("mvit_v1_b", {"num_heads": 2, "depths": (2, 1, 2)}, (4, 16, 16)),
     ("mvit_v1_b", {"proj_drop_rate": 0.1, "drop_path_rate": 0.1}, (4, 16, 16)),
     ("mvit_v1_b_image", {}, (16, 16)), ("mvit_v1_b_image", {"img_size": (20, 12)}, (20, 12))],
    ids=str,
)
def test_options_train_and_reach_every_parameter(device, name, options, shape):
    model = sv.create_model(name, **{**(IMAGE if "image" in name else TINY), "drop_rate": 0.0, **options})
    assert_learns(model, images(4, 3, *shape), np.array([0, 4, 1, 1]), lr=0.05)


def test_without_a_head_features_come_out():
    model = sv.create_model("mvit_v1_b", **{**TINY, "num_classes": 0})
    x = images(2, 3, 4, 16, 16)
    assert model(x).shape == (2, 16)
    assert model.forward_features(x).shape == (2, 1 + 2 * 2 * 2, 16)


def test_an_image_is_a_clip_of_one_frame():
    model = sv.create_model("mvit_v1_b_image", **IMAGE).eval()
    image = images(2, 3, 16, 16)
    assert model.conv_proj.weight.shape == (8, 3, 1, 7, 7)
    x = model.conv_proj(Tensor(image[:, :, None]))
    assert x.shape == (2, 8, 1, 4, 4)
    kernel, bias = model.conv_proj.weight.numpy()[:, :, 0], model.conv_proj.bias.numpy()
    agree(lambda: ops.conv2d(image, kernel, bias, 4, 3), x.numpy()[:, :, 0])
    assert model(image).shape == (2, 5)


# --- pooling ---


@pytest.mark.parametrize("n", range(1, 10))
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_a_pooled_grid_is_what_the_convolution_gives(n, stride):
    for kernel in (1, 3, 7):
        y = ops.conv2d(np.ones((1, 1, n, 3), np.float32), np.ones((1, 1, kernel, 1), np.float32),
                       stride=(stride, 1), padding=(kernel // 2, 0))
        assert pooled((n, 3), (stride, 1)) == y.shape[2:]


def test_tokens_are_pooled_as_the_grid_that_they_are_and_the_class_token_passes(device):
    maps = images(2, 4, 3, 6, 5)                                            # (B, C, T, H, W)
    kernel = Tensor(images(4, 1, 3, 3, 3, seed=1))
    tokens = np.concatenate([np.full((2, 1, 4), 7, np.float32), maps.reshape(2, 4, -1).swapaxes(1, 2)], axis=1)

    def pool(x):
        return ops.conv3d(x, kernel, stride=(1, 2, 2), padding=1, groups=4)

    y = pool_tokens(Tensor(tokens), (3, 6, 5), 1, pool).numpy()
    assert y.shape == (2, 1 + 3 * 3 * 3, 4) and (y[:, 0] == 7).all()
    assert np.array_equal(y[:, 1:], pool(Tensor(maps)).numpy().reshape(2, 4, -1).swapaxes(1, 2))


def test_the_residual_path_takes_the_maximum_of_three_by_three():
    maps = images(1, 2, 4, 4)
    y = max_pool_tokens(Tensor(maps.reshape(1, 2, 16).swapaxes(1, 2)), (4, 4), 0, (2, 2)).numpy()
    padded = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    expected = [padded[0, :, i : i + 3, j : j + 3].max(axis=(1, 2)) for i in (0, 2) for j in (0, 2)]
    assert np.array_equal(y[0], expected)


ATTENTION = Scale(
    dim=8, dim_out=8, num_heads=2, size=(2, 4, 3), stride_q=(1, 2, 2), stride_kv=(1, 2, 1), drop_path=0.0
)


def norm(x, layer):
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + layer.eps)
    return x * layer.weight.numpy() + layer.bias.numpy()


def pool_by_loops(x, size, stride, pool, layer):
    """Tokens (1 + N, d) of one head: the sum over every window, place by place, and the norm."""
    weight = pool.weight.numpy()[:, 0]                                      # (d, kT, kH, kW)
    grid = x[1:].reshape(*size, -1)
    rows = [x[0]]
    for place in np.ndindex(*(-(-n // s) for n, s in zip(size, stride))):
        total = np.zeros(x.shape[1])
        for tap in np.ndindex(*weight.shape[1:]):
            at = tuple(p * s + t - k // 2 for p, s, t, k in zip(place, stride, tap, weight.shape[1:]))
            if all(0 <= a < n for a, n in zip(at, size)):
                total += grid[at] * weight[(slice(None), *tap)]
        rows.append(total)
    return norm(np.stack(rows), layer)


def test_pooling_attention_by_loops():
    attention = randomised(PoolingAttention(MViTConfig(), ATTENTION))
    x = seeded(1).standard_normal((1, 1 + 24, 8))
    qkv = x[0] @ attention.qkv.weight.numpy().T + attention.qkv.bias.numpy()
    heads = []
    for head in range(2):
        q, k, v = (qkv[:, 8 * i + 4 * head : 8 * i + 4 * head + 4] for i in range(3))
        q, k, v = (
            pool_by_loops(t, ATTENTION.size, stride, pool.pool, next(iter(pool.norm_act)))
            for t, stride, pool in ((q, ATTENTION.stride_q, attention.pool_q),
                                    (k, ATTENTION.stride_kv, attention.pool_k),
                                    (v, ATTENTION.stride_kv, attention.pool_v))
        )
        p = np.exp(q @ k.T / 2)
        heads.append(p / p.sum(axis=1, keepdims=True) @ v)
    linear = next(iter(attention.project))
    expected = np.concatenate(heads, axis=1) @ linear.weight.numpy().T + linear.bias.numpy()
    agree(lambda: attention(Tensor(x)), expected[None], dtype=np.float64)
    assert expected.shape == (1 + 2 * 2 * 2, 8)


def test_finite_differences_of_pooling_attention(device):
    attention = randomised(PoolingAttention(MViTConfig(), ATTENTION))
    check_gradients(attention, seeded(1).standard_normal((2, 1 + 24, 8)))


def test_positions_are_of_the_place_and_of_the_time():
    positions = randomised(sv.create_model("mvit_v1_b", **TINY).pos_encoding)       # 2 frames of 4×4
    y = positions(Tensor(np.zeros((1, 2 * 16, 8)))).numpy()[0]
    assert np.array_equal(y[0], np.ravel(positions.class_token.numpy() + positions.class_pos.numpy()))
    space, time = positions.spatial_pos.numpy(), positions.temporal_pos.numpy()
    for t in range(2):
        assert np.array_equal(y[1 + 16 * t : 17 + 16 * t], space + time[t])


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_frames": 0}, "num_frames must be at least 1"), ({"depths": ()}, "depths must be the number"),
     ({"depths": (1, 0)}, "depths must be the number"), ({"num_heads": 3}, "embed_dim 8 is not divisible by 3 heads"),
     ({"kernel_qkv": (3, 3)}, "kernel_qkv must be 3 positive"), ({"stride_kv": (1, 0, 1)}, "stride_kv must be 3 pos"),
     ({"kernel_qkv": (3, 2, 3)}, "kernel_qkv must be odd"), ({"mlp_ratio": 0.01}, "has no hidden units"),
     ({"drop_rate": 1.0}, "drop_rate is a probability")],
    ids=str,
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(sv.ScratchvitError, match=message):
        sv.create_model("mvit_v1_b", **{**TINY, **options})


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 3, 5, 16, 16), (1, 1, 4, 16, 16), (1, 3, 4, 16, 20)])
def test_other_clips_than_the_models(shape):
    model = sv.create_model("mvit_v1_b", **TINY)
    with pytest.raises(sv.ScratchvitError, match=r"takes clips of shape \(B, 3, 4, 16, 16\), it was given \(1, "):
        model(images(*shape))


def test_a_clip_for_a_model_of_images():
    model = sv.create_model("mvit_v1_b_image", **IMAGE)
    with pytest.raises(sv.ScratchvitError, match=r"takes images of shape \(B, 3, 16, 16\)"):
        model(images(1, 3, 4, 16, 16))


def test_what_does_not_decay():
    model = sv.create_model("mvit_v1_b", **TINY)
    assert model.no_weight_decay() == {
        f"pos_encoding.{name}" for name in ("class_token", "spatial_pos", "temporal_pos", "class_pos")
    }


# --- weights ---


def test_positions_are_brought_to_the_models_size(tmp_path):
    """And the file is known as torchvision's."""
    small, large = sv.create_model("mvit_v1_b", **TINY), sv.create_model("mvit_v1_b", **{
        **TINY, "img_size": (24, 16), "num_frames": 7}, seed=1)
    safetensors.numpy.save_file(small.state_dict(), tmp_path / "small.safetensors")
    report = str(sv.load_weights(large, tmp_path / "small.safetensors"))
    assert "names: torchvision" in report
    assert "spatial_pos: a grid of 4×4 → 6×4" in report and "temporal_pos: 2 → 4 frames" in report
    tables, before = large.pos_encoding, small.pos_encoding
    expected = resize_positions(before.spatial_pos.numpy()[None], (4, 4), (6, 4), 0)[0]
    assert np.array_equal(tables.spatial_pos.numpy(), expected)
    assert np.array_equal(tables.temporal_pos.numpy(), resize_distances(before.temporal_pos.numpy(), 4))
    assert np.array_equal(large.head.state_dict()["1.weight"], small.head.state_dict()["1.weight"])


def test_half_way_between_two_distances_is_their_mean():
    table = np.array([[0.0, 4.0], [2.0, 0.0]], np.float32)
    assert resize_distances(table, 3).tolist() == [[0, 4], [1, 2], [2, 0]]
    assert resize_distances(table, 2).tolist() == table.tolist()


def test_a_model_is_made_for_a_file_of_another_number_of_classes(tmp_path):
    model = sv.create_model("mvit_v1_b", **{**TINY, "num_classes": 7})
    safetensors.numpy.save_file(model.state_dict(), tmp_path / "a.safetensors")
    sizes = {key: value for key, value in TINY.items() if key != "num_classes"}
    again, _ = model_from_weights(tmp_path / "a.safetensors", "mvit_v1_b", **sizes)
    assert again.config.num_classes == 7
    found = again.state_dict()
    assert all(np.array_equal(value, found[key]) for key, value in model.state_dict().items())


# --- against torchvision ---

# A number added to all keys adds one to all scores of a query, and softmax gives the same.
OF_KEYS = ("attn.pool_k.norm_act.0.bias",)


@pytest.mark.slow
@pytest.mark.parity
def test_logits_and_gradients_equal_torchvisions(monkeypatch):
    make = torchvisions(monkeypatch, "mvit_v1_b", spatial_size=(64, 64), temporal_size=4)
    model, peer = pair(make, "mvit_v1_b", img_size=64, num_frames=4)
    assert_same_model(model, peer, images(2, 3, 4, 64, 64), idle=OF_KEYS)


@pytest.mark.slow
@pytest.mark.parity
def test_of_frames_that_are_not_square(monkeypatch):
    make = torchvisions(monkeypatch, "mvit_v1_b", spatial_size=(64, 96), temporal_size=6)
    model, peer = pair(make, "mvit_v1_b", img_size=(64, 96), num_frames=6)
    assert_same_model(model, peer, images(1, 3, 6, 64, 96), idle=OF_KEYS)


@pytest.mark.slow
@pytest.mark.parity
def test_images_equal_torchvisions_class_on_one_frame(monkeypatch):
    """torchvision has no such preset, but its class builds it: no kernel in time, and keys pooled by half as much."""
    video = import_torchvision().models.video.mvit
    blocks = []
    with monkeypatch.context() as patch:
        patch.setattr(video, "MViT", lambda block_setting, **kwargs: blocks.extend(block_setting))
        video.mvit_v1_b()
    for block in blocks:
        block.kernel_q, block.kernel_kv = block.kernel_q and [1, 3, 3], [1, 3, 3]
        block.stride_kv = [1, *(max(stride // 2, 1) for stride in block.stride_kv[1:])]
    make = torchvisions(
        monkeypatch, "mvit_v1_b", spatial_size=(64, 64), temporal_size=1, block_setting=blocks, num_classes=1000,
        patch_embed_kernel=(1, 7, 7), patch_embed_stride=(1, 4, 4), patch_embed_padding=(0, 3, 3),
    )
    model, peer = pair(make, "mvit_v1_b_image", img_size=64)
    assert_same_model(model, peer, images(1, 3, 64, 64), idle=OF_KEYS)


@pytest.mark.slow
@pytest.mark.parity
def test_logits_of_a_whole_clip(monkeypatch, tmp_path):
    """16 frames of 224×224, the weights through a file. Gradients are compared on smaller clips, above."""
    torch = pytest.importorskip("torch")
    peer = randomise(torchvisions(monkeypatch, "mvit_v1_b")())
    torch.save(peer.state_dict(), tmp_path / "mvit.pth")
    model = model_from_weights(tmp_path / "mvit.pth", "mvit_v1_b")[0]
    assert_same_model(model, peer, images(1, 3, 16, 224, 224), gradients=False)
