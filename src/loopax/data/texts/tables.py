"""Reads CSV, TSV, JSON, Parquet and Arrow as rows of named cells, one at a time."""

from __future__ import annotations

import bz2
import csv
import functools
import gzip
import itertools
import json
import os
import re
import sys
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, NamedTuple

import numpy as np

from loopax.data.files import fault, is_foreign, open_file, reporting
from loopax.data.parquet import ARROW, declared_classes, open_table
from loopax.data.records import ARRAY_RECORD, declared_names, encoded_records
from loopax.data.words import shown
from loopax.errors import DataError

_FORMATS = {
    ".csv": "CSV",
    **dict.fromkeys((".tsv", ".tab"), "TSV"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "JSON"),
    ".parquet": "Parquet",
    ARROW: "Arrow",
    **dict.fromkeys(ARRAY_RECORD, "ArrayRecord"),
}
_BINARY = ("Parquet", "Arrow", "ArrayRecord")
_DELIMITERS = {",": "CSV", ";": "CSV with ;", "\t": "TSV", "|": "CSV with |"}
_PARQUET_ROWS = 1024

File = str | os.PathLike[str]
Lines = Callable[[], Iterator[str]]
_Record = tuple[int, list[str], int]
"""The first line from 1, the cells, and how many lines."""


class Row(NamedTuple):
    """The cells of a row by column; `number` is its first line from 1, or its position from 0."""

    number: int
    cells: Mapping[str, Any]
    lines: int = 1


@dataclass(frozen=True)
class TextTable:
    """A file as rows.

    Attributes:
        path: the file.
        kind: what it is, in words.
        rows: reads the rows anew; of Parquet only these columns, or with None all.
        unit: what `Row.number` counts: `line` or `row`.
        has_header: the names of the columns are a line that could also have been data.
        columns: their names, where the file says them once and not in each row.
        class_names: the names that the file itself gives to the integers of a column.
        delimiter: what is between cells, "" where lines do not end by themselves.
    """

    path: File
    kind: str
    rows: Callable[[Sequence[str] | None], Iterator[Row]]
    unit: str = "line"
    has_header: bool = False
    columns: tuple[str, ...] = ()
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    delimiter: str = ""

    def inner_rows(self, row: Row) -> list[dict[str, str]]:
        """The lines inside a row of many lines, read as rows, if most of them could be rows.

        In them a quote was left open, or a cell quotes a table.
        """
        if row.lines < 4 or not self.delimiter:
            return []
        columns = list(row.cells)
        text = self.delimiter.join(row.cells.values())
        lines = [line for line in re.split(r"\r\n|\r|\n", text)[1:-1] if line]
        split = [line.split(self.delimiter) for line in lines]
        whole = [cells for cells in split if len(cells) == len(columns)]
        rows = [dict(zip(columns, cells, strict=True)) for cells in whole]
        return rows if 2 * len(rows) > len(lines) else []

    def where(self, row: Row) -> str:
        """The row as messages name it."""
        return f"{shown(self.path)}: {self.unit} {row.number}"


def read_table(path: File) -> TextTable:
    """The rows of a CSV, TSV, JSON, Parquet or Arrow file, which its name tells apart.

    CSV is as RFC 4180 has it, delimited by `,`, `;` or tab, whichever makes the most columns of the
    first line. Blank lines are no rows. In what is delimited by tabs quotes are ordinary characters
    where as quotes they would make no sense, or make one row of several that are whole.

    JSON is an object on each line, or an array of objects. Text is UTF-8, or UTF-16 with a byte
    order mark, and may be packed by gzip or bzip2, or alone in a zip file. Cells are strings, or
    from other formats than CSV whatever those hold; a list of one element is that element, an
    empty one null.

    Raises:
        DataError: the file is none of these or damaged, or two columns have one name; its rows
            raise it where they are read.
        ConfigError: it is Parquet and pyarrow is not installed.
    """
    name, packing = _inner_name(path)
    kind = _FORMATS.get(Path(name).suffix)
    if kind is None or (kind in _BINARY and packing):
        raise fault(
            path,
            f"its name must end in {', '.join(_FORMATS)}; those of text also with .gz or .bz2 "
            "behind, or in .zip with one such file in it; save spreadsheets as CSV in UTF-8",
        )
    lines = functools.partial(_lines, path, packing)
    if kind == "ArrayRecord":
        return _record_table(Path(path))
    if kind in _BINARY:
        return _columnar_table(path, kind)
    if kind == "JSON":
        return _json_table(path, lines)
    return _delimited_table(path, lines, "\t" if kind == "TSV" else _delimiter(lines))


