"""Tables of people's own: CSV, TSV, JSON and Parquet as rows of named cells, one at a time."""

from __future__ import annotations

import bz2
import csv
import functools
import gzip
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, NamedTuple, cast

from loopax.data.parquet import declared_features, open_parquet, require_plausible_sizes
from loopax.data.reading import blaming, fault, open_file, shown

MAX_LINE = 2**26
"""Characters of a line, or of a cell that spans many; beyond this it is taken for damage."""

_FORMATS: Mapping[str, Literal["CSV", "TSV", "JSON", "Parquet"]] = {
    ".csv": "CSV",
    ".tsv": "TSV",
    ".tab": "TSV",
    ".jsonl": "JSON",
    ".ndjson": "JSON",
    ".json": "JSON",
    ".parquet": "Parquet",
}
_UNPACKERS: Mapping[str, Callable[..., Any]] = {
    "": lambda file: file,
    ".gz": gzip.open,
    ".bz2": bz2.open,
}
_DELIMITERS = {",": "CSV", ";": "CSV with ;", "\t": "TSV"}
_PARQUET_ROWS = 1024

File = str | os.PathLike[str]
Lines = Callable[[], Iterator[str]]


class Row(NamedTuple):
    """The cells of a row by column; `number` is its line from 1, or its position from 0."""

    number: int
    cells: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A file as rows.

    Attributes:
        path: the file.
        kind: what it is, in words.
        rows: its rows, read as they are asked for, once.
        unit: what `Row.number` counts: `line` or `row`.
        has_header: whether the names of the columns are a line that could also have been data.
        class_names: the names that the file itself gives to the integers of a column.
    """

    path: File
    kind: str
    rows: Iterator[Row]
    unit: str = "line"
    has_header: bool = False
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def where(self, row: Row) -> str:
        """The row as messages name it."""
        return f"{shown(self.path)}: {self.unit} {row.number}"


def read_table(path: File) -> Table:
    """The rows of a CSV, TSV, JSON or Parquet file, which its name tells apart.

    CSV is as RFC 4180 has it, delimited by `,`, `;` or tab, whichever makes the most columns of the
    first line. In what is delimited by tabs quotes are ordinary characters where they would make
    no sense as quotes. JSON is an object on each line, or an array of objects. Text is UTF-8, or
    UTF-16 with a byte order mark, and may be packed by gzip or bzip2. Cells are strings, or from
    JSON and Parquet whatever those hold.

    Raises:
        DataError: the file is none of these or damaged; its rows raise it where they are read.
        ConfigError: it is Parquet and pyarrow is not installed.
    """
    name = Path(path).name.lower()
    packing = next((each for each in (".gz", ".bz2") if name.endswith(each)), "")
    kind = _FORMATS.get(Path(name.removesuffix(packing)).suffix)
    with open_file(path):  # A folder is a worse fault than a name.
        if kind is None or (kind == "Parquet" and packing):
            raise fault(
                path,
                f"its name must end in {', '.join(_FORMATS)}, all but the last also with .gz or "
                ".bz2 behind",
            )
    lines = functools.partial(_lines, path, packing)
    match kind:
        case "Parquet":
            return _parquet_table(path)
        case "JSON":
            return _json_table(path, lines)
        case _:
            return _delimited_table(path, lines, "\t" if kind == "TSV" else _delimiter(lines))


def _lines(path: File, packing: str) -> Iterator[str]:
    """The lines of a text file with their ends."""
    with open_file(path) as file:
        stream = _UNPACKERS[packing](file)
        has_mark = stream.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff")
        # Without translation, because a carriage return inside quotes belongs to the cell.
        text = TextIOWrapper(
            cast(IO[bytes], stream), "utf-16" if has_mark else "utf-8-sig", newline=""
        )
        for number in itertools.count(1):
            try:
                line = text.readline(MAX_LINE)
            except UnicodeDecodeError as error:
                raise _undecodable(path, packing, error) from error
            if not line:
                return
            if len(line) == MAX_LINE:
                raise fault(
                    f"{shown(path)}: line {number}",
                    f"is longer than {MAX_LINE:,} characters; a row must be shorter",
                )
            if "\0" in line:
                raise fault(
                    f"{shown(path)}: line {number}",
                    "holds a NUL character; text must be UTF-8, or UTF-16 with a byte order mark",
                )
            yield line


def _undecodable(path: File, packing: str, error: UnicodeDecodeError) -> Exception:
    """What the error says is relative to a block; this says where in the file it is."""
    advice = "save the file as UTF-8, or as UTF-16 with a byte order mark"
    if "utf-16" in error.encoding:
        return fault(path, f"begins as UTF-16 but is not ({error.reason}); {advice}")
    with open_file(path) as file:
        stream: BinaryIO = _UNPACKERS[packing](file)
        start = 0
        for number in itertools.count(1):
            line = stream.readline(4 * MAX_LINE)
            try:
                line.decode()
            except UnicodeDecodeError as found:
                return fault(
                    f"{shown(path)}: line {number}",
                    f"byte {start + found.start:,} of the text is 0x{line[found.start]:02x}, which "
                    f"is not UTF-8; {advice}",
                )
            if not line:
                break
            start += len(line)
    return fault(path, f"is not UTF-8 ({error.reason}); {advice}")


def _delimiter(lines: Lines) -> str:
    """That of which the first line has the most."""

    def columns(delimiter: str) -> int:
        try:
            reader = csv.reader(lines(), delimiter=delimiter, strict=True)
            return len(next(filter(None, reader), []))
        except csv.Error:
            return 0

    return max(_DELIMITERS, key=columns)


def _delimited_table(path: File, lines: Lines, delimiter: str) -> Table:
    # A limit of the process, which is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE))
    read = functools.partial(_delimited_rows, path, lines, delimiter)
    is_plain = delimiter == "\t" and _is_plain(read, lines)
    return Table(path, _DELIMITERS[delimiter], read(is_plain=is_plain), has_header=True)


def _is_plain(read: Callable[..., Iterator[Row]], lines: Lines) -> bool:
    """Whether all is well if quotes are ordinary characters, and only then."""
    try:
        for _ in read(is_plain=False):
            pass
    except ValueError:
        return len({line.count("\t") for line in lines() if line.strip("\r\n")}) == 1
    return False


def _delimited_rows(
    path: File, lines: Lines, delimiter: str, *, is_plain: bool = False
) -> Iterator[Row]:
    records = _records(path, lines, delimiter, csv.QUOTE_NONE if is_plain else csv.QUOTE_MINIMAL)
    number, header = next(records, (0, []))
    if not header:
        raise fault(path, "is empty; its first line must name the columns")
    names = [name.strip() or f"column {index}" for index, name in enumerate(header, 1)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise fault(
            f"{shown(path)}: line {number}", f"names the column {twice!r} twice; names must differ"
        )
    for number, record in records:
        if len(record) != len(names):
            raise fault(
                f"{shown(path)}: line {number}",
                f"has {len(record)} cells where the header has {len(names)}; a cell that holds "
                f"{delimiter!r} must stand in quotes",
            )
        yield Row(number, dict(zip(names, record, strict=True)))


def _records(
    path: File, lines: Lines, delimiter: str, quoting: Literal[0, 3]
) -> Iterator[tuple[int, list[str]]]:
    """What lies between line ends that are not in quotes, with the number of its first line."""
    reader = csv.reader(lines(), delimiter=delimiter, quoting=quoting, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise fault(
                f"{shown(path)}: line {number}",
                f"its quotes cannot be understood ({error}); a cell that begins with a quote must "
                "end with one, and those inside must be doubled",
            ) from error
        if record is None:
            return
        if record:
            yield number, record


def _json_table(path: File, lines: Lines) -> Table:
    first = next((line for line in lines() if not line.isspace()), "")
    if not first:
        raise fault(path, "is empty; it must hold a JSON object on each line")
    if not first.lstrip().startswith("["):
        return Table(path, "JSON lines", _json_line_rows(path, lines))
    with blaming(path, "cannot be read as a JSON array"):
        items = json.loads("".join(lines()))
    return Table(path, "JSON", _json_array_rows(path, items), unit="row")


def _json_line_rows(path: File, lines: Lines) -> Iterator[Row]:
    for number, line in enumerate(lines(), 1):
        if line.isspace():
            continue
        where = f"{shown(path)}: line {number}"
        with blaming(where, "cannot be read as JSON"):
            item = json.loads(line)
        yield Row(number, _as_object(where, item))


def _json_array_rows(path: File, items: list[Any]) -> Iterator[Row]:
    for number, item in enumerate(items):
        yield Row(number, _as_object(f"{shown(path)}: row {number}", item))


def _as_object(where: str, item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise fault(where, 'is no JSON object; it must be like {"text": "...", "label": "..."}')
    return item


def _parquet_table(path: File) -> Table:
    with open_parquet(path) as file:
        require_plausible_sizes(path, file.metadata)
        features = declared_features(path, file.schema_arrow.metadata or {})
        columns = [each.name for each in file.schema_arrow if _is_scalar(each.type)]
    names = {
        column: tuple(map(str, said["names"]))
        for column, said in features.items()
        if said.get("_type") == "ClassLabel" and isinstance(said.get("names"), list)
    }
    rows = _parquet_rows(path, columns)
    return Table(path, "Parquet", rows, unit="row", class_names=names)


def _parquet_rows(path: File, columns: list[str]) -> Iterator[Row]:
    if len(set(columns)) < len(columns):
        raise fault(path, f"names a column twice: {', '.join(map(repr, columns))}")
    with open_parquet(path) as file:
        batches = file.iter_batches(_PARQUET_ROWS, columns=columns) if columns else ()
        cells = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        yield from itertools.starmap(Row, enumerate(cells))


def _is_scalar(kind: Any) -> bool:
    """Whether cells of this type are strings, numbers or booleans."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    tests = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_integer,
        types.is_floating,
        types.is_boolean,
        types.is_null,
    )
    return any(test(kind) for test in tests)
