"""Texts with classes, read from the user's tables."""

from __future__ import annotations

import hashlib
import os
import re
import statistics
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Int32

from loopax.data.classes import MAX_CLASSES, class_order
from loopax.data.columns import Columns
from loopax.data.description import alike, described, unlabelled
from loopax.data.files import as_path, fault, reporting
from loopax.data.texts.columns import find_columns, split_column
from loopax.data.texts.parts import tables_of
from loopax.data.texts.tables import Row, TextTable, trimmed
from loopax.data.words import abridged, brief
from loopax.errors import ConfigError, DataError

_SAMPLE = 1000
"""Rows by which columns are chosen."""
_FEW_CLASSES = 20
_NOTHING = ("none", "nan", "na", "n/a", "null")
"""What tables write for nothing, in small letters."""
_ONE_COLUMN = Columns(("text",))


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts, or pairs of texts, with their classes.

    Attributes:
        rows: of each example its text, or its two.
        labels: the class of each, int32 `(examples,)`, -1 where it is not given.
        class_names: the name of each class, in the order of the labels.
        groups: what each belongs to, such as a document or an author, "" for nothing; None where
            there is no such column.
        name: what it is called in messages.
        source: what it was read from, in words.
        columns: which column was which.
        notes: what to know of how it was read, in words.

    Raises:
        DataError: the lengths differ.
    """

    rows: Sequence[tuple[str, ...]]
    labels: Int32[np.ndarray, " examples"]
    class_names: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    name: str = "texts"
    source: str = ""
    columns: Columns = _ONE_COLUMN
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.rows)
        if len(self.labels) != n or (self.groups is not None and len(self.groups) != n):
            raise DataError(f"{self.name}: texts, labels and groups differ in length")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def description(self) -> str:
        """What was found, in one line, for people to see whether it was read as they meant it."""
        return described(self.name, self.source, _facts(self))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over texts, labels, names of classes and groups: the identity of the data."""
        digest = hashlib.sha256()
        for words in (*self.rows, self.class_names, self.groups or ()):
            # With their lengths, so that no two different lists are written alike.
            digest.update(b"%d;" % len(words))
            for word in words:
                encoded = word.encode()
                digest.update(b"%d:" % len(encoded) + encoded)
        digest.update(np.ascontiguousarray(self.labels, "<i4").data)
        return digest.hexdigest()

    def subset(self, chosen: Sequence[int] | np.ndarray) -> Texts:
        """The examples at these positions, in this order."""
        groups = None if self.groups is None else tuple(self.groups[index] for index in chosen)
        return replace(
            self,
            rows=[self.rows[index] for index in chosen],
            labels=self.labels[np.asarray(chosen, np.intp)],
            groups=groups,
        )


def _facts(texts: Texts) -> Iterator[str]:
    """How many texts there are, how they are labelled, and how long they are."""
    kind = "texts" if len(texts.columns.text) == 1 else "pairs"
    yield f"{len(texts):,} {kind}"
    yield from texts.notes
    if empty := sum(not all(map(str.strip, row)) for row in texts.rows):
        yield f"{empty:,} with an empty text"
    if names := texts.class_names:
        counts = np.bincount(texts.labels[texts.labels >= 0], minlength=len(names))
        listed = abridged(f"{brief(name)} {n:,}" for name, n in zip(names, counts, strict=True))
        yield f"{len(names):,} classes ({listed})"
        yield from alike(names)
        if words := [repr(name) for name in names if name.casefold() in _NOTHING]:
            said = ", ".join(words)
            yield f"labels that are classes here: {said} (remove their rows if they mean nothing)"
        yield from unlabelled(texts.labels)
    if texts.groups is not None:
        yield f"{len(set(texts.groups) - {''}):,} groups"
    if lengths := [sum(map(len, row)) for row in texts.rows]:
        yield f"{statistics.median_low(lengths):,} characters in the median"
        yield f"{max(lengths):,} at most"


def read_texts(path: str | os.PathLike[str], **options: Any) -> Texts:
    """Texts and their classes from tables that are one part; else as `read_text_parts`.

    Raises:
        ConfigError, DataError: as `read_text_parts`; or the path holds several parts.
    """
    parts = read_text_parts(path, **options)
    if len(parts) > 1:
        raise fault(
            path,
            f"holds the parts {', '.join(parts)}; give the path of one, or a pattern for its files",
        )
    return next(iter(parts.values()))


