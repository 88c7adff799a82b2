"""Attention maps, rollout, pictures, and counting without weights."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import scratchvit as sv
from scratchvit.inspect import (
    attention_maps,
    class_attention,
    draw_attention,
    draw_curves,
    rollout,
    shows_attention,
)
from scratchvit.inspect.attention import attention_distance
from scratchvit.inspect.attention_pictures import as_seen, draw_heads
from scratchvit.inspect.figures import overlay, read_metrics
from scratchvit.models import create_model
from scratchvit.nn import Linear
from tests.support.margins import assert_close, ulps
from tests.support.seeds import seeded

TINY = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 3, "embed_dim": 16, "depth": 3, "num_heads": 2}


def tiny(**options):
    return create_model("vit_tiny_patch16_224", **{**TINY, **options})


def images(count=2):
    return seeded(0).standard_normal((count, 1, 8, 8), dtype=np.float32)


def test_maps_are_distributions_over_all_tokens(device):
    maps = attention_maps(tiny(), images())
    assert maps.shape == (3, 2, 2, 17, 17)
    assert isinstance(maps, np.ndarray)
    assert_close(maps.sum(axis=-1, dtype=np.float64), np.ones(maps.shape[:-1]), ulps(1, 4))     # of the sum divided by


def test_maps_leave_the_model_in_its_mode_and_record_no_graph():
    model = tiny(attn_drop_rate=0.5, drop_path_rate=0.5)
    assert model.training
    first, second = attention_maps(model, images()), attention_maps(model, images())
    np.testing.assert_array_equal(first, second)        # dropout was off
    assert model.training and all(module.training for module in model.modules())
    attention_maps(model.eval(), images())
    assert not model.training


def test_a_model_without_attention_is_refused():
    with pytest.raises(sv.ScratchvitError, match=r"Linear: attention maps need layers .* none at all"):
        attention_maps(Linear(8, 8), images())


def test_rollout_equals_its_formula_written_as_loops():
    rng = seeded(1)
    maps = rng.random((3, 2, 2, 5, 5))
    maps /= maps.sum(axis=-1, keepdims=True)
    expected = np.zeros((2, 5, 5))
    for b in range(2):
        flow = np.eye(5)
        for layer in range(3):
            mixed = np.zeros((5, 5))
            for i in range(5):
                for j in range(5):
                    mixed[i, j] = 0.5 * (maps[layer, b, 0, i, j] + maps[layer, b, 1, i, j]) / 2 + 0.5 * (i == j)
            flow = mixed @ flow
        expected[b] = flow
    np.testing.assert_allclose(rollout(maps), expected, rtol=1e-12)
    np.testing.assert_allclose(rollout(maps).sum(axis=-1), 1, rtol=1e-12)


def test_rollout_keeps_float32():
    assert rollout(attention_maps(tiny(), images())).dtype == np.float32


def test_class_attention_with_and_without_a_class_token():
    attention = np.arange(25.0).reshape(1, 5, 5)
    np.testing.assert_array_equal(class_attention(attention, 1, (2, 2)), [[[1, 2], [3, 4]]])
    received = attention[:, :4, :4].mean(axis=1)
    np.testing.assert_array_equal(class_attention(attention[:, :4, :4], 0, (2, 2))[0].ravel(), received[0])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"class_token": False, "global_pool": "avg"}, {"global_pool": "avg"}])
def test_attention_sheet_of_any_vit(tmp_path: Path, options):
    pictures = seeded(0).integers(256, size=(5, 8, 8, 1), dtype=np.uint8)
    path = tmp_path / "attention.png"
    draw_attention(
        tiny(**options), pictures, lambda p: p.transpose(0, 3, 1, 2).astype(np.float32) / 255,
        [0, 1, 2, 0, 1], ("a", "b", "c"), path,
    )
    with Image.open(path) as sheet:
        assert sheet.size[0] > 500
    assert list(tmp_path.iterdir()) == [path]       # no unfinished file beside it


def test_attention_sheet_in_colour(tmp_path: Path):
    pictures = seeded(0).integers(256, size=(1, 8, 8, 3), dtype=np.uint8)
    draw_attention(
        tiny(in_chans=3), pictures, lambda p: p.transpose(0, 3, 1, 2).astype(np.float32) / 255,
        [0], ("a", "b", "c"), tmp_path / "a.png",
    )
    assert (tmp_path / "a.png").is_file()


def test_curves_of_a_run(tmp_path: Path):
    metrics = tmp_path / "metrics.csv"
    metrics.write_text(
        "epoch,lr,train_loss,train_accuracy,val_loss,val_accuracy\n1,0.1,2.3,0.1,2.2,0.2\n2,0.1,1.3,0.6,1.5,0.5\n"
    )
    draw_curves(metrics, tmp_path / "curves.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.csv"]
    with Image.open(tmp_path / "curves.png") as sheet:
        assert sheet.size[0] > 500


def test_without_matplotlib_there_is_one_sentence(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    metrics = tmp_path / "metrics.csv"
    metrics.write_text("epoch,train_loss,train_accuracy,val_loss,val_accuracy\n1,2.3,0.1,2.2,0.2\n")
    with pytest.raises(sv.ScratchvitError, match="pip install matplotlib"):
        draw_curves(metrics, tmp_path / "curves.png")
    assert list(tmp_path.iterdir()) == [metrics]


@pytest.mark.parametrize(("name", "options", "shown"), [
    ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8}, True),
    ("deit_tiny_distilled_patch16_224", {"img_size": 32, "patch_size": 8}, True),
    ("resnet18", {}, False),
    ("swin_tiny_patch4_window7_224", {"img_size": 28, "depths": (1,), "num_heads": (2,), "embed_dim": 16}, False),
])
def test_attention_is_drawn_where_all_layers_see_the_same_patches(tmp_path: Path, name, options, shown):
    model = create_model(name, num_classes=2, **options)
    assert shows_attention(model) == shown and not shows_attention(None)
    if shown:
        pictures = np.zeros((2, 32, 32, 3), np.uint8)
        normalize = lambda p: p.transpose(0, 3, 1, 2).astype(np.float32)  # noqa: E731
        draw_attention(model, pictures, normalize, [0, 1], "ab", tmp_path / "a.png")
        assert (tmp_path / "a.png").is_file()


def test_a_map_lies_over_its_picture():
    heat = np.float32([[0, 0], [0, 7]])
    drawn = overlay(np.zeros((16, 16, 1), np.uint8), heat)
    assert drawn.shape == (112, 112, 3) and drawn.dtype == np.uint8
    assert drawn[-1, -1].sum() > 3 * drawn[:56, :56].max()
    assert overlay(np.zeros((200, 300, 3), np.uint8), np.ones((2, 2), np.float32)).shape == (200, 300, 3)


@pytest.mark.parametrize(("text", "sentence"), [(None, "cannot be read"), ("epoch,lr\n1,x\n", "is damaged")])
def test_a_history_that_cannot_be_read_is_one_sentence(tmp_path: Path, text, sentence):
    if text:
        (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(sv.ScratchvitError, match=f"metrics.csv {sentence}"):
        read_metrics(tmp_path / "metrics.csv")


def test_the_attention_distance_equals_its_formula_written_as_loops():
    """Two rows of three patches of 4 × 2 pixels, after a class token."""
    maps = seeded(1).random((2, 3, 4, 7, 7))
    expected = np.zeros((2, 4))
    for layer, head in np.ndindex(2, 4):
        of_patches = []
        for image, i in np.ndindex(3, 6):
            weights = maps[layer, image, head, 1 + i, 1:]
            apart = [np.hypot(4 * (i // 3 - j // 3), 2 * (i % 3 - j % 3)) for j in range(6)]
            of_patches.append(np.dot(weights, apart) / weights.sum())
        expected[layer, head] = np.mean(of_patches)
    np.testing.assert_allclose(attention_distance(maps, 1, (2, 3), (4, 2)), expected, rtol=1e-12)


def test_attention_to_oneself_has_no_distance():
    maps = np.broadcast_to(np.eye(5, dtype=np.float32), (1, 1, 2, 5, 5))
    assert not attention_distance(maps, 1, (2, 2), (8, 8)).any()


def test_a_sheet_of_heads_shows_each_map_in_its_place(tmp_path, monkeypatch):
    """A map that is 1 at one patch is bright there, in the row of its layer and the column of its head."""
    from matplotlib.axes import Axes

    shown = []
    monkeypatch.setattr(Axes, "imshow", lambda self, array, **_: shown.append(array))
    maps = np.zeros((2, 3, 4, 4), np.float32)
    maps[1, 2, 0, 3] = 1
    draw_heads(np.zeros((16, 16, 1), np.uint8), maps, "title", tmp_path / "heads.png", patch=(3, 0))
    (sheet,) = shown
    tile = sheet[-112:, -112:]
    assert sheet.shape == (2 * 112 + 8, 3 * 112 + 2 * 8, 3)
    assert tile[10, -10].sum() > 400 > tile[60, 40].sum()
    assert (tile[-1, :20] == 255).all()                     # the frame
    assert sheet[10, 100].sum() < 100                       # the first head of the first layer


def test_what_a_model_is_given_is_shown_from_its_smallest_to_its_largest_number():
    image = np.array([[[-1.0, 1.0], [0.0, -1.0]]], np.float32)
    assert as_seen(image)[..., 0].tolist() == [[0, 255], [128, 0]]
    assert not as_seen(np.ones((3, 2, 2), np.float32)).any()
