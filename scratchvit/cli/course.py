"""`scratchvit course`: opens the chapters of the course, notebooks that compute with this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scratchvit.cli._options import Parser, add_page
from scratchvit.cli._text import table
from scratchvit.course.folder import LANGUAGES, chapters, find_chapter, title_of
from scratchvit.course.pages import export_pages
from scratchvit.course.server import serve


def course(argv: Sequence[str]) -> int:
    """Open the course or one of its chapters in a browser, until Ctrl-C; or list or export the chapters."""
    parser = Parser(
        prog="scratchvit course", usage="scratchvit course [CHAPTER] [options]",
        description="Open the course in your browser: a page for each idea, from pixels to detection, with controls "
        "that compute with this package on real pictures. Ctrl-C ends it. Nothing is sent or fetched over the "
        "network.\n\n"
        "  scratchvit course\n  scratchvit course 3 --lang es\n  scratchvit course --list\n"
        "  scratchvit course --export pages\n  python -m http.server --bind 127.0.0.1 --directory pages",
    )
    parser.add_argument(
        "chapter", nargs="?", metavar="CHAPTER", help="number or name of a chapter: 3, patches (default: a list of all)"
    )
    parser.add_argument(
        "--lang", choices=tuple(LANGUAGES), default="en", help="language of the text: English or Spanish (default: en)"
    )
    parser.add_argument("--list", action="store_true", help="print the chapters, and open nothing")
    parser.add_argument(
        "--export", type=Path, metavar="FOLDER",
        help="write pages that any web server can serve, in both languages; their controls do not move",
    )
    add_page(parser)
    given = parser.parse_strictly(argv)

    notebooks = chapters()
    chosen = find_chapter(given.chapter) if given.chapter else None
    if given.list:
        print(table([(path.stem, title_of(path, given.lang)) for path in notebooks]))
    elif given.export is not None:
        for path in export_pages([chosen] if chosen else notebooks, given.export):
            print(f"wrote {path}")
    else:
        serve(notebooks, chosen, given.lang, given.port, not given.no_browser)
    return 0
