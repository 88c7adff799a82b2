"""Tables of boxes in CSV: one object a row.

    filename,width,height,class,xmin,ymin,xmax,ymax                              TensorFlow, Roboflow: boxes in pixels
    filename,xmin,ymin,xmax,ymax,class, without such a line                      keras-retinanet
    filename,…,region_id,region_shape_attributes,region_attributes               VIA: a shape in JSON, and its names

Tables with the word train, val or test in their names, or in those of their folders, are these splits; other tables are
for all pictures. A picture that no table lists is left out: the format does not say that it has no objects.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scratchvit.data.rows import TABLES, delimiter_of, read_rows
from scratchvit.detection.data.annotations import AnnotatedPictures
from scratchvit.detection.data.files import DataFolder, in_words, is_picture
from scratchvit.detection.data.outlines import around
from scratchvit.detection.data.parts import PARTS
from scratchvit.detection.data.reading import AnnotationList, Faults, picture_size, read_lines
from scratchvit.errors import ScratchvitError

_BOX = ("xmin", "ymin", "xmax", "ymax")
# Other names of columns, without regard to case, spaces and underscores.
_COLUMNS = {
    "file": "filename", "image": "filename", "imagename": "filename", "imagepath": "filename", "path": "filename",
    "imageid": "filename", "label": "class", "classname": "class", "category": "class", "name": "class",
    "x1": "xmin", "y1": "ymin", "x2": "xmax", "y2": "ymax",
}
_ATTRIBUTES = ("class", "label", "name", "category", "type")       # of VIA's regions
_BARE = ("filename", *_BOX, "class")
_LINE = 1 << 16         # bytes of the first line at most
_VIA = ("filename", "regionshapeattributes", "regionattributes")


@dataclass(frozen=True)
class _Table:
    """The rows of a file by their columns' names, with the numbers of their lines."""

    path: Path
    rows: list[tuple[int, dict[str, str]]]


def read_tables(folder: DataFolder, skip_bad: bool) -> dict[str, AnnotatedPictures] | None:
    """The splits, if there are such tables in the folder; None without any.

    Raises ScratchvitError if there are none for train, and for a bad row.
    """
    opened = [table for path in folder.with_suffix(*TABLES) if (table := _open(path))]
    if not opened:
        return None
    by_part: defaultdict[str | None, list[_Table]] = defaultdict(list)
    for table in opened:
        by_part[folder.part_by_name(table.path)].append(table)
    rest = by_part.pop(None, [])
    if "train" not in by_part:
        by_part["train"], rest = rest, []
    folder.inventory.leave_out("tables in addition to those of train, val and test", [table.path for table in rest])
    if not by_part["train"]:
        paths = [table.path for table in opened]
        raise ScratchvitError(
            f"{folder.root}: there are tables with boxes ({in_words(folder, paths)}), but none for train: name one "
            "train.csv"
        )
    listing = folder.root / "classes.txt"
    classes: Sequence[str] | None = read_lines(listing) if listing.is_file() else None
    parts: dict[str, AnnotatedPictures] = {}
    for part in PARTS:
        if part in by_part:
            named = part if len(by_part) > 1 else None
            parts[part] = _read(by_part[part], folder, named, classes, skip_bad)
            classes = parts["train"].classes
    if listing.is_file():
        parts["train"].sources += (listing,)
    return parts


def _open(path: Path) -> _Table | None:
    """A table with boxes; None for a file without these columns. Raises ScratchvitError if it cannot be read."""
    with path.open("rb") as file:       # another table may be in another encoding, which does not matter
        head = file.readline(_LINE).replace(b"\0", b"").decode("latin-1")
    columns = _columns(next(csv.reader(head.splitlines()[:1], delimiter=delimiter_of(head)), []))
    if not columns:
        return None
    rows = read_rows(path)
    body = rows if columns == _BARE and is_picture(Path(rows[0][1][0])) else rows[1:]
    return _Table(path, [(line, dict(zip(columns, row))) for line, row in body])


def _columns(first: Sequence[str]) -> tuple[str, ...]:
    """The columns of a table with boxes by its first row, which may be a row already; () for another table.

    Other names that a column may have count only without its own.
    """
    if len(first) == len(_BARE) and is_picture(Path(first[0].strip())):
        return _BARE
    plain = [re.sub("[^a-z0-9]", "", name.lower()) for name in first]
    columns = tuple(_COLUMNS.get(name, name) if _COLUMNS.get(name) not in plain else name for name in plain)
    return columns if {*_BOX, "filename", "class"} <= {*columns} or {*_VIA} <= {*columns} else ()


