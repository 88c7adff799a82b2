"""Which XML files of a folder are the annotations of train, val and test in the format of Pascal VOC.

    ImageSets/Main/train.txt, val.txt, test.txt, which list files of Annotations     VOC itself; several years are one
    ImageSets/Main/default.txt                                                       CVAT: all pictures
    annotations/*.xml or annots/*.xml, and images/*.jpg                              no splits
    0001.jpg and 0001.xml together, perhaps in folders train, valid, test            LabelImg, Roboflow
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from scratchvit.data.images import SUFFIXES
from scratchvit.data.inventory import by_name
from scratchvit.detection.data.annotations import AnnotatedPictures
from scratchvit.detection.data.files import DataFolder, in_words
from scratchvit.detection.data.parts import PARTS, is_part
from scratchvit.detection.data.reading import read_lines
from scratchvit.detection.data.voc import VocFiles, read_voc
from scratchvit.errors import ScratchvitError

_HEAD = 4096        # bytes of a file in which its first element begins
_OPENING = re.compile(rb"<annotation[\s/>]")


def voc_by_lists(folder: DataFolder, skip_bad: bool) -> dict[str, AnnotatedPictures] | None:
    """The splits, if there are lists in ImageSets/Main or ImageSets, here or further down; None without one for train.

    Raises ScratchvitError as `read_voc` does.
    """
    lists = {path.parent for path in folder.with_suffix(".txt")}
    homes = [at.parent if at.name == "Main" else at for at in lists]
    places = sorted({at.parent for at in homes if at.name == "ImageSets"}, key=folder.relative)
    years: dict[str, list[VocFiles]] = {part: [] for part in PARTS}
    for at in places:
        for part, listing in _lists(at).items():
            years[part].append(_listed(folder, at, listing))
    if not years["train"]:
        return None
    return _read(folder, years, [*places, folder.root], skip_bad)


def voc_anywhere(folder: DataFolder, skip_bad: bool) -> dict[str, AnnotatedPictures] | None:
    """The splits, if there are VOC's XML files anywhere in the folder; None without one.

    Splits are told apart by the folders of the XML files, or of their pictures. Raises ScratchvitError if there are
    none for train, and as `read_voc` does.
    """
    stems = {path.stem for path in folder.pictures}
    opened = {path: _is_voc(path) for path in folder.with_suffix(".xml")}
    if not any(opened.values()):
        return None
    by_part: defaultdict[str | None, list[Path]] = defaultdict(list)
    for path, good in opened.items():
        if good or path.stem in stems:      # one that is damaged is an error, when it is read
            pictures = folder.picture_of(path, None, folder.root)
            by_part[folder.part(path) or (folder.part(pictures[0]) if len(pictures) == 1 else None)].append(path)
    several = by_part.keys() != {None}
    loose = by_part.pop(None, [])
    if "train" not in by_part and loose:
        by_part["train"], loose = loose, []
    folder.inventory.leave_out("in no folder of train, val or test", loose)
    if "train" not in by_part:
        raise ScratchvitError(
            f"{folder.root}: there are XML files with boxes ({in_words(folder, by_part.popitem()[1])}), but none in a "
            "folder train"
        )
    years: dict[str, list[VocFiles]] = {part: [] for part in PARTS}
    for part, paths in by_part.items():
        assert part is not None
        home = Path(os.path.commonpath([path.parent for path in paths]))
        years[part].append(VocFiles(str(home), [("", path) for path in paths], home, home, part if several else None))
    return _read(folder, years, [folder.root], skip_bad)


def _read(
    folder: DataFolder, years: dict[str, list[VocFiles]], places: Sequence[Path], skip_bad: bool
) -> dict[str, AnnotatedPictures]:
    listing = next((at / "classes.txt" for at in places if (at / "classes.txt").is_file()), None)
    classes: Sequence[str] | None = read_lines(listing) if listing else None
    parts: dict[str, AnnotatedPictures] = {}
    for part in PARTS:
        if years[part]:
            parts[part] = read_voc(folder, years[part], classes=classes, skip_bad=skip_bad)
            classes = parts["train"].classes
    if listing:
        parts["train"].sources += (listing,)
    return parts


def _lists(at: Path) -> dict[str, Path]:
    """{split: the list of its pictures}. Those of single classes, cat_train.txt, are none; an only list is for all."""
    home = at / "ImageSets" / "Main"
    listings = by_name((home if home.is_dir() else home.parent).glob("[!.]*.txt"))
    found = {path.stem: path for path in listings if path.stem in PARTS}
    for path in listings:       # Validation.txt, trainval.txt
        part = is_part(path.stem)
        if part:
            found.setdefault(part, path)
    return found or ({"train": listings[0]} if len(listings) == 1 else {})


def _listed(folder: DataFolder, at: Path, listing: Path) -> VocFiles:
    """The files of a list. Raises ScratchvitError if it is empty, or names a file outside of the data folder."""
    names = read_lines(listing)
    if not names:
        raise ScratchvitError(f"{listing}: this list of pictures is empty")
    entries = []
    for line, name in enumerate(names, start=1):
        path = folder.inside(at / "Annotations", f"{name}.xml")
        if path is None:
            raise ScratchvitError(f"{listing}: entry {line} ({name}) leads out of {folder.root}; remove it")
        if Path(name).suffix.lower() in SUFFIXES and not path.is_file():     # 0001.jpg
            path = path.with_name(f"{Path(name).stem}.xml")
        entries.append((f"{listing}: entry {line}", path))
    return VocFiles(str(listing), entries, at / "Annotations", at / "JPEGImages", sources=[listing])


def _is_voc(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return bool(_OPENING.search(file.read(_HEAD).replace(b"\0", b"")))      # UTF-16 too
    except OSError:
        return False
