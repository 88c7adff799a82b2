"""The pages in Markdown: links lead somewhere, files that they name exist, commands have the options that they use.

So does the Python of CONTRIBUTING.md run; that of the README is tested in test_readme.py.
"""

import contextlib
import functools
import io
import itertools
import re
import shlex
from pathlib import Path

import pytest

import scratchvit
from scratchvit.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
# Of these every command is to be repeated today; what test_matrix.py writes also names tests that were renamed since.
GUIDES = [page for page in PAGES if page.parent != ROOT / "docs" / "testing"]
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
by_guide = pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.relative_to(ROOT).as_posix())

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILES = re.compile(r"(?<![\w/.-])(?:tests|scripts|scratchvit)/[\w/.-]*\w")
# After environment variables, and after a launcher with its options.
COMMAND = re.compile(
    r"(?:^|  |\$ )(?:[A-Z_]+=\S+ )*(?:(?:mpiexec|mpirun|srun) (?:\S+ )*?)?((?:scratchvit|pytest|python scripts/)\b.*)"
)
TO_FILL_IN = ("NAME", "FAMILY", "FILE")


def code_of(page):
    """Every line of code of a page: blocks (lines that end with a backslash joined) and `spans` between them."""
    text = page.read_text("utf-8")
    for language, block in BLOCK.findall(text):
        if language != "python":
            yield from block.replace("\\\n", " ").splitlines()
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", BLOCK.sub("", text)))


def commands_of(page):
    """The words of every command of a page, also of one that stands after a prompt or an &&."""
    for line in code_of(page):
        for command in re.split(r" && |  +#", line):
            if found := COMMAND.search(command):
                yield shlex.split(found.group(1), comments=True)


def commands(name):
    """(page, words after the name) of every command of that name on a page that guides."""
    found = [(page, words) for page in GUIDES for words in commands_of(page) if words[0] == name]
    return [pytest.param(page, words[1:], id=f"{page.stem}: {' '.join(words)}"[:110]) for page, words in found]


def heading_anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def exists(path):
    return (ROOT / path).exists()


def is_made_up(path):
    """tests/test_NAME.py"""
    return any(word in path for word in TO_FILL_IN)


@by_page
def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text("utf-8")):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: there is no {target}"
        assert not anchor or anchor in heading_anchors(target), f"{link}: no such heading"


@by_guide
def test_files_that_are_named_exist(page):
    named = FILES.findall(LINK.sub("]", page.read_text("utf-8")))
    assert [path for path in named if not (exists(path) or is_made_up(path))] == []


@functools.cache
def help_of(*words):
    """What `scratchvit …` prints with --help."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*words, "--help"]) == 0, f"scratchvit {' '.join(words)} --help fails"
    return printed.getvalue()


def options_in(text):
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))


@pytest.mark.parametrize(("page", "words"), commands("scratchvit"))
def test_scratchvit_has_the_command_and_its_options(page, words):
    if not words:
        return
    decides = []            # what decides which options there are: the model and the recipe
    for option, value in itertools.pairwise(words):
        if option in ("--model", "--recipe") and not is_made_up(value):
            decides += [option, value]
    known = options_in(help_of(words[0], *decides)) | {"--help"}
    assert options_in(" ".join(words)) <= known


def test_an_option_of_the_readme_that_stands_alone_is_one_of_a_training_command():
    alone = {span.split()[0] for span in code_of(ROOT / "README.md") if re.match(r"--[a-z]", span)}
    assert alone and alone <= options_in(help_of("train")) | options_in(help_of("detect-train"))


@pytest.mark.parametrize(("page", "words"), commands("python"))
def test_a_script_has_the_options(page, words):
    script = ROOT / words[0]
    assert script.is_file()
    source = "".join(path.read_text("utf-8") for path in (script, *script.parent.glob("*.py")))
    assert options_in(" ".join(words)) - set(re.findall(r"\"(--[\w-]+)\"", source)) == set()


@pytest.mark.parametrize(("page", "words"), commands("pytest"))
def test_pytest_is_given_files_that_exist(page, words):
    files = [word for word in words if "/" in word]
    assert [file for file in files if not (exists(file) or is_made_up(file))] == []
    markers = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "-m"]
    assert set(re.findall(r"\w+", " ".join(markers))) <= {"slow", "parity", "not", "and", "or"}


def test_the_search_finds_the_commands():
    found = [" ".join(words) for page in GUIDES for words in commands_of(page)]
    assert "scratchvit train" in found and "pytest -m parity" in found
    assert any(command.startswith("python scripts/bench.py --model mvit_v1_b") for command in found)
    assert "scratchvit train --epochs 1 --timeline" in found and "python scripts/bench_scaling.py --rounds 6" in found
    assert any("--teacher runs/photos-resnet18-1 --distill hard" in command for command in found)


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE).group(1) == scratchvit.__version__


def test_the_python_of_contributing_runs():
    blocks = BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert "python" in dict(blocks)
    for language, block in blocks:
        if language == "python":
            exec(block, {})     # noqa: S102
