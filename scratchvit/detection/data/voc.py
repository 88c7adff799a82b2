"""The Pascal VOC format (Everingham et al., IJCV 2010): one XML file per picture.

    JPEGImages/2008_000008.jpg
    Annotations/2008_000008.xml       <annotation> <size> <width> <height>; <object> <name> <difficult> <bndbox> …
    ImageSets/Main/train.txt          the names 2008_000008, … of a split, one per line; likewise val.txt and test.txt

A box is <xmin> … <ymax>, the first and the last pixel inside, counted from 1: as edges, x0 = xmin - 1 and x1 = xmax.
Nevertheless a box with xmin = xmax is treated as having no width, since boxes of one pixel are not drawn in practice.
Objects marked difficult are treated like crowds: VOC's own evaluation ignores them too. The format has no list of
classes: they are those that occur in train, or the lines of classes.txt.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from xml.parsers import expat

from scratchvit.data.folder import SUFFIXES
from scratchvit.detection.data.annotations import AnnotatedPictures
from scratchvit.detection.data.reading import AnnotationList, Faults, picture_size, read_lines
from scratchvit.errors import ScratchvitError


def read_voc(
    root: Path, part: str, *, classes: Sequence[str] | None = None, skip_bad: bool = False
) -> AnnotatedPictures:
    """Read the pictures of ImageSets/Main/<part>.txt. Image ids are 1, 2, …; category ids 1 … number of classes.

    classes     class names; by default all that occur in this split, sorted
    skip_bad    leave out bad entries, and pictures that cannot be decoded

    Raises ScratchvitError for a bad entry, and always for a missing or empty list.
    """
    faults = Faults(skip_bad)
    listing = root / "ImageSets" / "Main" / f"{part}.txt"
    trees = _annotations(root, listing, faults)
    if classes is None:
        classes = sorted({_text(one, "name") for tree in trees.values() for one in tree.findall("object")} - {""})
        if not classes:
            raise ScratchvitError(f"{listing}: none of its pictures has a named object, so there is nothing to detect")

    paths, objects = [], []
    for path, tree in trees.items():
        picture = _picture(root, path.stem)
        if picture is None:
            missing = root / "JPEGImages" / f"{path.stem}.jpg"
            faults.bad(f"{path}: there is no picture {missing}", "to leave such pictures out")
            continue
        try:
            size = _size(tree) or picture_size(picture)
        except ScratchvitError as error:
            faults.undecodable(error)
            continue
        found = AnnotationList()
        for place, entry in enumerate(tree.findall("object"), start=1):
            _add(entry, found, classes, size, f"{path}: object {place}", faults)
        paths.append(picture)
        objects.append(found.annotations(len(paths), picture.name, size))
    category_ids = range(1, len(classes) + 1)
    dataset = AnnotatedPictures(str(listing), paths, objects, classes, category_ids, faults.notes, faults.skipped)
    return dataset.without_bad() if skip_bad else dataset


def parse_xml(content: bytes) -> ET.Element:
    """Parse an XML document without a DTD and return its root.

    A DTD can declare entities that read other files or expand to gigabytes. Raises ValueError if there is a DTD, and
    expat.ExpatError for invalid XML.
    """
    builder = ET.TreeBuilder()
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise ValueError("it has a DTD (<!DOCTYPE …>), which is not accepted because its entities can be malicious")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(content, True)
    return builder.close()


def _annotations(root: Path, listing: Path, faults: Faults) -> dict[Path, ET.Element]:
    names = read_lines(listing)
    if not names:
        raise ScratchvitError(f"{listing}: this list of pictures is empty")
    trees: dict[Path, ET.Element] = {}
    for line, name in enumerate(names, start=1):
        path = root / "Annotations" / f"{name}.xml"
        if path in trees:
            faults.bad(f"{listing}: entry {line} ({name}) is a duplicate")
            continue
        try:
            content = path.read_bytes()
            if not content.strip():
                raise ValueError("it is empty")
            trees[path] = parse_xml(content)
        except OSError as error:
            what = f"{listing}: entry {line}: {path} cannot be read ({error.strerror})"
            faults.bad(what, "to leave such pictures out")
        except (ValueError, expat.ExpatError) as error:
            faults.bad(f"{path}: this annotation file cannot be used: {error}", "to leave such pictures out")
    return trees


def _picture(root: Path, name: str) -> Path | None:
    """The picture with the name of the annotation file. (<filename> is ignored: it is often wrong.)"""
    folder = root / "JPEGImages"
    candidates = (folder / f"{name}{suffix}" for lower in sorted(SUFFIXES) for suffix in (lower, lower.upper()))
    return next((path for path in (folder / f"{name}.jpg", *candidates) if path.is_file()), None)


def _size(tree: ET.Element) -> tuple[int, int] | None:
    """The size (H, W) in the annotations, or None if it is missing or 0, as some tools write."""
    try:
        height, width = (int(_text(tree, f"size/{side}")) for side in ("height", "width"))
    except ValueError:
        return None
    return (height, width) if min(height, width) > 0 else None


def _add(
    entry: ET.Element, found: AnnotationList, classes: Sequence[str], size: tuple[int, int], where: str, faults: Faults
) -> None:
    name = _text(entry, "name")
    if name not in classes:
        faults.bad(f"{where}: unknown class {name!r}; known are {', '.join(classes)}")
        return
    where += f" ({name})"
    corners = [_text(entry, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    if not any(corners):
        faults.notes.append(f"{where} has no box; left out")
        return
    where += f": bndbox {', '.join(corners)}"
    try:
        x0, y0, x1, y1 = map(float, corners)
    except ValueError:
        faults.bad(f"{where} is not the four numbers xmin, ymin, xmax, ymax")
        return
    box = faults.box((x0 - (x1 > x0), y0 - (y1 > y0), x1, y1), size, where)     # a box without width stays without
    if box:
        found.add(box, classes.index(name), crowd=_text(entry, "difficult") == "1")


def _text(element: ET.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()
