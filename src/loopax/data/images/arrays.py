"""Images and labels stored as arrays (NPZ, IDX), and checks of their shapes and values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from os.path import isdir, isfile
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
    accepted = ", or ".join(
        " ".join(dict.fromkeys(name.format(part) for part in ("train", "test") for name in names))
        for names in _NPZ_NAMES
    )
    raise fault(
        path,
        f"holds {', '.join(map(repr, arrays))}; it must hold {accepted}, or only images; of each "
        "part both",
    )


def idx_parts(path: Path, form: Form) -> Parts:
    """The images in a folder with the files of MNIST, or in an IDX file, with the labels beside."""
    files = {"": path}
    if isdir(path):
        found = {part: mnist_files(path, name) for part, name in MNIST_IMAGES.items()}
        for part, each in found.items():
            if not each:
                raise fault(path, f"holds no {MNIST_IMAGES[part]}, plain or .gz")
        files = {part: each[0] for part, each in found.items()}
    images = {part: _read_idx(file) for part, file in files.items()}
    labels = [_read_idx(_labels_beside(file)) for file in files.values()]
    return _datasets("IDX", images, labels, form)


def mnist_files(folder: Path, *names: str) -> list[Path]:
    """The files with these names of MNIST's, plain or `.gz`, in either spelling; plain first."""
    spelled = "|".join(name.replace("-idx", "[-.]idx") for name in names)
    with reporting(folder, "cannot be read as a folder"):
        files = sorted(folder.iterdir())
    return [each for each in files if re.fullmatch(rf"({spelled})(\.gz)?", each.name)]


def _labels_beside(images: Path) -> Path:
    name = images.name.removesuffix(".gz")
    wanted = name.replace("images", "labels").replace("idx3", "idx1")
    for file in (images.with_name(wanted), images.with_name(f"{wanted}.gz")):
        if wanted != name and isfile(file):
            return file
    expected = "train-labels-idx1-ubyte for train-images-idx3-ubyte" if wanted == name else wanted
    raise fault(images, f"its labels must lie beside it, named like {expected}, plain or .gz")


def _read_idx(path: Path) -> Source:
    return Source(shown(path), read_idx(path))


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
                    flat.where,
                    f"labels are {flat.array.dtype}, but those to train on are names of classes",
                )
            label, known = as_labels([flat], known)
        columns = {"image": resized(image, source.where, form), "label": label}
        datasets[part] = Dataset(columns, class_names=known, source=kind)
    return datasets


def _as_images(source: Source) -> np.ndarray:
    """Images as they are kept: uint8, or float32 in [0, 1], `(examples, height, width, channels)`.

    Integers of other types whose values are 0 to 255 become uint8, `(examples, height, width)`
    gets one channel.

    Raises:
        DataError: the shape, the type or a value is none of these.
    """
    where, array = source
    images = array[..., None] if array.ndim == 3 else array
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.size == 0:
        advice = ""
        if images.ndim == 4 and images.shape[1] in (1, 3):
            advice = "; channels come last, so transpose it with (0, 2, 3, 1)"
        raise fault(
            where,
            f"images have the shape {array.shape}; it must be (examples, height, width) or "
            f"(examples, height, width, 1 or 3), and not empty{advice}",
        )
    if array.dtype.kind not in "iuf":
        raise fault(where, f"images are {array.dtype}; they must be integers or floats")
    is_float = array.dtype.kind == "f"
    low, high, limit = array.min(), array.max(), 1 if is_float else 255
    if np.isnan(low):
        example = np.isnan(array).argmax() // (array.size // len(array))
        raise fault(where, f"image {example} holds NaN; floats must be from 0 to 1")
    if low < 0 or high > limit:
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
    if labels.ndim != 1:
        advice = "; turn one-hot rows into numbers with argmax(axis=1)" if array.ndim == 2 else ""
        raise fault(
            where,
            f"labels have the shape {array.shape}; it must be (examples,), the number of a class "
            f"for each{advice}",
        )
    if len(labels) != examples:
        raise fault(where, f"holds {len(labels)} labels for {examples} images; each needs one")
    return Source(where, labels)


def as_labels(
    sources: Sequence[Source], known: tuple[str, ...]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as they are kept, int32 `(examples,)`, -1 where the class is not known; the classes.

    False is 0, true is 1, and floats may be whole numbers. Text, or bytes of UTF-8, is numbered;
    None and what is empty are unknown.

    Args:
        sources: the labels as they were read, each `(examples,)`, one after the other.
        known: the classes there are; if empty, as many as the numbers say, or the names that
            occur, in the order of `class_order`.

    Raises:
        DataError: they are no whole numbers and no text, or one is no class.
    """
    if all(source.array.dtype.kind in "SUO" for source in sources):
        return _numbered(sources, known)
    limit = len(known) or MAX_CLASSES
    labels = np.concatenate([_whole_numbers(source, limit) for source in sources])
    return labels, known or tuple(map(str, range(labels.max(initial=-1) + 1)))


def _whole_numbers(source: Source, limit: int) -> np.ndarray:
    where, labels = source
    if labels.dtype.kind not in "biuf":
        raise fault(
            where, f"labels are {labels.dtype}; they must be whole numbers, from 0, or text"
        )
    if labels.dtype.kind == "f" and (parts := ~(np.floor(labels) == labels)).any():
        first = int(parts.argmax())
        raise fault(
            where, f"label {first} is {labels[first]}; labels are whole numbers, or -1 for unknown"
        )
    # Wide enough to be compared with any limit.
    labels = labels.astype({"b": np.int32, "f": np.float64}.get(labels.dtype.kind, labels.dtype))
    if (outside := (labels < -1) | (labels >= limit)).any():
        first = int(outside.argmax())
        raise fault(
            where,
            f"label {first} is {labels[first]}; labels must be 0 to {limit - 1}, or -1 for unknown",
        )
    return labels.astype(np.int32)


def _numbered(
    sources: Sequence[Source], known: tuple[str, ...]
) -> tuple[np.ndarray, tuple[str, ...]]:
    words: list[tuple[str, int, str | None]] = []
    for where, array in sources:
        with reporting(where, "holds labels that are no text in UTF-8"):
            names = [each.decode() if isinstance(each, bytes) else each for each in array.tolist()]
        words += [(where, row, name) for row, name in enumerate(names)]
    found = {name for *_, name in words if name}
    classes = known or tuple(sorted(found, key=class_order(found)))
    if len(classes) > MAX_CLASSES:
        raise fault(
            sources[0].where,
            f"holds {len(classes):,} different labels; at most {MAX_CLASSES:,} can be",
        )
    numbers = {None: -1, "": -1} | {name: number for number, name in enumerate(classes)}
    for where, row, name in words:
        if name not in numbers:
            raise fault(where, f"label {row} is {brief(name)!r}, which no image to train on has")
    return np.array([numbers[name] for *_, name in words], np.int32), classes
