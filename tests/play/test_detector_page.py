"""The page of a detector in a real browser: a DETR looks for digits that are moved by mouse, keys and buttons."""

import contextlib
import dataclasses
import re

import numpy as np
import pytest

pytest.importorskip("sklearn")      # whose digits the scenes are made of

from scratchvit import zoo
from scratchvit.detection.boxes import box_iou
from scratchvit.detection.data.scenes import load_scenes
from scratchvit.inspect.detection import as_seen, cross_attention
from scratchvit.play.detector import detector_routes
from tests.support.browser import contrast
from tests.support.live_page import page as live_page
from tests.support.play_server import served
from tests.support.small_detr import small

pytestmark = pytest.mark.slow

NUMBER = 12                     # the scene that the page chooses: its random numbers are this one
HANDLES = ".handles button"
LISTEN = """
  const fetched = window.fetch;
  window.fetch = async (...words) => {
    const response = await fetched(...words);
    if (words[1]?.method === "POST" && response.ok) window.told = await response.clone().json();
    return response;
  };"""
SEEN = """() => ({
  width: document.documentElement.clientWidth, content: document.documentElement.scrollWidth,
  colours: [getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor],
  quiet: [...document.querySelectorAll(".quiet")].map(e => [getComputedStyle(e).color,
    getComputedStyle(e.closest("section")).backgroundColor]),
  smallest: Math.min(...[...document.querySelectorAll("main *")].filter(e => e.offsetWidth && e.textContent.trim())
    .map(e => parseFloat(getComputedStyle(e).fontSize))),
  targets: [...document.querySelectorAll("main button, main select, main .button")].filter(e => e.offsetWidth)
    .map(e => [e.innerText || e.ariaLabel, e.offsetWidth, e.offsetHeight]),
  nameless: [...document.querySelectorAll("main button, main input, main select, main canvas")].filter(e =>
    e.offsetWidth && !(e.ariaLabel || e.innerText || e.labels?.[0]?.innerText)).map(e => e.outerHTML),
})"""


@pytest.fixture(scope="module")
def detector():
    return zoo.load("detr_scenes").opened


@pytest.fixture(scope="module")
def scenes():
    return load_scenes().test


@pytest.fixture(scope="module")
def port(detector):
    with served(detector_routes(detector)) as port:
        yield port


@contextlib.contextmanager
def opened(port, width=1600, height=1000):
    """The page in a browser, with its first scene."""
    with live_page(width, height) as page:
        page.add_init_script(f"Math.random = () => {(NUMBER + 0.5) / 500}; {LISTEN}")
        with answering(page):
            page.goto(f"http://127.0.0.1:{port}")
        yield page


@pytest.fixture
def page(port, request):
    with opened(port, *getattr(request, "param", ())) as page:
        yield page


class Told:
    """answer: what the page was told last, and shows."""

    answer = None


@contextlib.contextmanager
def answering(page):
    """Inside, the page asks; at the end it has been told everything that it asked."""
    told = Told()
    yield told
    page.wait_for_selector("main[data-state=answered]")
    told.answer = page.evaluate("window.told")


def last(answer):
    return answer["layers"][-1]


def box_of(answer, index):
    """The box of the query that is matched with an object, and the object's."""
    query = last(answer)["matching"]["queries"][index]
    return last(answer)["boxes"][query], answer["objects"][index]["box"]


def overlap(answer, index):
    iou, _ = box_iou(*(np.array([box], np.float32) for box in box_of(answer, index)))
    return float(iou[0, 0])


def cells(page, table, row):
    return page.locator(f"{table} tbody tr").nth(row).locator("th, td").all_inner_texts()


def printed(number):
    return f"{number:.2f}".replace("-", "−")


