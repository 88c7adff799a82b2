"""What chapters are made with: sections with values, excerpts of the source, exercises, and the errors of all."""

import asyncio
import re
import sys

import pytest

from scratchvit.cli import main
from scratchvit.course import Chapter, folder
from scratchvit.course.prose import read_prose, shown
from scratchvit.course.server import _application, list_page
from scratchvit.course.source import excerpt
from scratchvit.errors import ScratchvitError
from scratchvit.learn import engine
from scratchvit.ops import softmax

TEXT = """\
## [claim]
# A title

There are [[count]] tokens, [[share:.1%]] of them used, $x^2$.

## [figure-a]
alt: A line through [[count]] points.
The *caption*.

## [exercise-1]
How many?

## [answer-1]
[[count]].

## [words]
side: side of the image
"""


@pytest.fixture
def prose(tmp_path):
    path = tmp_path / "01_name.en.md"
    path.write_text(TEXT, encoding="utf-8")
    return read_prose(path)


def test_sections_are_filled_in(prose):
    filled_in = prose.section("claim", count=38_416, share=0.5)
    assert filled_in == "# A title\n\nThere are 38,416 tokens, 50.0% of them used, $x^2$."
    assert prose.figure("figure-a", count=3) == ("A line through 3 points.", "The *caption*.")
    assert prose.words() == {"side": "side of the image"} and prose.title() == "A title"
    assert [shown(value) for value in (1_000, 0.123456, "as it is")] == ["1,000", "0.1235", "as it is"]


@pytest.mark.parametrize(("name", "values", "sentence"), [
    ("clam", {}, r"01_name.en.md: there is no section \[clam\]; there are claim, figure-a"),
    ("claim", {"count": 1}, "missing: share; not used: none"),
    ("claim", {"count": 1, "share": 1, "other": 1}, "missing: none; not used: other"),
])
def test_a_wrong_section_or_value_is_an_error(prose, name, values, sentence):
    with pytest.raises(ScratchvitError, match=sentence):
        prose.section(name, **values)
    with pytest.raises(ScratchvitError, match="must begin with a line `alt: …`"):
        prose.figure("exercise-1")


@pytest.mark.parametrize(("text", "sentence"), [
    ("before\n## [a]\n", "begins before the first section"),
    ("## [a]\nx\n## [a]\ny\n", "more than one section is called a"),
])
def test_a_damaged_text_is_an_error(tmp_path, text, sentence):
    path = tmp_path / "text.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ScratchvitError, match=sentence):
        read_prose(path)
    with pytest.raises(ScratchvitError, match="cannot be read"):
        read_prose(tmp_path / "none.md")


def test_an_excerpt_is_what_stands_in_the_file():
    found = excerpt(engine, "def mul", "return")
    lines = (folder.folder().parents[1] / found.path).read_text("utf-8").splitlines()
    assert found.code.splitlines() == lines[found.first - 1 : found.last] and found.code.count("\n") == 1
    assert excerpt(softmax).code.startswith("@op(") and excerpt(softmax).path == "scratchvit/ops/attention.py"
    assert excerpt(softmax, "p = xp.exp").code.startswith("p = xp.exp(x")       # without its indentation
    with pytest.raises(ScratchvitError, match="no line of softmax begins with 'nothing'"):
        excerpt(softmax, "nothing")


def test_texts_of_marimo(tmp_path):
    mo = pytest.importorskip("marimo", reason="marimo is not installed")
    (tmp_path / "text").mkdir()
    for language in ("en", "es"):
        (tmp_path / "text" / f"01_name.{language}.md").write_text(TEXT, encoding="utf-8")
    chapter = Chapter(tmp_path / "01_name.py")
    assert chapter.language().value == "en"
    text = chapter.in_language("es")
    assert "There are 3 tokens" in text("claim", count=3, share=1).text
    for right, verdict in ((None, "Sin responder"), (True, "Correcto"), (False, "Todavía no")):
        shown_exercise = text.exercise("exercise-1", mo.ui.number(), right, "answer-1", count=7).text
        assert verdict in shown_exercise and "<details" in shown_exercise and "7." in shown_exercise
        assert ("Intro" in shown_exercise) == (right is None)
    assert "Intro" not in text.exercise("exercise-1", mo.ui.radio(["7"]), None, "answer-1", count=7).text
    with pytest.raises(ScratchvitError, match="do not use other"):
        text.exercise("exercise-1", mo.ui.number(), None, "answer-1", count=7, other=1)
    with pytest.raises(ScratchvitError, match="there is no 'height'"):
        text.word("height")
    assert "líneas" in text.code(softmax).text


def test_chapters_are_found_by_number_and_by_name():
    first = folder.chapters()[0]
    number, _, name = first.stem.partition("_")
    for given in (number, number.lstrip("0"), name, first.stem, first.name):
        assert folder.find_chapter(given) == first
    with pytest.raises(ScratchvitError, match=f"there is no chapter 'none'; there are .*{first.stem}"):
        folder.find_chapter("none")


def test_the_list_names_every_chapter_in_both_languages(capsys):
    page = list_page(folder.chapters(), "{stem}/?lang={language}", "es")
    links = re.findall(r'<a href="([^"]+)"', page)
    assert links == [f"{path.stem}/?lang={language}" for language in ("es", "en") for path in folder.chapters()]
    assert main(["course", "--list", "--lang", "es"]) == 0
    assert capsys.readouterr().out.count("\n") == len(folder.chapters())


def test_the_page_about_the_course_lists_every_chapter():
    page = (folder.folder() / "README.md").read_text("utf-8")
    for path in folder.chapters():
        english, spanish = (folder.title_of(path, language).partition(". ")[2] for language in ("en", "es"))
        assert f"[{english}]({path.name}) | {spanish} |" in page


def test_what_is_missing_is_one_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "marimo", None)
    assert main(["course", "--no-browser"]) == 1 and "pip install marimo" in capsys.readouterr().err
    monkeypatch.setattr(folder, "_HERE", tmp_path / "nowhere")
    assert main(["course"]) == 1 and "docs/course of the repository" in capsys.readouterr().err
    assert main(["course", "--port", "99999999"]) != 0


def first_answer(application, kind, path, **headers):
    """The first message that an ASGI application sends for a request."""
    sent = []

    async def receive():
        return {"type": f"{kind}.connect" if kind == "websocket" else "http.request"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": kind, "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "method": "GET",
        "scheme": "http", "http_version": "1.1", "server": ("127.0.0.1", 8765), "client": ("127.0.0.1", 1),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()], "subprotocols": [],
    }
    asyncio.run(application(scope, receive, send))
    return sent[0]


def test_a_page_of_another_site_is_refused():
    pytest.importorskip("marimo", reason="marimo is not installed")
    served = _application(folder.chapters(), "en")
    own, other = "127.0.0.1:8765", "http://evil.example"
    assert first_answer(served, "http", "/", host=own)["status"] == 200
    assert first_answer(served, "http", "/", host="evil.example")["status"] == 403
    assert first_answer(served, "http", "/03_patches/", host=own, origin=other)["status"] == 403
    assert first_answer(served, "websocket", "/03_patches/ws", host=own, origin=other)["type"] == "websocket.close"
