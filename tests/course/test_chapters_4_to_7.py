"""Chapters 4 to 7: the numbers of the lecture, what the pages say of our measurements, and the answers of exercises."""

import math

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import ops
from scratchvit.costs.counting import cost
from tests.support import live_page
from tests.support.chapters import defined_by
from tests.support.processes import SECONDS

pytestmark = pytest.mark.slow
LEVELS = 7


# --- 4. ViT against ResNet -------------------------------------------------------------------------------------------


def test_the_matrix_of_a_convolution_is_the_convolution():
    page = defined_by("04_resnets")
    weight, x = page["blur"](5), np.arange(64, dtype=np.float32) % 7
    convolved = ops.conv2d(x.reshape(1, 1, 8, 8), weight, padding=2).numpy().reshape(-1)
    np.testing.assert_allclose(page["matrix_of"](weight, 8) @ x, convolved, rtol=1e-5, atol=1e-6)
    assert page["of_conv"].shape == (64, 64) and (page["of_conv"] == 0).mean() > 0.8
    assert page["of_attention"].min() > 0


def test_receptive_fields_are_those_that_a_gradient_reaches():
    page = defined_by("04_resnets")
    for layers in (1, 4, 12):
        assert page["field"](layers) == page["field_by_gradient"](layers) == 2 * layers + 1
    assert page["field"](3, kernel=3, stride=2) == 1 + 2 * (1 + 2 + 4)


def test_only_shifts_by_whole_strides_move_the_output():
    moves = defined_by("04_resnets")["moves_along"]
    assert all(moves(1, pixels) for pixels in range(9))
    assert [pixels for pixels in range(9) if moves(4, pixels, kernel=4)] == [0, 4, 8]


def test_what_chapter_4_says_of_the_trained_models():
    page = defined_by("04_resnets")

    def right(name, pixels):
        predicted = page[name].opened.probabilities(page["shifted"](page["images"], pixels)).argmax(axis=1)
        return (predicted == page["test"].labels).mean()

    assert right("windowed", 2) > right("trained", 2)
    assert all(right("windowed", pixels) < right("trained", pixels) - 0.05 for pixels in (3, 4, 5))
    # No head of our small ViT is local: the distances are those of attention without a preference.
    assert np.abs(page["of_heads"] - page["uniform"]).max() < 0.15 * page["uniform"]


def test_what_chapter_4_says_of_the_measurement():
    grown = defined_by("04_resnets")["grown"]
    gaps = [grown["ResNet"][images] - grown["ViT"][images] for images in grown["ViT"]]
    assert len(gaps) == 5 and 4 < min(gaps) < max(gaps) < 6


def test_the_exercises_of_chapter_4():
    page = defined_by("04_resnets")
    assert [n for n in range(105, 120) if page["is_just_enough"](n)] == [112]
    assert [n for n in (1, 8, 15, 16, 32) if page["is_smallest_shift"](n)] == [16]
    assert [n for n in page["grown"]["ViT"] if page["is_first_to_reach"](n)] == [5700]


# --- 5. Augmentation and regularisation ------------------------------------------------------------------------------


def test_what_chapter_5_says_of_the_papers_heat_map():
    page = defined_by("05_regularisation")
    paper, helped = page["paper"], page["helped"]
    assert [(len(grid), {len(row) for row in grid.values()}) for grid in paper.values()] == [(9, {2 * LEVELS})] * 3
    on_1k, on_21k_30, on_21k_300 = (helped(grid) for grid in paper.values())
    assert min(on_1k) >= 8                                          # almost everything helps
    assert on_21k_30[0] <= 2 and on_21k_30[2] <= 4                  # almost everything hurts
    assert on_21k_300[2] > on_21k_30[2]                             # augmentation helps more models again
    best = [max(row[LEVELS:]) - max(row[:LEVELS]) for row in paper["ImageNet-21k, 300 epochs"].values()]
    assert max(best) <= 0                                           # regularisation on top of it: none


def test_what_chapter_5_says_of_our_grid():
    page = defined_by("05_regularisation")
    assert [max(row) == row[0] for row in page["own"].values()] == [True, True]
    loss = page["losses"][page["large"]]
    assert [place for place, value in enumerate(loss) if value < loss[0]] == [1, LEVELS, LEVELS + 1]
    assert loss[0] - loss[LEVELS + 1] < 0.01                        # light1 and regularisation together: hardly
    assert page["still_read"]["none"] > 95 and page["still_read"]["heavy2"] < 40


def test_weight_decay_mixup_and_stochastic_depth_are_what_the_page_says():
    page = defined_by("05_regularisation")
    assert math.isclose(page["after_steps"](0.01, 0.05), (1 - 0.01 * 0.05) ** 200, rel_tol=1e-4)
    pair = np.stack([np.zeros((1, 8, 8), np.float32), np.ones((1, 8, 8), np.float32)])
    image, target = page["mixed"](pair, (3, 7), 0.6)
    np.testing.assert_allclose(image, 0.4, rtol=1e-6)
    np.testing.assert_allclose(target[[3, 7]], [0.6, 0.4], rtol=1e-6)
    image, target = page["mixed"](pair, (3, 7), 0.75, cutmix=True)
    assert image.mean() == target[7] == 0.25 and image[0, 4, 4] == 1        # the box is in the middle
    rates = page["rates_of"](0.2)
    np.testing.assert_allclose(rates, 0.2 * np.arange(12) / 11)


