"""Parquet, as Hugging Face stores image sets: a column of encoded images, and one of labels."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from loopax.batches.dataset import Dataset
from loopax.data.files import blaming, fault, shown
from loopax.data.images.arrays import as_labels, numbered
from loopax.data.images.decode import EncodedImage, Form, decode_images
from loopax.data.parquet import (
    MAX_CELL_BYTES,
    File,
    declared_features,
    open_parquet,
    require_plausible_sizes,
)

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_NAMES = ("image", "images", "img", "picture", "pictures", "photo", "png", "jpg")
LABEL_NAMES = ("label", "labels", "class", "classes", "category", "target", "digit", "fine_label")
_IMAGE_ROWS = 16
_LABEL_ROWS = 2**16
_AS_STORED = Form()


def read_parquet(
    parts: Sequence[Sequence[File]],
    *,
    form: Form = _AS_STORED,
    image_column: str | None = None,
    label_column: str | None = None,
) -> list[Dataset]:
    """The images in Parquet files, a dataset for each part, of which each is one or more files.

    A column of images holds the bytes of a PNG, JPEG, ..., as they are or as the field `bytes` of
    a struct; they are read as those in a folder are. A column of labels holds whole numbers, -1
    for unknown, or strings, which are numbered in their order (of numbers, if all are); null is
    unknown. Integers get their names from Hugging Face's metadata. Columns are found by type and
    by usual names. Only a few rows are in memory at a time.

    Args:
        parts: the files; those of the first part say what classes there are.
        form: what the images are brought to.
        image_column: the column of images.
        label_column: the column of labels, "" for none.

    Returns:
        Columns `image`, uint8 `(examples, height, width, channels)`, and `label`, int32
        `(examples,)`, -1 where it is unknown or there is no column of labels.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: a file is damaged; a column is not there, or it is not clear which is meant; a
            cell is no image or no label; or the files do not belong together.
    """
    first, *others = [file for part in parts for file in part]
    columns = _find_columns(first, image_column, label_column)
    for file in others:
        found = _find_columns(file, columns.image, columns.label or label_column)
        if found != columns:
            raise fault(
                file,
                f"its labels ({found.label or 'none'}) differ in column, type or names of classes "
                f"from those in {shown(first)} ({columns.label or 'none'}); all must be alike",
            )
    datasets: list[Dataset] = []
    for part in parts:
        known = datasets[0].class_names if datasets else None
        datasets.append(_read_part(part, columns, known, form))
    return datasets


class _Columns(NamedTuple):
    """The columns to read; `class_names` are those that the metadata give to integers."""

    image: str
    label: str | None
    is_text: bool
    class_names: tuple[str, ...]


def _find_columns(file: File, image_column: str | None, label_column: str | None) -> _Columns:
    with open_parquet(file) as table:
        types = {field.name: field.type for field in table.schema_arrow}
        features = declared_features(file, table.schema_arrow.metadata or {})
        image = _find_image_column(file, types, image_column)
        require_plausible_sizes(file, table.metadata)
    label = _find_label_column(file, types, features, label_column)
    names: Any = features[label].get("names", []) if label in features else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise fault(file, f"the names of the classes of {label!r} must be a list of strings")
    is_text = label is not None and _holds_text(types[label])
    return _Columns(image, label, is_text, () if is_text else tuple(names))


def _find_image_column(file: File, types: Mapping[str, pa.DataType], given: str | None) -> str:
    if given is not None:
        _require_column(file, types, given)
        if not _holds_images(types[given]):
            raise fault(
                file,
                f"column {given!r} is {_brief(types[given])}; it must be bytes of encoded images, "
                "or a struct with a field 'bytes'",
            )
        return given
    found = [name for name, kind in types.items() if _holds_images(kind)]
    if not found:
        raise fault(
            file,
            "no column holds encoded images, as bytes or as a struct with a field 'bytes'; its "
            f"columns are {_listed(types)}",
        )
    return _the_usual(file, found, IMAGE_NAMES, types, "which column holds the images", "image")


def _find_label_column(
    file: File,
    types: Mapping[str, pa.DataType],
    features: Mapping[str, Mapping[str, Any]],
    given: str | None,
) -> str | None:
    if given == "":
        return None
    if given is not None:
        _require_column(file, types, given)
    else:
        declared = [name for name in types if features.get(name, {}).get("_type") == "ClassLabel"]
        found = declared or [name for name in types if name.lower() in LABEL_NAMES]
        if not found:
            return None
        given = _the_usual(
            file, found, LABEL_NAMES, types, "which column holds the labels", "label"
        )
    if not _holds_text(types[given]) and not _holds_numbers(types[given]):
        raise fault(
            file,
            f"column {given!r} is {_brief(types[given])}; labels must be whole numbers or strings, "
            'one for each image (label_column="" does without)',
        )
    return given


def _the_usual(
    file: File,
    found: Sequence[str],
    usual: Sequence[str],
    types: Mapping[str, pa.DataType],
    question: str,
    kind: str,
) -> str:
    """The only column found, or the only one of them with a usual name."""
    chosen = found if len(found) == 1 else [name for name in found if name.lower() in usual]
    if len(chosen) != 1:
        raise fault(
            file, f"{question} is not clear; pass {kind}_column=, one of {_listed(types, found)}"
        )
    return chosen[0]


def _require_column(file: File, types: Mapping[str, pa.DataType], name: str) -> None:
    if name not in types:
        raise fault(file, f"has no column {name!r}; its columns are {_listed(types)}")


def _listed(types: Mapping[str, pa.DataType], names: Sequence[str] | None = None) -> str:
    listed = ", ".join(f"{each!r} ({_brief(types[each])})" for each in names or types)
    return textwrap.shorten(listed, 400, placeholder=" ...") or "none"


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _holds_bytes(kind: pa.DataType) -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _holds_images(kind: pa.DataType) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        position = kind.get_field_index("bytes")
        return position >= 0 and _holds_bytes(kind.field(position).type)
    return _holds_bytes(kind)


def _holds_text(kind: pa.DataType) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _holds_numbers(kind: pa.DataType) -> bool:
    from pyarrow import types

    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def _read_part(
    files: Sequence[File], columns: _Columns, known: tuple[str, ...] | None, form: Form
) -> Dataset:
    """The rows of `files`, with the classes that are known, or else those that the labels show."""
    count = 0
    for file in files:
        with open_parquet(file) as table:
            count += table.metadata.num_rows
    if count == 0:
        raise fault(files[0], "holds no rows; there must be at least one")
    label, class_names = None, known or columns.class_names
    if columns.label is not None and columns.is_text:
        label, class_names = _read_text_labels(files, columns.label, known)
    elif columns.label is not None:
        label = _read_integer_labels(files, columns.label, len(class_names) or None)
        class_names = class_names or tuple(map(str, range(label.max() + 1)))
    images = (image for file in files for image in _encoded_images(file, columns.image))
    image = decode_images(images, count, form)
    if label is None:
        label = np.full(count, -1, np.int32)
    source = f"Parquet, images in {columns.image!r}"
    if columns.label is not None:
        source += f", labels in {columns.label!r}"
    return Dataset(
        {"image": image, "label": label},
        name=Path(files[0]).name,
        class_names=class_names,
        source=source,
    )


def _read_integer_labels(files: Sequence[File], column: str, classes: int | None) -> np.ndarray:
    import pyarrow as pa

    parts = []
    for file in files:
        where = f"{shown(file)}: column {column!r}"
        with blaming(where, "cannot be read as labels"):
            batches = [
                cells.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
                for _, cells in _batches(file, column, _LABEL_ROWS)
            ]
        stored = np.concatenate([np.empty(0, np.int64), *batches])
        parts.append(as_labels(stored, where, examples=len(stored), classes=classes))
    return np.concatenate(parts)


def _read_text_labels(
    files: Sequence[File], column: str, known: tuple[str, ...] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    import pyarrow as pa

    stored = [
        (f"{shown(file)}: column {column!r}", start + row, text)
        for file in files
        for start, cells in _batches(file, column, _LABEL_ROWS)
        for row, text in enumerate(cells.cast(pa.large_string()).to_pylist())
    ]
    return numbered(stored, known)


def _encoded_images(file: File, column: str) -> Iterator[EncodedImage]:
    import pyarrow.compute as pc

    for start, cells in _batches(file, column, _IMAGE_ROWS):
        is_struct = cells.type.num_fields > 0
        contents = pc.struct_field(cells, "bytes") if is_struct else cells
        for row, (cell, content) in enumerate(zip(cells, contents, strict=True), start):
            where = f"{shown(file)}: row {row}"
            if not content.is_valid:
                path = (cell.as_py() or {}).get("path") if is_struct else None
                held = f"only the path {_brief(path)!r}" if path else "only null"
                raise fault(
                    where, f"column {column!r} holds {held}; it must hold the bytes of an image"
                )
            if (size := content.as_buffer().size) > MAX_CELL_BYTES:
                raise fault(
                    where, f"holds {size:,} bytes; an image can have at most {MAX_CELL_BYTES:,}"
                )
            yield EncodedImage(where, nullcontext(io.BytesIO(content.as_py())))


def _batches(file: File, column: str, rows: int) -> Iterator[tuple[int, pa.Array]]:
    """A column in pieces of at most `rows`, each with the number of its first row."""
    with open_parquet(file) as table:
        promised, end = table.metadata.num_rows, 0
        for batch in table.iter_batches(rows, columns=[column]):
            start, end = end, end + len(batch)
            if end <= promised:
                yield start, batch.column(column)
        if end != promised:
            raise fault(
                file, f"its footer says {promised:,} rows, but column {column!r} has {end:,}"
            )
