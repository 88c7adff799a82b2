"""Chapters 8 to 11: what the pages say of the trained models, the answers of exercises, and controls in a browser."""

import re

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import zoo
from scratchvit.costs import cost
from scratchvit.costs.counting import readable_bytes
from scratchvit.course import sets, shifts, speed
from scratchvit.detection.matcher import HungarianMatcher
from scratchvit.nn import init
from tests.support import live_page
from tests.support.chapters import defined_by
from tests.support.processes import SECONDS

pytestmark = pytest.mark.slow

PATIENCE = 1000 * SECONDS       # milliseconds, only to end what hangs


@pytest.mark.parametrize(("stem", "answers"), [
    ("08_shifts", (81, 36, 25)),
    ("09_successors", (52.8, 3136 * 196, 222)),
    ("10_detection", (-0.0794, 7, 0.835)),
    ("11_speed", (512, 1.406, 10)),
])
def test_the_answers_that_are_folded_away_are_right(stem, answers):
    assert defined_by(stem)["solutions"] == pytest.approx(answers, abs=0.05 if stem == "09_successors" else 1e-3)


def test_what_chapter_8_says_of_the_trained_swin():
    page = defined_by("08_shifts")
    of_card = zoo.load("swin_digits").card.figures["accuracy"]
    tests = len(page["digits"])
    assert page["intact"] / tests == pytest.approx(of_card, abs=2 / tests)
    assert page["unshifted"] < page["unmasked"] - 5 and page["unmasked"] < page["intact"] - 3
    assert abs(page["without_bias"] - page["intact"]) <= 3          # the claim that does not show
    assert 0.3 < page["across"] < 0.6
    masked, unmasked = (page["shifted_attention"](page["images"][:4], masked)[:, -1] for masked in (True, False))
    block = shifts.block_of(8, 4, 2)
    assert (masked[:, ~block.masks()[-1]] == 0).all() and (unmasked > 0).all()
    np.testing.assert_allclose(masked.sum(axis=-1), 1, rtol=1e-5)
    assert len(page["reached"](4, 0, 6, (5, 5)).nonzero()[0]) == 16     # without a shift, its own window
    assert page["reached"](4, 2, 6, (5, 5)).all()


def test_what_chapter_9_says_of_costs_and_measurements():
    page = defined_by("09_successors")
    found = page["costs_of"]("mvitv2_tiny")
    assert found.macs / 1e9 == pytest.approx(4.7, rel=0.03)                 # the paper's count
    rows = page["attentions"](found)
    assert rows[0][:3] == (3136, 196, 96) and rows[-1][0] == 49 and rows[-1][2] == 768
    assert page["trained_amplitudes"][0] < page["trained_amplitudes"][-1]
    measured = {name: float(row["test_accuracy"]) for name, row in page["measured"].items()}
    assert measured["Swin"] > measured["MViTv2"] > measured["MViT"] > measured["ViT/4"] + 0.005
    assert abs(measured["Swin V2"] - measured["ViT/4"]) < 0.005
    assert max(measured, key=measured.get) == "ResNet-10" and len(measured) == 9


def test_what_chapter_10_says_of_the_trained_detector():
    page = defined_by("10_detection")
    (ap, ap50), (with_nms, _) = page["official"], page["suppressed"]
    assert abs(ap - with_nms) < 0.01                                        # NMS adds nothing
    assert sets.mean_AP(page["of_classes"]) == pytest.approx(ap50, abs=1e-6)
    counts = page["counts"]
    assert (counts > 1).sum() == 0 and (counts == 1).mean() > 0.85
    picture, truth, seen, best, overlap, heat = page["look"](0, (0.3, 0.6), 3)
    assert picture.size == (96, 96) and heat.shape == (12, 12) and heat.sum() == pytest.approx(1, rel=1e-4)
    assert overlap > 0.7 and seen["labels"][best] == truth.labels[0]


def test_what_chapter_11_shows_ends_at_the_softmax():
    page = defined_by("11_speed")
    assert page["online_error"] < 1e-6
    np.testing.assert_allclose(page["warp"][-1], page["token"].sum(), rtol=1e-4)
    assert all(one.difference < 1e-5 for one in page["compared"].values())


# --- in a browser ----------------------------------------------------------------------------------------------------


def windows_of_6():
    pieces, shares = shifts.pieces_without_roll(12, 6, 3), shifts.shares_allowed(shifts.block_of(12, 6, 3))
    return f"there would be {pieces} windows of all sizes", f"the masks allow {100 * shares.mean():.1f} %"


def entries_at_stride_8():
    with init.without_weights():
        found = cost(sv.create_model("mvitv2_tiny", stride_kv=(8, 8)))
    return f"have {found.attention_entries / 1e6:.1f} M entries", f"makes {found.macs / 1e9:.2f} G multiply-adds"


def matched_with_more_disorder():
    page = defined_by("10_detection")
    matched = sets.match(
        HungarianMatcher(2, 5, 2, focal=True), page["logits"][1], sets.jittered(page["boxes"][1], 0.12),
        sets.target_of(page["truths"][1]),
    )
    return (f"total cost of the matching is {matched.total:.2f}",)


def matrix_of_2048():
    return tuple(readable_bytes(nbytes) for nbytes in speed.attention_bytes(2048))


@pytest.mark.parametrize(("stem", "control", "wanted"), [
    ("08_shifts", "M, side of a window in tokens", windows_of_6),
    ("09_successors", "stride of the keys in stage 1", entries_at_stride_8),
    ("10_detection", "disturb the boxes by", matched_with_more_disorder),
    ("11_speed", "tokens", matrix_of_2048),
])
def test_a_control_computes_what_the_library_computes(stem, control, wanted, course_address):
    words, shows = wanted(), "words => words.every(w => document.body.innerText.replace(/\\s+/g, ' ').includes(w))"
    with live_page.page() as page:
        page.set_default_timeout(PATIENCE)
        page.goto(f"{course_address}{stem}/?lang=en")
        page.get_by_role("heading", name="In the big world").wait_for()
        assert not page.evaluate(shows, words)
        labelled = page.locator("marimo-slider", has_text=re.compile(f"^{re.escape(control)}")).first
        labelled.get_by_role("slider").press("ArrowRight")
        page.wait_for_function(shows, arg=words)
