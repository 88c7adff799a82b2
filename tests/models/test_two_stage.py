"""two_stage: the encoder's own answer, and that the decoder begins at the best of it."""

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.backend import asnumpy
from scratchvit.detection import HungarianMatcher, SetCriterion
from scratchvit.detection.criterion import FocalCriterion
from scratchvit.detection.losses import Losses, Output
from tests.support.margins import agree, assert_close, rounding
from tests.support.model_parity import images
from tests.support.seeds import seeded
from tests.support.set_prediction import random_targets
from tests.support.small_detr import CLASSES, N, random_head, small

H, W = 6, 8         # of the map, of stride 8


def two_stage(**options):
    """Whose encoder says something else everywhere, of classes and of boxes."""
    model = small("dab_detr_tiny", two_stage=True, **options)
    random_head(model.proposals, seed=1)
    weight = model.proposals.class_embed.weight
    weight.assign(seeded(2).standard_normal(weight.shape, dtype=np.float32))
    return model


def as_arrays(answer):
    return asnumpy(answer["pred_logits"].data), asnumpy(answer["pred_boxes"].data)


def padded(*sizes):
    """A mask of the map's whole image, for images of these sizes (in features)."""
    mask = np.ones((len(sizes), 8 * H, 8 * W), bool)
    for row, (height, width) in enumerate(sizes):
        mask[row, : 8 * height, : 8 * width] = False
    return mask


def test_boxes_begin_around_their_features(device):
    """The box head begins at zero; four features are a half of a part of eight, and nearly all of one of three."""
    model = small("dab_detr_tiny", two_stage=True).eval()
    mask = padded((H, W), (3, 8))

    def parts_of_boxes():
        _, boxes = as_arrays(model(images(2, 3, 8 * H, 8 * W), mask=mask)["proposals"])
        boxes = boxes.reshape(2, H, W, 4)
        return boxes[0, :, 0, 1], boxes[0, 0, :, 0], boxes[0, ..., 2:], boxes[1, :3, 0, 1], boxes[1, :3, :, 2:]

    agree(parts_of_boxes, [
        (np.arange(H) + 0.5) / H, (np.arange(W) + 0.5) / W, np.broadcast_to([4 / W, 4 / H], (H, W, 2)),
        (np.arange(3) + 0.5) / 3, np.broadcast_to([0.5, 0.9], (3, W, 2)),
    ])


@pytest.mark.parametrize("focal", [True, False])
def test_the_decoder_begins_at_the_best_boxes(device, focal):
    model = two_stage(focal=focal).eval()       # whose decoder leaves boxes where they are
    x = images(3, 3, 8 * H, 8 * W)
    logits, boxes = as_arrays(model(x)["proposals"])
    assert logits.shape == (3, H * W, CLASSES + (not focal)) and boxes.shape == (3, H * W, 4)
    score = logits.max(-1) if focal else logits[..., :-1].max(-1) - logits[..., -1]
    best = np.argsort(-score, axis=1)[:, :N]
    agree(lambda: model(x)["pred_boxes"], np.take_along_axis(boxes, best[..., None], 1), "boxes")


@pytest.mark.parametrize("focal", [True, False])
def test_padding_holds_nothing(device, focal):
    model = two_stage(focal=focal).eval()
    x, mask = images(2, 3, 8 * H, 8 * W), padded((H, W), (2, 3))
    outputs = model(x, mask=mask)
    logits = as_arrays(outputs["proposals"])[0][1].reshape(H, W, -1)
    outside = np.ones((H, W), bool)
    outside[:2, :3] = False
    assert (logits[outside][:, :CLASSES] == -100).all() and (logits[outside][:, CLASSES:] == 0).all()
    assert (logits[:2, :3] > -100).all()
    # Six features are visible and four queries: all of them begin at visible ones.
    inside = as_arrays(outputs["proposals"])[1][1].reshape(H, W, 4)[:2, :3].reshape(-1, 4)
    bound = rounding(lambda: model(x, mask=mask)["pred_boxes"])[""]
    for box in asnumpy(outputs["pred_boxes"].data)[1]:
        nearest = inside[np.abs(inside - box).max(axis=1).argmin()]
        assert_close(box, nearest, bound, "where a query begins")


@pytest.mark.parametrize("focal", [True, False])
def test_the_encoders_answer_is_learned_like_a_decoder_layers(device, focal):
    model, targets = two_stage(focal=focal).train(), random_targets((2, 0, 3), 0, CLASSES)
    matcher = HungarianMatcher(2, focal=focal)
    criterion = FocalCriterion(CLASSES, matcher) if focal else SetCriterion(CLASSES, matcher)
    outputs = model(images(3, 3, 8 * H, 8 * W))
    losses = criterion(outputs, targets)
    alone = criterion(outputs["proposals"], targets)
    of_encoder, as_decoders = losses[Output("encoder", 0)], alone[Output("decoder", 0)]
    assert of_encoder.keys() == {"ce", "bbox", "giou"}
    assert all(loss.item() == as_decoders[kind].item() for kind, loss in of_encoder.items())
    without = Losses()
    without.add("decoder", losses.tables["decoder"])
    expected = criterion.total(without).item() + criterion.total(alone).item()
    agree(lambda: criterion.total(losses), expected, "the total")
    criterion.total(losses).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_decoder_does_not_teach_the_encoders_boxes():
    model = two_stage().train()
    outputs = model(images(2, 3, 8 * H, 8 * W))
    (outputs["pred_boxes"].sum() + outputs["pred_logits"].sum()).backward()
    assert all(parameter.grad is None for parameter in model.proposals.parameters())


def test_noised_objects_are_asked_beside_the_best_boxes():
    model, targets = two_stage(denoising=2).train(), random_targets((2, 1), 0, CLASSES)
    outputs = model(images(2, 3, 8 * H, 8 * W), targets=targets)
    assert outputs["denoising"]["pred_boxes"].shape == (2, 4, 4) and outputs["pred_boxes"].shape == (2, N, 4)
    agree(lambda: model(images(2, 3, 8 * H, 8 * W))["pred_boxes"], outputs["pred_boxes"], "boxes")


@pytest.mark.parametrize("training", [True, False])
def test_an_image_has_no_more_queries_than_features(training):
    """As of a sliver, or of the smallest size of multi_scale: 2 features here, for 4 queries."""
    model = two_stage(denoising=1).train(training)
    targets = random_targets((3,), 0, CLASSES)
    outputs = model(images(1, 3, 8, 16), targets=targets)
    assert outputs["pred_boxes"].shape == (1, 2, 4)
    criterion = FocalCriterion(CLASSES, HungarianMatcher(2, focal=True))
    assert np.isfinite(criterion.total(criterion(outputs, targets)).item())     # an object goes without


def test_what_does_not_fit_is_refused():
    with pytest.raises(sv.ScratchvitError, match="two_stage gives all groups of queries the same anchors"):
        two_stage(query_groups=2)
