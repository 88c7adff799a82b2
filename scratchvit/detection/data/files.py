"""The files of a data folder, and how the picture that an annotation names is found among them.

Annotations are written on one computer and read on another. They name pictures as images\\0001.jpg, ../upload/0001.jpg
or C:/Users/ann/0001.jpg, so a picture that is not at its path is searched for by the end of the path, and then by its
file name alone. Nothing outside of the data folder is found in this way: an annotation file from somebody else must not
decide which files are read. Links in the data folder were put there by its owner, and are followed.
"""

from __future__ import annotations

import os
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from scratchvit.data.images import SUFFIXES
from scratchvit.data.inventory import Inventory
from scratchvit.detection.data.parts import part_of, part_of_file
from scratchvit.files import counted, listed, printable

IMAGES = frozenset({"images", "image", "imgs", "img", "jpegimages"})     # folders of pictures, in any case
_PLAIN = re.compile(r"[\w-][\w .-]*")    # a name, which is neither absolute nor leads upwards
_NAMED = 4      # folders that a summary names


class DataFolder:
    """The files below a folder of data.

    files       all that can be opened and are not hidden, sorted by their folders, then by name
    pictures    those of them that are pictures
    inventory   what becomes of each file
    """

    def __init__(self, root: Path):
        self.root = root
        self.inventory = Inventory(root)
        self.files = _visible(self.inventory)
        self._by_suffix: defaultdict[str, list[Path]] = defaultdict(list)
        self._by_folder: defaultdict[Path, dict[str, Path]] = defaultdict(dict)
        for path in self.files:
            self._by_suffix[path.suffix.lower()].append(path)
            self._by_folder[path.parent][path.name] = path
        self.pictures = self.with_suffix(*SUFFIXES)
        self.inventory.leave_out("pictures that no annotation is about", self.pictures)     # unless more is known later
        self._part_of_folder: dict[Path, str | None] = {}
        self._by_place: dict[str, Path] = {}
        self._by_name: defaultdict[str, list[Path]] = defaultdict(list)
        self._by_stem: defaultdict[str, list[Path]] = defaultdict(list)
        for path in self.pictures:
            self._by_name[_folded(path.name)].append(path)
            self._by_stem[_folded(path.stem)].append(path)

    def relative(self, path: Path) -> str:
        """The path from the root, with slashes."""
        return path.relative_to(self.root).as_posix()

    def part(self, path: Path) -> str | None:
        """The split that the folders of a file name; see `part_of_file`."""
        folder = path.parent
        if folder not in self._part_of_folder:
            self._part_of_folder[folder] = part_of_file(path.relative_to(self.root))
        return self._part_of_folder[folder]

    def part_by_name(self, path: Path) -> str | None:
        """The split that the name of an annotation file says, or else its folders."""
        return part_of(path.stem) or self.part(path)

    def listed(self, path: Path) -> Path:
        """The path under which a file is in the inventory: one that is reached by a link to a folder has two."""
        if path in self.inventory.files:
            return path
        if not self._by_place:
            self._by_place = {os.path.realpath(one): one for one in self.files}
        return self._by_place.get(os.path.realpath(path), path)

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """The files with one of these suffixes, in the order of `files`. suffixes: in lower case, with the dot."""
        found = [self._by_suffix[suffix] for suffix in suffixes if suffix in self._by_suffix]
        return [*found[0]] if len(found) == 1 else in_order(path for paths in found for path in paths)

    def below(self, folder: Path) -> list[Path]:
        """The files of a folder of the data folder and of its subfolders, in the order of `files`."""
        steps = folder.parts

        def start(path: Path) -> tuple[str, ...]:
            return path.parts[: len(steps)]

        found = self.files[bisect_left(self.files, steps, key=start) : bisect_right(self.files, steps, key=start)]
        if not found and folder.is_dir():       # a link to a folder that was listed under its other name
            found = _visible(Inventory(folder))
        return found

    def file_in(self, folder: Path, name: str) -> Path | None:
        """The file with this name in a folder; None if there is none."""
        known = self._by_folder.get(folder, {}).get(name)
        if known:
            return known
        path = folder / name        # a system may compare names without case
        return path if path.is_file() else None

    def inside(self, base: Path, written: str) -> Path | None:
        """base / written, or None if that leaves the data folder. Nothing is looked up. base: in the data folder."""
        if "\0" in written:
            return None
        if _PLAIN.fullmatch(written):       # most are, and this is faster
            return base / written
        root = Path(os.path.abspath(self.root))         # noqa: PTH100 (Path.resolve would follow links)
        path = Path(os.path.abspath(base / written))    # noqa: PTH100
        return self.root / path.relative_to(root) if path.is_relative_to(root) else None

    def at(self, base: Path, written: str) -> Path | None:
        """What lies at base / written, a file or a folder of the data folder; None if nothing does."""
        path = self.inside(base, written)
        try:
            return path if path and path.exists() else None
        except OSError:     # a name that is too long
            return None

    def by_end(self, base: Path, written: str) -> Path | None:
        """What lies below base at the longest end of a path that is written for another computer; None if nothing does.

        The name of the file alone is not enough: see `find`.
        """
        return next((path for end in ends_of(written)[:-1] if (path := self.at(base, end))), None)

    def find(self, written: str, folders: Sequence[Path], part: str | None) -> list[Path]:
        """The picture with this name in an annotation file: none, one, or several that it could be.

        written     a path, perhaps that of another computer
        folders     where such pictures should be; the first of them that has it
        part        whose annotations they are: a picture that is found by the name of its file alone is not one in the
                    folder of another split
        """
        steps = _steps(written)
        exact = (self.at(folder, written) for folder in folders)
        by_end = (self.by_end(folder, written) for folder in (*folders, self.root))
        names = dict.fromkeys((steps[-1], unquote(steps[-1]))) if steps else ()      # a%20b.jpg of a web page
        by_name = (self.at(folder, name) for name in names for folder in folders)
        for path in (path for paths in (exact, by_end, by_name) for path in paths):
            if path and path.is_file():
                return [path]
        return distinct(self._of_part([path for name in names for path in self._by_name.get(_folded(name), [])], part))

    def picture_in(self, folder: Path, stem: str) -> Path | None:
        """The picture with this name, which has no suffix, in a folder; None if there is none."""
        found = [path for path in self._by_stem.get(_folded(stem), []) if path.parent == folder and path.stem == stem]
        return _preferred(found) if found else None

    def picture_of(self, annotation: Path, part: str | None, within: Path, written: str = "") -> list[Path]:
        """The picture that an annotation file belongs to, by its name: none, one, or several that it could be.

        within      the folder of the data folder where pictures may be
        written     the name of the picture in the annotation file, which decides between several; then a folder that is
                    called images does: masks have the names of their pictures
        """
        named = self._by_stem.get(_folded(annotation.stem), [])
        found = self._of_part([path for path in named if path.is_relative_to(within)], part)
        beside = [path for path in named if path.parent == annotation.parent]
        found = distinct(beside or self._nearest(found, annotation))
        if len({path.with_suffix("") for path in found}) == 1:
            return [_preferred(found)]
        steps = _steps(written)
        found = [path for path in found if steps and path.name == steps[-1]] or found
        return [path for path in found if IMAGES.intersection(self.relative(path).lower().split("/"))] or found

    def _nearest(self, paths: list[Path], other: Path) -> list[Path]:
        """Those of the paths that have the most folder names in common with another one."""
        if len(paths) < 2:
            return paths
        names = {*other.relative_to(self.root).parts[:-1]}
        shared = [len(names.intersection(path.relative_to(self.root).parts[:-1])) for path in paths]
        return [path for path, count in zip(paths, shared) if count == max(shared)]

    def _of_part(self, paths: list[Path], part: str | None) -> list[Path]:
        parts = [self.part(path) for path in paths]
        same = [path for path, own in zip(paths, parts) if own == part]
        return same or [path for path, own in zip(paths, parts) if own is None or part is None]

    def summary(self) -> str:
        """What lies here, in words: "12 pictures in images; 3 .txt in labels; 1 .json"."""
        kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for path in self.files:
            kind = "picture" if is_picture(path) else path.suffix.lower()
            kinds[kind][self.relative(path.parent)] += 1
        ordered = sorted(kinds.items(), key=lambda kind: (kind[0] != "picture", -kind[1].total(), kind[0]))
        return "; ".join(f"{_number(places.total(), kind)}{_in(places)}" for kind, places in ordered)


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Paths sorted by their folders, then by name."""
    return sorted(paths, key=lambda path: path.parts)       # Windows' paths themselves compare without case


def _visible(inventory: Inventory) -> list[Path]:
    """The files that can be opened and are not hidden."""
    return in_order(path for path in inventory.sizes if not inventory.hidden(path))


def distinct(paths: Sequence[Path]) -> list[Path]:
    """The paths without those that lead to the same file as one before them, by links."""
    if len(paths) < 2:
        return [*paths]
    first: dict[str, Path] = {}
    for path in paths:
        first.setdefault(os.path.realpath(path), path)
    return [*first.values()]


def _preferred(paths: Iterable[Path]) -> Path:
    """Of pictures that differ only in their suffixes: the .jpg, or else the first by suffix."""
    return min(paths, key=lambda path: (path.suffix != ".jpg", path.suffix.lower(), path.suffix.swapcase()))


def is_picture(path: Path) -> bool:
    """Whether a file has the suffix of a picture, in any case."""
    return path.suffix.lower() in SUFFIXES


def in_words(folder: DataFolder, paths: Iterable[Path]) -> str:
    """The names of at most three files, from the root."""
    return listed(map(folder.relative, paths))


def _number(count: int, kind: str) -> str:
    """A number of files of a kind: "picture", a suffix, or "" for those without one."""
    if kind.startswith("."):
        return f"{count:,} {printable(kind)}"
    return counted(count, "picture") if kind else f"{counted(count, 'file')} without an extension"


def _in(places: Counter[str]) -> str:
    names = sorted(place for place in places if place != ".")
    if not names:
        return ""
    more = f" and {counted(len(names) - _NAMED, 'more folder')}" if len(names) > _NAMED else ""
    return f" in {', '.join(map(printable, names[:_NAMED]))}{more}"


def ends_of(written: str) -> list[str]:
    """A path of any system without its drive and steps upwards, and then without ever more of its folders."""
    steps = _steps(written)
    return ["/".join(steps[start:]) for start in range(len(steps))]


def _steps(written: str) -> list[str]:
    """The folders and the name of a path of any system, without its drive and without steps upwards."""
    steps = PurePosixPath(written.replace("\\", "/").replace("\0", "")).parts
    return [step for step in steps if step not in ("/", "//", ".", "..") and not step.endswith(":")]


def _folded(name: str) -> str:
    """For comparison: without regard to case, and to how a system writes its accents."""
    return unicodedata.normalize("NFC", name).casefold()