def test_the_exercises_of_chapter_5():
    page = defined_by("05_regularisation")
    assert page["side_of_box"](0.75) == 112
    assert page["is_expected"](10.8) and not page["is_expected"](9.6)
    assert page["smallest_loss"] == "none, 0.1"


# --- 6. Distillation -------------------------------------------------------------------------------------------------


def test_hard_labels_of_pictures_known_by_heart_teach_nothing():
    """The losses differ by rounding only, and the student is the one that learnt alone."""
    page = defined_by("06_distillation")
    scores = page["scores"]
    assert page["agrees"] == 100 and abs(scores["hard"] - scores["alone"]) < 2
    assert scores["teacher"] > scores["alone"] + 10 and scores["more"] > scores["alone"] + 10


def test_what_chapter_6_says_of_the_measurement():
    page = defined_by("06_distillation")
    seeds = {short: page["measured"][name] for short, name in page["names"].items()}
    assert all(hard > alone for hard, alone in zip(seeds["hard"], seeds["alone"]))
    assert sum(token > hard for token, hard in zip(seeds["token"], seeds["hard"])) == 1
    gain = page["means"]["soft"] - page["means"]["alone"]
    assert abs(gain) < max(seeds["soft"]) - min(seeds["soft"])


def test_the_square_of_the_temperature_keeps_the_gradient():
    page = defined_by("06_distillation")
    assert max(page["with_square"]) < 6 * min(page["with_square"])
    assert page["without"][0] > 100 * page["without"][-1]


def test_the_exercises_of_chapter_6():
    page = defined_by("06_distillation")
    assert page["is_temperature"](4) and not page["is_temperature"](2)
    assert page["is_slope"](-1.1) and not page["is_slope"](-0.37) and not page["is_slope"](-3.3)
    assert page["is_length"](578) and not page["is_length"](576)


# --- 7. Hierarchy and windows ----------------------------------------------------------------------------------------


def test_the_numbers_of_the_lecture():
    """9.8 M entries among all tokens; M²HW of M⁴·(H/M)(W/M) in windows; 4C → 2C."""
    page = defined_by("07_windows")
    assert page["patches"] == 56 * 56 == 3_136
    assert page["lecture_all"] == 9_834_496 and page["lecture_windows"] == 153_664
    for H, M in ((28, 2), (56, 7), (56, 14), (112, 4), (224, 28)):
        assert page["entries_of_windows"](H, M) == M**4 * (H // M) ** 2 == M**2 * H * H
        assert page["entries_of_all"](H) == H**4
    for C in (32, 96, 128):
        assert page["merging_weights"](C) == 4 * C * 2 * C
    assert page["merged_numbers"](4)[0, 0].tolist() == [0, 4, 1, 5]


def test_the_equations_count_what_our_model_does():
    """Equation 2 for a block of Swin-T's first stage, against the multiply-adds that are counted op by op."""
    model = sv.create_model("swin_tiny_patch4_window7_224", depths=(1,), num_heads=(3,))
    counted = [layer for layer in cost(model).layers if layer.module.startswith("layers.0.blocks.0.attn")]
    page = defined_by("07_windows")
    assert page["M"] == 7 and page["macs"](56, 56, 96)[1] == sum(layer.macs for layer in counted)
    assert sum(layer.attention_entries for layer in counted) == 3 * page["lecture_windows"]


def test_a_token_attends_within_its_window_only():
    page = defined_by("07_windows")
    model, blocks = page["trained"].model, page["blocks"]
    with ops.record_attention() as recorded:
        model(page["images"][:1])
    for block, maps in zip(blocks, recorded, strict=True):
        token = (block.size[0] - 1, 0)
        looks = page["attention_of"](token, block, maps)
        assert looks.shape == block.size and math.isclose(looks.sum(), 1, rel_tol=1e-5)
        seen = np.zeros(block.size, bool)
        seen[token] = True
        assert np.array_equal(looks > 0, block.looked_at(seen))


def test_the_exercises_of_chapter_7():
    page = defined_by("07_windows")
    assert page["is_factor"](400) and not page["is_factor"](64)
    assert page["merging_weights"](256) == 524_288
    assert [M for M in range(57) if page["is_global"](M)] == [56]


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stem", "control", "before", "after"), [
    ("04_resnets", "L, number of convolutions", "After 4 layers the convolutions see 9 pixels",
     "After 5 layers the convolutions see 11 pixels"),
    ("05_regularisation", "rate of the last block", "On average 11.4 attention branches",
     "On average 10.8 attention branches"),
    ("06_distillation", "τ, temperature", "= 3 the second best has", "= 5 the second best has"),
    ("07_windows", "M, side of a window", "Counted: 153,664", "Counted: 614,656"),
])
def test_a_slider_computes_anew(stem, control, before, after, course_address):
    shows = "words => document.body.innerText.replace(/\\s+/g, ' ').includes(words)"
    with live_page.page() as page:
        page.set_default_timeout(1000 * SECONDS)
        page.goto(f"{course_address}{stem}/?lang=en")
        page.wait_for_function(shows, arg=before)
        page.locator("marimo-slider", has_text=control).get_by_role("slider").first.press("ArrowRight")
        page.wait_for_function(shows, arg=after)