def _inner_name(path: File) -> tuple[str, str]:
    """The name that says what a file is, in small letters, and how it is packed."""
    name = Path(path).name.lower()
    packing = next((each for each in _UNPACKERS if each and name.endswith(each)), "")
    if packing == ".zip":
        with open_file(path) as file:
            return _only_member(zipfile.ZipFile(file)).filename.lower(), packing
    return name.removesuffix(packing), packing


def _only_member(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """The only file in a zip file, apart from what other programs leave there."""
    found = [
        each
        for each in archive.infolist()
        if not each.is_dir() and not any(map(is_foreign, Path(each.filename).parts))
    ]
    if len(found) != 1:
        held = ", ".join(each.filename for each in found[:3]) or "nothing"
        raise fault(
            archive.filename or "zip file",
            f"holds {len(found)} files ({held}); it must hold one table: unpack it, and give the "
            "folder or a pattern",
        )
    return found[0]


def _unzipped(file: BinaryIO) -> IO[bytes]:
    archive = zipfile.ZipFile(file)
    return archive.open(_only_member(archive))


_UNPACKERS: Mapping[str, Callable[[BinaryIO], Any]] = {
    "": lambda file: file,
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".zip": _unzipped,
}
_PLAIN = tuple(ending for ending, kind in _FORMATS.items() if kind not in _BINARY)
TABLES = (*_FORMATS, *(f"{form}{packing}" for form in _PLAIN for packing in (".gz", ".bz2")))
"""What the names of tables end in."""


def _lines(path: File, packing: str) -> Iterator[str]:
    """The lines of a text file with their ends."""
    with open_file(path) as file:
        stream = _UNPACKERS[packing](file)
        is_wide = stream.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff")
        # Without translation, because a carriage return inside quotes belongs to the cell.
        text = TextIOWrapper(stream, "utf-16" if is_wide else "utf-8-sig", newline="")
        number = 1
        try:
            for number, line in enumerate(text, 2):
                if "\0" in line:
                    what = "holds a NUL character; text must be UTF-8, or UTF-16 with a mark"
                    raise fault(f"{shown(path)}: line {number - 1}", what)
                yield line
        except UnicodeDecodeError as error:
            # What could not be decoded begins in the line that was to come.
            number += error.object[: error.start].count(b"\n")
            raise fault(
                shown(path) if is_wide else f"{shown(path)}: line {number}",
                f"is not {'UTF-16, as it begins' if is_wide else 'UTF-8'} ({error.reason}, "
                f"0x{error.object[error.start]:02x}); save the file as UTF-8",
            ) from error


def _delimiter(lines: Lines) -> str:
    """The delimiter that splits the first line into the most columns."""

    def columns(delimiter: str) -> int:
        try:
            reader = csv.reader(lines(), delimiter=delimiter, strict=True)
            return len(next(filter(None, reader), []))
        except csv.Error:
            return 0

    return max(_DELIMITERS, key=columns)


def _delimited_table(path: File, lines: Lines, delimiter: str) -> TextTable:
    read = functools.partial(_records, path, lines, delimiter)
    is_plain = delimiter == "\t" and _is_plain(read, lines)
    quoting: Literal[0, 3] = csv.QUOTE_NONE if is_plain else csv.QUOTE_MINIMAL
    number, header, _ = next(read(quoting), (0, [], 0))
    if not header:
        raise fault(path, "is empty; its first line must name the columns")
    names = [name or f"column {index}" for index, name in enumerate(map(trimmed, header), 1)]
    _require_distinct(f"{shown(path)}: line {number}", names)

    def rows(_: Sequence[str] | None) -> Iterator[Row]:
        for number, cells, count in itertools.islice(read(quoting), 1, None):
            if len(cells) != len(names):
                raise fault(
                    f"{shown(path)}: line {number}",
                    f"has {len(cells)} cells where the header has {len(names)}; a cell that holds "
                    f"{delimiter!r} must stand in quotes",
                )
            yield Row(number, dict(zip(names, cells, strict=True)), count)

    return TextTable(
        path,
        _DELIMITERS[delimiter],
        rows,
        has_header=True,
        columns=tuple(names),
        delimiter=delimiter,
    )


def _is_plain(read: Callable[[Literal[0, 3]], Iterator[_Record]], lines: Lines) -> bool:
    """Whether quotes in a TSV are ordinary characters: only then every line is a whole row.

    As quotes they fail, or swallow rows: each line is a whole row, and there are fewer records.
    """
    if not any('"' in line for line in lines()):
        return False
    if len({line.count("\t") for line in lines() if line.strip("\r\n")}) != 1:
        return False
    try:
        quoted = sum(1 for _ in read(csv.QUOTE_MINIMAL))
    except DataError:
        return True
    return quoted < sum(1 for _ in read(csv.QUOTE_NONE))


def _require_distinct(where: str, names: Sequence[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise fault(where, f"names {count} columns {name!r}; their names must differ")


def trimmed(text: str) -> str:
    """A name without the spaces and the invisible characters around it."""
    if text.isascii():
        return text.strip()
    return text.strip("".join(c for c in text if c.isspace() or unicodedata.category(c) == "Cf"))


def _records(path: File, lines: Lines, delimiter: str, quoting: Literal[0, 3]) -> Iterator[_Record]:
    """The records of the file; blank lines are skipped, and quoted line ends belong to a cell."""
    reader = csv.reader(lines(), delimiter=delimiter, quoting=quoting, strict=True)
    while True:
        before = reader.line_num
        limit = csv.field_size_limit(sys.maxsize)  # of the whole process
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise fault(
                f"{shown(path)}: line {before + 1}",
                f"its quotes cannot be understood ({error}); a cell that begins with a quote must "
                "end with one, and those inside must be doubled",
            ) from error
        finally:
            csv.field_size_limit(limit)
        if cells is None:
            return
        if cells:
            yield before + 1, cells, reader.line_num - before


def _json_table(path: File, lines: Lines) -> TextTable:
    first = next((line for line in lines() if not line.isspace()), "")
    if not first:
        raise fault(path, "is empty; it must hold a JSON object on each line")
    if not first.lstrip().startswith("["):
        return TextTable(path, "JSON lines", lambda _: _json_line_rows(path, lines))
    with reporting(path, "cannot be read as a JSON array"):
        items = json.loads("".join(lines()))
    return TextTable(
        path,
        "JSON",
        lambda _: (_json_row(path, "row", *item) for item in enumerate(items)),
        unit="row",
    )


def _json_line_rows(path: File, lines: Lines) -> Iterator[Row]:
    what = "cannot be read as JSON (an object on each line, or an array of them)"
    for number, line in enumerate(lines(), 1):
        if not line.isspace():
            with reporting(f"{shown(path)}: line {number}", what):
                item = json.loads(line)
            yield _json_row(path, "line", number, item)


def _json_row(path: File, unit: str, number: int, item: Any) -> Row:
    if not isinstance(item, dict):
        raise fault(
            f"{shown(path)}: {unit} {number}",
            'is no JSON object; it must be like {"text": "...", "label": "..."}',
        )
    # Tools that label texts write a list of labels, also where there is one.
    return Row(number, {name: _alone(cell) for name, cell in item.items()})


def _alone(cell: Any) -> Any:
    """Unwraps a list of one element; an empty list is None."""
    if cell == []:
        return None
    if isinstance(cell, list) and len(cell) == 1 and not isinstance(cell[0], list | dict):
        return cell[0]
    return cell


def _columnar_table(path: File, kind: str) -> TextTable:
    with open_table(path) as table:
        schema = table.schema
        classes = declared_classes(path, schema)
        _require_distinct(shown(path), schema.names)

    def rows(columns: Sequence[str] | None) -> Iterator[Row]:
        with open_table(path) as table:
            batches = table.batches(_PARQUET_ROWS, columns)
            items = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, item in enumerate(items):
                yield Row(number, {name: _alone(cell) for name, cell in item.items()})

    return TextTable(path, kind, rows, unit="row", columns=tuple(schema.names), class_names=classes)


def _record_table(path: Path) -> TextTable:
    source, names = encoded_records([path]), declared_names(path)

    def rows(_: Sequence[str] | None) -> Iterator[Row]:
        for number in range(len(source)):
            cells = source[number].items()
            yield Row(
                number,
                {n: cell.item() if isinstance(cell, np.generic) else cell for n, cell in cells},
            )

    classes = {"label": names} if names else {}
    return TextTable(path, "ArrayRecord", rows, unit="row", class_names=classes)