def test_a_scene_appears_with_the_boxes_of_the_library(page, detector, scenes):
    (found,) = detector.in_pictures([scenes.picture(NUMBER)])
    sure = np.flatnonzero(found["scores"] >= 0.5)
    assert len(sure) >= 2
    names = [detector.classes[found["labels"][i]] for i in sorted(sure, key=lambda i: found["boxes"][i][0])]
    assert page.inner_text(".summary") == f"{len(sure)} objects: " + ", ".join(
        f"{'an' if name == '8' else 'a'} {name}" for name in names
    )
    assert page.locator(HANDLES).count() == len(scenes.digits(NUMBER))
    best = np.argsort(-found["scores"], kind="stable")[0]
    query, name, score, *_ = cells(page, ".queries", 0)
    assert (query, name) == (str(found["queries"][best]), detector.classes[found["labels"][best]])
    assert score == printed(found["scores"][best])
    # On the canvas: its outline in the colour of its class, "#4477aa" and so on.
    left, top, _, bottom = found["boxes"][best] / 96
    colour = page.evaluate("""([x, y]) => {
      const canvas = document.querySelector(".frame canvas"), context = canvas.getContext("2d");
      return [...context.getImageData(Math.round(x * canvas.width), Math.round(y * canvas.height), 1, 1).data];
    }""", [float(left), float(top + 0.7 * (bottom - top))])
    colours = ("4477aa", "ee6677", "228833", "ccbb44", "66ccee", "aa3377")
    assert bytes(colour[:3]).hex() == colours[found["labels"][best] % 6]


def test_a_dragged_digit_is_followed_by_its_box(page):
    handle = page.locator(HANDLES).first
    box, frame = handle.bounding_box(), page.locator(".frame").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    across = 160 if x < frame["x"] + frame["width"] / 2 else -160
    with answering(page) as told:
        page.mouse.move(x, y)
        page.mouse.down()
        for step in range(1, 9):
            page.mouse.move(x + across * step / 8, y)
        page.mouse.up()
    moved = handle.bounding_box()
    assert abs(moved["x"] - box["x"] - across) < frame["width"] / 96 and abs(moved["y"] - box["y"]) < 1
    left = told.answer["objects"][0]["box"][0]
    assert abs(frame["x"] + left * frame["width"] - moved["x"]) < 2     # the handle lies on the true box
    assert overlap(told.answer, 0) > 0.6
    name = told.answer["objects"][0]["name"]
    assert re.search(rf"\b{name}\b", page.inner_text(".summary"))
    # What the digit's query looks at is shown, as long as the digit is chosen.
    query = last(told.answer)["matching"]["queries"][0]
    assert page.inner_text("#heads h2") == f"Query {query}: where its heads look in layer 3"
    with answering(page) as told:       # beyond the border: it stays inside
        box = handle.bounding_box()
        page.mouse.move(box["x"] + 9, box["y"] + 9)
        page.mouse.down()
        page.mouse.move(frame["x"] - 200, frame["y"] - 200, steps=3)
        page.mouse.up()
    assert told.answer["objects"][0]["box"][:2] == [0, 0]


@pytest.mark.parametrize("page", [(400, 800)], indirect=True)
def test_a_finger_drags_a_digit_and_not_the_page(page):
    handle, touch = page.locator(HANDLES).first, page.context.new_cdp_session(page)
    box, frame = handle.bounding_box(), page.locator(".frame").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    down = 60 if y < frame["y"] + frame["height"] / 2 else -60
    with answering(page) as told:
        touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        for step in range(1, 7):
            points = [{"x": x, "y": y + down * step / 6}]
            touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": points})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert page.evaluate("scrollY") == 0
    assert abs(handle.bounding_box()["y"] - box["y"] - down) < frame["width"] / 96
    assert overlap(told.answer, 0) > 0.5


