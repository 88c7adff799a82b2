"""Folders of data, made and then damaged at random, as Hypothesis draws it.

A folder is {path: bytes}. It begins as a sound one in a layout that people have; then a few of its files are changed:
other bytes, other words and numbers in the text, other names, files that are missing or twice there. Whatever comes
out, reading it must end in a result or in a ScratchvitError, which the command line prints as one sentence.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings

from scratchvit.errors import ScratchvitError

EXAMPLES = int(os.environ.get("SCRATCHVIT_EXAMPLES", "100"))     # nightly: 2000

fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

Folder = dict[str, bytes]

# Words that tools, people and attackers write where a name or a number should be.
WORDS = [
    "", " ", "null", "nan", "inf", "-inf", "1e999", "-1", "0", "1", "2", "0.5", "1e400", "0x10", "1_000", "9" * 20,
    "no", "true", "[]", "{}", "../x", "..\\x", "/etc/passwd", "C:\\x.jpg", "con", ".", "..", "a" * 300, "猫", "🐈",
    "שלום", "caf\u00e9", "cafe\u0301", "$x$", "%s", "\\", "\"", "'", "\n", "\r\n", "\t", "\x00", "\x1b[31m", "\u202e",
    "\ufeff", "&x;", "<![CDATA[", "*a", "&a [*a]", "!!python/object:os.system",
]
words = st.sampled_from(WORDS) | st.text(max_size=8)
_of_names = st.characters(blacklist_categories=("Cs",), blacklist_characters="/\x00")
names = st.text(_of_names, min_size=1, max_size=8).filter(lambda name: name not in (".", ".."))
CHANGES = ("bytes", "cut", "word", "word", "word", "line", "name", "gone", "twice", "encoding")


@st.composite
def damaged(draw: st.DrawFn, sound: Folder) -> Folder:
    """A sound folder after one to four changes."""
    folder = dict(sound)
    for _ in range(draw(st.integers(1, 4))):
        if not folder:
            break
        path = draw(st.sampled_from(sorted(folder)))
        content = folder.pop(path)
        change = draw(st.sampled_from(CHANGES))
        if change == "bytes" and content:
            place = draw(st.integers(0, len(content) - 1))
            content = content[:place] + draw(st.binary(min_size=1, max_size=4)) + content[place + 1 :]
        elif change == "cut":
            content = content[: draw(st.integers(0, len(content)))]
        elif change == "word":
            content = _with_another_word(content, draw)
        elif change == "line":
            lines = content.split(b"\n")
            place = draw(st.integers(0, len(lines)))
            content = b"\n".join([*lines[:place], draw(words).encode("utf-8", "surrogatepass"), *lines[place:]])
        elif change == "name":
            ending = draw(st.sampled_from(("", Path(path).suffix)))
            path = f"{path.rpartition('/')[0]}/{draw(names)}{ending}".lstrip("/")
        elif change == "twice":
            folder[f"{draw(names)}/{path}"] = content
        elif change == "encoding":
            encoding = draw(st.sampled_from(("utf-16", "utf-8-sig", "cp1252")))
            content = content.decode("utf-8", "replace").encode(encoding, "replace")
        if change != "gone":
            folder[path] = content
    return folder


def _with_another_word(content: bytes, draw: st.DrawFn) -> bytes:
    """Another word or number between two delimiters of JSON, XML, YAML, CSV or a list of labels."""
    text = content.decode("utf-8", "replace")
    ends = [-1, *(place for place, character in enumerate(text) if character in " ,:;<>[]{}\"'\n\t"), len(text)]
    place = draw(st.integers(0, len(ends) - 2))
    return f"{text[: ends[place] + 1]}{draw(words)}{text[ends[place + 1] :]}".encode("utf-8", "surrogatepass")


@contextmanager
def written(folder: Folder) -> Iterator[Path]:
    """The folder on the disk, until the end of the block. What a file system does not take is left out."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        for path, content in folder.items():
            try:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(content)
            except (OSError, ValueError):       # too long a name; a file where a folder must be
                continue
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def assert_ends_well(folder: Folder, read: Callable[[Path], object]) -> None:
    """Reading a folder gives a result, or a ScratchvitError in one line."""
    with written(folder) as root:
        try:
            read(root)
        except ScratchvitError as error:
            assert "\n" not in str(error).strip()


def tree(root: Path) -> Folder:
    """The files below a folder, as {path: bytes}."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
