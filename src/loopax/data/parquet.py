"""Parquet files: opened, with what Hugging Face's metadata say of their columns."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from loopax.data.files import blaming, fault, open_file, shown
from loopax.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

MAX_CELL_BYTES = 2**28
"""A cell, such as an encoded image, beyond this is taken for damage."""
_BUFFER_BYTES = 2**20

File = str | os.PathLike[str]


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
    with open_file(file) as stream, blaming(file, "cannot be read as Parquet"):
        # Without a buffer the compressed column of a whole row group is read at once.
        yield pq.ParquetFile(
            stream, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
        )


def require_plausible_sizes(file: File, metadata: pq.FileMetaData) -> None:
    """Refuses, before memory is taken, what the pages could not honestly expand to.

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


def declared_features(file: File, metadata: Mapping[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """What Hugging Face's metadata say of each column."""
    with blaming(file, "its Hugging Face metadata cannot be read"):
        info = json.loads(metadata.get(b"huggingface", b"{}")).get("info") or {}
        features = info.get("features") or {}
        return {name: said for name, said in features.items() if isinstance(said, dict)}