def read_text_parts(
    path: str | os.PathLike[str],
    *,
    text: Sequence[str] = (),
    label: str | None = None,
    group: str | None = None,
    class_names: Sequence[str] | None = None,
    labelled: bool = True,
) -> dict[str, Texts]:
    """Texts and their classes from tables; `Texts.description` says what was found.

    `path` is CSV, TSV, JSON lines, a JSON array, Parquet or Arrow, as `read_table` reads it; a
    pattern (`reviews-*.csv`); or a folder of such files, as `find_shards` puts them together: that
    of `datasets.save_to_disk`, or a snapshot of the Hugging Face hub. All have the same columns.

    Columns that are not named here are found by usual names (`text`, `review`, `premise` and
    `hypothesis`; `label`, `category`), else by their first 1,000 rows: texts are the strings that
    are by far the longest, labels the column with few different values.

    Labels may be strings, numbers or booleans; 1.0 is 1, True is true, and spaces and invisible
    characters around them are nothing. Classes are in the order of their numbers if all are
    numbers, as Hugging Face's metadata have it in Parquet, otherwise sorted. A text may be empty
    (null is), which `description` counts. Rows are never left out, so that predictions line up
    with them.

    Args:
        path: the file, the folder or the pattern.
        text: the column of texts, or the two of pairs.
        label: the column of labels.
        group: the column of what a row belongs to, which `split_texts` keeps together; `group` or
            `movie` if there is one.
        class_names: the classes that may occur, such as those of the data to train on.
        labelled: every row must have a label. Otherwise they are read only from a column that is
            given, and may be missing.

    Returns:
        The texts of each part (`train`, `test`, ...), or of a whole that is called "", in the order
        of the files. The first of them says what columns and classes there are.

    Raises:
        ConfigError: an argument cannot work, or pyarrow is not installed for Parquet.
        DataError: a file is damaged, or no such table; it is not clear which files or columns are
            meant; a label is missing or no class; an open quote swallows rows with labels; without
            `class_names`, there is but one class, or almost as many as rows.
    """
    if len(text) > 2 or isinstance(text, str):
        raise ConfigError(f"text is {text!r}; it must be one column, or two, as a sequence")
    if class_names is not None and len(set(class_names)) != len(class_names):
        raise ConfigError(f"class_names are {', '.join(class_names)}; they must differ")
    parts: dict[str, Texts] = {}
    given, known = Columns(tuple(text), label, group), class_names
    for part, tables in tables_of(path).items():
        parts[part] = found = _read(tables, path, part, given, known, labelled)
        given = found.columns
        known = found.class_names if labelled else class_names
    return parts


def _read(
    tables: Sequence[TextTable],
    path: str | os.PathLike[str],
    part: str,
    given: Columns,
    class_names: Sequence[str] | None,
    labelled: bool,
) -> Texts:
    """The texts of tables that follow each other."""
    first = tables[0]
    sample = list(islice((row for table in tables for row in table.rows(None)), _SAMPLE))
    if not sample:
        raise fault(first.path, "holds no rows of data; there must be at least one")
    columns = find_columns(first, sample, given, labelled=labelled)
    reader = _Reader(path, first, columns, labelled, class_names)
    for reader.table in tables:
        for row in reader.table.rows([*columns.text, *filter(None, columns[1:])]):
            reader.add(row)
    labels, names = reader.numbered()
    reader.require_plausible(labels, names)
    notes = reader.notes()
    if (split := split_column(sample, columns)) is not None:
        notes.append(f"column {split!r} not looked at")
    files = f" in {len(tables):,} files" if len(tables) > 1 else ""
    return Texts(
        reader.rows,
        labels,
        names,
        groups=None if columns.group is None else tuple(reader.groups),
        name=f"{as_path(path).name} {part}".rstrip(),
        source=", ".join([f"{first.kind}{files}", *_roles(columns)]),
        columns=columns,
        notes=tuple(notes),
    )


