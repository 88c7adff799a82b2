"""Chapters as static pages: what a reader sees at first, with marimo's scripts beside it, so that nothing is fetched.

`marimo export html` writes pages that load scripts from a CDN. Here they load them from the folder `marimo` next to the
pages, a copy of what is in the installed package. A browser loads modules only from a server, so the pages are
served: `python -m http.server --directory FOLDER`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from scratchvit.course.chapter import marimo
from scratchvit.course.folder import LANGUAGES
from scratchvit.course.server import list_page
from scratchvit.errors import ScratchvitError
from scratchvit.files import write_atomically

ASSETS = "marimo"           # folder of the scripts, next to the pages

_SAID = {
    "en": ("Contents", "A snapshot: its controls do nothing. <code>scratchvit course</code> opens live pages."),
    "es": ("Índice", "Copia fija: sus controles no hacen nada. <code>scratchvit course</code> abre las páginas vivas."),
}
# marimo's page covers the window; here it covers what the bar leaves.
_STYLE = """<style>
body { display: flex; flex-direction: column; height: 100vh } #root { position: relative; flex: 1 }
nav { font: 0.9rem/1.5 system-ui, sans-serif; padding: 0.4rem 1rem; background: #eef3fb; color: #222 }
nav a { color: #2a5db0; text-decoration: underline }
</style>"""
_CDN = re.compile(r"https://cdn\.jsdelivr\.net/npm/@marimo-team/frontend@[^/\"']+/dist")


def export_pages(notebooks: Sequence[Path], into: Path) -> Iterator[Path]:
    """Write a page for each notebook and language, and an index; yields the path of each page when it is written.

    Raises ScratchvitError if a notebook does not run to its end, or if a page would fetch something from a CDN.
    """
    static = Path(marimo().__file__).parent / "_static"
    shutil.copytree(static, into / ASSETS, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.map", "CLAUDE.md"))
    for notebook in notebooks:
        for language in LANGUAGES:
            page = into / f"{notebook.stem}.{language}.html"
            write_atomically(page, _page(notebook, language).encode())
            yield page
    index = into / "index.html"
    write_atomically(index, list_page(notebooks, "{stem}.{language}.html").encode())
    yield index


def _page(notebook: Path, language: str) -> str:
    command = [
        sys.executable, "-m", "marimo", "export", "html", str(notebook), "--no-include-code", "--no-sandbox",
        "--", "--lang", language,
    ]
    with tempfile.TemporaryDirectory() as aside:
        # marimo saves what the cells showed next to the notebook, unless Python keeps what it compiles elsewhere.
        environment = os.environ | {"PYTHONPYCACHEPREFIX": aside}
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)
    if done.returncode:
        raise ScratchvitError(f"{notebook.name} did not run to its end: {done.stderr.strip()[-2000:]}")
    page = _CDN.sub(f"./{ASSETS}", done.stdout)
    if "cdn.jsdelivr.net" in page:
        raise ScratchvitError(f"{notebook.name}: this version of marimo loads its scripts in a way that is not known")
    page = page.replace('<html lang="en"', f'<html lang="{language}"')
    return re.sub(r"<body[^>]*>", lambda body: body[0] + _bar(notebook, language), page, count=1)


def _bar(notebook: Path, language: str) -> str:
    """What stands above the page: links to the list and to the other language, and that nothing moves."""
    contents, said = _SAID[language]
    others = "".join(
        f' · <a href="{notebook.stem}.{other}.html" lang="{other}" hreflang="{other}">{name}</a>'
        for other, name in LANGUAGES.items() if other != language
    )
    return f'{_STYLE}<nav><a href="index.html">{contents}</a>{others} · {said}</nav>'
