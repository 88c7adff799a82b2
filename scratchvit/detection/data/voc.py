"""The Pascal VOC format (Everingham et al., IJCV 2010): one XML file per picture.

    JPEGImages/2008_000008.jpg
    Annotations/2008_000008.xml       <annotation> <size> <width> <height>; <object> <name> <difficult> <bndbox> …
    ImageSets/Main/train.txt          the names 2008_000008, … of a split, one per line; likewise val.txt and test.txt

A box is <xmin> … <ymax>, the first and the last pixel inside, counted from 1: as edges, x0 = xmin - 1 and x1 = xmax.
Nevertheless a box with xmin = xmax is treated as having no width, since boxes of one pixel are not drawn in practice.
Objects marked difficult are treated like crowds: VOC's own evaluation ignores them too. The format has no list of
classes: they are those that occur in train, or the lines of classes.txt. An object with a <polygon> and no box has the
box around it. `voc_files` finds the files of each split.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from scratchvit.detection.data.annotations import AnnotatedPictures
from scratchvit.detection.data.files import DataFolder, in_words
from scratchvit.detection.data.outlines import around
from scratchvit.detection.data.reading import AnnotationList, Faults, picture_size
from scratchvit.errors import ScratchvitError


@dataclass(frozen=True)
class VocFiles:
    """The annotation files of a split, or of a split in one of several years.

    name        what lists them, or the folder that they are in
    entries     (where it is listed, or "", the file), in order; a file that is listed may not be there
    home        the folder that they are in, or its subfolders
    pictures    the folder that has the pictures, in subfolders of the same names
    part        "train", "val" or "test" if the names of folders tell splits apart
    sources     further files that were read, such as the list
    """

    name: str
    entries: Sequence[tuple[str, Path]]
    home: Path
    pictures: Path
    part: str | None = None
    sources: Sequence[Path] = ()


def read_voc(
    folder: DataFolder, years: Sequence[VocFiles], *, classes: Sequence[str] | None = None, skip_bad: bool = False
) -> AnnotatedPictures:
    """Read the pictures of a split, year after year. Image ids are 1, 2, …; category ids 1 … number of classes.

    classes     class names; by default all that occur here, sorted
    skip_bad    leave out bad entries, and pictures that cannot be decoded

    Raises ScratchvitError for a bad entry, and always for a split without files.
    """
    faults = Faults(skip_bad)
    name = " and ".join(year.name for year in years)
    trees = [(year, _trees(year, faults)) for year in years]
    if classes is None:
        named = {_text(one, "name") for _, year in trees for tree in year.values() for one in tree.findall("object")}
        classes = sorted(named - {""})
        if not classes:
            raise ScratchvitError(f"{name}: none of its pictures has a named object, so there is nothing to detect")

    paths, objects = [], []
    described: dict[Path, Path] = {}    # picture → its annotation file
    for year, of_year in trees:
        for path, tree in of_year.items():
            picture = _picture(folder, year, path, tree, faults)
            if picture is None:
                continue
            first = described.setdefault(picture, path)
            if first != path:
                faults.bad(f"{path}: its picture {picture} already has {first}")
                continue
            try:
                size = _size(tree) or picture_size(picture)
            except ScratchvitError as error:
                faults.undecodable(error, picture)
                continue
            found = AnnotationList()
            for place, entry in enumerate(tree.findall("object"), start=1):
                _add(entry, found, classes, size, f"{path}: object {place}", faults)
            paths.append(picture)
            objects.append(found.annotations(len(paths), _file_name(folder, years, year, picture), size))
    faults.check_pixels(name)
    faults.note_outlines(name)
    sources = [*(path for _, of_year in trees for path in of_year), *(path for year in years for path in year.sources)]
    dataset = AnnotatedPictures(
        name, paths, objects, classes, range(1, len(classes) + 1), faults.notes, faults.skipped, sources=sources,
        unusable=faults.pictures,
    )
    return dataset.without_bad() if skip_bad else dataset


def _file_name(folder: DataFolder, years: Sequence[VocFiles], year: VocFiles, picture: Path) -> str:
    """The name of a picture in its folder; with several years, whose pictures have the same names, from the root."""
    near = picture.is_relative_to(year.pictures) and len(years) == 1
    return picture.relative_to(year.pictures).as_posix() if near else folder.relative(picture)


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


def _trees(year: VocFiles, faults: Faults) -> dict[Path, ET.Element]:
    """The content of the annotation files."""
    trees: dict[Path, ET.Element] = {}
    for listed, path in year.entries:
        if path in trees:
            faults.bad(f"{listed} ({path.stem}) is a duplicate")
            continue
        try:
            content = path.read_bytes()
            if not content.strip():
                raise ValueError("it is empty")
            trees[path] = parse_xml(content)
        except OSError as error:
            what = f"{listed}: " if listed else ""
            faults.bad(f"{what}{path} cannot be read ({error.strerror})", "to leave such pictures out")
        except (ValueError, expat.ExpatError) as error:
            faults.bad(f"{path}: this annotation file cannot be used: {error}", "to leave such pictures out")
    return trees


def _picture(folder: DataFolder, year: VocFiles, path: Path, tree: ET.Element, faults: Faults) -> Path | None:
    """The picture with the name of the annotation file; None, as a fault, if there is none.

    <filename> only decides between several of that name: it is often wrong.
    """
    at = year.pictures / path.parent.relative_to(year.home)
    beside = folder.picture_in(at, path.stem)
    if beside:
        return beside
    found = folder.picture_of(path, year.part, folder.root, _text(tree, "filename"))
    if len(found) == 1:
        return found[0]
    if found:
        what = f"more than one picture of that name: {in_words(folder, found)}"
    elif year.pictures == year.home:
        what = f"no picture {path.stem}.jpg, or with another extension, in {folder.root}"
    else:
        what = f"no picture {at / path.stem}.jpg"
    faults.bad(f"{path}: there is {what}", "to leave such pictures out")
    return None


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
    difficult = _text(entry, "difficult") == "1"
    try:
        x0, y0, x1, y1 = map(float, corners) if any(corners) else (0.0, 0.0, 0.0, 0.0)
    except ValueError:
        faults.bad(f"{where}: bndbox {', '.join(corners)} is not the four numbers xmin, ymin, xmax, ymax")
        return
    points = [*_points(entry)] if x0 == x1 or y0 == y1 else []
    if points:
        try:
            outline = around([float(x) for x, _ in points], [float(y) for _, y in points])
        except ValueError as error:
            faults.bad(f"{where} has no box, and its polygon cannot be used: {error}")
            return
        faults.outlines += 1
        corners = [f"{number:g}" for number in outline]
        box = faults.box(outline, size, f"{where}: polygon around {', '.join(corners)}")
    elif not any(corners):
        faults.notes.append(f"{where} has no box; left out")
        return
    else:
        numbers = (x0 - (x1 > x0), y0 - (y1 > y0), x1, y1)      # a box without width stays without
        box = faults.box(numbers, size, f"{where}: bndbox {', '.join(corners)}")
    if box:
        found.add(box, classes.index(name), crowd=difficult)


def _points(entry: ET.Element) -> Iterator[tuple[str, str]]:
    """The corners of an object's polygon: <x1> <y1> <x2> <y2> … of Roboflow, or <pt> <x> <y> of LabelMe."""
    polygon = entry.find("polygon")
    if polygon is None:
        return
    for point in polygon.findall("pt"):
        yield _text(point, "x"), _text(point, "y")
    number = 1
    while polygon.find(f"x{number}") is not None:
        yield _text(polygon, f"x{number}"), _text(polygon, f"y{number}")
        number += 1


def _text(element: ET.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()
