"""A table of file names and labels beside pictures: labels.csv, train.csv, Roboflow's _classes.csv.

    file,label                      image_id;breed              filename,cat,dog
    1.jpg,cat                       000bec18;boston_bull        1.jpg,1,0

Which column names the files is found by trying: its entries are the names of pictures that are there, with or without
folders and ending. The label is a column that is called so, or the only other one, or a column for each class with a 1
for the right one. A column called split says which rows are train, val and test, if the tables' own names do not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from scratchvit.data.images import SUFFIXES
from scratchvit.data.inventory import Inventory
from scratchvit.data.layout import Layout, part_of
from scratchvit.data.parts import PARTS, words_of
from scratchvit.data.rows import TABLES, read_rows
from scratchvit.errors import ScratchvitError
from scratchvit.files import counted, listed, printable

LABELS = (
    "label", "labels", "class", "class_name", "classname", "category", "category_name", "target", "classes", "y",
    "class_id", "label_id", "breed", "species", "diagnosis",
)
SPLITS = frozenset({"split", "set", "data set", "data_set", "dataset", "subset", "part", "partition", "phase"})
FOUND = 0.5     # share of a column's entries that must be pictures: the rest may be missing, and is counted


@dataclass
class _Table:
    """A table that names pictures. rows: (picture, label, the split that the row names)."""

    path: Path
    part: str | None
    rows: list[tuple[Path, str, str | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def by_tables(inventory: Inventory) -> Layout | None:
    """The layout that the tables in a folder describe; None if there is none that names pictures.

    Raises ScratchvitError for a table that names pictures and does not say which column is the label, gives a picture
    two labels, or contends with another table.
    """
    names = _Names(inventory)
    paths = sorted(
        path for path in inventory.sizes
        if path.suffix.lower() in TABLES and not inventory.hidden(path) and "submission" not in words_of(path.stem)
    )
    tables = [table for path in paths if (table := _read(path, names)) is not None]
    whole = [table for table in tables if table.part is None]
    if "train" in {table.part for table in tables}:
        whole = []
    elif not whole:
        return None     # labels of test alone
    elif len(whole) > 1:
        tables_found = listed(table.path for table in whole)
        raise ScratchvitError(f"{tables_found}: which of these tables has the labels? Give its path")
    return _layout([*whole, *(table for table in tables if table.part is not None)], inventory)


def by_table(inventory: Inventory, path: Path) -> Layout:
    """The layout that one table describes, whatever its name. Raises ScratchvitError as `by_tables` does."""
    table = _read(path, _Names(inventory))
    if table is None:
        raise ScratchvitError(
            f"{printable(path)}: no column of this table names pictures in {printable(inventory.root)}; there are "
            f"{inventory.endings(inventory.root)}"
        )
    table.part = None
    return _layout([table], inventory)


def _layout(tables: Sequence[_Table], inventory: Inventory) -> Layout:
    labels: dict[Path, str] = {}
    pictures: defaultdict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for table in tables:
        inventory.use("labels", [table.path])
        for path, label, named in table.rows:
            known = labels.setdefault(path, label)
            if known != label:
                raise ScratchvitError(
                    f"{printable(table.path)}: {printable(path.name)} has two labels, {printable(known)} and "
                    f"{printable(label)}: a picture belongs to one class"
                )
            pictures[table.part or named or "train"][label].append(path)
    parts = {
        part: {label: _by_path(pictures[part][label]) for label in _in_order(pictures[part])}
        for part in PARTS if part in pictures
    }
    where = {part: next((table.path for table in tables if table.part == part), tables[0].path) for part in parts}
    notes = [f"labels: {listed(table.path for table in tables)}", *(note for table in tables for note in table.notes)]
    return Layout(inventory.root.resolve().name, parts, where, "in no row of the label table", notes)


def _by_path(pictures: Iterable[Path]) -> list[Path]:
    return sorted(set(pictures), key=lambda path: path.parts)


def _in_order(labels: Iterable[str]) -> list[str]:
    """Labels sorted by name, or as numbers if they all are."""
    labels = list(labels)
    return sorted(labels, key=int if all(map(_is_number, labels)) else str)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


class _Names:
    """Finds the picture that an entry of a table means."""

    def __init__(self, inventory: Inventory):
        self.root = inventory.root
        self.paths = {path.relative_to(self.root).as_posix(): path for path in inventory.pictures()}
        self.by_name: defaultdict[str, list[Path]] = defaultdict(list)
        for path in self.paths.values():
            for name in (path.name, path.stem):
                self.by_name[name].append(path)

    def fitting(self, entry: str, table: Path, part: str | None) -> list[Path]:
        """The pictures that an entry may mean. part: of the table; train.csv means train/1.jpg, not test/1.jpg."""
        name = PurePosixPath(entry.replace("\\", "/"))
        beside = PurePosixPath(table.parent.relative_to(self.root).as_posix())
        for folder in (beside, PurePosixPath()):
            found = self.paths.get(str(folder / name))
            if found is not None:
                return [found]
        alike = self.by_name.get(name.name, [])
        found_below = [path for path in alike if path.as_posix().endswith(f"/{name}")] or alike
        inner = [at for at in found_below if part in map(part_of, at.relative_to(self.root).parts[:-1])]
        return inner or found_below if part else found_below

    def are_meant(self, entries: Iterable[str], table: Path, part: str | None) -> int:
        """How many entries are names of pictures. A number that several pictures have as their name is none."""
        count = 0
        for entry in entries:
            found = self.fitting(entry, table, part) if entry else []
            count += len(found) == 1 or (len(found) > 1 and Path(entry).suffix.lower() in SUFFIXES)
        return count

    def find(self, entry: str, table: Path, part: str | None) -> Path | None:
        """The picture that an entry means; None if there is none. Raises ScratchvitError if several have the name."""
        found = self.fitting(entry, table, part)
        if len(found) > 1:
            raise ScratchvitError(
                f"{printable(table)}: which picture is {printable(entry)}? There are {listed(found)}: give the folder"
            )
        return found[0] if found else None


def _read(path: Path, names: _Names) -> _Table | None:
    """A table; None if no column of it names pictures, or nothing else is in it."""
    rows = [row for _, row in read_rows(path)]
    if not rows or len(rows[0]) < 2:
        return None
    part = next((at for at in (part_of(path.stem), part_of(path.parent.name)) if at), None)

    has_header = not names.are_meant(rows[0], path, part)
    head, body = (rows[0], rows[1:]) if has_header else ([], rows)
    width = len(rows[0])
    ragged = next((number for number, row in enumerate(body, 1 + has_header) if len(row) != width), None)
    counts = [names.are_meant((row[at] for row in body if len(row) == width), path, part) for at in range(width)]
    column = max(range(width), key=lambda at: counts[at])
    if not body or counts[column] < max(1, FOUND * len(body)):
        return None
    if ragged is not None:
        wrong = len(rows[ragged - 1])
        raise ScratchvitError(f"{printable(path)}: row {ragged} has {counted(wrong, 'column')}, the first has {width}")

    label = _labels(path, head, body, column)
    if label is None:
        return None
    split = next((at for at, name in enumerate(head) if name.lower() in SPLITS and at != column), None)
    if split is not None and not all(part_of(row[split]) for row in body):
        split = None
    table = _Table(path, part)
    missing, unlabelled = [], []
    for row in body:
        picture, text = names.find(row[column], path, part), label(row)
        if picture is None:
            missing.append(row[column])
        elif not text:
            unlabelled.append(row[column])
        else:
            table.rows.append((picture, text, part_of(row[split]) if split is not None else None))
    if missing:
        table.notes.append(f"{printable(path)}: missing pictures: {len(missing):,} ({listed(missing)})")
    if unlabelled:
        table.notes.append(f"{printable(path)}: pictures without a label: {len(unlabelled):,} ({listed(unlabelled)})")
    return table


def _labels(
    path: Path, head: Sequence[str], body: Sequence[Sequence[str]], file: int
) -> Callable[[Sequence[str]], str] | None:
    """A function from a row to its label, "" if it has none; None if the table has no other column."""
    others = [at for at in range(len(body[0])) if at != file]
    called = {name.lower(): at for at, name in enumerate(head) if at != file}
    column = next((called[name] for name in LABELS if name in called), None)
    if column is None and len(others) == 1:
        column = others[0]
    if column is not None:
        if all(part_of(row[column]) for row in body) and len(others) == 1:
            return None     # only says which split a picture is in
        return lambda row: row[column]

    marks = [at for at in others if all(row[at] in ("0", "1", "0.0", "1.0") for row in body)]
    sums = Counter(sum(float(row[at]) for at in marks) for row in body)
    if head and len(marks) > 1 and set(sums) == {1.0}:
        return lambda row: next(head[at] for at in marks if float(row[at]) == 1)
    if head and len(marks) > 1 and len(marks) == len(others):
        raise ScratchvitError(
            f"{printable(path)}: {len(body) - sums[1.0]:,} of its {counted(len(body), 'picture')} belong to no class "
            "or to several: a classifier is trained with one class for each"
        )
    columns = listed(head[at] for at in others) if head else f"{counted(len(others), 'column')} without a name"
    raise ScratchvitError(f"{printable(path)}: which column has the label ({columns})? Name it label in the first row")
