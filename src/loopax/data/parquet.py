"""Opens Parquet files, and the Arrow files of `datasets`, and tells what their columns hold."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple

from loopax.data.files import fault, open_file, reporting
from loopax.data.words import shown
from loopax.extras import require

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ARROW = ".arrow"
"""How the names of Arrow files end."""
MAX_ROW_BYTES = 2**28
"""A row beyond this is taken for damage."""

File = str | os.PathLike[str]
Kind = Literal["text", "bytes", "number", "other"]


class Table(NamedTuple):
    """A file that is open.

    Attributes:
        schema: its columns.
        row_count: tells how many rows it says there are.
        batches: gives all rows of these columns, or of all with None, at most so many at once.
    """

    schema: pa.Schema
    row_count: Callable[[], int]
    batches: Callable[[int, Sequence[str] | None], Iterator[pa.RecordBatch]]


@contextmanager
def open_table(file: File) -> Iterator[Table]:
    """The Parquet file at a path, or the Arrow file (`ARROW`), open for reading.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: it is missing or damaged; or the body raises anything else.
    """
    kind = "Arrow" if os.fspath(file).lower().endswith(ARROW) else "Parquet"
    require("parquet", f"{shown(file)}: reading {kind}", "pyarrow")
    with open_file(file) as stream, reporting(file, f"cannot be read as {kind}"):
        yield _arrow(stream) if kind == "Arrow" else _parquet(file, stream)


def _parquet(file: File, stream: BinaryIO) -> Table:
    import pyarrow.parquet as pq

    # Without a buffer the compressed column of a whole row group is read at once.
    table = pq.ParquetFile(
        stream, buffer_size=2**20, pre_buffer=False, page_checksum_verification=True
    )
    _require_plausible_sizes(file, table.metadata)

    def batches(rows: int, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        yield from table.iter_batches(rows, columns=columns)

    return Table(table.schema_arrow, lambda: int(table.metadata.num_rows), batches)


def _arrow(stream: BinaryIO) -> Table:
    """As `datasets.save_to_disk` writes it: batches one after another, without a footer."""
    import pyarrow as pa

    # Mapped, so that only what is asked for is read.
    content = pa.py_buffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))

    def batches(rows: int, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        for batch in pa.ipc.open_stream(content):
            some = batch if columns is None else batch.select(columns)
            yield from (some.slice(first, rows) for first in range(0, len(some), rows))

    def count() -> int:
        return sum(len(batch) for batch in pa.ipc.open_stream(content))

    return Table(pa.ipc.open_stream(content).schema, count, batches)


def _require_plausible_sizes(file: File, metadata: pq.FileMetaData) -> None:
    """Refuses sizes of rows that only a damaged footer can state, before memory is taken.

    For a whole row, because pyarrow aborts the process where it is asked for the size of a column
    whose metadata is damaged.
    """
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        if (mean := group.total_byte_size // max(1, group.num_rows)) > MAX_ROW_BYTES:
            raise fault(file, f"a row has {mean:,} bytes; it can have at most {MAX_ROW_BYTES:,}")


def declared_classes(file: File, schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """The columns that Hugging Face's metadata say hold classes, and the names of these.

    Raises:
        DataError: the metadata cannot be read.
    """
    classes = {}
    with reporting(file, "its Hugging Face metadata cannot be read"):
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info") or {}
        for column, feature in (info.get("features") or {}).items():
            inner = feature.get("feature") if isinstance(feature, dict) else None
            said = inner if isinstance(inner, dict) else feature  # inner: of the elements of a list
            if isinstance(said, dict) and said.get("_type") == "ClassLabel":
                classes[column] = tuple(said.get("names") or ())
                if not all(isinstance(name, str) for name in classes[column]):
                    raise ValueError(f"the classes of {column!r} must have strings for names")
    return classes


def kind_of(column: pa.DataType) -> Kind:
    """The kind of a column's cells; of a dictionary column, that of its values."""
    from pyarrow import types

    column = column.value_type if types.is_dictionary(column) else column
    if types.is_integer(column) or types.is_floating(column) or types.is_boolean(column):
        return "number"
    kinds: dict[str, Kind] = {"string": "text", "binary": "bytes"}
    return kinds.get(str(column).removeprefix("large_").removesuffix("_view"), "other")
