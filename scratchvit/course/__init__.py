"""The course: what the notebooks in docs/course are made with. `scratchvit course` opens them.

    prose.py        the text of a chapter in one language: sections, computed numbers in them
    source.py       an excerpt of our own source, with its file and lines
    chapter.py      Chapter: a notebook's language, text, code, figures and exercises
    folder.py       where the chapters are
    server.py       the chapters in a browser
    pages.py        chapters as pages that need no Python

What a chapter computes and is too long for its notebook, or is tested by itself:

    shifts.py       8: windows on a photograph, masks, and what is taken away from a trained Swin
    successors.py   9: amplitudes, cosines, position biases and pooled keys
    sets.py         10: boxes, matching, duplicates and average precision
    speed.py        11: times on the reader's machine, softmax in blocks, sums in a warp
"""

from scratchvit.course.chapter import Chapter, Text
