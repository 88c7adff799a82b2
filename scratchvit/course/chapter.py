"""What a notebook of the course is written with: its language, its text, our source, figures and exercises.

    chapter = Chapter(__file__)
    language = chapter.language()                   # a control: English or Español
    text = chapter.in_language(language.value)
    text("memory", entries=196**2)                  # the section `memory`, with [[entries]] filled in
    text.code(ops.attention, "scores =", "return")  # lines of our source, with their file and numbers
    text.figure(figure, "figure-memory")            # a figure of Matplotlib's, with description and caption
    text.exercise("exercise-1", control, right, "answer-1")
"""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

from scratchvit.course.folder import LANGUAGES, text_of
from scratchvit.course.prose import Prose, read_prose
from scratchvit.course.source import excerpt
from scratchvit.errors import ScratchvitError, WrongValue, missing

_WORDS = {
    "en": {
        "right": "✓ Right.", "wrong": "✗ Not yet. Try again.",
        "open": "Not answered yet.", "enter": "(A number counts after Enter.)",
        "answer": "Answer", "line": "line", "lines": "lines", "language": "Language",
        "contents": "Contents",
    },
    "es": {
        "right": "✓ Correcto.", "wrong": "✗ Todavía no. Inténtalo otra vez.",
        "open": "Sin responder todavía.", "enter": "(Un número cuenta después de Intro.)",
        "answer": "Respuesta", "line": "línea", "lines": "líneas", "language": "Idioma",
        "contents": "Índice",
    },
}
_SHARPNESS = 2              # pixels of a picture for one of the page
_SMALLEST = 0.6             # on a narrow screen figures shrink to this share of their width, and scroll


class Chapter:
    """A chapter: a notebook and its texts.

    Raises ScratchvitError if marimo is missing.
    """

    def __init__(self, notebook: str | Path):
        self.notebook = Path(notebook).resolve()
        self._marimo = marimo()

    def language(self) -> Any:
        """The control with which a reader chooses the language.

        At first it is that of the page's address (`?lang=es`) or of the command line (`python 02_pixels.py --lang es`).
        """
        first = self._given("lang") or "en"
        if first not in LANGUAGES:
            raise ScratchvitError(f"lang: there is no text in {first!r}; there is {', '.join(LANGUAGES)}")
        label, contents = (" / ".join(words[name] for words in _WORDS.values()) for name in ("language", "contents"))
        if self._marimo.app_meta().request is not None:     # on a page of the server, which has the list one level up
            label = f"[{contents}](../) · {label}"
        return self._marimo.ui.radio(
            {name: code for code, name in LANGUAGES.items()}, value=LANGUAGES[first], inline=True, label=label
        )

    def in_language(self, language: str) -> Text:
        """The text in a language, "en" or "es". Raises ScratchvitError if there is none, or if it is damaged."""
        return Text(read_prose(text_of(self.notebook, language)), language)

    def _given(self, name: str) -> str | None:
        if self._marimo.app_meta().mode in (None, "test"):      # without a page and without a command line
            return None
        for source in (self._marimo.query_params, self._marimo.cli_args):
            value = source().get(name)
            if value:
                return str(value)
        return None


class Text:
    """The text of a chapter in one language. Called with the name of a section, it shows the section."""

    def __init__(self, prose: Prose, language: str):
        self.prose, self.language = prose, language
        self._words = prose.words()

    def __call__(self, section: str, **values: Any) -> Any:
        """A section, with a value for each [[name]] in it. Raises ScratchvitError if a value is missing or unused."""
        return marimo().md(self.prose.section(section, **values))

    def word(self, name: str) -> str:
        """A label of the section `words`. Raises ScratchvitError if there is none of this name."""
        if name not in self._words:
            raise WrongValue(f"{self.prose.path.name}: there is no {name!r} in the section [words]")
        return self._words[name]

    def code(self, thing: Any, begin: str | None = None, end: str | None = None) -> Any:
        """The source of one of our functions or classes, or a part of it (`excerpt`), with its file and lines.

        Raises ScratchvitError if a line that begins or ends the part is not found.
        """
        found = excerpt(thing, begin, end)
        lines = f"{self._own('line')} {found.first}" if found.first == found.last else (
            f"{self._own('lines')} {found.first}–{found.last}"
        )
        shown = marimo().md(f"`{found.path}`, {lines}\n\n```python\n{found.code}\n```")
        return marimo().Html(f'<div class="course-code">{shown.text}</div>')

    def output(self, words: str) -> Any:
        """What a program said, as it said it; long lines are wrapped."""
        return marimo().Html(f'<pre class="course-output">{html.escape(words)}</pre>')

    def figure(self, figure: Any, section: str, **values: Any) -> Any:
        """A figure of Matplotlib's with the description and the caption of its section.

        figure: at most 7 inches wide, with text of 10 points or more, so that it can be read on a phone.
        """
        described, caption = self.prose.figure(section, **values)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=96 * _SHARPNESS)
        source = base64.b64encode(png.getvalue()).decode("ascii")
        width = figure.get_size_inches()[0] * 96
        return marimo().Html(
            f'<figure class="course-figure"><img alt="{html.escape(described)}" '
            f'style="width: {width:.0f}px; max-width: max(100%, {_SMALLEST * width:.0f}px); height: auto" '
            f'src="data:image/png;base64,{source}">'
            f"<figcaption>{marimo().md(caption).text if caption else ''}</figcaption></figure>"
        )

    def exercise(self, section: str, control: Any, right: bool | None, answer: str, **values: Any) -> Any:
        """An exercise: the task, the reader's control, what the check found, and the answer, folded away.

        right: whether what the control holds is right; None as long as the reader has not answered.
        values: those of the task and of the answer; each gets what it names.
        """
        kind = {True: "success", False: "warn", None: "neutral"}[None if right is None else bool(right)]
        verdict = {"success": "right", "warn": "wrong", "neutral": "open"}[kind]
        said = self._own(verdict)
        if right is None and isinstance(control, marimo().ui.number):
            said += " " + self._own("enter")
        task, solution = (self._with_own(name, values) for name in (section, answer))
        if unused := values.keys() - self._names(section) - self._names(answer):
            raise WrongValue(f"{self.prose.path.name}: [{section}] and [{answer}] do not use {', '.join(unused)}")
        return marimo().vstack([
            task, control, marimo().callout(marimo().md(said), kind=kind),
            marimo().Html(
                f'<details class="course-answer"><summary>{self._own("answer")}</summary>{solution.text}</details>'
            ),
        ])

    def _names(self, section: str) -> set[str]:
        return self.prose.names(section)

    def _with_own(self, section: str, values: dict[str, Any]) -> Any:
        return self(section, **{name: values[name] for name in self._names(section) & values.keys()})

    def _own(self, name: str) -> str:
        return _WORDS[self.language][name]


def marimo() -> Any:
    """The package marimo. Raises ScratchvitError with the pip line if it is missing."""
    try:
        import marimo
    except ImportError as error:
        raise missing("the chapters of the course are notebooks of marimo", "marimo") from error
    return marimo