def _read(
    tables: Sequence[_Table], folder: DataFolder, part: str | None, classes: Sequence[str] | None, skip_bad: bool
) -> AnnotatedPictures:
    faults = Faults(skip_bad)
    name = " and ".join(str(table.path) for table in tables)
    objects: dict[Path, list[tuple[str, str, list[float]]]] = {}    # picture → (where, class, box)
    homes: dict[Path, Path] = {}        # picture → the table that lists it
    names: dict[Path, str] = {}
    sizes: dict[Path, tuple[int, int]] = {}
    for table in tables:
        near = [table.path.parent, folder.root / "images", folder.root]
        for line, row in table.rows:
            where = f"{table.path}: line {line}"
            written = row.get("filename", "")
            found = folder.find(written, near, part)
            if len(found) != 1:
                several = f"more than one picture that it could be ({in_words(folder, found)})"
                what = f"there is {several if found else 'no such picture'} in {folder.root}"
                faults.bad(f"{where}: {written[:80] or 'no file name'}: {what}", then="to leave such pictures out")
                continue
            picture = found[0]
            if homes.setdefault(picture, table.path) != table.path:
                raise ScratchvitError(
                    f"{where}: {written} is also in {homes[picture]}, so its objects would count twice: keep only "
                    "one of these tables in the folder"
                )
            if names.setdefault(picture, written) != written:
                faults.bad(f"{where}: {written} and {names[picture]} are both the picture {picture}")
                continue
            size = [row.get(side, "") for side in ("height", "width")]
            if all(side.isascii() and side.isdecimal() and 0 < len(side) < 10 and int(side) for side in size):
                sizes.setdefault(picture, (int(size[0]), int(size[1])))
            objects.setdefault(picture, [])
            try:
                one = _object(row)
            except ValueError as error:
                faults.bad(f"{where}, {written}: {error}")
                continue
            if one is not None:
                kind, numbers, outline = one
                faults.outlines += outline
                objects[picture].append((f"{where}, {written}", kind, numbers))

    if classes is None:
        classes = sorted({kind for of_one in objects.values() for _, kind, _ in of_one})
        if not classes:
            raise ScratchvitError(f"{name}: has no object with a class, so there is nothing to detect")
    paths, annotations = [], []
    for picture, of_one in objects.items():
        try:
            height_width = sizes.get(picture) or picture_size(picture)
        except ScratchvitError as error:
            faults.undecodable(error, picture)
            continue
        collected = AnnotationList()
        for where, kind, numbers in of_one:
            if kind not in classes:
                faults.bad(f"{where}: unknown class {kind!r}; known are {', '.join(classes)}")
            elif box := faults.box(numbers, height_width, f"{where} ({kind}): box {numbers}"):
                collected.add(box, classes.index(kind))
        paths.append(picture)
        annotations.append(collected.annotations(len(paths), names[picture], height_width))
    faults.check_pixels(name)
    faults.note_outlines(name)
    dataset = AnnotatedPictures(
        name, paths, annotations, classes, range(1, len(classes) + 1), faults.notes, faults.skipped,
        sources=[table.path for table in tables], unusable=faults.pictures,
    )
    return dataset.without_bad() if skip_bad else dataset


def _object(row: dict[str, str]) -> tuple[str, list[float], bool] | None:
    """(class, [x0, y0, x1, y1], is it of an outline?) of a row; None without an object. Raises ValueError."""
    if "regionshapeattributes" in row:
        return _region(row)
    cells = [row.get(key, "") for key in _BOX]
    kind = row.get("class", "")
    if not any(cells):
        return None
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError:
        raise ValueError(f"{', '.join(cells)} is not the four numbers {', '.join(_BOX)}") from None
    if not kind:
        raise ValueError("this box has no class")
    return kind, numbers, False


def _region(row: dict[str, str]) -> tuple[str, list[float], bool] | None:
    """The same of a row of VIA."""
    try:
        shape, about = (json.loads(row.get(key) or "{}") for key in _VIA[1:])
    except (ValueError, RecursionError):
        raise ValueError("its region is no JSON") from None
    if not isinstance(shape, dict) or not isinstance(about, dict):
        raise ValueError("its region is no JSON object")
    if not shape:
        return None
    named = list(dict.fromkeys(_kinds(about)))
    if len(named) != 1:
        what = f"more than one name ({', '.join(named[:3])})" if named else "no name"
        raise ValueError(f"its region has {what}, so its class is unknown")
    box, outline = _shape(shape)
    return named[0], box, outline


def _kinds(about: dict[str, object]) -> Iterator[str]:
    """The names in the attributes of a region: {"name": "cat"}, or {"type": {"cat": true}} of checkboxes.

    Of several attributes, one that is called like a class is meant.
    """
    lower = {key.strip().lower(): value for key, value in about.items()}
    called = next((key for key in _ATTRIBUTES if lower.get(key)), None)
    for value in [lower[called]] if called else lower.values():
        if isinstance(value, dict):
            yield from (str(key).strip() for key, chosen in value.items() if chosen)
        elif value not in ("", None):
            yield str(value).strip()


def _shape(shape: dict[str, object]) -> tuple[list[float], bool]:
    """([x0, y0, x1, y1], is it around an outline?)."""

    def number(key: str) -> float:
        value = shape.get(key)
        if not isinstance(value, int | float) or value is True or value is False or abs(value) > 1 << 53:
            raise ValueError(f"its shape has no number {key}")
        return float(value)

    kind = shape.get("name")
    if kind == "rect":
        x, y = number("x"), number("y")
        return [x, y, x + number("width"), y + number("height")], False
    if kind in ("circle", "ellipse"):
        x, y = number("cx"), number("cy")
        across, down = (number("r"),) * 2 if kind == "circle" else (number("rx"), number("ry"))
        return [x - across, y - down, x + across, y + down], True
    if kind in ("polygon", "polyline"):
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or not all(
            type(each) in (int, float) and abs(each) < 1 << 53 for each in (*xs, *ys)
        ):
            raise ValueError("its points are not numbers")
        return [*around([*map(float, xs)], [*map(float, ys)])], True
    raise ValueError(f"its shape is {str(kind)[:20]!r}, of which no box can be made")
