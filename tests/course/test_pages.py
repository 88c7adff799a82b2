"""Every chapter runs to its end, and its page shows all of it in a browser: headings, figures, numbers that change."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.costs.counting import cost, readable_bytes
from scratchvit.course.folder import LANGUAGES, chapters, find_chapter, text_of
from scratchvit.course.pages import export_pages
from scratchvit.course.prose import read_prose
from scratchvit.data.digits import load_digits
from scratchvit.nn import init
from tests.support.live_page import page
from tests.support.processes import SECONDS

pytestmark = pytest.mark.slow

CHAPTERS = chapters()
by_chapter = pytest.mark.parametrize("notebook", CHAPTERS, ids=lambda path: path.stem)
PATIENCE = 1000 * SECONDS       # milliseconds, only to end what hangs
# Texts and equations that a narrow page cuts off. An equation is in a shadow tree of its own.
CUT = """() => [
  ...[...document.querySelectorAll("h1, h2, h3, .paragraph, li, figcaption, summary")]
    .filter(text => text.getBoundingClientRect().right > innerWidth),
  ...[...document.querySelectorAll("marimo-tex")].filter(equation => equation.shadowRoot
    && [...equation.shadowRoot.querySelectorAll(".base")].some(e => e.getBoundingClientRect().right > innerWidth)),
].map(element => element.textContent)"""
PROBLEMS = ".marimo-error, [data-testid=marimo-error], marimo-error"


@by_chapter
def test_a_chapter_runs_to_its_end(notebook):
    """In English; in Spanish its page is complete, below."""
    pytest.importorskip("marimo", reason="marimo is not installed")
    done = subprocess.run(
        [sys.executable, str(notebook)], capture_output=True, text=True, encoding="utf-8", timeout=SECONDS,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def wait_until_complete(opened, notebook, language):
    """Until the page shows every heading and every figure of the text; a cell that fails leaves some out."""
    sections = read_prose(text_of(notebook, language)).sections
    headings = [line for text in sections.values() for line in re.findall(r"^#{1,3} .+$", text, re.MULTILINE)]
    figures = [name for name in sections if name.startswith("figure-")]
    opened.wait_for_function(
        "([headings, figures]) => document.querySelectorAll('h1, h2, h3').length >= headings"
        " && [...document.querySelectorAll('.course-figure img')].filter(i => i.complete).length >= figures",
        arg=[len(headings), len(figures)], timeout=PATIENCE,
    )
    # It fades in, so that its text is invisible, and empty, for a moment.
    title = re.compile(f"^{re.escape(read_prose(text_of(notebook, language)).title())}$")
    opened.locator("h1", has_text=title).wait_for(timeout=PATIENCE)
    assert opened.locator(PROBLEMS).count() == 0
    alts = opened.locator(".course-figure img").evaluate_all("images => images.map(i => [i.alt, i.naturalWidth])")
    assert all(len(alt) > 20 and "[[" not in alt and width > 100 for alt, width in alts)


@by_chapter
def test_a_page_shows_the_whole_chapter_in_both_languages(notebook, course_address):
    with page(width=1200) as opened:
        opened.goto(f"{course_address}{notebook.stem}/")
        wait_until_complete(opened, notebook, "en")
        opened.set_viewport_size({"width": 400, "height": 800})
        assert opened.evaluate(CUT) == []
        opened.get_by_role("radio", name="Español").click()
        wait_until_complete(opened, notebook, "es")


def test_the_list_leads_to_the_chapters_and_back(course_address):
    with page(width=400) as opened:
        opened.goto(course_address)
        assert opened.get_by_role("link").count() == len(LANGUAGES) * len(CHAPTERS)
        first = read_prose(text_of(CHAPTERS[0], "es")).title()
        opened.get_by_role("link", name=first).click()
        opened.locator("h1", has_text=first).wait_for(timeout=PATIENCE)
        opened.get_by_role("link", name="Índice").click()
        opened.wait_for_url(course_address, timeout=PATIENCE)


def slider(opened, label):
    """The control with a label that begins so."""
    return opened.locator("marimo-slider", has_text=re.compile(f"^{re.escape(label)}")).get_by_role("slider")


def opened_chapter(opened, address, name):
    notebook = find_chapter(name)
    opened.goto(f"{address}{notebook.stem}/")
    wait_until_complete(opened, notebook, "en")


def test_the_derivatives_of_chapter_1_are_those_of_tensors(course_address):
    train = load_digits().train
    chosen = np.flatnonzero(train.labels <= 1)
    ink = train.images(chosen)[:, 3:5, 3:5, 0].mean(axis=(1, 2)) / 255
    w, b = (sv.Tensor(np.array(value), requires_grad=True) for value in (-0.5, 0.5))
    error = (w * ink + b).tanh() - (2.0 * train.labels[chosen] - 1)
    loss = (error * error).mean()
    loss.backward()
    with page() as opened:
        opened_chapter(opened, course_address, "autograd")
        slider(opened, "weight w").press("ArrowRight")
        slider(opened, "bias b").press("ArrowRight")
        numbers = [f"{number:.3f}" for number in (loss.item(), w.grad, b.grad)]
        opened.get_by_text(re.compile(".*".join(map(re.escape, numbers)), re.DOTALL)).first.wait_for(timeout=PATIENCE)


def test_the_memory_of_chapter_2_is_what_a_model_costs(course_address):
    with init.without_weights():
        model = sv.create_model("igpt_large", img_size=128)
    expected = readable_bytes(cost(model).attention_bytes)
    assert expected == "768 GiB"
    with page() as opened:
        opened_chapter(opened, course_address, "pixels")
        assert opened.get_by_text(re.compile("1,024 tokens.*one image needs 3.0 GiB", re.DOTALL)).count()
        side = slider(opened, "R, side")
        side.press("ArrowRight")
        side.press("ArrowRight")
        opened.get_by_text(re.compile("16,384 tokens.*one image needs 768 GiB", re.DOTALL)).wait_for(timeout=PATIENCE)


def test_the_tokens_of_chapter_3_are_those_of_the_models(course_address):
    def shown(name):
        with init.without_weights():
            found = cost(sv.create_model(name, class_token=False, global_pool="avg"))
        matrix = readable_bytes(4 * found.tokens**2)
        assert found.attention_bytes == 144 * 4 * found.tokens**2
        return f"{found.tokens:,} tokens, {found.tokens**2:,} entries in a matrix, {matrix} in float32"

    assert shown("vit_base_patch16_224") == "196 tokens, 38,416 entries in a matrix, 150 KiB in float32"
    with page() as opened:
        opened_chapter(opened, course_address, "patches")
        opened.get_by_text(shown("vit_base_patch16_224")).wait_for(timeout=PATIENCE)
        slider(opened, "P, side").press("ArrowRight")
        opened.get_by_text(shown("vit_base_patch32_224")).wait_for(timeout=PATIENCE)


def test_an_exercise_is_checked_as_the_reader_answers(course_address):
    with page() as opened:
        opened_chapter(opened, course_address, "patches")
        field = opened.get_by_label("Number input").first
        for answer, verdict in (("500", "✗ Not yet"), ("576", "✓ Right")):
            field.fill(answer)
            field.press("Enter")
            opened.get_by_text(verdict).first.wait_for(timeout=PATIENCE)
        folded = opened.locator("details").first
        answer = folded.locator(".paragraph").first
        assert answer.count() == 1 and not answer.is_visible()
        folded.locator("summary").click()
        answer.wait_for(timeout=PATIENCE)


class Silent(http.server.SimpleHTTPRequestHandler):
    """What `python -m http.server` serves with, without a line for each file."""

    def log_message(self, *words):
        pass


def test_exported_pages_need_no_other_server(tmp_path):
    pytest.importorskip("marimo", reason="marimo is not installed")
    notebook = find_chapter("patches")
    before = set(notebook.parent.iterdir())
    names = [path.name for path in export_pages([notebook], tmp_path)]
    assert names == ["03_patches.en.html", "03_patches.es.html", "index.html"]
    assert set(notebook.parent.iterdir()) == before
    handler = functools.partial(Silent, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, page(width=400) as opened:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened.goto(f"http://127.0.0.1:{server.server_port}/")
        opened.get_by_role("link", name=read_prose(text_of(notebook, "en")).title()).click()
        wait_until_complete(opened, notebook, "en")
        opened.get_by_role("link", name="Español").click()
        wait_until_complete(opened, notebook, "es")
        server.shutdown()
