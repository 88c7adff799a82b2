"""What lies in a folder of data: every file is used in a split, or left out for a reason that is printed.

A data set that silently passes over a third of its pictures trains a worse model, and nobody learns why. A reader
therefore makes an `Inventory` of its folder, tells it which files it uses, and why it leaves out others. What nobody
spoke of is counted as well, by its ending, so that the sums add up.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from scratchvit.files import printable

HIDDEN = "hidden, or made by the system"    # .DS_Store, Thumbs.db, __MACOSX/…, .ipynb_checkpoints/…
_SYSTEM = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
EXAMPLES = 3    # of the files left out for a reason, so many are named


class Inventory:
    """The files below a folder, and what became of each.

    root: the folder. Links to folders are followed, each folder once; a link that leads nowhere counts as a file.
    """

    def __init__(self, root: Path):
        self.root = root
        self.files = frozenset(_walk(root))
        self._used: dict[Path, str] = {}
        self._left_out: dict[Path, str] = {}

    def use(self, part: str, paths: Iterable[Path]) -> None:
        """These files belong to a part: "train", "val", "test", or "annotations". A file may serve two of them."""
        for path in paths:
            self._used[path] = part

    def leave_out(self, reason: str, paths: Iterable[Path]) -> None:
        """These files are not used. reason: words for the table, such as "links that lead nowhere"."""
        for path in paths:
            self._left_out[path] = reason

    def used(self) -> dict[str, int]:
        """{part: number of its files}."""
        return dict(Counter(part for path, part in self._used.items() if path in self.files))

    def left_out(self) -> dict[str, list[Path]]:
        """{reason: the files}, sorted by name. A file that is used is not left out, whatever was said of it."""
        reasons: defaultdict[str, list[Path]] = defaultdict(list)
        for path in sorted(self.files - self._used.keys()):
            reasons[self._left_out.get(path) or self._reason(path)].append(path)
        return dict(reasons)

    def hidden(self, path: Path) -> bool:
        """Is this file of the folder hidden, or made by the system?"""
        parts = path.relative_to(self.root).parts
        return any(part.startswith(".") or part.lower() in _SYSTEM for part in parts)

    def _reason(self, path: Path) -> str:
        if self.hidden(path):
            return HIDDEN
        return f"not read: {printable(path.suffix.lower() or 'files without an ending')}"

    def lines(self) -> list[str]:
        """The table: files seen, used in each part, and left out, with examples. Its numbers add up."""
        used, left_out = self.used(), self.left_out()
        rows = [(len(self.files), f"files in {printable(self.root)}")]
        rows += [(count, f"used: {part}") for part, count in used.items()]
        for reason, paths in left_out.items():
            names = ", ".join(printable(path.relative_to(self.root)) for path in paths[:EXAMPLES])
            more = ", …" if len(paths) > EXAMPLES else ""
            rows.append((len(paths), f"left out: {reason} ({names}{more})"))
        width = len(f"{len(self.files):,}")
        return [f"{count:>{width},}  {text}" for count, text in rows]


def _walk(root: Path) -> Iterable[Path]:
    """All files below root. A folder that is reached a second time, by links in a circle, is not entered again."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(folder, name) for name in names)
