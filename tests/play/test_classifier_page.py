"""The page of a classifier in a real browser: drawn on with the mouse and the keyboard, and looked at."""

import numpy as np
import pytest

from scratchvit import zoo
from scratchvit.data.images import to_picture
from scratchvit.inspect.swin import merged_into
from scratchvit.play import drawing
from scratchvit.play.attention import answer_and_attention
from scratchvit.play.classifier import ClassifierPage
from scratchvit.play.server import Question
from tests.support.browser import contrast
from tests.support.live_page import page as browser_page
from tests.support.play_server import served
from tests.support.strokes import DIGITS

pytestmark = pytest.mark.slow

# What is wider than the page, and the texts that are cut off by their element or lie beyond the edge of the page.
MISFITS = """() => {
  const root = document.documentElement, cut = [];
  for (const e of document.querySelectorAll("main *, header *")) {
    const text = [...e.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!text || !e.checkVisibility()) continue;
    const box = e.getBoundingClientRect();
    const clipped = getComputedStyle(e).overflowX !== "visible" && e.scrollWidth > e.clientWidth + 1;
    if (clipped || box.right > root.clientWidth + 1 || box.left < -1) cut.push(e.textContent.trim());
  }
  return {wider: root.scrollWidth - root.clientWidth, cut};
}"""

# For every layer and head, the attention of a token of the fourth example, as the page computes it.
LOOKS = """async token => {
  const {ask} = await import("/common.js"), {unpacked} = await import("/arrays.js");
  const {looksOf} = await import("/looking.js");
  const model = await ask("model"), answer = await ask("example?number=3");
  return model.layers.map((layer, i) => {
    return looksOf(layer, unpacked(answer.attention[i]), token, model.grid).map(look => [...look.grid]);
  });
}"""
COLOURS = """element => {
  const paper = e => /, 0\\)$/.test(getComputedStyle(e).backgroundColor) ? paper(e.parentElement)
    : getComputedStyle(e).backgroundColor;
  return [getComputedStyle(element).color, paper(element)];
}"""
SMALLEST = """() => Math.min(...[...document.querySelectorAll("main *")].filter(e => e.innerText)
  .map(e => parseFloat(getComputedStyle(e).fontSize)))"""
# What a screen reader could not name.
UNNAMED = """() => [...document.querySelectorAll("button, input, canvas, [tabindex]")]
  .filter(e => e.checkVisibility() && !e.closest("[aria-hidden=true]"))
  .filter(e => !(e.ariaLabel || e.innerText || e.labels?.length))
  .map(e => e.outerHTML)"""


@pytest.fixture(scope="module", params=["vit_digits", "swin_digits"])
def served_page(request):
    pytest.importorskip("sklearn")
    page = ClassifierPage(zoo.load(request.param).opened, request.param)
    with served(page.routes()) as port:
        yield page, f"http://127.0.0.1:{port}/"


def go(browser, address, scheme="light"):
    """Open the page, and wait for its first answer."""
    browser.emulate_media(color_scheme=scheme)
    browser.goto(address)
    browser.locator("#spoken", has_text="The answer is").wait_for()


def draw(browser, strokes):
    box = browser.locator(".pad").bounding_box()
    for stroke in strokes:
        (x, y), *others = [(box["x"] + px * box["width"], box["y"] + py * box["height"]) for px, py in stroke.tolist()]
        browser.mouse.move(x, y)
        browser.mouse.down()
        for place in others:
            browser.mouse.move(*place)
        browser.mouse.up()


def says(browser, digit):
    browser.locator("#spoken", has_text=f"The answer is {digit},").wait_for()


def test_digits_drawn_with_the_mouse_are_read(served_page):
    page, address = served_page
    with browser_page(1600, 1000) as browser:
        go(browser, address)
        for digit in (3, 7, 0, 8, 5):
            draw(browser, DIGITS[digit])
            says(browser, digit)
            if digit != 5:
                browser.get_by_role("button", name="Clear").click()
        # The numbers of the table are the library's, for the strokes that the page sent.
        with browser.expect_request("**/api/strokes") as sent:
            draw(browser, [np.array([[0.2, 0.2]])])
        answer = page.routes()["POST strokes"](Question(sent.value.post_data_buffer))
        browser.locator(".best td", has_text=f"{max(answer['logits']):.2f}").wait_for()
        shown = [float(cell.replace("−", "-")) for cell in browser.locator("#answer td:nth-child(3)").all_inner_texts()]
        assert np.allclose(shown, answer["logits"], atol=0.00501)


def test_a_digit_drawn_with_the_keyboard_is_read(served_page):
    _, address = served_page
    with browser_page() as browser:
        go(browser, address)
        browser.locator(".pad").focus()
        for keys, times in (("ArrowUp", 8), (" ", 1), ("ArrowDown", 16), (" ", 1)):
            for _ in range(times):
                browser.keyboard.press(keys)
        says(browser, 1)
        browser.keyboard.press("ArrowLeft")     # the pen is lifted: this draws nothing
        assert browser.evaluate("document.activeElement.className") == "pad"
        browser.keyboard.press("Backspace")
        assert browser.get_by_role("button", name="Undo").is_disabled()


