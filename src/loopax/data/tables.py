"""Tables of people's own: CSV, TSV, JSON and Parquet as rows of named cells, one at a time."""

from __future__ import annotations

import bz2
import csv
import functools
import gzip
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
_SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
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

    CSV is as RFC 4180 has it, delimited by `,`, `;` or tab: by what a first line `sep=;` names, as
    spreadsheets write it, else by whichever makes the most columns of the first line. Rows without
    any content at the end are left out. In what is delimited by tabs quotes are ordinary characters
    where as quotes they would make no sense, or make one row of several that are whole.

    JSON is an object on each line, or an array of objects. Text is UTF-8, or UTF-16 with a byte
    order mark, and may be packed by gzip or bzip2. Cells are strings, or from JSON and Parquet
    whatever those hold; a list of one element is that element.

    Raises:
        DataError: the file is none of these or damaged; its rows raise it where they are read.
        ConfigError: it is Parquet and pyarrow is not installed.
    """
    name = Path(path).name.lower()
    packing = next((each for each in (".gz", ".bz2") if name.endswith(each)), "")
    kind = _FORMATS.get(Path(name.removesuffix(packing)).suffix)
    with open_file(path):  # A folder is a worse fault than a name.
        if Path(name).suffix in _SPREADSHEETS:
            raise fault(path, "is a spreadsheet; save it as CSV in UTF-8")
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
            first = next(lines(), "")
            if said := re.fullmatch(r'"?sep=([,;\t|])"?[\r\n]*', first, re.IGNORECASE):
                skipping = functools.partial(_after_first, lines)
                return _delimited_table(path, skipping, said[1], skipped=1)
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


def _after_first(lines: Lines) -> Iterator[str]:
    return itertools.islice(lines(), 1, None)


def _delimiter(lines: Lines) -> str:
    """That of which the first line has the most."""

    def columns(delimiter: str) -> int:
        try:
            reader = csv.reader(lines(), delimiter=delimiter, strict=True)
            return len(next(filter(None, reader), []))
        except csv.Error:
            return 0

    return max(_DELIMITERS, key=columns)


def _delimited_table(path: File, lines: Lines, delimiter: str, *, skipped: int = 0) -> Table:
    """The rows of a delimited file, before whose header `skipped` lines were left out."""
    # A limit of the process, which is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE))
    read = functools.partial(_delimited_rows, path, lines, delimiter, skipped)
    is_plain = delimiter == "\t" and _is_plain(read, lines)
    kind = _DELIMITERS.get(delimiter, f"CSV with {delimiter}")
    return Table(path, kind, read(is_plain=is_plain), has_header=True)


def _is_plain(read: Callable[..., Iterator[Row]], lines: Lines) -> bool:
    """Whether all is well if quotes are ordinary characters, and only then.

    As quotes they fail, or swallow rows: each line is a whole row, and there are fewer records.
    """
    if len({line.count("\t") for line in lines() if line.strip("\r\n")}) != 1:
        return False
    try:
        return sum(1 for _ in read(is_plain=False)) < sum(1 for _ in read(is_plain=True))
    except ValueError:
        return True


def _delimited_rows(
    path: File, lines: Lines, delimiter: str, skipped: int, *, is_plain: bool = False
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
    empty: list[Row] = []
    for number, record in records:
        where = f"{shown(path)}: line {number + skipped}"
        if len(record) != len(names):
            raise fault(
                where,
                f"has {len(record)} cells where the header has {len(names)}; a cell that holds "
                f"{delimiter!r} must stand in quotes",
            )
        _require_no_swallowed_rows(where, record, delimiter)
        row = Row(number + skipped, dict(zip(names, record, strict=True)))
        if not any(record):
            empty.append(row)  # As spreadsheets end with; in between they are rows.
            continue
        yield from empty
        empty.clear()
        yield row


def _require_no_swallowed_rows(where: str, record: Sequence[str], delimiter: str) -> None:
    """Refuses a cell whose inner lines are all whole rows: a quote was left open before them."""
    for cell in record:
        inner = cell.split("\n")[1:-1] if "\n" in cell else ()
        if inner and all(line.count(delimiter) == len(record) - 1 for line in inner):
            raise fault(
                where,
                f"a quote opens a cell that holds {len(inner):,} whole lines like other rows; "
                "double a quote that is no quotation of the cell, or remove it",
            )


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
    # Tools that label texts write a list of labels, also where there is one.
    return {name: _alone(cell) for name, cell in item.items()}


def _alone(cell: Any) -> Any:
    """The only element of a list that has one, if it is no list or object itself."""
    if isinstance(cell, list) and len(cell) == 1 and not isinstance(cell[0], list | dict):
        return cell[0]
    return cell


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
    """Whether cells of this type are strings (or their bytes), numbers or booleans."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    tests = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_binary,
        types.is_large_binary,
        types.is_integer,
        types.is_floating,
        types.is_boolean,
        types.is_null,
    )
    return any(test(kind) for test in tests)
