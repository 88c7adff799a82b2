"""The inventory of a data folder: every file is used in a split, or left out for a reason that is printed.

If a reader silently skipped a third of the pictures, the model would be worse and nobody would know why. A reader
therefore makes an `Inventory` of its folder and tells it which files it uses, and why it leaves out others. All
remaining files are counted by their extension, so that the numbers add up.
"""

from __future__ import annotations

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from scratchvit.data.images import SUFFIXES
from scratchvit.errors import ScratchvitError
from scratchvit.files import noun, printable

HIDDEN = "hidden files and system files"    # .DS_Store, Thumbs.db, __MACOSX/…, .ipynb_checkpoints/…
DEAD_LINK = "broken links"
NO_FILE = "not regular files"       # pipes, sockets, devices: reading one could wait for ever
OF_A_RUN = "written by a run of scratchvit"     # beside the pictures, if that is where it was started
_SYSTEM = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
EXAMPLES = 3    # of the files left out for a reason, so many are named


def by_name(paths: Iterable[Path]) -> list[Path]:
    """Paths sorted by name, in the same order on every system. (Windows' paths compare without case.)"""
    return sorted(paths, key=lambda path: path.name)


class Inventory:
    """The files below a folder, and what became of each.

    root     the folder
    files    everything below it that is not a folder
    folders  the folders below it
    sizes    {file: bytes} of those that can be read

    Links to folders are followed, unless they lead back to a folder that they lie in; a broken link counts as a
    file. Raises ScratchvitError for a folder that cannot be read.
    """

    def __init__(self, root: Path):
        self.root = root
        self.sizes: dict[Path, int] = {}
        self._unreadable: dict[Path, str] = {}
        self._hidden: set[Path] = set()
        self._used: dict[Path, str] = {}
        self._left_out: dict[Path, str] = {}
        self.folders = frozenset(self._walk())
        self.files = frozenset((*self.sizes, *self._unreadable))
        self._runs = {path.parent for path in self.files if path.name == "last.safetensors"}

    def _walk(self) -> list[Path]:
        """Enters every file below the root; returns the folders below it. Each file is looked at once."""
        folders: list[Path] = []
        waiting = [(self.root, False, {os.path.realpath(self.root)})]
        while waiting:
            # above: the real paths of the folder and of those that contain it
            folder, is_hidden, above = waiting.pop()
            for entry in _entries(folder):
                path = folder / entry.name
                hidden = is_hidden or entry.name.startswith(".") or entry.name.lower() in _SYSTEM
                try:
                    status = entry.stat()
                except OSError:
                    status = None
                if status and stat.S_ISDIR(status.st_mode):
                    real = os.path.realpath(path)
                    if real in above:       # a link back to a folder that it lies in adds nothing
                        continue
                    folders.append(path)
                    waiting.append((path, hidden, above | {real}))
                elif status and stat.S_ISREG(status.st_mode):
                    self.sizes[path] = status.st_size
                else:
                    self._unreadable[path] = NO_FILE if status else DEAD_LINK
                if hidden:
                    self._hidden.add(path)
        return folders

    def use(self, part: str, paths: Iterable[Path]) -> None:
        """These files are of a split, "train", "val" or "test", or "annotations". A file may serve two of them."""
        for path in paths:
            self._used[path] = part

    def leave_out(self, reason: str, paths: Iterable[Path]) -> None:
        """These files are not used. reason: words for the table, such as "broken links"."""
        for path in paths:
            self._left_out[path] = reason

    def is_used(self, path: Path) -> bool:
        """Whether `use` was told of a file."""
        return path in self._used

    def used(self) -> dict[str, int]:
        """{split: number of its files}."""
        return dict(Counter(part for path, part in self._used.items() if path in self.files))

    def left_out(self) -> dict[str, list[Path]]:
        """{reason: the files}, sorted by name. A file that is used is not left out, whatever was said of it."""
        reasons: defaultdict[str, list[Path]] = defaultdict(list)
        for path in sorted(self.files - self._used.keys()):
            reasons[self._left_out.get(path) or self._reason(path)].append(path)
        return dict(reasons)

    def pictures(self) -> list[Path]:
        """The picture files that can be opened, not hidden or of a run, sorted by their folders, then by name."""
        found = [path for path in self.sizes if path.suffix.lower() in SUFFIXES]
        shown = [path for path in found if not (self.hidden(path) or self._of_a_run(path))]
        return sorted(shown, key=lambda path: path.parts)

    def hidden(self, path: Path) -> bool:
        """Whether one of `files` or `folders`, or a folder that it lies in, is hidden or made by the system."""
        return path in self._hidden

    def _of_a_run(self, path: Path) -> bool:
        return bool(self._runs) and not self._runs.isdisjoint(path.parents)

    def _reason(self, path: Path) -> str:
        if self.hidden(path):
            return HIDDEN
        if self._of_a_run(path):
            return OF_A_RUN
        kind = printable(path.suffix.lower()) or "files without an extension"
        return self._unreadable.get(path) or f"not read: {kind}"

    def lines(self) -> list[str]:
        """The table: files seen, used in each split, and left out, with examples. Its numbers add up."""
        used, left_out = self.used(), self.left_out()
        rows = [(len(self.files), f"{noun(len(self.files), 'file')} in {printable(self.root)}")]
        rows += [(count, f"used: {part}") for part, count in used.items()]
        for reason, paths in left_out.items():
            names = ", ".join(printable(path.relative_to(self.root)) for path in paths[:EXAMPLES])
            more = ", …" if len(paths) > EXAMPLES else ""
            rows.append((len(paths), f"left out: {reason} ({names}{more})"))
        width = len(f"{len(self.files):,}")
        return [f"{count:>{width},}  {text}" for count, text in rows]

    def endings(self, folder: Path) -> str:
        """What the files below a folder are, in words: "12 .jpg, 3 .txt"; hidden files do not count."""
        visible = (path for path in self.files if path.is_relative_to(folder) and not self.hidden(path))
        counts = Counter(path.suffix.lower() or "without an extension" for path in visible)
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{count:,} {printable(ending)}" for ending, count in ordered) or "no files"


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder. Raises ScratchvitError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise ScratchvitError(f"{printable(folder)}: the folder cannot be read ({error.strerror})") from error
