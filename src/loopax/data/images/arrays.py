"""Images and labels stored as arrays (NPZ, IDX), and checks of their shapes and values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from loopax.batches.dataset import Dataset
from loopax.data.classes import MAX_CLASSES, class_order
from loopax.data.files import PART_NAMES, fault, reporting
from loopax.data.images.decode import Form, resized
from loopax.data.images.idx import read_idx
from loopax.data.images.npz import read_npz
from loopax.data.words import brief, shown

_NPZ_NAMES = (
    *(("x_{}", "y_{}"), ("{}_images", "{}_labels")),
    *(("image", "label"), ("images", "labels"), ("x", "y")),
)
"""What images and labels are called, of a part or of a whole."""
MNIST_IMAGES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
"""The files of MNIST; the labels of each lie beside it."""

Parts = Mapping[str, Dataset]
"""What was read, by the names of `PART_NAMES`, or a whole that is called "" or train."""


class Source(NamedTuple):
    """An array and where it was read from: the file, and the part of it."""

    where: str
    array: np.ndarray


def npz_parts(path: Path, form: Form) -> Parts:
    """The images in an NPZ file, found by the usual names of its arrays."""
    arrays = {
        name: Source(f"{shown(path)}: {name}", array) for name, array in read_npz(path).items()
    }
    for images, labels in _NPZ_NAMES:
        # What is not split has one name for all parts, the last of which is train.
        named = {images.format(part): part for part in reversed(PART_NAMES)}
        found = {part: arrays[name] for name, part in reversed(named.items()) if name in arrays}
        names = [labels.format(part) for part in found]
        if "train" in found and arrays.keys() >= {*names}:
            return _datasets("NPZ", found, [arrays[name] for name in names], form)
        if "train" in found and len(arrays) == len(found):
            return _datasets("NPZ", found, None, form)
    if len(arrays) == 1:
        return _datasets("NPZ", {"": next(iter(arrays.values()))}, None, form)
    raise fault(
        path,
        f"holds {', '.join(map(repr, arrays))}; it must hold x_train y_train x_test y_test, or "
        "train_images train_labels test_images test_labels, or image label, images labels, x y, or "
        "only images; of each part both",
    )


def idx_parts(folder: Path, form: Form) -> Parts:
    """The images in a folder with the files of MNIST."""

    def read(name: str) -> Source:
        if not (files := mnist_files(folder, name)):
            raise fault(folder, f"holds no {name}, plain or .gz")
        return Source(shown(files[0]), read_idx(files[0]))

    images = {part: read(name) for part, name in MNIST_IMAGES.items()}
    beside = [name.replace("images-idx3", "labels-idx1") for name in MNIST_IMAGES.values()]
    return _datasets("IDX", images, [*map(read, beside)], form)


def mnist_files(folder: Path, *names: str) -> list[Path]:
    """The files with these names of MNIST's, plain or `.gz`, in either spelling; plain first."""
    spelled = "|".join(name.replace("-idx", "[-.]idx") for name in names)
    with reporting(folder, "cannot be read as a folder"):
        files = sorted(folder.iterdir())
    return [each for each in files if re.fullmatch(rf"({spelled})(\.gz)?", each.name)]


def _datasets(
    kind: str, images: Mapping[str, Source], labels: Sequence[Source] | None, form: Form
) -> Parts:
    """A dataset from each of `images`; the first labels say what classes there are."""
    datasets: dict[str, Dataset] = {}
    known: tuple[str, ...] = ()
    for index, (part, source) in enumerate(images.items()):
        image = _as_images(source)
        label = np.full(len(image), -1, np.int32)
        if labels is not None:
            flat = _flat_labels(labels[index], len(image))
            is_named = known != tuple(map(str, range(len(known))))
            if is_named and flat.array.dtype.kind not in "SU":
                raise fault(
                    flat.where, f"labels are {flat.array.dtype}, but those to train on names"
                )
            label, known = as_labels(flat, known)
        columns = {"image": resized(image, source.where, form), "label": label}
        datasets[part] = Dataset(columns, class_names=known, source=kind)
    return datasets


def _as_images(source: Source) -> np.ndarray:
    """Images as they are kept: uint8, or float32 in [0, 1], `(examples, height, width, channels)`.

    Raises:
        DataError: they are neither integers of 0 to 255 nor floats of 0 to 1, or of another shape.
    """
    where, array = source
    images = array[..., None] if array.ndim == 3 else array
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.size == 0:
        raise fault(
            where,
            f"images have the shape {array.shape}; it must be (examples, height, width) or "
            "(examples, height, width, 1 or 3), and not empty; where channels come first, "
            "transpose it with (0, 2, 3, 1)",
        )
    if array.dtype.kind not in "iuf":
        raise fault(where, f"images are {array.dtype}; they must be integers or floats")
    is_float = array.dtype.kind == "f"
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= (1 if is_float else 255)):  # nor where they are NaN
        raise fault(
            where,
            f"images are {array.dtype} from {low} to {high}; integers must be from 0 to 255, "
            "floats from 0 to 1",
        )
    return images.astype(np.float32 if is_float else np.uint8, copy=False)


def _flat_labels(source: Source, examples: int) -> Source:
    """Labels in the shape `(examples,)`, after a check that there is one for each image."""
    where, array = source
    labels = array.ravel() if array.ndim == 2 and array.shape[1] == 1 else array
    if labels.shape != (examples,):
        raise fault(
            where,
            f"labels have the shape {array.shape} for {examples} images; each needs one number "
            "(one-hot rows become numbers by argmax(axis=1))",
        )
    return Source(where, labels)


def as_labels(source: Source, known: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as they are kept, int32 `(examples,)`, -1 where the class is not known; the classes.

    False is 0, true is 1, and floats may be whole numbers. Text, or bytes of UTF-8, is numbered;
    None and what is empty are unknown. Where no classes are `known` there are as many as the
    numbers say, or the names that occur, in the order of `class_order`.

    Raises:
        DataError: they are no whole numbers and no text, or one is no class.
    """
    where, labels = source
    if labels.dtype.kind in "SUO":
        return _numbered(source, known)
    if labels.dtype.kind not in "biuf":
        raise fault(where, f"labels are {labels.dtype}; they must be whole numbers, or text")
    limit = len(known) or MAX_CLASSES
    if labels.dtype.kind == "f":
        labels = labels.astype(np.float64)  # float16 does not reach the limit
    is_label = (labels >= -1) & (labels < limit) & (labels == np.floor(labels))
    if not is_label.all():
        first = int(is_label.argmin())
        raise fault(
            where,
            f"label {first} is {labels[first]}; labels must be whole numbers, 0 to {limit - 1}, or "
            "-1 for unknown",
        )
    labels = labels.astype(np.int32)
    return labels, known or tuple(map(str, range(labels.max(initial=-1) + 1)))


def _numbered(source: Source, known: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    where, labels = source
    with reporting(where, "holds labels that are no text in UTF-8"):
        names = [each.decode() if isinstance(each, bytes) else each for each in labels.tolist()]
    found = {*filter(None, names)}
    classes = known or tuple(sorted(found, key=class_order(found)))
    if len(classes) > MAX_CLASSES:
        raise fault(
            where, f"holds {len(classes):,} different labels; at most {MAX_CLASSES:,} can be"
        )
    if strange := found - {*classes}:
        name = min(strange)
        raise fault(
            where, f"label {names.index(name)} is {brief(name)!r}, which no image to train on has"
        )
    numbers = {None: -1, "": -1} | {name: number for number, name in enumerate(classes)}
    return np.array([numbers[name] for name in names], np.int32), classes
