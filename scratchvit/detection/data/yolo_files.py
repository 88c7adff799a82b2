"""Which pictures and text files of a folder are train, val and test in YOLO's format.

    data.yaml, whose train, val and test are folders, lists of pictures, or several of these
    images/train, labels/train; train/images, train/labels; images/train2017, …; pictures also in subfolders
    images, labels, or both in one folder: Label Studio, LabelImg; with train.txt, a list of pictures: darknet, CVAT
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scratchvit.data.inventory import by_name
from scratchvit.detection.data.annotations import AnnotatedPictures
from scratchvit.detection.data.data_yaml import DataYaml
from scratchvit.detection.data.files import IMAGES, DataFolder, distinct, ends_of, in_order, in_words, is_picture
from scratchvit.detection.data.parts import FOLDER_NAMES, PARTS, is_part
from scratchvit.detection.data.reading import read_lines, same_names
from scratchvit.detection.data.yolo import YoloFiles, numbers_of, read_yolo
from scratchvit.detection.data.yolo_names import class_names, find_yaml
from scratchvit.errors import ScratchvitError

_LABELS = ("labels", "Labels", "label", "annotations")      # folders beside those of IMAGES
_TRIED = 50         # text files that are opened to see whether they are labels


@dataclass
class _Part:
    """Pictures of a split before their text files are looked for."""

    name: str
    pictures: dict[Path, str] = field(default_factory=dict)     # picture → its name in results
    missing: list[str] = field(default_factory=list)
    sources: list[Path] = field(default_factory=list)


def yolo_by_name(folder: DataFolder, skip_bad: bool) -> dict[str, AnnotatedPictures] | None:
    """The splits, if data.yaml or the names of folders say where they are; None if train is not among them.

    Raises ScratchvitError as `read_yolo` does.
    """
    named = {part: _of_folder(folder, at) for part in PARTS if (at := _part_folder(folder, part))}
    named = {part: one for part, one in named.items() if one.pictures}
    yaml = find_yaml(folder, is_yolo="train" in named)
    followed, notes = _of_yaml(folder, yaml, named) if yaml else ({}, [])
    parts = {**named, **followed}
    train = parts.get("train")
    if train is None:
        return None
    if folder.with_suffix(".xml", ".json", ".csv") and not _texts_of(folder, train.pictures):
        return None     # its folders are called like those of YOLO, but its annotations are of another format
    return _read(folder, parts, yaml, notes, skip_bad)


def yolo_anywhere(folder: DataFolder, skip_bad: bool) -> dict[str, AnnotatedPictures] | None:
    """The splits, if there are pictures with text files of labels anywhere; None without any.

    Splits are told apart by lists of pictures (train.txt), or by the folders of the pictures. Raises ScratchvitError if
    there are none for train, and as `read_yolo` does.
    """
    texts = _texts_of(folder, folder.pictures)
    filled = [text for text in texts.values() if text.stat().st_size]
    if not any(map(_may_be_labels, filled[:_TRIED])):
        return None
    yaml = find_yaml(folder, is_yolo=True)
    notes = _of_yaml(folder, yaml, {})[1] if yaml else []
    lists = {part: path for path in folder.with_suffix(".txt") if (part := is_part(path.stem)) and _lists(path)}
    if "train" in lists:
        return _read(folder, {part: _of_list(folder, path) for part, path in lists.items()}, yaml, notes, skip_bad)

    places = {path.parent for path in texts}
    by_part: defaultdict[str | None, list[Path]] = defaultdict(list)
    for path in distinct([path for path in folder.pictures if path.parent in places]):
        by_part[folder.part(path)].append(path)
    loose = by_part.pop(None, [])
    if "train" not in by_part:
        by_part["train"], loose = loose, []
    folder.inventory.leave_out("in no folder of train, val or test", loose)
    if not by_part["train"]:
        raise ScratchvitError(
            f"{folder.root}: there are pictures with labels ({in_words(folder, [*texts])}), but none in a folder train"
        )
    parts = {part: _of_pictures(paths) for part, paths in by_part.items() if part}
    return _read(folder, parts, yaml, notes, skip_bad)


def _part_folder(folder: DataFolder, part: str) -> Path | None:
    """The folder of the pictures of a part: images/train, train/images, images/train2017, or Validation/images."""
    exact = [folder.root / form.format(name) for name in FOLDER_NAMES[part] for form in ("images/{}", "{}/images")]
    images = folder.root / "images"
    further = [(at.name, at) for at in (by_name(images.iterdir()) if images.is_dir() else [])]
    further += [(at.name, at / "images") for at in by_name(folder.root.iterdir())]
    exact += [at for name, at in further if is_part(name) == part]
    return next((at for at in exact if at.is_dir()), None)


# --- where data.yaml says that they are -----------------------------------------------------------------------------


def _of_yaml(
    folder: DataFolder, yaml: DataYaml, named: Mapping[str, _Part]
) -> tuple[dict[str, _Part], list[str]]:
    """The splits that are where data.yaml says, and notes about those that are not.

    named: {split: that of the folder that is called like it}, which is used where data.yaml cannot be followed.
    """
    home = yaml.path.parent
    bases = (folder.at(at, end) for end in (yaml.base, *ends_of(yaml.base)) for at in (home, folder.root))
    base = next((at for at in bases if at and at.is_dir()), home)
    places = {part: [_place(folder, (base, home, folder.root), one) for one in yaml.parts[part]] for part in yaml.parts}
    parts, read_as, notes = {}, [], []
    for part, found in places.items():
        written = yaml.parts[part]
        if None in found:
            lost = written[found.index(None)]
            notes.append(f"{yaml.path}: {part} is {lost}, which is not in {folder.root}{_instead(named.get(part))}")
            continue
        existing = [path for path in found if path]
        several = [_of_folder(folder, path) if path.is_dir() else _of_list(folder, path, base) for path in existing]
        one = several[0] if len(several) == 1 else _together(folder, several)
        if not one.pictures and not one.missing:
            where = ", ".join(written)
            notes.append(f"{yaml.path}: {part} is {where}, where there are no pictures{_instead(named.get(part))}")
            continue
        parts[part] = one
        read_as += [
            f"{text} is {folder.relative(path)} here" for text, path in zip(written, existing)
            if path != folder.inside(base, text)
        ]
    if read_as:
        notes.append(f"{yaml.path}: {', '.join(read_as)}")
    return parts, notes


def _instead(named: _Part | None) -> str:
    return f"; {named.name} is used instead" if named else ", so this entry is ignored"


def _place(folder: DataFolder, bases: Iterable[Path], written: str) -> Path | None:
    """A folder or a list that data.yaml names. Of a path that is not there, the end is tried: ../train/images."""
    tried = [(base, written) for base in bases]
    for end in ends_of(written):
        if "/" in end or is_part(Path(end).stem):       # images alone could be those of all splits
            tried += [(base, end) for base in bases]
    for base, text in tried:
        path = folder.at(base, text)
        if path and (path.is_dir() or path.suffix.lower() == ".txt"):
            return path
    return None


def _together(folder: DataFolder, parts: Sequence[_Part]) -> _Part:
    """Several folders or lists as one split."""
    return _Part(
        " and ".join(one.name for one in parts),
        {path: folder.relative(path) for one in parts for path in one.pictures},
        [what for one in parts for what in one.missing], [path for one in parts for path in one.sources],
    )


def _of_folder(folder: DataFolder, at: Path) -> _Part:
    return _of_pictures([path for path in folder.below(at) if is_picture(path)], at)


def _of_pictures(paths: Sequence[Path], at: Path | None = None) -> _Part:
    """Pictures, whose names in results are those from the folder that they have in common."""
    if not paths:
        return _Part(str(at))
    folders = {path.parent for path in paths}
    home = Path(os.path.commonpath(folders))
    near = {at: f"{at.relative_to(home).as_posix()}/" if at != home else "" for at in folders}
    return _Part(str(home), {path: near[path.parent] + path.name for path in paths})


def _of_list(folder: DataFolder, listing: Path, base: Path | None = None) -> _Part:
    """The pictures of a list, each once."""
    part = _Part(str(listing), sources=[listing])
    lines: dict[Path, str] = {}         # picture → how it is written
    for line, written in enumerate(read_lines(listing), start=1):
        found = folder.find(written, [listing.parent, *([base] if base else []), folder.root], None)
        if len(found) == 1:
            part.pictures[found[0]] = folder.relative(found[0])
            first = lines.setdefault(found[0], written)
            if first != written:
                part.missing.append(f"{listing}: line {line}: {written[:80]} and {first[:80]} are both {found[0]}")
        else:
            what = f"more than one picture that it could be ({in_words(folder, found)})" if found else "no such picture"
            part.missing.append(f"{listing}: line {line}: {written[:80]}: there is {what} in {folder.root}")
    return part


def _lists(path: Path) -> bool:
    """Is this text file a list of pictures?"""
    try:
        lines = read_lines(path)
    except ScratchvitError:
        return False
    return bool(lines) and is_picture(Path(lines[0]))


# --- their text files -----------------------------------------------------------------------------------------------


def _texts_of(folder: DataFolder, pictures: Iterable[Path]) -> dict[Path, Path]:
    """{picture: its text file}: in the folder of labels that is like its own, or beside it.

    For pictures in subfolders whose labels are not, the folders above are tried; what is found there belongs to no
    picture of its own, and may be found by more than one.
    """
    texts, without = {}, []
    folders: dict[Path, list[list[Path]]] = {}
    for picture in pictures:
        if picture.parent not in folders:
            folders[picture.parent] = _labels_of(folder, picture.parent) or [[]]
        own, *above = folders[picture.parent]
        text = _first(folder, (*own, picture.parent), picture)
        if text:
            texts[picture] = text
        elif above:
            without.append((picture, [at for level in above for at in level]))
    taken = {*texts.values()}
    for picture, places in without:
        text = _first(folder, places, picture, taken)
        if text:
            texts[picture] = text
    return texts


def _first(
    folder: DataFolder, places: Iterable[Path], picture: Path, taken: Collection[Path] = ()
) -> Path | None:
    """The first text file with the name of a picture in these folders that is not taken; None if there is none."""
    if picture.stem == "classes":       # classes.txt has the names of the classes
        return None
    found = (folder.file_in(at, f"{picture.stem}.txt") for at in places)
    return next((path for path in found if path and path not in taken), None)


def _labels_of(folder: DataFolder, at: Path) -> list[list[Path]]:
    """The folders where labels of pictures in a folder may be: train/labels/a for train/images/a, then train/labels."""
    steps = at.relative_to(folder.root).parts
    last = next((place for place in reversed(range(len(steps))) if steps[place].lower() in IMAGES), None)
    if last is None:
        return []
    tails = [steps[last + 1 : end] for end in range(len(steps), last, -1)]
    return [[folder.root.joinpath(*steps[:last], name, *tail) for name in _LABELS] for tail in tails]


def _may_be_labels(path: Path) -> bool:
    """Has a text file labels, and no names or description? It may be empty: a picture without objects."""
    try:
        lines = read_lines(path)
    except ScratchvitError:
        return False
    return not lines or numbers_of(lines[0]) is not None


def _read(
    folder: DataFolder, parts: dict[str, _Part], yaml: DataYaml | None, notes: Sequence[str], skip_bad: bool
) -> dict[str, AnnotatedPictures]:
    files = _with_texts(folder, {part: parts[part] for part in PARTS if part in parts})
    texts = [text for one in files.values() for text in one.texts.values()]
    names, sources, more = class_names(folder, yaml, texts)
    keypoints = yaml is not None and yaml.keypoints
    read = {part: read_yolo(one, names, keypoints=keypoints, skip_bad=skip_bad) for part, one in files.items()}
    numbers = [*names]
    used = {
        numbers[label] for part in read.values() for index in range(len(part))
        for label in part.annotations(index).labels.tolist()
    }
    more += same_names(str(sources[0]) if sources else str(folder.root), names, used)
    for one in read.values():
        one.notes = (*notes, *more, *one.notes)
        one.sources += (*sources, *([yaml.path] if yaml else []))
    return read


def _with_texts(folder: DataFolder, parts: dict[str, _Part]) -> dict[str, YoloFiles]:
    """The splits with their text files. Raises ScratchvitError for a split without any."""
    pictures = {*folder.pictures, *(path for part in parts.values() for path in part.pictures)}
    texts = _texts_of(folder, in_order(pictures))
    real = {at: os.path.realpath(at) for at in {path.parent for path in texts}}
    serves = Counter(text for text, _ in {(text, real[path.parent]) for path, text in texts.items()})
    free = [path for path in folder.with_suffix(".txt") if path not in serves and path.name != "classes.txt"]
    files = {}
    for part, one in parts.items():
        found = {path: texts[path] for path in one.pictures if path in texts}
        if not found and one.pictures:
            first = next(iter(one.pictures)).parent
            where = [*(_labels_of(folder, first) or [[]])[0], first][0]
            raise ScratchvitError(
                f"{where}: no text files, so {one.name} has no annotations: add them, or move these pictures elsewhere"
            )
        missing = [*one.missing]
        for path in dict.fromkeys(text for text in found.values() if serves[text] > 1):
            missing.append(f"{path}: there are pictures of that name in more than one folder")
        places = {text.parent for text in found.values()}
        for path in [path for path in free if any(map(path.is_relative_to, places))]:
            if _may_be_labels(path):
                missing.append(f"{path}: there is no picture {Path(one.name, path.stem)}.jpg")
                free.remove(path)       # it is reported once
        files[part] = YoloFiles(one.name, [*one.pictures.items()], found, missing, one.sources)
    return files
