"""Every chapter: both languages say the same, the notebook uses all of the text, and its cells have an order."""

import ast
import graphlib
import re
from collections import Counter

import pytest

from scratchvit.course.folder import LANGUAGES, chapters, text_of
from scratchvit.course.prose import WORDS, places, read_prose

CHAPTERS = chapters()
by_chapter = pytest.mark.parametrize("notebook", CHAPTERS, ids=lambda path: path.stem)
by_text = pytest.mark.parametrize(
    ("notebook", "language"), [(path, language) for path in CHAPTERS for language in LANGUAGES],
    ids=lambda value: getattr(value, "stem", value),
)

EQUATION = re.compile(r"\$\$(.+?)\$\$|\$(?! )([^$\n]+?)(?<! )\$", re.DOTALL)
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FEWEST, MOST = 1500, 2200       # words: 20 minutes, with the exercises
EXERCISES = 3


def sections(notebook, language):
    return read_prose(text_of(notebook, language)).sections


def equations(text):
    """The equations of a text, without the words in them, which are translated."""
    found = [displayed or inline for displayed, inline in EQUATION.findall(CODE.sub("", text))]
    return Counter(re.sub(r"\\text\{[^}]*\}|\s", "", equation) for equation in found)


@by_chapter
def test_both_languages_have_the_same_sections_values_equations_code_and_links(notebook):
    english, spanish = (sections(notebook, language) for language in LANGUAGES)
    assert list(english) == list(spanish)
    for name in english:
        here, there = english[name], spanish[name]
        assert Counter(places(here)) == Counter(places(there)), name
        assert equations(here) == equations(there), name
        assert Counter(LINK.findall(here)) == Counter(LINK.findall(there)), name
        assert here.startswith("alt: ") == there.startswith("alt: "), name
        assert re.findall(r"^#+ ", here, re.MULTILINE) == re.findall(r"^#+ ", there, re.MULTILINE), name
        assert re.findall(r"```.*?```", here, re.DOTALL) == re.findall(r"```.*?```", there, re.DOTALL), name
    assert set(read_prose(text_of(notebook, "en")).words()) == set(read_prose(text_of(notebook, "es")).words())


@by_text
def test_every_dollar_sign_belongs_to_an_equation(notebook, language):
    """marimo takes `$x$` for an equation only without spaces beside the signs."""
    for name, text in sections(notebook, language).items():
        assert "$" not in EQUATION.sub("", CODE.sub("", text)), name


@by_text
def test_no_line_begins_with_a_value_and_a_full_stop(notebook, language):
    """With an integer in its place Markdown would take the line for the item of a list."""
    for name, text in sections(notebook, language).items():
        assert not re.search(r"^\s*\[\[\w+\]\][.)]\s", text, re.MULTILINE), name


@by_text
def test_a_chapter_takes_about_twenty_minutes(notebook, language):
    prose = " ".join(text for name, text in sections(notebook, language).items() if name != WORDS)
    assert FEWEST <= len(EQUATION.sub("x", prose).split()) <= MOST


@by_chapter
def test_a_chapter_has_three_exercises_with_answers(notebook):
    names = sections(notebook, "en")
    for number in range(1, EXERCISES + 1):
        assert f"exercise-{number}" in names and f"answer-{number}" in names


def strings(tree):
    """The strings of a program, without docstrings."""
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in alone]
    return {node.value for node in constants if isinstance(node.value, str)}


@by_chapter
def test_the_notebook_uses_every_section_and_every_word(notebook):
    prose = read_prose(text_of(notebook, "en"))
    used = strings(ast.parse(notebook.read_text("utf-8")))
    assert (prose.sections.keys() - {WORDS}) | prose.words().keys() <= used


@by_chapter
def test_the_notebook_has_no_prose_of_its_own(notebook):
    long = [text for text in strings(ast.parse(notebook.read_text("utf-8"))) if len(text.split()) > 12]
    assert long == [], "what a reader reads is in docs/course/text, in both languages"


@by_chapter
def test_cells_form_no_circle(notebook):
    """Each name is made by one cell, and cells have an order in which every name is there before it is used."""
    cells = [
        node for node in ast.parse(notebook.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef) and any("app.cell" in ast.unparse(d) for d in node.decorator_list)
    ]
    makers = {}
    for number, cell in enumerate(cells):
        returned = cell.body[-1].value if isinstance(cell.body[-1], ast.Return) else None
        for name in ast.walk(returned) if returned is not None else ():
            if isinstance(name, ast.Name):
                assert name.id not in makers, f"{name.id} is made by two cells"
                makers[name.id] = number
    needs = {number: {arg.arg for arg in cell.args.args} for number, cell in enumerate(cells)}
    assert set().union(*needs.values()) <= makers.keys()
    order = {number: {makers[name] for name in names} for number, names in needs.items()}
    graphlib.TopologicalSorter(order).prepare()     # raises CycleError, with the circle
