"""Inside a DETR: its attention by hand, what its queries answer, who takes which object; pictures, report, command."""

import contextlib
import dataclasses
import io
import itertools
import sys

import numpy as np
import pytest
from PIL import Image

import scratchvit as sv
from scratchvit.cli import main
from scratchvit.data import Normalize
from scratchvit.detection import HungarianMatcher
from scratchvit.detection.config import DetectConfig
from scratchvit.detection.data.annotations import DetectionSplits
from scratchvit.detection.data.batches import DetectionLoader
from scratchvit.detection.data.scenes import load_scenes
from scratchvit.detection.detector import Detector, Sizes, map_size, open_detector
from scratchvit.detection.evaluation import evaluate_boxes, results_of
from scratchvit.detection.task import train_detector
from scratchvit.errors import ScratchvitError
from scratchvit.inspect import detection_pictures
from scratchvit.inspect.detection import (
    QueryBoxes,
    as_seen,
    cross_attention,
    encoder_attention,
    feature_at,
    matching,
    query_boxes,
    visible_size,
)
from scratchvit.inspect.detection_pictures import (
    LABEL,
    Seen,
    cost_rows,
    cross_attention_panels,
    draw_panels,
    encoder_attention_panels,
    matching_panel,
    query_box_panels,
)
from scratchvit.inspect.figures import drawable, image_of
from scratchvit.models.detr import visible_features
from scratchvit.nn.module import evaluating
from scratchvit.ops import record_attention
from scratchvit.reports.detection import DetectionRun, open_detection_run, write_detection_report
from scratchvit.reports.detection_curves import LAYERS, PRECISIONS
from scratchvit.training.checkpoint import Checkpoint, save_checkpoint
from tests.support.browser import assert_readable, contrast, look_at
from tests.support.detection_runs import quiet, small_scenes
from tests.support.margins import agree, assert_close, ulps
from tests.support.pages import EVIL, SCRIPT, Page, assert_self_contained
from tests.support.seeds import seeded

SMALL = {
    "layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "hidden_dim": 16, "nheads": 2, "enc_layers": 2,
    "dec_layers": 3, "dim_feedforward": 24, "num_queries": 6, "num_classes": 10,
}
NORMALIZE = Normalize((0.5,) * 3, (0.25,) * 3)
KINDS = ("detr_tiny", "dab_detr_tiny")


def small(name="detr_tiny", seed=0, **options):
    """A detector whose parameters are all other than 0, as after training."""
    model = sv.create_model(name, seed=seed, **{**SMALL, **options})
    rng = seeded(seed)
    for parameter in model.parameters():
        parameter.assign(parameter.numpy() + 0.1 * rng.standard_normal(parameter.shape, dtype=np.float32))
    return model


def image(height=64, width=96, seed=0):
    return seeded(seed).standard_normal((3, height, width), dtype=np.float32)


def padding(shown, size=(64, 96)):
    """A mask, True outside the upper left (height, width)."""
    mask = np.ones(size, bool)
    mask[: shown[0], : shown[1]] = False
    return mask


def recorded(model, x, mask):
    """All attentions of one image, in the order of the calls."""
    with evaluating(model), record_attention() as maps:
        model(x[None], mask=None if mask is None else mask[None])
    return [sv.backend.asnumpy(each)[0] for each in maps]


