"""Class names, from a file that the user names, from the config.json in the folder of the weights, or plain numbers."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scratchvit.errors import ScratchvitError
from scratchvit.files import read_text
from scratchvit.weights.preprocess import folder_of, read_config

#  "n01440764 tench, Tinca tinca", as in LOC_synset_mapping.txt and synset_words.txt: a WordNet id, then the name
_SYNSET_LINE = re.compile(r"n\d{8}\s+(\S.*)")


def class_names(
    num_classes: int, labels_path: str | Path | None = None, weights_path: str | Path | None = None,
    order: str | None = None,
) -> tuple[list[str], str]:
    """(the class names of a head, a sentence on where they come from).

    labels_path    file or folder named by the user, see `read_labels`; ScratchvitError if its length is wrong
    order          of the classes in a folder, see `read_labels`
    weights_path   otherwise the config.json in the folder of these weights is used; ignored if its length is wrong
    Without either, the names are "class 0", "class 1", ….
    """
    if labels_path is not None:
        names = read_labels(labels_path, order)
        if len(names) != num_classes:
            raise ScratchvitError(f"{labels_path} names {len(names):,} classes, the model has {num_classes:,}")
        ordered = f" in the order of {order}" if order and Path(labels_path).is_dir() else ""
        return names, f"names from {labels_path}{ordered}"
    source = "no names: give them with --labels FILE"
    if weights_path is not None:
        path = folder_of(Path(weights_path)) / "config.json"
        config = read_config(path) or {}
        try:
            found = _of_config(config)
        except (TypeError, ValueError, AttributeError) as error:
            raise ScratchvitError(f"{path}: its class names cannot be read ({error})") from error
        if found and len(found) == num_classes:
            return found, f"names from {path}"
        if found:
            source = f"no names: {path} has {len(found):,} for {num_classes:,} classes; --labels FILE gives others"
    return [f"class {index}" for index in range(num_classes)], source


def read_labels(path: str | Path, order: str | None = None) -> list[str]:
    """Read class names from a file or folder, in the order of the classes.

    a folder      with class folders, or with such a folder `train`: their names, in the order of one of `ORDERS`
    JSON          a list; {"0": "cat"}; {"0": ["n02123045", "tabby"]} (ImageNet's index); {"cat": 0}; a config.json
    other text    one name per line; of "n01440764 tench, Tinca tinca", the part after the id
    Raises ScratchvitError, which names the file, for anything else, and for a folder whose classes the libraries order
    differently, unless `order` says which of them trained the model.
    """
    path = Path(path)
    if path.is_dir():
        return _folder_names(path, order)
    if not path.exists():
        raise ScratchvitError(f"{path}: no such file of class names")
    text = read_text(path, "file of class names")
    try:
        if path.suffix.lower() == ".json":
            return _of_json(json.loads(text))
        return _of_lines(text)
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ScratchvitError(
            f"{path}: its class names cannot be read ({error}); write one name per line, or JSON as in "
            '["cat", "dog"] or {"0": "cat", "1": "dog"}'
        ) from error


def _timms_key(name: str) -> list[Any]:
    """The key by which timm sorts class folders: without case, and numbers by their value."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())]


ORDERS: dict[str, Callable[[str], Any]] = {
    "torchvision": str,         # by code point: "B" before "a", "10" before "2". This program's too
    "timm": _timms_key,         # "a" before "B", "2" before "10"
}


def _folder_names(folder: Path, order: str | None) -> list[str]:
    if (folder / "train").is_dir():
        folder = folder / "train"
    try:
        found = [entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."]
    except OSError as error:
        raise ScratchvitError(f"{folder}: the folder cannot be read ({error.strerror})") from error
    if not found:
        raise ScratchvitError(f"{folder} has no class folders whose names could be used")
    orders = {library: sorted(sorted(found), key=key) for library, key in ORDERS.items()}
    if order == "torchvision":
        return orders[order]
    for one, other in itertools.pairwise(orders["timm"]):
        if _timms_key(one) == _timms_key(other):
            raise ScratchvitError(
                f"{folder}: timm has no fixed order for {one!r} and {other!r}: --label-order torchvision is the order "
                "of torchvision and scratchvit; for timm, give the names in a file, one per line"
            )
    if order == "timm":
        return orders[order]
    for index, (theirs, timms) in enumerate(zip(orders["torchvision"], orders["timm"])):
        if theirs != timms:
            raise ScratchvitError(
                f"{folder}: class {index} is {theirs!r} in the order of torchvision (and of scratchvit), {timms!r} in "
                'that of timm: say which one trained the model, --label-order torchvision or timm (order="timm")'
            )
    return orders["torchvision"]


def _of_lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not lines:
        raise ValueError("it is empty")
    if "" in lines:     # skipping it would shift all names after it
        raise ValueError(f"line {lines.index('') + 1} is empty")
    synsets = [_SYNSET_LINE.fullmatch(line) for line in lines]
    return [match[1] if match else line for match, line in zip(synsets, lines)]


def _of_json(content: Any) -> list[str]:
    if isinstance(content, Mapping) and (names := _of_config(content)):
        return names
    if isinstance(content, Mapping) and all(type(value) is int for value in content.values()):
        content = {index: name for name, index in content.items()}      # torchvision's class_to_idx
    return _in_order(content)


def _of_config(config: Mapping[str, Any]) -> list[str] | None:
    """The names in a config.json of timm or Hugging Face, or None if it has none or only placeholders."""
    if names := config.get("id2label"):
        names = _in_order(names)
        # Placeholders of transformers, if no names were given.
        return None if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names
    inner = config.get("pretrained_cfg") or {}
    if names := config.get("label_names") or inner.get("label_names"):
        described = config.get("label_descriptions") or inner.get("label_descriptions") or {}
        return _in_order([described.get(name, name) for name in _in_order(names)])
    return None


def _in_order(content: Any) -> list[str]:
    """A list, or a dictionary by index, of names or of (identifier, name) → names."""
    if isinstance(content, Mapping):
        by_index = {int(index): value for index, value in content.items()}
        if sorted(by_index) != list(range(len(content))):
            raise ValueError(f"its numbers must be 0 to {len(content) - 1}, each once")
        content = [by_index[index] for index in range(len(content))]
    if not isinstance(content, list) or not content:
        raise ValueError(f"expected a list of names, not {str(content)[:40]!r}")
    names = [value[-1] if isinstance(value, list) and value else value for value in content]
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError("a name is not a string")
    return names
