"""Images in ArrayRecord files, as TensorFlow Datasets keeps them, and in WebDataset tars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from loopax.batches.dataset import Dataset
from loopax.data.columns import LABEL_NAMES, usual
from loopax.data.files import fault
from loopax.data.images.arrays import Parts, Source, as_labels
from loopax.data.images.decode import Form
from loopax.data.images.many import EncodedImage, decode_images
from loopax.data.records import RECORDS, TAR, declared_names, encoded_records, is_image
from loopax.data.shards import shards_at
from loopax.data.words import quoted, shown

_LABELS = (("cls",), *LABEL_NAMES)


def record_parts(path: Path, form: Form) -> Parts:
    """The images in files of examples, by their part; the first, or train, says the classes.

    The image of an example is the field that holds one; its label is the field `cls`, or else one
    that is called as labels are, with a whole number or text. Without labels all are -1.

    Raises:
        ConfigError: Grain is not installed, for ArrayRecord.
        DataError: a file is damaged, or it is not clear which field holds what.
    """
    parts = shards_at(path, *RECORDS)
    datasets: dict[str, Dataset] = {}
    known: tuple[str, ...] = ()
    for part in sorted(parts, key=lambda part: part != "train"):
        datasets[part] = _read_part(parts[part], known, form)
        known = datasets[part].class_names
    return datasets


def _read_part(files: Sequence[Path], known: tuple[str, ...], form: Form) -> Dataset:
    source, name = encoded_records(files), shown(files[0])
    if not len(source):
        raise fault(files[0], "holds no examples; there must be at least one")
    first = source[0]
    found = [field for field, content in first.items() if is_image(content)]
    if len(found) != 1:
        raise fault(
            files[0],
            f"its examples have the fields {quoted(first)}, of which {len(found)} are encoded "
            "images; there must be one",
        )
    (image,) = found
    label = next(iter(usual(first, _LABELS)), None)
    labels: list[object] = []

    def images() -> Iterator[EncodedImage]:
        for index in range(len(source)):
            fields, where = source[index], f"{name}: example {index}"
            if not is_image(content := fields.get(image)):
                raise fault(where, f"{image!r} is no image; its fields are {quoted(fields)}")
            labels.append(-1 if label is None else fields.get(label))
            yield EncodedImage(where, content)

    pixels = decode_images(images(), len(source), form)
    is_number = all(isinstance(each, int | np.integer) for each in labels)
    column = Source(f"{name}: {label!r}", np.array(labels, None if is_number else object))
    numbers, names = as_labels(column, known or declared_names(files[0]))
    kind = "WebDataset" if files[0].suffix.lower() in TAR else "ArrayRecord"
    said = "" if label is None else f", labels in {label!r}"
    return Dataset(
        {"image": pixels, "label": numbers},
        name=files[0].name,
        class_names=names,
        source=f"{kind}, images in {image!r}{said}",
    )
