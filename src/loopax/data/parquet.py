"""Opens Parquet files, and the Arrow files of `datasets`, and tells what their columns hold."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from loopax.data.files import fault, open_file, reporting
from loopax.data.words import shown
from loopax.extras import require

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_ROW_BYTES = 2**28
"""A row beyond this is taken for damage."""

File = str | os.PathLike[str]
Kind = Literal["text", "bytes", "number", "other"]


@contextmanager
def open_parquet(file: File) -> Iterator[pq.ParquetFile]:
    """The Parquet file at a path, open for reading.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: it is missing or damaged; or the body raises anything else.
    """
    require("parquet", f"{shown(file)}: reading Parquet", "pyarrow")
    import pyarrow.parquet as pq

    with open_file(file) as stream, reporting(file, "cannot be read as Parquet"):
        # Without a buffer the compressed column of a whole row group is read at once.
        table = pq.ParquetFile(
            stream, buffer_size=2**20, pre_buffer=False, page_checksum_verification=True
        )
        _require_plausible_sizes(file, table.metadata)
        yield table


@contextmanager
def open_arrow(file: File) -> Iterator[pa.RecordBatchStreamReader]:
    """The Arrow file at a path, as `datasets.save_to_disk` writes them, open for reading.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: it is missing or damaged; or the body raises anything else.
    """
    require("parquet", f"{shown(file)}: reading Arrow", "pyarrow")
    import pyarrow as pa

    with open_file(file) as stream, reporting(file, "cannot be read as an Arrow stream"):
        yield pa.ipc.open_stream(stream)


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
