"""Texts with classes, from the user's own tables: what a text classifier learns from."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from loopax.data.classes import MAX_CLASSES, class_order
from loopax.data.columns import Columns
from loopax.data.description import described, facts_of_texts
from loopax.data.files import fault
from loopax.data.texts.columns import find_columns, split_column
from loopax.data.texts.tables import Row, Table, read_table, trimmed
from loopax.data.words import brief, ends
from loopax.errors import ConfigError, DataError

_SAMPLE = 1000
"""Rows by which columns are chosen."""
_FEW_CLASSES = 20
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
        return described(self.name, self.source, facts_of_texts(self))

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


def read_texts(
    path: str | os.PathLike[str],
    *,
    text: Sequence[str] = (),
    label: str | None = None,
    group: str | None = None,
    class_names: Sequence[str] | None = None,
    labelled: bool = True,
) -> Texts:
    """Texts and their classes from a table; `Texts.description` says what was found.

    `path` is CSV, TSV, JSON lines, a JSON array or Parquet, as `read_table` reads it. Columns that
    are not named here are found by usual names (`text`, `review`, `premise` and `hypothesis`;
    `label`, `category`), else by their first 1,000 rows: texts are the strings that are by far the
    longest, labels the column with few different values.

    Labels may be strings, numbers or booleans; 1.0 is 1, True is true, and spaces and invisible
    characters around them are nothing. Classes are in the order of their numbers if all are
    numbers, as Hugging Face's metadata have it in Parquet, otherwise sorted. A text may be empty
    (null is), which `description` counts. Rows are never left out, so that predictions line up
    with them; but where there must be labels, rows without any content at the end are, as
    spreadsheets write them.

    Args:
        path: the file.
        text: the column of texts, or the two of pairs.
        label: the column of labels.
        group: the column of what a row belongs to, which `split_texts` keeps together; `group` or
            `movie` if there is one.
        class_names: the classes there are, such as those of the data to train on; no others may
            occur.
        labelled: whether every row must have a label. Otherwise labels are read only from a column
            that is given, and may be missing.

    Returns:
        The texts in the order of the file.

    Raises:
        ConfigError: an argument has a value that cannot work, or it is Parquet and pyarrow is not
            installed.
        DataError: the file is damaged, or no such table; it is not clear which columns are meant;
            a label is missing or none of `class_names`; a quote was left open, so that a text
            holds rows with labels; without `class_names`, there is but one class, or almost as
            many as rows.
    """
    if len(text) > 2 or isinstance(text, str):
        raise ConfigError(f"text is {text!r}; it must be one column, or two, as a sequence")
    if class_names is not None and len(set(class_names)) != len(class_names):
        raise ConfigError(f"class_names are {', '.join(class_names)}; they must differ")
    table = read_table(path)
    sample = list(islice(table.rows, _SAMPLE))
    if not sample:
        raise fault(path, "holds no rows of data; there must be at least one")
    columns = find_columns(table, sample, Columns(tuple(text), label, group), labelled=labelled)
    names = tuple(class_names) if class_names is not None else None
    if names is None and columns.label is not None:
        names = table.class_names.get(columns.label)
    reader = _Reader(table, columns, names, labelled, split_column(sample, columns))
    for row in chain(sample, table.rows):
        reader.add(row)
    return reader.texts(chosen=class_names is not None)


class _Reader:
    """Collects the rows of a table."""

    def __init__(
        self,
        table: Table,
        columns: Columns,
        names: tuple[str, ...] | None,
        labelled: bool,
        split: str | None,
    ) -> None:
        self.table, self.columns, self.labelled, self.split = table, columns, labelled, split
        self.known = None if names is None else {name: at for at, name in enumerate(names)}
        self.declared = table.class_names.get(columns.label or "", ())
        self.found: dict[str, int] = {} if self.known is None else self.known
        self.rows: list[tuple[str, ...]] = []
        self.labels: list[int] = []
        self.groups: list[str] = []
        self.blank: list[Row] = []
        self.lines = self.most_lines = 0
        self.swallowed: list[tuple[str, list[dict[str, str]]]] = []

    def add(self, row: Row) -> None:
        """Adds a row; blank ones only when others follow, or where no labels are needed."""
        if self.labelled and self.table.has_header and not any(row.cells.values()):
            self.blank.append(row)
            return
        for each in (*self.blank, row):
            self._add(each)
        self.blank.clear()

    def _add(self, row: Row) -> None:
        self.lines += row.lines
        self.most_lines = max(self.most_lines, row.lines)
        if inner := self.table.inner_rows(row):
            self.swallowed.append((self.table.where(row), inner))
        self.rows.append(tuple(self._text(row, column) for column in self.columns.text))
        self.labels.append(-1 if self.columns.label is None else self._label(row))
        if self.columns.group is not None:
            self.groups.append(self._string(row, self.columns.group) or "")

    def texts(self, *, chosen: bool) -> Texts:
        """What was collected; `chosen` says that the classes are the caller's."""
        labels, names = np.array(self.labels, np.int32), tuple(self.found)
        if self.known is None:
            names = tuple(sorted(self.found, key=class_order(self.found)))
            places = {name: place for place, name in enumerate(names)}
            # The last is where -1 leads.
            labels = np.array([*map(places.get, self.found), -1], np.int32)[labels]
        self._require_no_swallowed_rows()
        if not any(each.strip() for row in self.rows for each in row):
            raise self._fault_of(self.columns.text[0], "holds only empty texts")
        if self.labelled and not chosen:
            self._require_classes(labels, names)
        return Texts(
            self.rows,
            labels,
            names,
            groups=None if self.columns.group is None else tuple(self.groups),
            name=Path(self.table.path).name,
            source=", ".join([self.table.kind, *_roles(self.columns)]),
            columns=self.columns,
            notes=tuple(self._notes()),
        )

    def _require_no_swallowed_rows(self) -> None:
        """Refuses a row most of whose lines are rows with labels that others have.

        Two at least: one could be a sentence with a comma.
        """
        for where, rows in self.swallowed:
            labels = [_as_label(row.get(self.columns.label or "")) for row in rows]
            if len(rows) > 1 and all(label in self.found for label in labels):
                raise fault(
                    where,
                    f"a quote opens a cell that holds {len(rows):,} whole lines like other rows; "
                    "double a quote that is no quotation of the cell, or remove it (if they are "
                    "one text, save the table as JSON lines)",
                )

    def _notes(self) -> Iterator[str]:
        if self.lines > len(self.rows):
            yield (
                f"{self.lines:,} lines, {len(self.rows):,} rows; the longest row has "
                f"{self.most_lines:,} lines"
            )
        if self.blank:
            yield f"{len(self.blank):,} blank rows at the end left out"
        if self.split is not None:
            yield f"column {self.split!r} not looked at"

    def _text(self, row: Row, column: str) -> str:
        if column not in row.cells:
            raise fault(
                self.table.where(row),
                f"has no {column!r}; every row needs one, null or empty where there is no text",
            )
        return self._string(row, column) or ""

    def _label(self, row: Row) -> int:
        column = self.columns.label or ""
        if (name := _as_label(self._string(row, column))) is None:
            if self.labelled:
                raise fault(
                    self.table.where(row),
                    f"has no label in {column!r}; give it one, or remove the row",
                )
            return -1
        if self.declared and re.fullmatch(r"\d+", name) and int(name) < len(self.declared):
            name = self.declared[int(name)]
        if self.known is None:
            if len(self.found) > MAX_CLASSES:
                raise self._fault_of(column, f"holds more than {MAX_CLASSES:,} different labels")
            return self.found.setdefault(name, len(self.found))
        if name not in self.known:
            raise fault(
                self.table.where(row),
                f"the label {brief(name)!r} in {column!r} is none of the "
                f"{len(self.known):,} classes: {ends(map(brief, self.known))}",
            )
        return self.known[name]

    def _string(self, row: Row, column: str) -> str | None:
        """A cell as a string; None for null."""
        cell: Any = row.cells.get(column)
        if cell is None or cell != cell:  # NaN is what pandas writes for nothing.
            return None
        if isinstance(cell, str):
            if not cell.isascii() and re.search("[\ud800-\udfff]", cell):
                raise fault(
                    self.table.where(row), f"{column!r} holds half of a surrogate pair, no text"
                )
            return cell
        if isinstance(cell, bytes):
            try:
                return cell.decode()
            except UnicodeDecodeError as error:
                raise fault(
                    self.table.where(row), f"{column!r} holds bytes that are not UTF-8 ({error})"
                ) from error
        if isinstance(cell, bool):
            return str(cell).lower()
        if isinstance(cell, float) and cell.is_integer():
            return str(int(cell))
        if isinstance(cell, int | float):
            return str(cell)
        kind = "a list" if isinstance(cell, list) else "an object"
        raise fault(self.table.where(row), f"{column!r} is {kind}; it must be a string or a number")

    def _require_classes(self, labels: np.ndarray, names: Sequence[str]) -> None:
        column = self.columns.label or ""
        found = np.unique(labels)
        if len(found) < 2:
            only = brief(names[found[0]])
            raise self._fault_of(
                column, f"holds only the label {only!r}; there must be at least two classes"
            )
        if len(found) > max(_FEW_CLASSES, len(labels) // 2):
            raise self._fault_of(
                column,
                f"holds {len(found):,} different labels in {len(labels):,} rows; classes must "
                "come again, so pass label= if another column has them",
            )

    def _fault_of(self, column: str, what: str) -> DataError:
        return fault(self.table.path, f"column {column!r} {what}")


def _as_label(cell: str | None) -> str | None:
    """A label as its class is called: one spelling for the many of numbers and booleans."""
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