def by_hand(attention, query, key, visible):
    """softmax(q kᵀ / √d') of every head, from the layer's weights: query (N, D), key (L, D) → (heads, N, L)."""
    D, heads = query.shape[1], attention.num_heads
    weight, bias = attention.in_proj_weight.numpy().astype(float), attention.in_proj_bias.numpy().astype(float)
    maps = []
    for head in range(heads):
        rows = slice(head * D // heads, (head + 1) * D // heads)
        q = query @ weight[:D][rows].T + bias[:D][rows]
        k = key @ weight[D : 2 * D][rows].T + bias[D : 2 * D][rows]
        e = np.exp(q @ k.T / np.sqrt(D / heads)) * visible
        maps.append(e / e.sum(axis=1, keepdims=True))
    return np.array(maps)


# --- attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", [None, (40, 50)])
def test_cross_attention_equals_what_the_weights_say(shown):
    model, x = small(), image()
    mask = None if shown is None else padding(shown)
    with evaluating(model):
        memory = model.encode(*model.backbone[0](x[None], None if mask is None else mask[None]))
    placed = memory.features.numpy()[0].astype(float) + memory.pos.numpy()[0]
    visible = np.ones(len(placed)) if memory.keys is None else memory.keys.reshape(-1)
    # Before the first layer looks at the image, each query is 0, looks at zeros, and so gets the values' bias.
    layer, queries = model.transformer.decoder.layers[0], model.query_embed.weight.numpy().astype(float)
    value = layer.self_attn.in_proj_bias.numpy()[-queries.shape[1] :].astype(float)
    out = layer.self_attn.out_proj
    z = out.weight.numpy().astype(float) @ value + out.bias.numpy()
    z = (z - z.mean()) / np.sqrt(z.var() + 1e-5) * layer.norm1.weight.numpy() + layer.norm1.bias.numpy()
    expected = by_hand(layer.multihead_attn, z + queries, placed, visible)
    found = cross_attention(model, x, mask, layer=0)
    assert found.shape == (2, 6, 8, 12)
    agree(lambda: cross_attention(model, x, mask, layer=0).reshape(2, 6, -1), expected, "attention")


@pytest.mark.parametrize("shown", [None, (40, 50)])
def test_encoder_attention_equals_what_the_weights_say(shown):
    model, x, point = small(), image(), (0.7, 0.2)
    mask = None if shown is None else padding(shown)
    with evaluating(model):
        features, visible = model.backbone[0](x[None], None if mask is None else mask[None])
        pos = model.encode(features, visible).pos.numpy()[0]
        src = model.input_proj(features).numpy()[0].reshape(16, -1).T.astype(float)
    visible = np.ones(len(src)) if visible is None else visible.reshape(-1)
    expected = by_hand(model.transformer.encoder.layers[0].self_attn, src + pos, src + pos, visible)
    row, column = (1, 8) if shown is None else (1, 4)       # 0.2 · 64 / 8, 0.7 · 96 / 8; 0.2 · 40 / 8, 0.7 · 50 / 8
    found = encoder_attention(model, x, point, mask)
    assert found.shape == (2, 2, 8, 12)
    of_point = expected[:, row * 12 + column]
    agree(lambda: encoder_attention(model, x, point, mask)[0].reshape(2, -1), of_point, "attention")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("shown", [None, (40, 50)])
def test_maps_are_those_recorded_and_see_no_padding(name, shown, device):
    model, x = small(name), image()
    mask = None if shown is None else padding(shown)
    maps = recorded(model, x, mask)
    assert len(maps) == 2 + 3 * 2
    every = [cross_attention(model, x, mask, layer) for layer in range(3)]
    for layer, found in enumerate(every):
        np.testing.assert_array_equal(found.reshape(2, 6, -1), maps[2 + 2 * layer + 1])
    np.testing.assert_array_equal(cross_attention(model, x, mask), every[-1])
    assert not np.allclose(every[1], every[2])
    seen = encoder_attention(model, x, (0.5, 0.5), mask)
    height, width = (64, 96) if shown is None else shown
    place = height // 2 // 8 * 12 + width // 2 // 8
    np.testing.assert_array_equal(seen.reshape(2, 2, -1), [layer[:, place] for layer in maps[:2]])

    visible = np.ones((8, 12), bool)
    if mask is not None:
        visible = sv.backend.asnumpy(visible_features(mask[None], (1, 3, 64, 96), (1, 16, 8, 12)))[0]
        assert 0 < visible.sum() < visible.size
    for maps in (every[-1], seen):
        assert_close(maps.sum(axis=(2, 3)), np.ones(maps.shape[:2]), ulps(1, 8), "a sum of probabilities")
        assert (maps[..., ~visible] == 0).all() and (maps[..., visible] > 0).all()


@pytest.mark.parametrize("options", [{}, {"dilation": False}, {"dilation": False, "stages": 4}, {"stages": 4}])
@pytest.mark.parametrize("size", [(70, 99), (64, 64), (33, 130)])
def test_the_map_has_the_size_of_the_features_whatever_the_stride(options, size):
    model, x = small(**options), image(*size)
    with evaluating(model):
        H, W = model.backbone[0](x[None])[0].shape[2:]
    assert cross_attention(model, x).shape == (2, 6, H, W)
    assert map_size(model.config, size) == (H, W)


def test_where_a_point_is():
    size, whole = (8, 12), (64, 96)
    assert feature_at((0, 0), size, whole) == (0, 0)
    assert feature_at((1, 1), size, whole) == (7, 11)
    assert feature_at((0.5, 0.26), size, whole) == (2, 6)               # x is across
    assert feature_at((1, 1), size, whole, padding((40, 50))) == (4, 6)     # the last pixels: 39 / 8, 49 / 8
    assert visible_size(whole, padding((40, 50))) == (40, 50) and visible_size(whole, None) == whole
    rng = seeded(0)
    for shown in itertools.product((1, 8, 9, 63, 64), (1, 7, 50, 96)):
        mask = padding(shown)
        visible = visible_features(mask[None], (1, 3, *whole), (1, 16, *size))[0]
        for point in (*rng.random((20, 2)), (1, 1)):
            assert visible[feature_at(point, size, whole, mask)], (shown, point)
    for outside in ((-0.1, 0), (0, 1.01), (float("nan"), 0)):
        with pytest.raises(ScratchvitError, match=r"is outside the picture: x and y go from 0"):
            feature_at(outside, size, whole)


def test_looking_leaves_the_model_as_it_was():
    model, x = small(dropout=0.5), image()
    first = cross_attention(model.train(), x)
    np.testing.assert_array_equal(first, cross_attention(model, x))     # dropout was off
    assert model.training and all(module.training for module in model.modules())
    encoder_attention(model.eval(), x, (0, 0))
    assert not model.training


def test_what_cannot_be_looked_into_is_one_sentence():
    vit = sv.create_model("vit_tiny_patch16_224", img_size=16, embed_dim=16, depth=1, num_heads=2)
    loader = DetectionLoader(load_scenes(48, val=2).val, 2, NORMALIZE)
    for look in (
        lambda: cross_attention(vit, image()), lambda: encoder_attention(vit, image(), (0, 0)),
        lambda: query_boxes(vit, loader), lambda: matching(vit, HungarianMatcher(), next(iter(loader))),
    ):
        with pytest.raises(ScratchvitError, match="VisionTransformer is not a detector"):
            look()
    with pytest.raises(ScratchvitError, match="no encoder layers"):
        encoder_attention(small(enc_layers=0), image(), (0, 0))
    assert cross_attention(small(enc_layers=0), image()).shape == (2, 6, 8, 12)
    for layer in (3, -4):
        with pytest.raises(ScratchvitError, match=rf"no layer {layer} in the decoder: it has 0 … 2"):
            cross_attention(small(), image(), layer=layer)


# --- queries over a data set ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_query_boxes_are_the_answers_image_by_image(name, device):
    model, scenes = small(name), load_scenes(48, val=5).val

    def ask():
        return query_boxes(model.train(), DetectionLoader(scenes, 2, NORMALIZE, stretch=1))

    asked = ask()
    assert model.training and asked.boxes.shape == (5, 6, 4)
    expected_boxes, expected_scores = [], []
    for index in range(5):
        x = NORMALIZE(np.asarray(scenes.picture(index))[None])
        with evaluating(model):
            outputs = model(sv.backend.asarray(x))
        logits = outputs["pred_logits"].numpy()[0].astype(float)                # (6, classes), and perhaps no object
        odds = np.exp(logits)
        shares = odds / (1 + odds) if model.config.focal else (odds / odds.sum(axis=1, keepdims=True))[:, :-1]
        expected_boxes.append(outputs["pred_boxes"].numpy()[0])
        expected_scores.append(shares.max(axis=1))
        np.testing.assert_array_equal(asked.labels[index], shares.argmax(axis=1))
    agree(lambda: [ask().boxes, ask().scores], [np.array(expected_boxes), np.array(expected_scores)])
    np.testing.assert_array_equal(asked.used(0.0), 1)
    threshold = float(np.median(asked.scores))
    expected = [sum(score >= threshold for score in scores) / 5 for scores in asked.scores.T]
    np.testing.assert_allclose(asked.used(threshold), expected, rtol=1e-14)
    with pytest.raises(ScratchvitError, match="the loader has no images"):
        query_boxes(model, [])


# --- matching -------------------------------------------------------------------------------------------------------


def batch(counts, seed=0):
    """Padded images with random objects."""
    rng = seeded(seed)
    mask = np.stack([padding((64 - 8 * i, 96), (64, 96)) for i in range(len(counts))])
    targets = [
        {"labels": rng.integers(0, 10, n), "boxes": rng.uniform(0.2, 0.8, (n, 4)).astype(np.float32)} for n in counts
    ]
    return rng.standard_normal((len(counts), 3, 64, 96), dtype=np.float32), mask, targets


@pytest.mark.parametrize("name", KINDS)
def test_matching_is_the_matchers_and_of_least_cost(name, device):
    model = small(name, num_queries=5)
    matcher = HungarianMatcher(1.5, 4.0, 3.0, focal=model.config.focal)
    images, mask, targets = batch((3, 0, 4, 1))
    found = matching(model.train(), matcher, (images, mask, targets))
    assert model.training
    with evaluating(model):
        outputs = model(sv.backend.asarray(images), mask=mask)
    for one, target, boxes, (queries, objects) in zip(
        found, targets, outputs["pred_boxes"].numpy(), matcher(outputs, targets), strict=True
    ):
        n = len(target["labels"])
        np.testing.assert_array_equal(one.labels, target["labels"])
        np.testing.assert_array_equal(one.objects, target["boxes"])
        np.testing.assert_array_equal(one.boxes, boxes)
        np.testing.assert_array_equal(one.queries[objects], queries)
        assert one.costs.shape == (n, 5) and list(one.parts) == ["class", "bbox", "giou"]
        assert_close(sum(one.parts.values()), one.costs, ulps(list(one.parts.values()), 2), "sum of the parts")
        l1 = np.abs(one.objects[:, None].astype(float) - boxes).sum(axis=-1)
        assert_close(one.parts["bbox"], 4 * l1, ulps(4 * l1, 4), "four differences and their sum")
        exact = one.costs.astype(float)
        least = min(exact[range(n), chosen].sum() for chosen in itertools.permutations(range(5), n))
        assert_close(exact[range(n), one.queries].sum(), least, ulps(exact, n, np.float64), "the least cost")
        others, costs = one.second_best()
        for i, taken in enumerate(one.queries):
            rest = {query: cost for query, cost in enumerate(one.costs[i]) if query != taken}
            assert others[i] == min(rest, key=rest.get) and costs[i] == min(rest.values())


def test_matching_of_more_objects_than_queries():
    (one,) = matching(small(num_queries=2), HungarianMatcher(), batch((4,)))
    assert sorted(one.queries.tolist()) == [-1, -1, 0, 1]
    others, costs = one.second_best()
    for i in np.flatnonzero(one.queries < 0):       # whom nobody took, anybody might have
        assert costs[i] == one.costs[i].min() == one.costs[i, others[i]]
    (one,) = matching(small(num_queries=1), HungarianMatcher(), batch((1,)))
    assert one.second_best()[0].tolist() == [-1] and np.isinf(one.second_best()[1]).all()


def test_a_part_that_counts_nothing_is_zero():
    (one,) = matching(small(), HungarianMatcher(0, 5, 0), batch((3,)))
    assert not one.parts["class"].any() and not one.parts["giou"].any()
    np.testing.assert_array_equal(one.parts["bbox"], one.costs)


# --- pictures -------------------------------------------------------------------------------------------------------


def assert_drawn(path, least=(200, 100)):
    """It is a picture, and not of one colour."""
    with Image.open(path) as drawn:
        assert drawn.format == "PNG" and drawn.width >= least[0] and drawn.height >= least[1]
        assert drawn.convert("RGB").getcolors(20) is None       # more than these


def made_up_seen(scores, shape=(40, 60, 3), queries=None):
    rng = seeded(0)
    count = len(scores)
    queries = np.arange(count) if queries is None else np.array(queries)
    corners = np.sort(rng.uniform(0, 40, (count, 2, 2)), axis=1).reshape(count, 4)
    found = {"scores": np.array(scores), "labels": np.arange(count) % 2, "boxes": corners, "queries": queries}
    return Seen(rng.integers(0, 255, shape, np.uint8), found, rng.random((count, 5, 8), np.float32))


def titles(monkeypatch, draw):
    """All titles and texts that are given to axes while something is drawn."""
    from matplotlib.axes import Axes

    said = []
    with monkeypatch.context() as patch:
        for name, place in (("set_title", 0), ("text", 2)):
            own = getattr(Axes, name)

            def heard(self, *args, own=own, place=place, **options):
                said.append(args[place])
                return own(self, *args, **options)

            patch.setattr(Axes, name, heard)
        draw()
    return said


def texts_of(panel):
    """The texts that a panel writes into its drawing."""
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    panel.draw(ax)
    return [text.get_text() for text in ax.texts]


def test_detections_and_their_attention_are_drawn_best_first(tmp_path, monkeypatch):
    path = tmp_path / "cross.png"
    seen = [made_up_seen([0.2, 0.9, 0.6, 0.7]), made_up_seen([0.1, 0.3, 0.2]), made_up_seen([0.5])]
    rows = [cross_attention_panels(one, ("ant", "bee"), most=2) for one in seen]
    expected = [
        ["3 detections", "query 1: bee, 0.90", "query 3: bee, 0.70"],
        ["nothing scores 0.50", "query 1: bee, 0.30", "query 2: ant, 0.20"], ["1 detection", "query 0: ant, 0.50"],
    ]
    assert [[panel.titled() for panel in row] for row in rows] == expected
    assert [[panel.weak for panel in row] for row in rows] == [[False] * 3, [True] * 3, [False] * 2]
    assert titles(monkeypatch, lambda: draw_panels(rows, path)) == [*itertools.chain(*expected)]
    assert_drawn(path)


def test_a_name_is_shortened_on_a_sheet_and_whole_on_a_page():
    seen, name = made_up_seen([0.9]), "an {name} that is longer than a sheet has room for"
    panel = cross_attention_panels(seen, (name, "bee"))[1]
    assert panel.titled() == f"query 0: {name}, 0.90"
    assert panel.titled(drawable) == f"query 0: {name[:23]}…, 0.90"


def test_a_detection_is_drawn_with_the_attention_of_its_query(tmp_path, monkeypatch):
    """Of sigmoids the rows are in the order of their scores, and a query may have several of them."""
    seen, shown = made_up_seen([0.9, 0.8, 0.7], queries=[2, 0, 2]), []
    own = detection_pictures.overlay
    monkeypatch.setattr(detection_pictures, "overlay", lambda *args: shown.append(args[1]) or own(*args))
    row = cross_attention_panels(seen, ("ant", "bee"))
    said = titles(monkeypatch, lambda: draw_panels([row], tmp_path / "cross.png"))
    assert said == ["3 detections", "query 2: ant, 0.90", "query 0: bee, 0.80", "query 2: ant, 0.70"]
    assert all(map(np.array_equal, shown, seen.attention[[2, 0, 2]])) and len(shown) == 3


def test_encoder_maps_are_drawn_layer_by_layer(tmp_path, monkeypatch):
    path, maps = tmp_path / "encoder.png", seeded(0).random((2, 3, 5, 8), np.float32)
    rows = encoder_attention_panels(made_up_seen([0.5]).picture, [(0.1, 0.2), (1, 1)], maps)
    said = titles(monkeypatch, lambda: draw_panels(rows, path))
    layers = ["layer 1 of 3", "layer 2 of 3", "layer 3 of 3"]
    assert said == ["from (0.10, 0.20)", *layers, "from (1.00, 1.00)", *layers]
    assert_drawn(path)


@pytest.mark.parametrize(("images", "queries"), [(1, 1), (30, 7), (3000, 25)])
def test_query_boxes_are_drawn_those_most_used_first(images, queries):
    rng = seeded(0)
    scores = np.linspace(0, 1, images * queries, dtype=np.float32).reshape(queries, images).T
    boxes = rng.random((images, queries, 4), np.float32)
    squares, colours = query_box_panels(QueryBoxes(boxes, scores, np.zeros((images, queries), int)))
    assert len(squares) == min(queries, 20) and len(colours) == 3
    if queries > 1:
        assert squares[0].titled() == f"query {queries // 2 + 1}: used in 100%"
    drawn = np.asarray(image_of(squares[0].draw, (2, 2)))
    assert drawn.shape == (300, 300, 4) and 0 < (drawn[..., 3] > 0).mean() < 1      # dots on nothing


def test_a_drawing_fills_its_picture_and_what_is_outside_is_not_shown():
    seen = made_up_seen([0.9], shape=(40, 80, 3))
    seen.found["boxes"][:] = [[-50, -50, 500, 500]]
    panel = cross_attention_panels(seen, ("ant",))[0]
    drawn = image_of(panel.draw, (2, 2 * panel.ratio))
    assert drawn.size == (300, 150) and np.asarray(drawn)[..., 3].min() == 255
    small = np.asarray(drawn.convert("RGB").resize((80, 40), Image.Resampling.BOX), float)
    assert np.corrcoef(small.ravel(), seen.picture.ravel())[0, 1] > 0.9


def test_the_matching_is_drawn_with_its_costs():
    images, _, targets = batch((2, 0, 1))
    found = matching(small(), HungarianMatcher(), (images, np.zeros((3, 64, 96), bool), targets))
    for one, objects in zip(found, (2, 0, 1), strict=True):
        head, *rows = cost_rows(one, [f"class {i}" for i in range(10)])
        assert head == ["object", "query", "class", "L1", "GIoU", "cost", "second best"] and len(rows) == objects
        texts = texts_of(matching_panel(np.full((64, 96, 3), 50, np.uint8), one))
        assert len(texts) == objects
        seconds, second_costs = one.second_best()
        for place, (text, row) in enumerate(zip(texts, rows, strict=True)):
            query = one.queries[place]
            values = [*(part[place, query] for part in one.parts.values()), one.costs[place, query]]
            *parts, cost, second_cost = (f"{value:.2f}".replace("-", "−") for value in (*values, second_costs[place]))
            assert text == f"q{query}  {cost}"      # beside its box
            name, second = f"class {one.labels[place]}", f"q{seconds[place]}  {second_cost}"
            assert row == [name, f"q{query}", *parts, cost, second]


def test_a_matching_of_more_objects_than_queries_is_drawn():
    images, _, targets = batch((20,))
    (found,) = matching(small(num_queries=2), HungarianMatcher(), (images, np.zeros((1, 64, 96), bool), targets))
    rows = cost_rows(found, ["a long name of a class"] * 10)[1:]
    assert len(rows) == 20 and {row[0] for row in rows} == {"a long name of a class"}
    assert [row[1] for row in rows].count("none") == 18
    assert all(row[2:6] == ["–"] * 4 for row in rows if row[1] == "none")
    assert len(texts_of(matching_panel(np.zeros((64, 96, 3), np.uint8), found))) == 2


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(ScratchvitError, match="missing"):
        draw_panels([cross_attention_panels(made_up_seen([0.5]), ("ant", "bee"))], tmp_path / "missing" / "cross.png")


# --- the report -----------------------------------------------------------------------------------------------------


def made_up_run(path, scenes=None, name="detr_tiny", epochs=3, **changes):
    """A run of a detector that has learned nothing, with a history as training writes it."""
    scenes = scenes or load_scenes(48, train=4, val=3, test=3)
    detector = Detector(
        small(name).eval(), name, scenes.test.classes, scenes.test.category_ids, "", NORMALIZE, Sizes(), ""
    )
    found, ids = detector.in_dataset(scenes.test, 2)
    figures = evaluate_boxes(scenes.test.ground_truth(), results_of(found, ids, detector.category_ids))
    history = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "step": epoch, "lr": 1e-3, "images_per_second": 50.0, "seconds": 30.0, "skipped": 0}
        for part, kind, suffix in itertools.product(("train", "val"), ("ce", "bbox", "giou"), ("", "_0", "_1")):
            row[f"{part}_loss_{kind}{suffix}"] = 1 / epoch
        row |= {"train_loss": 9.0, "val_loss": 9.5, "train_dn_loss_ce": 0.5, "val_class_error": 90.0}
        history.append(row | {"AP": None if epoch == 1 else 0.0, "AP50": 0.0, "AP75": 0.0})
    sizes = {key: value for key, value in SMALL.items() if key != "num_classes"}
    config = DetectConfig(model=name, model_args=sizes, epochs=3, batch_size=2)
    run = DetectionRun(path, config, history, scenes, detector, figures, 2, commands={"Run it again:": "scratchvit"})
    return dataclasses.replace(run, **changes)


