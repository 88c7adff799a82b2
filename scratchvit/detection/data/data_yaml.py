"""data.yaml, which has the class names and the paths of the splits of a folder in YOLO's format.

    path: ../fruit                  the folder that the others are in; by default that of this file
    train: images/train             a folder, a list of pictures (train.txt), or several of these
    val: [fold1.txt, fold2.txt]
    nc: 2
    names: [apple, pear]            or {0: apple, 1: pear}

Names stay the text that was written. In YAML, no and on are booleans, and 1e3 is a number, so the file is not turned
into Python objects: it is read as PyYAML's tree of nodes, whose leaves are text. Tags (!!python/…) have no effect
there, and an alias is a second reference to a node, however large it would be if it were expanded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scratchvit.errors import ScratchvitError
from scratchvit.files import read_text

Names = dict[int, str]      # class in the text files → name

_WANTED = "a list of names, or {0: name, 1: name}"
_NUMBER = re.compile("[0-9]{1,9}")
_NOTHING = ("", "~", "null", "Null", "NULL")        # plain, these are YAML for no value


@dataclass(frozen=True)
class DataYaml:
    """What a data.yaml says.

    names       class → name, in order; empty if there are none
    base        `path`, as written; "" if there is none
    parts       {"train", "val", "test": paths as written}
    keypoints   the lines of labels go on with key points after the box (`kpt_shape`), not with an outline
    """

    path: Path
    names: Names
    base: str = ""
    parts: dict[str, list[str]] = field(default_factory=dict)
    keypoints: bool = False


def read_data_yaml(path: Path) -> DataYaml:
    """Read a data.yaml. Raises ScratchvitError if it is not YAML, has an entry of another form, or nc does not fit."""
    top = _mapping(path, _tree(path), "this file")
    names = _names(path, top["names"]) if _is_there(top.get("names")) else {}
    count = _texts(path, "nc", top["nc"])[0] if _is_there(top.get("nc")) else ""
    if count and not _NUMBER.fullmatch(count.strip()):
        raise ScratchvitError(f"{path}: nc is {count[:40]!r}, expected the number of classes")
    if count and names and int(count) not in (len(names), max(names) + 1):
        raise ScratchvitError(
            f"{path}: nc is {count}, but {len(names)} names are listed, so the classes in the labels may be others: "
            "correct one of them"
        )
    parts = {
        part: _texts(path, key, top[key])
        for part, keys in {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}.items()
        for key in keys if _is_there(top.get(key))
    }
    base = _texts(path, "path", top["path"])[0] if _is_there(top.get("path")) else ""
    return DataYaml(path, names, base, parts, keypoints="kpt_shape" in top)


def _tree(path: Path) -> Any:
    """The file's root node; None if it is empty."""
    import yaml

    try:
        return yaml.compose(read_text(path, "YAML file"), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it has characters that YAML does not allow"
        raise ScratchvitError(f"{path}: this YAML file cannot be read{where}: {problem}") from error
    except RecursionError as error:
        raise ScratchvitError(f"{path}: this YAML file is nested too deeply") from error


def _mapping(path: Path, node: Any, what: str) -> dict[str, Any]:
    """{key: node}. Raises ScratchvitError for another node, and for a key that occurs twice."""
    if node is None:
        return {}
    if node.id != "mapping":
        raise ScratchvitError(f"{path}: {what} is {_kind(node)}, expected keys and values: names: [apple, pear]")
    entries: dict[str, Any] = {}
    for key, value in node.value:
        if key.id != "scalar":
            raise ScratchvitError(f"{path}: line {key.start_mark.line + 1}: a key is {_kind(key)}, expected a word")
        if key.value in entries:
            raise ScratchvitError(f"{path}: line {key.start_mark.line + 1}: {what} has {key.value[:40]!r} twice")
        entries[key.value] = value
    return entries


def _names(path: Path, node: Any) -> Names:
    """The class names, in order of their numbers. Raises ScratchvitError for names in another form."""
    if node.id == "sequence":
        names = dict(enumerate(_name(path, one) for one in node.value))
    elif node.id == "mapping":
        entries = _mapping(path, node, "names")
        wrong = next((key for key in entries if not _NUMBER.fullmatch(key.strip())), None)
        if wrong is not None:
            raise ScratchvitError(f"{path}: names has the key {wrong[:40]!r}, which is no number; expected {_WANTED}")
        names = {int(key): _name(path, one) for key, one in entries.items()}
        if len(names) < len(entries):
            raise ScratchvitError(f"{path}: names has the same class twice")
    else:
        raise ScratchvitError(f"{path}: names is {node.value[:40]!r}, expected {_WANTED}")
    return dict(sorted(names.items()))


def _name(path: Path, node: Any) -> str:
    if node.id != "scalar" or not node.value.strip():
        what = _kind(node) if node.id != "scalar" else "empty"
        raise ScratchvitError(f"{path}: line {node.start_mark.line + 1}: a class name is {what}; write it in quotes")
    return str(node.value).strip()


def _texts(path: Path, key: str, node: Any) -> list[str]:
    """A text, or a list of texts."""
    nodes = node.value if node.id == "sequence" else [node]
    if not nodes or not all(one.id == "scalar" for one in nodes):
        raise ScratchvitError(f"{path}: {key} is {_kind(node)}, expected a text or a list of texts")
    return [str(one.value) for one in nodes]


def _is_there(node: Any) -> bool:
    """Has this key a value? `test:` alone, null, [] and {} say that there is none."""
    if node is None or (node.id == "scalar" and not node.style and node.value in _NOTHING):
        return False
    return bool(node.value)


def _kind(node: Any) -> str:
    kinds = {"mapping": "a mapping", "sequence": "a list or has lists in it", "scalar": "a text"}
    return kinds[node.id]
