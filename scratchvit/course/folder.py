"""Where the chapters are: docs/course of the repository, which is not part of the installed package."""

from __future__ import annotations

from pathlib import Path

import scratchvit
from scratchvit.course.prose import read_prose
from scratchvit.errors import ScratchvitError

LANGUAGES = {"en": "English", "es": "Español"}

_HERE = Path("docs", "course")


def folder() -> Path:
    """The folder of the chapters: of the repository that the package is in, or of the one that this is run in.

    Raises ScratchvitError if there is none.
    """
    for root in (Path(scratchvit.__file__).resolve().parents[1], Path.cwd()):
        if (root / _HERE / "text").is_dir():
            return root / _HERE
    raise ScratchvitError(
        "the chapters of the course are in docs/course of the repository, which pip does not install: clone the "
        "repository, and run this in its folder"
    )


def chapters() -> list[Path]:
    """The notebooks in their order. Raises ScratchvitError if there is no folder of chapters."""
    return sorted(folder().glob("[0-9][0-9]_*.py"))


def find_chapter(name: str) -> Path:
    """The notebook that a number (3, 03), a name (patches) or both (03_patches) stand for.

    Raises ScratchvitError if there is none.
    """
    for path in chapters():
        number, _, rest = path.stem.partition("_")
        if name in (path.stem, path.name, number, number.lstrip("0"), rest):
            return path
    known = ", ".join(path.stem for path in chapters())
    raise ScratchvitError(f"there is no chapter {name!r}; there are {known}")


def text_of(notebook: Path, language: str) -> Path:
    """The file with the text of a notebook in a language."""
    return notebook.parent / "text" / f"{notebook.stem}.{language}.md"


def title_of(notebook: Path, language: str) -> str:
    """The title of a chapter in a language. Raises ScratchvitError if there is no text."""
    return read_prose(text_of(notebook, language)).title()
