"""The names of the classes of a folder in YOLO's format, whose text files have only their numbers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from scratchvit.detection.data.data_yaml import DataYaml, Names, read_data_yaml
from scratchvit.detection.data.files import DataFolder, in_words
from scratchvit.detection.data.reading import read_json, read_lines
from scratchvit.errors import ScratchvitError
from scratchvit.files import read_text

_MANY = 20          # YAML files that are opened
_LISTS = (".names", ".labels")      # obj.names of darknet and CVAT, _darknet.labels of Roboflow


def find_yaml(folder: DataFolder, is_yolo: bool) -> DataYaml | None:
    """The data.yaml of a folder, or another YAML file that has names; None if there is none.

    is_yolo: what else lies in the folder is in YOLO's format, so a damaged file is an error, whatever its name. Raises
    ScratchvitError for a damaged data.yaml, and if several files could be meant.
    """
    files = sorted(folder.with_suffix(".yaml", ".yml"), key=lambda path: len(path.parts))
    named = [path for path in files if path.stem == "data"]
    if named or (is_yolo and len(files) == 1):
        return read_data_yaml((named or files)[0])
    found = []
    for path in files[:_MANY]:
        try:
            found.append(read_data_yaml(path))
        except ScratchvitError:     # somebody's settings
            continue
    found = [one for one in found if one.names]
    found = [one for one in found if len(one.path.parts) == len(found[0].path.parts)]      # furthest up
    if len(found) > 1:
        raise ScratchvitError(
            f"{folder.root}: {in_words(folder, [one.path for one in found])} all have names of classes: call the right "
            "one data.yaml"
        )
    return found[0] if found else None


def class_names(
    folder: DataFolder, yaml: DataYaml | None, texts: Iterable[Path]
) -> tuple[Names, list[Path], list[str]]:
    """(names, the files that have them, notes). Without names anywhere, classes are called by their numbers.

    texts: all text files with labels. Raises ScratchvitError if two lists of names differ, and for an empty one.
    """
    listing = folder.root / "classes.txt"
    if listing.is_file():
        names = _numbered(listing)
        notes = []
        if yaml and yaml.names and [*yaml.names.values()] != [*names.values()]:
            notes = [f"the names of the classes are those of {listing}; {yaml.path} has others"]
        return names, [listing], notes
    if yaml and yaml.names:
        return yaml.names, [yaml.path], []
    lists = [path for path in folder.files if path.name.lower() == "classes.txt" or path.suffix.lower() in _LISTS]
    found = {path: _numbered(path) for path in lists}
    if len({(*names.values(),) for names in found.values()}) > 1:
        raise ScratchvitError(
            f"{folder.root}: {in_words(folder, lists)} have different names of classes: write the right ones into "
            f"{listing}"
        )
    if found:
        return next(iter(found.values())), lists, []
    notes_json = next((path for path in folder.files if path.name == "notes.json"), None)
    names = _of_label_studio(notes_json) if notes_json else {}
    if notes_json and names:
        return names, [notes_json], []
    numbers = sorted({number for path in texts for number in _classes_in(path)})
    if not numbers:
        raise ScratchvitError(
            f"{folder.root}: no object in it, and no names of classes: write them into {listing}, one per line"
        )
    return {number: str(number) for number in numbers}, [], [
        f"no names of classes were found, so they are called by their numbers: write the names into {listing}, one per "
        "line, or into data.yaml"
    ]


def _numbered(listing: Path) -> Names:
    names = dict(enumerate(read_lines(listing)))
    if not names:
        raise ScratchvitError(f"{listing}: no class names were found in it; write them into it, one per line")
    return names


def _of_label_studio(path: Path) -> Names:
    """The categories of notes.json, which Label Studio writes beside its text files."""
    content = read_json(path, "file", "export")
    entries = content.get("categories") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and type(entry.get("id")) is int and isinstance(entry.get("name"), str)
        for entry in entries
    ):
        return {}
    return {entry["id"]: entry["name"] for entry in sorted(entries, key=lambda entry: entry["id"])}


def _classes_in(path: Path) -> set[int]:
    """The classes of a text file; what is no number is reported when the file is read."""
    try:
        words = [line.split()[0] for line in read_text(path).splitlines() if line.strip()]
    except ScratchvitError:
        return set()
    return {int(word) for word in words if word.isascii() and word.isdecimal() and len(word) < 10}
