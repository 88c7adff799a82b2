"""The YOLO format (Redmon's darknet and its successors): one text file per picture.

    images/train/0001.jpg     labels/train/0001.txt     (or train/images/…, train/labels/…; val is also called valid)
    data.yaml with names, or classes.txt with one name per line

A line of a text file is one object: class cx cy w h, the box relative to the picture, in 0 … 1. A picture without a
text file, or with an empty one, has no objects: this is how the format expresses it.

Only `names` is read from data.yaml, in the forms that tools write ([a, b], {0: a}, and one per line), by a few lines of
code here: a YAML reader would be a dependency for one list. The paths in data.yaml are ignored, since they are often
those of another computer.
"""

from __future__ import annotations

import re
from pathlib import Path

from scratchvit.data.folder import SUFFIXES, by_name
from scratchvit.detection.data.annotations import AnnotatedPictures
from scratchvit.detection.data.reading import PART_NAMES, AnnotationList, Faults, picture_size, read_lines
from scratchvit.errors import ScratchvitError

Names = dict[int, str]      # class in the text files → name


def part_folders(root: Path, part: str) -> tuple[Path, Path] | None:
    """The folders of pictures and of text files of "train", "val" or "test"; None if they do not exist."""
    for name in PART_NAMES[part]:
        for pictures, labels in (("images/{}", "labels/{}"), ("{}/images", "{}/labels")):
            if (root / pictures.format(name)).is_dir():
                return root / pictures.format(name), root / labels.format(name)
    return None


def read_yolo(root: Path, part: str, names: Names, *, skip_bad: bool = False) -> AnnotatedPictures:
    """Read the split "train", "val" or "test", sorted by name. Image ids are 1, 2, …; category ids those of the files.

    names       class names; see `read_names`
    skip_bad    leave out bad entries, and pictures that cannot be decoded

    Raises ScratchvitError for a bad entry, such as a text file without a picture, and always without text files.
    """
    folders = part_folders(root, part)
    if folders is None or not folders[1].is_dir():
        raise ScratchvitError(f"{root}: no folders images/{part} and labels/{part}")
    pictures = by_name(
        path for path in folders[0].iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != "."
    )
    texts = {path.stem: path for path in by_name(folders[1].glob("*.txt")) if path.name != "classes.txt"}
    if not texts:
        raise ScratchvitError(f"{folders[1]}: no text files, so {folders[0]} has no annotations")
    faults = Faults(skip_bad)
    for stem in sorted(texts.keys() - {path.stem for path in pictures}):
        faults.bad(f"{texts[stem]}: there is no picture {folders[0] / stem}.jpg")
    labels = {number: label for label, number in enumerate(names)}

    paths, objects = [], []
    bare = 0
    for path in pictures:
        try:
            size = picture_size(path)
        except ScratchvitError as error:
            faults.undecodable(error)
            continue
        found = AnnotationList()
        if path.stem in texts:
            try:
                lines = texts[path.stem].read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                faults.bad(f"{texts[path.stem]}: cannot be read ({error})", then="to leave such pictures out")
                continue
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    _add(line.strip(), found, labels, size, f"{texts[path.stem]}: line {number}", faults)
        bare += path.stem not in texts
        paths.append(path)
        objects.append(found.annotations(len(paths), path.name, size))
    if bare:
        faults.notes.append(f"{folders[0]}: {bare} of {len(paths)} pictures have no text file, so no objects")
    dataset = AnnotatedPictures(
        str(folders[0]), paths, objects, [*names.values()], [*names], faults.notes, faults.skipped
    )
    return dataset.without_bad() if skip_bad else dataset


def _add(
    line: str, found: AnnotationList, labels: dict[int, int], size: tuple[int, int], where: str, faults: Faults
) -> None:
    height, width = size
    where += f": {line[:60]!r}"
    try:
        category, cx, cy, w, h = map(float, line.split())
    except ValueError:
        faults.bad(f"{where} is not the five numbers class cx cy w h")
        return
    if category not in labels:
        faults.bad(f"{where} has the unknown class {category:g}; known are {', '.join(map(str, labels))}")
    elif max(abs(cx), abs(cy), abs(w), abs(h)) > 2:
        faults.bad(f"{where} is not in 0 … 1; pixels must be divided by the size of the picture")
    else:
        corners = (cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height
        box = faults.box(corners, size, where)
        if box:
            found.add(box, labels[int(category)])


def read_names(root: Path) -> Names:
    """The class names of classes.txt, or of data.yaml (or another .yaml, if there is only one).

    Raises ScratchvitError if none of them exists or has names.
    """
    listing = root / "classes.txt"
    if listing.is_file():
        names = dict(enumerate(read_lines(listing)))
    else:
        files = sorted({*root.glob("*.yaml"), *root.glob("*.yml")})
        listing = root / "data.yaml" if len(files) != 1 else files[0]
        if not listing.is_file():
            raise ScratchvitError(f"{root}: has neither classes.txt, with one class name per line, nor data.yaml")
        names = parse_names(listing.read_text(encoding="utf-8")) or {}
    if not names:
        raise ScratchvitError(
            f"{listing}: no class names were found in it; write them into {root / 'classes.txt'}, one per line"
        )
    return dict(sorted(names.items()))


def parse_names(text: str) -> Names | None:
    """The `names` of a data.yaml, or None if they are not in one of the forms described at the top of this file."""
    lines = [re.sub(r"(^|\s)#.*", "", line).rstrip() for line in text.splitlines()]
    start = next((place for place, line in enumerate(lines) if re.match(r"names\s*:", line)), None)
    if start is None:
        return None
    first = lines[start].split(":", 1)[1].strip()
    if first:       # [a, b] or {0: a, 1: b}, perhaps over several lines
        whole = " ".join([first, *lines[start + 1 :]])
        end = whole.find("]" if whole[0] == "[" else "}")
        if whole[0] not in "[{" or end < 0:
            return None
        entries = _split(whole[1:end])
        return _numbered(entries) if whole[0] == "{" else dict(enumerate(map(_unquoted, entries)))
    block = []
    for line in lines[start + 1 :]:
        if line and not line[0].isspace() and line[0] != "-":
            break
        if line:
            block.append(line.strip())
    if all(line.startswith("- ") for line in block):
        return dict(enumerate(_unquoted(line[2:]) for line in block))
    return _numbered(block)


def _split(text: str) -> list[str]:
    """Split at the commas outside of quotes; a trailing comma is ignored."""
    return [part for part in re.findall(r"""(?:'[^']*'|"[^"]*"|[^,'"])+""", text) if part.strip()]


def _numbered(entries: list[str]) -> Names | None:
    """Names from entries of the form `0: name`, or None if one has another form."""
    pairs = [re.fullmatch(r"\s*(\d+)\s*:\s*(.+)", entry) for entry in entries]
    if not all(pairs):
        return None
    return {int(pair[1]): _unquoted(pair[2]) for pair in pairs if pair}


def _unquoted(name: str) -> str:
    name = name.strip()
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"" else name