def report(run, folder):
    write_detection_report(run, folder / "report.html")
    return Page(folder / "report.html")


@pytest.fixture
def undrawn(monkeypatch):
    """Reports take less time: an empty square for each curve, and for each of Matplotlib's pictures."""
    monkeypatch.setattr("scratchvit.reports.page.curve_svg", lambda *what: '<svg viewBox="0 0 1 1"/>')
    monkeypatch.setattr("scratchvit.reports.panels.image_of", lambda *what: Image.new("RGB", (8, 8)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of two epochs on few scenes, and what it came to."""
    folder = tmp_path_factory.mktemp("detector") / "run"
    sizes = {key: value for key, value in SMALL.items() if key != "num_classes"}
    config = DetectConfig(model_args=sizes | {"dropout": 0.0}, epochs=2, batch_size=2, lr=2e-3)
    with small_scenes(), contextlib.redirect_stderr(io.StringIO()):
        yield folder, train_detector(config, folder, log=quiet)


@pytest.fixture(scope="module")
def its_page(trained, tmp_path_factory):
    """The report of that run, in a folder of its own."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_detection_report(open_detection_run(trained[0]), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_the_report_of_a_run_that_finds_nothing(name, tmp_path):
    run = made_up_run(tmp_path, name=name)
    assert run.figures.AP < 0.05
    page = report(run, tmp_path)
    assert_self_contained(page)
    pictures = page.pictures()
    # Detections in 3 pictures; these with 2 maps each; 3 objects with maps of 2 layers; 6 queries; 2 matchings.
    assert len(pictures) == 3 + 3 * 3 + 3 * 3 + 6 + 2, [image["alt"] for image in page.of("img")]
    assert all(min(picture.shape[:2]) > 150 and picture.std() > 5 for picture in pictures)
    assert len(page.of("svg")) == 1 + 6 + 3     # AP; losses, one of denoising, class error; by layer
    for fact in (
        "The weights of epoch 2, the best on the validation pictures, on the 3 test pictures.", "2 of 3",
        "1 min 30 s", "object queries", "try another learning rate", "6 queries", "at least 0.5", "§4.3",
        "Run it again:", "scenes: train is generated",
    ):
        assert fact in page.text, fact
    assert ("A perfect prediction costs −3." in page.text) == (name == "detr_tiny")     # focal costs have no least
    for rows in (run.figures.rows(), run.figures.class_rows()):
        assert all(row in page.rows for row in rows)
    for field in dataclasses.fields(DetectConfig):
        if field.name != "model_args":
            assert [field.name, str(getattr(run.config, field.name)), field.metadata["help"]] in page.rows, field.name
    numbers = next(row for row in page.rows if "val loss bbox 1" in row)
    assert page.rows[page.rows.index(numbers) + 1][numbers.index("AP")] == "nan"        # where there was none


def test_what_the_report_says_of_costs_is_of_the_runs_matcher(tmp_path, undrawn):
    run = made_up_run(tmp_path, history=[])
    config = run.config.replace(cost_class=2.0, cost_giou=4.0)
    assert "A perfect prediction costs −6." in report(dataclasses.replace(run, config=config), tmp_path).text


def test_an_unfinished_run_is_judged_by_the_validation_pictures(tmp_path, undrawn):
    scenes = load_scenes(48, train=4, val=3, test=3)

    class Untouched:
        name = "not to be looked at"

        def __len__(self):
            raise AssertionError("the test pictures are looked at once, at the end")

        example = target = __len__
        notes = skipped = ()

    run = made_up_run(tmp_path, scenes, epochs=2)
    run = dataclasses.replace(run, splits=DetectionSplits(scenes.train, scenes.val, Untouched()))
    page = report(run, tmp_path)
    assert "The run has finished 2 of 3 epochs." in page.text and "validation AP50" in page.text
    assert "its boxes in 3 validation pictures" in page.text


@pytest.mark.slow
def test_a_run_before_its_first_epoch(tmp_path):
    page = report(made_up_run(tmp_path, detector=None, figures=None, history=[], best_epoch=0), tmp_path)
    assert "No epoch of this run is finished yet." in page.text and "Configuration" in page.text
    assert not page.pictures() and "Matching of objects and queries" not in page.text


def test_names_are_text_and_nothing_else(tmp_path, undrawn):
    scenes = load_scenes(48, train=4, val=3, test=3)
    scenes.test.classes = (SCRIPT, *EVIL, *scenes.test.classes[4:])
    page = report(made_up_run(tmp_path, scenes), tmp_path)
    assert all(name in page.text for name in (SCRIPT, *EVIL)) and SCRIPT not in page.source
    assert_self_contained(page)


def test_without_matplotlib_all_the_rest_is_there(tmp_path, monkeypatch):
    run = made_up_run(tmp_path)
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    page = report(run, tmp_path)
    assert page.text.count("pip install matplotlib") == 2 + 4       # groups of curves, pictures
    assert len(page.pictures()) == 3 and "Average precision and recall" in page.text


@pytest.mark.slow
def test_a_model_that_has_diverged_still_has_a_report(tmp_path):
    run = made_up_run(tmp_path)
    run.detector.model.query_embed.weight.assign(np.nan)
    page = report(dataclasses.replace(run, history=[]), tmp_path)
    assert page.text.count("the outputs of DETR are not finite") == 3
    assert "cannot be matched" in page.text and "Configuration" in page.text
    assert len(page.pictures()) == 3        # of detections, which have none


def test_a_model_without_encoder_has_no_such_section(tmp_path, undrawn):
    run = made_up_run(tmp_path, history=[])
    run = dataclasses.replace(run, detector=dataclasses.replace(run.detector, model=small(enc_layers=0).eval()))
    page = report(run, tmp_path)
    assert "Self-attention of the encoder" not in page.text and "Cross-attention of the decoder" in page.text


@pytest.mark.slow
def test_pictures_of_other_sizes_are_shown_as_the_model_sees_them(tmp_path):
    run = made_up_run(tmp_path, history=[])
    detector = dataclasses.replace(run.detector, step=Sizes(64))
    picture, x = as_seen(detector, run.split.picture(0))
    assert picture.shape == (64, 64, 3) and x.shape == (3, 64, 64)
    np.testing.assert_array_equal(x, NORMALIZE(picture[None])[0])
    page = report(dataclasses.replace(run, detector=detector), tmp_path)
    squares = [image for image in page.of("img") if image["alt"].startswith(("layer", "from", "matching"))]
    assert squares and all(image["width"] == image["height"] for image in squares)


@pytest.mark.slow
def test_a_run_in_a_folder_has_the_figures_that_it_measured(trained, its_page, tmp_path):
    folder, result = trained
    run = open_detection_run(folder)
    assert run.finished and run.figures == result.test and run.best_epoch == result.best_epoch
    assert len(run.history) == 2 and run.config == open_detection_run(folder, "scenes").config
    page = Page(its_page)
    assert_self_contained(page)
    assert f"{result.test.AP:.3f}" in page.text and len(page.pictures()) > 20
    with pytest.raises(ScratchvitError, match="contains no run"):
        open_detection_run(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_all_of_it_on_a_phone_and_on_a_desktop(its_page, tmp_path, scheme):
    drawn = len(Page(its_page).of("img"))
    phone, desktop = look_at(its_page, tmp_path, (400, 1400), scheme)
    for seen in (phone, desktop):
        assert seen["console"] == [] and seen["requests"] == [] and seen["scripts"] == 0
        assert len(seen["images"]) == drawn and all(width > 0 for _, width in seen["images"])
        assert min(seen["plots"]) > 200
        assert_readable(seen)
        assert contrast(seen["colours"]) > 7
        # Words in the pictures: draw_boxes writes them at least 12 pixels high, matching_panel LABEL points.
        for kind, pixels in (("detections", 12), ("matching", LABEL / 72 * 150)):
            scales = [scale for alt, scale in seen["scales"] if alt.startswith(kind)]
            assert scales and pixels * min(scales) >= 12, kind
    for title in ("Detections", "Cross-attention of the decoder", "Matching of objects and queries"):
        assert desktop["reach"][title] > 0.8, title


@pytest.mark.slow
def test_a_page_of_long_names_can_be_read(tmp_path):
    scenes = load_scenes(48, train=4, val=3, test=3)
    kinds = "an-endless-name-" * 8, "a name of many words " * 6, "猫", "$x^2$"
    scenes.test.classes = tuple(f"{kinds[i % 4]} {i}" for i in range(10))
    run = made_up_run(tmp_path, scenes)
    report(dataclasses.replace(run, detector=dataclasses.replace(run.detector, classes=scenes.test.classes)), tmp_path)
    for seen in look_at(tmp_path / "report.html", tmp_path, (400, 700, 1400)):
        assert seen["console"] == []
        assert_readable(seen)


def test_curves_are_visible_on_light_and_dark_pages():
    for colour in (*LAYERS, *(colour for _, colour, _ in PRECISIONS)):
        red, green, blue = bytes.fromhex(colour[1:])
        for paper in ("rgb(255, 255, 255)", "rgb(21, 24, 28)"):
            assert contrast([f"rgb({red}, {green}, {blue})", paper]) > 3, colour     # WCAG 2.2, 1.4.11


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    load_scenes(48, test=1).test.picture(0).resize((60, 48)).save(path)
    return path


def inspect(capsys, *words):
    code = main(["inspect", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.slow
def test_the_command_draws_what_a_detector_sees(trained, photo, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    code, said, _ = inspect(capsys, trained[0], "--image", photo, "--out", out)
    assert code == 0 and "48×60 pixels" in said and "query  class  score" in said
    for name in ("cross_attention.png", "encoder_attention.png"):
        assert f"wrote {out / name}" in said
        assert_drawn(out / name)
    first = (out / "encoder_attention.png").read_bytes()
    words = ("--point", "0.1,0.9", "--point", "1,0")
    assert inspect(capsys, trained[0], "--image", photo, "--out", out, *words)[0] == 0
    assert (out / "encoder_attention.png").read_bytes() != first


@pytest.mark.slow
def test_the_command_tells_whose_answers_it_draws(photo, tmp_path, capsys):
    """Of sigmoids: the best pairs of a query and a class, of which two may be one query's."""
    model, path = small("dab_detr_tiny"), tmp_path / "dab.safetensors"
    state = model.state_dict()
    state["class_embed.bias"][:] = 20       # all are found, in the order in which the queries differ
    about = {
        "name": "digits", "classes": list("0123456789"), "category_ids": list(range(10)), "mean": [0.5] * 3,
        "std": [0.25] * 3, "short_side": 0, "longest": 0,
    }
    config = dataclasses.asdict(DetectConfig())
    save_checkpoint(path, Checkpoint(config, "dab_detr_tiny", SMALL, about, {}, state))
    (found,) = open_detector(path).in_pictures([Image.open(photo)])
    assert found["queries"].tolist() != list(range(6))
    code, said, err = inspect(capsys, path, "--image", photo, "--out", tmp_path / "out")
    assert code == 0, err
    rows = [line.split() for line in said[said.index("query  class") :].splitlines()[1:]]
    rows = [row for row in rows if len(row) == 7 and row[0].isdecimal()]
    assert [(int(row[0]), int(row[1])) for row in rows] == list(zip(found["queries"], found["labels"]))


def test_what_the_command_cannot_do_is_one_sentence(trained, photo, capsys):
    code, _, err = inspect(capsys, trained[0])
    assert code == 1 and "name one with --image" in err
    code, _, err = inspect(capsys, "detr_tiny", "--image", photo)
    assert code == 1 and "an untrained DETR has no detections" in err
    code, _, err = inspect(capsys, trained[0], "--image", photo, "--token", "0,1")
    assert code == 1 and "is a DETR: name points with --point" in err
    code, _, err = inspect(capsys, "swin_tiny_patch4_window7_224", "--point", "0,1")
    assert code == 1 and "is a Swin: name a token with --token" in err
    for point in ("1.1,0", "a,b", "0.5", "nan,0", "1,2,3"):
        code, _, err = inspect(capsys, trained[0], "--image", photo, "--point", point)
        assert code == 2 and "--point" in err and "point" in err
