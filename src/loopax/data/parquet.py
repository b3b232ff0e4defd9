"""Finds Parquet files that belong together, opens them, and tells what their columns hold."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loopax.data.files import PART_NAMES, fault, is_foreign, open_file, reporting
from loopax.data.words import shown
from loopax.extras import require

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_ROW_BYTES = 2**28
"""A row beyond this is taken for damage."""
_PART = re.compile(rf"({'|'.join(PART_NAMES)})(?![a-z])", re.IGNORECASE)
_SHARD = re.compile(r"(\d{5})-of-(\d{5})")

File = str | os.PathLike[str]
Kind = Literal["text", "bytes", "number", "other"]


def find_shards(folder: Path) -> dict[str, list[Path]]:
    """The Parquet files in a folder, or else in those below it, by their part.

    A part is what a file's name begins with, or how its folder is called, one of `PART_NAMES`. If
    all are of one part, or none is of any, there is one, called ""; if there is no file, none.

    Raises:
        DataError: it is not clear which files belong together, or a shard is missing.
    """
    files = _visible(folder, "*.parquet") or _visible(folder, "*/*.parquet")
    homes = sorted({file.parent for file in files})
    if len(homes) > 1 and not all(_PART.fullmatch(home.name) for home in homes):
        raise fault(
            folder,
            f"holds Parquet files in the folders {homes[0].name!r} and {homes[1].name!r}; give the "
            "path of the one that is meant",
        )
    parts: dict[str, list[Path]] = {}
    for file in files:
        match = _PART.match(file.name) or _PART.fullmatch(file.parent.name)
        parts.setdefault(match[1].lower() if match else "", []).append(file)
    if len(parts) > 1 and ("" in parts or "train" not in parts):
        one, two = list(parts.values())[:2]
        raise fault(
            folder,
            f"holds {one[0].name!r} beside {two[0].name!r}; some names must begin with train and "
            "all others with test or validation, or none with any of these",
        )
    for part in parts.values():
        _require_complete(folder, part)
    return parts if len(parts) > 1 else {"": files} if files else {}


def _visible(folder: Path, pattern: str) -> list[Path]:
    files = sorted(each for each in folder.glob(pattern) if not each.is_dir())
    return [file for file in files if not any(map(is_foreign, file.relative_to(folder).parts))]


def _require_complete(folder: Path, files: Sequence[Path]) -> None:
    numbers = Counter(match.groups() for file in files if (match := _SHARD.search(file.name)))
    for total in sorted({total for _, total in numbers}):
        for shard in (f"{index:05}" for index in range(int(total))):
            if (count := numbers[shard, total]) != 1:
                beside = f"{count} files {shard}-of-{total} beside {files[0].name!r}"
                raise fault(folder, f"holds {beside}; it must hold one of each")


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
