"""The course: what the notebooks in docs/course are made with. `scratchvit course` opens them.

    prose.py        the text of a chapter in one language: sections, computed numbers in them
    source.py       an excerpt of our own source, with its file and lines
    chapter.py      Chapter: a notebook's language, text, code, figures and exercises
    folder.py       where the chapters are
    server.py       the chapters in a browser
    pages.py        chapters as pages that need no Python
"""

from scratchvit.course.chapter import Chapter, Text