class _Reader:
    """Collects the rows of a table; `chosen` are the classes that the caller knows."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        table: TextTable,
        columns: Columns,
        labelled: bool,
        chosen: Sequence[str] | None,
    ) -> None:
        self.path, self.table, self.columns = path, table, columns
        self.labelled, self.chosen = labelled, chosen
        self.declared = table.class_names.get(columns.label or "", ())
        known = self.declared if chosen is None else chosen
        self.is_open = chosen is None and not self.declared
        self.classes = {name: number for number, name in enumerate(known)}
        self.rows: list[tuple[str, ...]] = []
        self.labels: list[int] = []
        self.groups: list[str] = []
        self.lines = self.most_lines = 0
        self.swallowed: list[tuple[str, list[dict[str, str]]]] = []

    def add(self, row: Row) -> None:
        """Adds a row, after a check of its cells."""
        self.lines += row.lines
        self.most_lines = max(self.most_lines, row.lines)
        if inner := self.table.inner_rows(row):
            self.swallowed.append((self.table.where(row), inner))
        for column in self.columns.text:
            if column not in row.cells:
                raise fault(
                    self.table.where(row),
                    f"has no {column!r}; every row needs one, null or empty where there is no text",
                )
        self.rows.append(tuple(self._string(row, column) or "" for column in self.columns.text))
        self.labels.append(-1 if self.columns.label is None else self._label(row))
        if self.columns.group is not None:
            self.groups.append(self._string(row, self.columns.group) or "")

    def _label(self, row: Row) -> int:
        """The number of the class of a row, in the order in which classes were found."""
        column = self.columns.label or ""
        name = _as_label(self._string(row, column))
        if name is None and self.labelled:
            raise fault(
                self.table.where(row), f"has no label in {column!r}; give it one, or remove the row"
            )
        if name is None:
            return -1
        if self.declared and re.fullmatch(r"\d+", name) and int(name) < len(self.declared):
            name = self.declared[int(name)]
        if self.is_open:
            self.classes.setdefault(name, len(self.classes))
            if len(self.classes) > MAX_CLASSES:
                raise self._fault_of(column, f"holds more than {MAX_CLASSES:,} different labels")
        if name not in self.classes:
            raise fault(
                self.table.where(row),
                f"the label {brief(name)!r} in {column!r} is none of the "
                f"{len(self.classes):,} classes: {abridged(map(brief, self.classes))}",
            )
        return self.classes[name]

    def _string(self, row: Row, column: str) -> str | None:
        """A cell as a string; None for null."""
        cell: Any = row.cells.get(column)
        if cell is None or cell != cell:  # NaN is what pandas writes for nothing.
            return None
        if isinstance(cell, bytes):
            with reporting(self.table.where(row), f"{column!r} holds bytes that are not UTF-8"):
                return cell.decode()
        if isinstance(cell, str):
            if not cell.isascii():
                with reporting(self.table.where(row), f"{column!r} holds what is no text"):
                    cell.encode()  # half of a surrogate pair, as JSON can have it
            return cell
        if isinstance(cell, bool):
            return str(cell).lower()
        if isinstance(cell, int | float):
            return str(int(cell) if isinstance(cell, float) and cell.is_integer() else cell)
        raise fault(
            self.table.where(row),
            f"{column!r} is a {type(cell).__name__}; it must be a string or a number",
        )

    def numbered(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """The labels, int32 `(rows,)`, and the names of the classes in their natural order."""
        labels, found = np.array(self.labels, np.int32), tuple(self.classes)
        if not self.is_open:
            return labels, found
        names = tuple(sorted(found, key=class_order(found)))
        places = {name: place for place, name in enumerate(names)}
        # The last is where -1 leads.
        return np.array([*map(places.get, found), -1], np.int32)[labels], names

    def require_plausible(self, labels: np.ndarray, names: Sequence[str]) -> None:
        """Refuses data that was probably not read as it was meant.

        Such as a row most of whose lines are rows with labels that others have: two at least, as
        one could be a sentence with a comma.
        """
        label = self.columns.label or ""
        for where, rows in self.swallowed:
            inner = [_as_label(row.get(label)) for row in rows]
            if len(rows) > 1 and all(name in self.classes for name in inner):
                raise fault(
                    where,
                    f"a quote opens a cell that holds {len(rows):,} whole lines like other rows; "
                    "double a quote that is no quotation of the cell, or remove it (if they are "
                    "one text, save the table as JSON lines)",
                )
        if not any(each.strip() for row in self.rows for each in row):
            raise self._fault_of(self.columns.text[0], "holds only empty texts")
        found = np.unique(labels)
        if not self.labelled or self.chosen is not None:
            return
        if len(found) < 2:
            only = brief(names[found[0]])
            raise self._fault_of(
                label, f"holds only the label {only!r}; there must be at least two classes"
            )
        if len(found) > max(_FEW_CLASSES, len(labels) // 2):
            raise self._fault_of(
                label,
                f"holds {len(found):,} different labels in {len(labels):,} rows; classes must "
                "come again, so name the column (label) if another one has them",
            )

    def notes(self) -> list[str]:
        """What to know of how the table was read, in words."""
        lines, rows, most = self.lines, len(self.rows), self.most_lines
        said = f"{lines:,} lines, {rows:,} rows; the longest row has {most:,} lines"
        return [said] if lines > rows else []

    def _fault_of(self, column: str, what: str) -> DataError:
        return fault(self.path, f"column {column!r} {what}")


def _as_label(cell: str | None) -> str | None:
    """The name of a label's class; numbers and booleans have one spelling each."""
    name = trimmed(unicodedata.normalize("NFC", cell or ""))
    if name.lower() in ("true", "false"):
        return name.lower()
    return re.sub(r"^([-+]?\d+)\.0+$", r"\1", name) or None


def _roles(columns: Columns) -> Iterator[str]:
    kind = "texts" if len(columns.text) == 1 else "pairs"
    yield f"{kind} in {' and '.join(map(repr, columns.text))}"
    if columns.label is not None:
        yield f"labels in {columns.label!r}"
    if columns.group is not None:
        yield f"groups in {columns.group!r}"
