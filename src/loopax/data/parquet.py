"""Opens Parquet files within bounds of memory, and tells what their columns hold."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from loopax.data.files import fault, open_file, reporting
from loopax.data.words import shown
from loopax.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_CELL_BYTES = 2**28
"""A cell, such as an encoded image, beyond this is taken for damage."""
_BUFFER_BYTES = 2**20

File = str | os.PathLike[str]
Kind = Literal["text", "bytes", "number", "null", "other"]


@contextmanager
def open_parquet(file: File) -> Iterator[pq.ParquetFile]:
    """The Parquet file at a path, open for reading.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: it is missing or damaged; or the body raises anything else.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(
            f"{shown(file)}: to read Parquet, pip install 'loopax[parquet]' ({error})"
        ) from error
    with open_file(file) as stream, reporting(file, "cannot be read as Parquet"):
        # Without a buffer the compressed column of a whole row group is read at once.
        table = pq.ParquetFile(
            stream, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
        )
        _require_plausible_sizes(file, table.metadata)
        yield table


def _require_plausible_sizes(file: File, metadata: pq.FileMetaData) -> None:
    """Refuses sizes of rows that only a damaged footer can state, before memory is taken.

    For a whole row, because pyarrow aborts the process where it is asked for the size of a column
    whose metadata is damaged.
    """
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        mean_bytes = group.total_byte_size // max(1, group.num_rows)
        if mean_bytes > MAX_CELL_BYTES:
            raise fault(
                file,
                f"row group {index} has {mean_bytes:,} bytes for each row; a row can have at "
                f"most {MAX_CELL_BYTES:,}",
            )


def declared_classes(file: File, schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """The columns that Hugging Face's metadata say hold classes, and the names of these.

    Raises:
        DataError: the metadata cannot be read.
    """
    with reporting(file, "its Hugging Face metadata cannot be read"):
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info") or {}
        features = {**(info.get("features") or {})}
    classes = {}
    for column, feature in features.items():
        inner = feature.get("feature") if isinstance(feature, dict) else None
        said = inner if isinstance(inner, dict) else feature  # inner: of the elements of a list
        if isinstance(said, dict) and said.get("_type") == "ClassLabel":
            names = said.get("names") or []
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise fault(
                    file, f"the names of the classes of {column!r} must be a list of strings"
                )
            classes[column] = tuple(names)
    return classes


def kind_of(column: pa.DataType) -> Kind:
    """The kind of a column's cells; of a dictionary column, that of its values."""
    from pyarrow import types

    column = column.value_type if types.is_dictionary(column) else column
    tests: dict[Kind, tuple[str, ...]] = {
        "text": ("string", "large_string", "string_view"),
        "bytes": ("binary", "large_binary", "binary_view"),
        "number": ("integer", "floating", "boolean"),
        "null": ("null",),
    }
    for kind, names in tests.items():
        if any(getattr(types, f"is_{name}")(column) for name in names):
            return kind
    return "other"