def test_a_token_is_chosen_by_pointer_and_keyboard(served_page):
    page, address = served_page
    rows, columns = page.model()["grid"]
    with browser_page(1600, 1000) as browser:
        go(browser, address)
        token, canvas = browser.locator("#token"), browser.locator("canvas.patches")
        before = browser.locator("#attention figure canvas").first.get_attribute("aria-label")
        canvas.focus()
        for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
            browser.keyboard.press(key)
        assert token.inner_text() == f"Attention of patch {columns + 2}, in row 2, column 2."
        assert browser.locator("#attention figure canvas").first.get_attribute("aria-label") != before
        browser.keyboard.press("Escape")
        assert "mean over all patches" in token.inner_text()
        box = canvas.bounding_box()
        browser.mouse.move(box["x"] + box["width"] - 3, box["y"] + box["height"] - 3)
        assert f"patch {rows * columns}," in token.inner_text()
        browser.mouse.move(5, 5)
        assert "mean over all patches" in token.inner_text()
        # What a map says of itself is what the library computed.
        browser.mouse.move(box["x"] + 3, box["y"] + 3)
        label = browser.locator("#attention figure canvas[aria-label^='head 1']").first.get_attribute("aria-label")
        image = page.classifier.prepare(to_picture(page.examples[0][0]))
        _, maps = answer_and_attention(page.classifier.model, image, page.layers)
        first = maps[0][0, 0] if page.layers[0].windows is None else maps[0][0, 0, 0]
        assert f"{100 * first.max():.{1 if first.max() < 0.1 else 0}f}" in label


def test_the_page_finds_where_every_token_looks(served_page):
    page, address = served_page
    rows, columns = page.model()["grid"]
    image = page.classifier.prepare(to_picture(page.examples[3][0]))
    _, maps = answer_and_attention(page.classifier.model, image, page.layers)

    def looks(layer, p, token):
        """The attention to every place of the layer's map, (heads, h, w)."""
        if layer.windows is None:
            heads = p.mean(axis=1) if token is None else p[:, token[0] * columns + token[1]]
            return heads.reshape(-1, *layer.keys)
        block = layer.windows
        chosen = np.ones(block.places.shape, bool)
        if token is not None:
            chosen = block.places == np.ravel_multi_index(merged_into(token, block.stage), block.size)
        for window in np.flatnonzero(~chosen.any(axis=1)):
            p[window] = 0
        queries = np.where(chosen[:, None, :, None], p, 0).sum(axis=2) / chosen.sum(axis=1).clip(1)[:, None, None]
        return np.stack([block.in_place(head) for head in queries.transpose(1, 0, 2)])

    with browser_page() as browser:
        go(browser, address)
        for token in (None, (0, 0), (1, columns - 1), (rows - 1, 2)):
            named = None if token is None else {"row": token[0], "column": token[1]}
            found = browser.evaluate(LOOKS, named)
            for layer, p, heads in zip(page.layers, maps, found, strict=True):
                expected = looks(layer, p.copy(), token)
                assert np.allclose(np.reshape(heads, expected.shape), expected, atol=5e-4), (layer.name, token)


def test_a_file_is_read_and_what_is_no_picture_is_said(served_page, tmp_path):
    _, address = served_page
    drawing.as_optdigits(DIGITS[6]).resize((300, 300)).save(tmp_path / "six.png")
    (tmp_path / "text.png").write_text("no picture", "utf-8")
    with browser_page() as browser:
        go(browser, address)
        browser.locator("#file").set_input_files(tmp_path / "six.png")
        says(browser, 6)
        message = browser.locator("#message")
        assert message.is_hidden()
    with pytest.raises(AssertionError, match="422"), browser_page() as browser:     # Chromium itself logs the status
        go(browser, address)
        browser.locator("#file").set_input_files(tmp_path / "text.png")
        message = browser.locator("#message")
        message.wait_for(state="visible")
        assert "no picture of a known format" in message.inner_text()
        browser.locator(".example").first.click()
        message.wait_for(state="hidden")


def test_the_slider_shows_every_block_of_a_swin(served_page):
    page, address = served_page
    if not page.layers[0].windows:
        pytest.skip("a ViT shows all of its blocks at once")
    with browser_page() as browser:
        go(browser, address)
        browser.locator("#block").focus()
        for layer in page.layers:
            assert browser.locator("output").inner_text() == layer.name
            windows = browser.locator("canvas.windows").get_attribute("aria-label")
            assert windows.startswith(f"{len(layer.windows.places)} windows")
            assert ("shifted" in windows) == any(layer.windows.shift)
            browser.keyboard.press("ArrowRight")


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_can_be_read(served_page, width, scheme):
    _, address = served_page
    with browser_page(width, 900) as browser:
        go(browser, address, scheme)
        assert browser.evaluate(MISFITS) == {"wider": 0, "cut": []}
        for selector in ("body", "#about", "section .quiet", "button:enabled", "tr.best th", "figcaption", "caption"):
            colours = browser.locator(selector).first.evaluate(COLOURS)
            assert contrast(colours) >= 4.5, (selector, colours)
        assert browser.evaluate(SMALLEST) >= 12
        assert browser.evaluate(UNNAMED) == []
