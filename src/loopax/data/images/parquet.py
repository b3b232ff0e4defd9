"""Parquet, as Hugging Face stores image sets: a column of encoded images, and one of labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loopax.batches.dataset import Dataset
from loopax.data.columns import IMAGE_NAMES, LABEL_NAMES, only_column, require_column, usual
from loopax.data.files import fault, reporting
from loopax.data.images.arrays import Parts, Source, as_labels
from loopax.data.images.decode import Form
from loopax.data.images.many import EncodedImage, decode_images
from loopax.data.parquet import ARROW, File, declared_classes, kind_of, open_table
from loopax.data.shards import shards_at
from loopax.data.words import brief, quoted, shown

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGE_ROWS = 16


def parquet_parts(
    path: Path, form: Form, image_column: str | None = None, label_column: str | None = None
) -> Parts:
    """The images in a Parquet file, or in the files of a folder that `find_shards` puts together.

    The Arrow files of `datasets.save_to_disk` are read in the same way.

    A column of images holds the bytes of a PNG, JPEG, ..., as they are or as the field `bytes` of
    a struct; they are read as those in a folder are. A column of labels holds whole numbers, -1
    for unknown, or strings, which are numbered in their order (of numbers, if all are); null is
    unknown. Integers get their names from Hugging Face's metadata. Columns are found by type and
    by usual names. Only a few rows are in memory at a time.

    The part `train`, or else the first, says what classes there are. Labels are -1 where there is
    no column of them, which `label_column=""` asks for.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: a file is damaged; it is not clear which columns are meant; a cell is no image or
            no label; or the files do not belong together.
    """
    parts = shards_at(path, ".parquet") or shards_at(path, ARROW)
    if not parts:
        raise fault(path, "holds no Parquet file; their names must end in .parquet")
    ordered = sorted(parts, key=lambda part: part != "train")
    first, *others = [file for part in ordered for file in parts[part]]
    columns = _find_columns(first, image_column, label_column)
    for file in others:
        found = _find_columns(file, columns.image, columns.label or label_column)
        if found != columns:
            raise fault(
                file,
                f"its labels ({found.label or 'none'}) differ in column, type or names of classes "
                f"from those in {shown(first)} ({columns.label or 'none'}); all must be alike",
            )
    datasets: dict[str, Dataset] = {}
    known = columns.class_names
    for part in ordered:
        datasets[part] = _read_part(parts[part], columns, known, form)
        known = datasets[ordered[0]].class_names
    return datasets


class _Columns(NamedTuple):
    """The columns to read; `class_names` are those that the metadata give to integers."""

    image: str
    label: str
    is_text: bool
    class_names: tuple[str, ...]


def _find_columns(file: File, image: str | None, label: str | None) -> _Columns:
    with open_table(file) as table:
        types = {field.name: field.type for field in table.schema}
        declared = declared_classes(file, table.schema)
    if image is None:
        found = [name for name, kind in types.items() if holds_images(kind)]
        found = usual(found, IMAGE_NAMES) or found
        if not found:
            raise fault(
                file,
                "no column holds bytes of encoded images, or a struct with a field 'bytes'; its "
                f"columns are {quoted(types, types)}",
            )
        image = only_column(file, found, "images", "image_column", types)
    if label is None:
        found = [name for name in types if name in declared and _is_label(types[name])]
        found = usual(found or types, LABEL_NAMES) or found
        label = only_column(file, found, "labels", "label_column", types) if found else ""
    for name, is_fit, what in (
        (image, holds_images, "bytes of encoded images"),
        (label, _is_label, 'a whole number or a string for each image (label_column="": none)'),
    ):
        if name:
            require_column(file, name, types, types)
            if not is_fit(types[name]):
                raise fault(file, f"column {name!r} is {brief(types[name])}; it must be {what}")
    is_text = bool(label) and kind_of(types[label]) == "text"
    return _Columns(image, label, is_text, () if is_text else declared.get(label, ()))


def _is_label(column: pa.DataType) -> bool:
    return kind_of(column) in ("text", "number")


def holds_images(column: pa.DataType) -> bool:
    """Whether the cells of a column are encoded images, or structs with the bytes of one."""
    from pyarrow import types

    if types.is_struct(column):
        position = column.get_field_index("bytes")
        return position >= 0 and kind_of(column.field(position).type) == "bytes"
    return kind_of(column) == "bytes"


def _read_part(
    files: Sequence[File], columns: _Columns, known: tuple[str, ...], form: Form
) -> Dataset:
    """The rows of `files`, with the classes that are known, or else those that the labels show."""
    count = 0
    for file in files:
        with open_table(file) as table:
            count += table.row_count()
    if count == 0:
        raise fault(files[0], "holds no rows; there must be at least one")
    kind = "Arrow" if Path(files[0]).suffix.lower() == ARROW else "Parquet"
    label, source = np.full(count, -1, np.int32), f"{kind}, images in {columns.image!r}"
    if columns.label:
        label, known = as_labels(_read_labels(files, columns), known)
        source += f", labels in {columns.label!r}"
    images = (image for file in files for image in _encoded_images(file, columns.image))
    return Dataset(
        {"image": decode_images(images, count, form), "label": label},
        name=Path(files[0]).name,
        class_names=known,
        source=source,
    )


def _read_labels(files: Sequence[File], columns: _Columns) -> Source:
    """A column of several files as text, None for null, or as integers, -1 for null."""
    import pyarrow as pa

    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    where = f"{shown(files[0])}{more}: column {columns.label!r}"
    kind = pa.large_string() if columns.is_text else pa.int64()
    pieces = [cells for file in files for _, cells in _batches(file, columns.label, 2**16)]
    with reporting(where, "cannot be read as labels"):
        cells = pa.chunked_array([piece.cast(kind) for piece in pieces], kind)
    if columns.is_text:
        return Source(where, np.array(cells.to_pylist(), object))
    return Source(where, cells.fill_null(-1).to_numpy())


def _encoded_images(file: File, column: str) -> Iterator[EncodedImage]:
    for start, cells in _batches(file, column, _IMAGE_ROWS):
        for row, cell in enumerate(cells.to_pylist(), start):
            where = f"{shown(file)}: row {row}"
            content = cell.get("bytes") if isinstance(cell, dict) else cell
            if content is None:
                path = (cell or {}).get("path")
                held = f"only the path {brief(path)!r}" if path else "only null"
                raise fault(
                    where, f"column {column!r} holds {held}; it must hold the bytes of an image"
                )
            yield EncodedImage(where, content)


def _batches(file: File, column: str, rows: int) -> Iterator[tuple[int, pa.Array]]:
    """A column in pieces of at most `rows`, each with the number of its first row."""
    with open_table(file) as table:
        promised, end = table.row_count(), 0
        for batch in table.batches(rows, [column]):
            start, end = end, end + len(batch)
            if end > promised:
                break
            cells = batch.column(column)
            yield start, cells.dictionary_decode() if hasattr(cells, "indices") else cells
        if end != promised:
            raise fault(file, f"its footer says {promised:,} rows, but there are {end:,}")