def test_everything_can_be_done_with_the_keyboard(page):
    def focused(attribute="ariaLabel"):
        return page.evaluate(f"document.activeElement.{attribute}")

    for _ in range(30):
        page.keyboard.press("Tab")
        if (focused() or "").startswith("digit "):
            break
    label = focused()
    digit, x, y, size = map(int, re.findall(r"\d+", label))
    with answering(page) as told:
        for key in ("ArrowDown", "ArrowUp", *["ArrowRight" if x < 48 else "ArrowLeft"] * 3):
            page.keyboard.press(key)
    assert told.answer["objects"][0]["name"] == str(digit)
    assert [int(n) for n in re.findall(r"\d+", focused())] == [digit, x + (3 if x < 48 else -3), y, size]
    before = told.answer["objects"][0]["box"]
    with answering(page) as told:
        page.keyboard.press("Shift+ArrowUp" if y > 48 else "Shift+ArrowDown")
    assert abs((told.answer["objects"][0]["box"][1] - before[1]) * 96) == pytest.approx(8, abs=0.01)
    with answering(page) as told:
        for key in "--]":
            page.keyboard.press(key)
    drawn = told.answer["scene"]["digits"][0]
    assert round(drawn["side"]) < size and told.answer["objects"][0]["box"] != before
    with answering(page):
        page.keyboard.press("Tab")
        count = page.locator(HANDLES).count()
        page.keyboard.press("Delete")
    assert page.locator(HANDLES).count() == count - 1
    page.get_by_role("button", name="add an 8").focus()
    with answering(page) as told:
        page.keyboard.press("Enter")
    assert told.answer["objects"][-1]["name"] == "8" and page.locator(HANDLES).count() == count
    assert "an 8" in page.inner_text(".summary")
    page.locator(".queries button").first.focus()       # of the table's rows, one is a stop of Tab
    first = page.inner_text("#heads h2")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#heads h2") != first and page.locator(".queries button[tabindex='0']").count() == 1
    page.locator(".all").focus()
    page.keyboard.press("ArrowRight")
    costs = last(told.answer)["matching"]["costs"]
    query = np.argsort(-np.array(last(told.answer)["scores"]), kind="stable")[1]
    said = page.inner_text(".pair")
    assert f"with query {query}: class {printed(costs['class'][0][query])}," in said
    assert said.endswith(f"together {printed(costs['total'][0][query])}")
    page.locator(".encoder canvas").focus()
    place = page.get_attribute(".encoder canvas", "aria-label")
    page.keyboard.press("ArrowUp")
    assert page.get_attribute(".encoder canvas", "aria-label") != place


def test_layers_scores_and_maps_are_those_of_the_answer(page, detector, scenes):
    with answering(page) as told:
        page.get_by_role("button", name="Another scene").click()
    answer = told.answer
    page.locator(".queries tbody tr").first.hover()
    query = int(cells(page, ".queries", 0)[0])
    maps = cross_attention(detector.model, as_seen(detector, scenes.picture(NUMBER))[1])[:, query]
    captions = page.locator("#heads figcaption").all_inner_texts()
    assert [caption.split(": up to ")[0] for caption in captions] == list("12345678")
    peaks = [float(caption.split(": up to ")[1]) for caption in captions]
    np.testing.assert_allclose(peaks, maps.max(axis=(1, 2)), rtol=0, atol=0.0055)       # two decimals
    page.mouse.move(0, 0)
    least, layer = page.locator(".settings input[type=range]").all()
    least.fill("0")
    summary = page.locator(".summary")                  # which waits for a third of a second, see tellSummary
    summary.filter(has_text="25 objects: ").wait_for()
    layer.fill("0")
    scores = answer["layers"][0]["scores"]
    assert cells(page, ".queries", 0)[2] == printed(max(scores))
    assert page.inner_text(".queries caption") == "25 queries after decoder layer 1, best first"
    matched = answer["layers"][0]["matching"]
    assert cells(page, ".costs", 0)[1] == str(matched["queries"][0])
    assert cells(page, ".costs", 0)[5] == printed(matched["costs"]["total"][0][matched["queries"][0]])
    layer.fill("-1")
    summary.filter(has_text="25 boxes from which the queries start").wait_for()
    least.fill("1")
    layer.fill("2")
    summary.filter(has_text="no objects").wait_for()


