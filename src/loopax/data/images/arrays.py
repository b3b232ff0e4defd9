"""What images and labels must be, whichever file they came from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loopax.data.classes import MAX_CLASSES, class_order
from loopax.data.files import blaming, fault


def as_images(array: np.ndarray, where: str) -> np.ndarray:
    """Images as they are kept: uint8, or float32 in [0, 1], `(examples, height, width, channels)`.

    Integers of other types whose values are 0 to 255 become uint8, `(examples, height, width)`
    gets one channel.

    Args:
        array: the images as they were read.
        where: the file, and the part of it, that they were read from.

    Raises:
        DataError: the shape, the type or a value is none of these.
    """
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


def as_labels(
    array: np.ndarray, where: str, *, examples: int, classes: int | None = None
) -> np.ndarray:
    """Labels as they are kept: int32 `(examples,)`, -1 where the class is not known.

    `(examples, 1)` is flattened; false is 0, true is 1, and floats may be whole numbers.

    Args:
        array: the labels as they were read.
        where: the file, and the part of it, that they were read from.
        examples: how many images there are.
        classes: how many classes there are, where that is known.

    Raises:
        DataError: they are no whole numbers, not one for each image, or one is below -1 or not
            below `classes`.
    """
    labels = _one_each(array, where, examples)
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
    wide = {"b": np.int32, "f": np.float64}.get(labels.dtype.kind)
    labels = labels if wide is None else labels.astype(wide)
    limit = MAX_CLASSES if classes is None else classes
    if (outside := (labels < -1) | (labels >= limit)).any():
        first = int(outside.argmax())
        raise fault(
            where,
            f"label {first} is {labels[first]}; labels must be 0 to {limit - 1}, or -1 for unknown",
        )
    return labels.astype(np.int32)


def as_named_labels(
    array: np.ndarray, where: str, *, examples: int, known: tuple[str, ...] = ()
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels that are text, or bytes of UTF-8, as numbers; and the names of the classes.

    Args:
        array: the labels as they were read, `(examples,)` or `(examples, 1)`.
        where: the file, and the part of it, that they were read from.
        examples: how many images there are.
        known: the classes there are; if empty, those that occur, in the order of `class_order`.

    Raises:
        DataError: there is not one for each image, one is no text or none of those known, or there
            are too many.
    """
    labels = _one_each(array, where, examples)
    with blaming(where, "holds labels that are no text in UTF-8"):
        words = [each.decode() if isinstance(each, bytes) else each for each in labels.tolist()]
    return numbered([(where, row, word) for row, word in enumerate(words)], known or None)


def numbered(
    stored: Sequence[tuple[str, int, str | None]], known: tuple[str, ...] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Names of classes as numbers, and the classes; each name comes with where it was.

    None and what is empty are unknown, -1.

    Raises:
        DataError: a name is none of those known, or there are too many.
    """
    found = {name for *_, name in stored if name}
    names = tuple(sorted(found, key=class_order(found))) if known is None else known
    if len(names) > MAX_CLASSES:
        where = stored[0][0]
        raise fault(where, f"holds {len(names):,} different labels; at most {MAX_CLASSES:,} can be")
    numbers = {None: -1, "": -1} | {name: number for number, name in enumerate(names)}
    for where, row, name in stored:
        if name not in numbers:
            shown = name if name is None or len(name) <= 60 else f"{name[:57]}..."
            raise fault(where, f"label {row} is {shown!r}, which no image to train on has")
    return np.array([numbers[name] for *_, name in stored], np.int32), names


def _one_each(array: np.ndarray, where: str, examples: int) -> np.ndarray:
    """Labels `(examples,)`, of which each image has one."""
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
    return labels