def test_a_picture_of_ones_own_and_back(page, scenes, tmp_path):
    scenes.picture(3).resize((200, 150)).save(tmp_path / "own.png")
    with answering(page) as told:
        page.set_input_files("input[type=file]", tmp_path / "own.png")
    assert told.answer["picture"]["shape"] == [96, 128, 3] and told.answer["objects"] is None
    assert "The model sees 128 × 96 pixels" in page.inner_text("main")
    assert "The true boxes of this picture are not known" in page.inner_text("#matching")
    assert page.locator(HANDLES).count() == 0 and page.locator(".costs").is_hidden()
    frame = page.locator(".frame").bounding_box()
    assert frame["width"] / frame["height"] == pytest.approx(4 / 3, abs=0.01)
    with answering(page) as told:
        page.select_option("select", "192")
    assert told.answer["picture"]["shape"] == [192, 256, 3]
    with answering(page) as told:
        page.get_by_role("button", name="Back to the scene").click()
    assert page.locator(HANDLES).count() == len(told.answer["objects"]) == len(scenes.digits(NUMBER))


def test_what_the_server_refuses_is_said_and_the_page_stays(port, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    # Chromium itself logs the status as an error, once for each refusal.
    with pytest.raises(AssertionError, match="status of 422"), opened(port) as page:
        message, handles = page.locator("#message"), page.locator(HANDLES)
        count = handles.count()
        page.set_input_files("input[type=file]", tmp_path / "broken.png")
        message.filter(has_text="no picture of a known format").wait_for()
        assert handles.count() == count
        for _ in range(14):
            page.get_by_role("button", name="add a 1").click()
            page.wait_for_selector("main[data-state=answered]")
            if re.search("no room for a 1|at most 12 digits", message.inner_text()):
                break
        count = handles.count()
        assert message.is_visible() and count > 4
        with answering(page) as told:
            handles.first.focus()
            page.keyboard.press("ArrowDown")
            page.keyboard.press("ArrowUp")
        message.wait_for(state="hidden")
        assert len(told.answer["objects"]) == handles.count() == count


@pytest.mark.parametrize("page", [(400, 800), (1000, 800), (1600, 1000)], indirect=True)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_read_and_used_at_every_width(page, scheme):
    page.emulate_media(color_scheme=scheme)
    with answering(page):
        page.locator(HANDLES).first.focus()
        page.keyboard.press("ArrowDown")
    seen = page.evaluate(SEEN)
    assert seen["content"] <= seen["width"]
    assert contrast(seen["colours"]) > 7 and min(map(contrast, seen["quiet"])) > 4.5
    assert seen["smallest"] >= 12 and seen["nameless"] == []
    assert [target for target in seen["targets"] if min(target[1:]) < 24] == []     # WCAG 2.2, 2.5.8
    assert page.get_attribute(".summary", "role") == "status"


def test_the_page_of_a_detr_without_anchors():
    """Its queries start from no boxes, and "no object" has a probability."""
    trained = zoo.load("detr_scenes").opened
    model = small("detr_tiny", num_classes=10, num_queries=8).eval()
    routes = detector_routes(dataclasses.replace(trained, model=model, name="detr_tiny"))
    with served(routes) as port, live_page() as page:
        page.add_init_script(LISTEN)
        with answering(page) as told:
            page.goto(f"http://127.0.0.1:{port}")
        nothing = last(told.answer)["nothing"]
        query = int(cells(page, ".queries", 0)[0])
        assert cells(page, ".queries", 0)[3] == printed(nothing[query])
        assert page.locator(".settings input[type=range]").nth(1).get_attribute("min") == "0"
        assert told.answer["start"] is None
