"""What images and labels must be, whichever file they came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from loopax.data.reading import fault

MAX_CLASSES = 65_536
"""A label beyond this is taken for damage; the largest sets in use have some 22,000 classes."""


def class_order(names: Iterable[str]) -> Callable[[str], Any]:
    """What classes are sorted by: their numbers if all names are numbers, else their names."""
    try:
        numbers = {name: float(name) for name in names}
    except ValueError:
        return str
    return (
        (lambda name: (numbers[name], name)) if all(map(math.isfinite, numbers.values())) else str
    )


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

    `(examples, 1)` is flattened.

    Args:
        array: the labels as they were read.
        where: the file, and the part of it, that they were read from.
        examples: how many images there are.
        classes: how many classes there are, where that is known.

    Raises:
        DataError: they are not integers, not one for each image, or one is below -1 or not below
            `classes`.
    """
    labels = array.ravel() if array.ndim == 2 and array.shape[1] == 1 else array
    if labels.ndim != 1:
        advice = "; turn one-hot rows into numbers with argmax(axis=1)" if array.ndim == 2 else ""
        raise fault(
            where,
            f"labels have the shape {array.shape}; it must be (examples,), the number of a class "
            f"for each{advice}",
        )
    if labels.dtype.kind not in "iu":
        raise fault(where, f"labels are {labels.dtype}; they must be integers, from 0")
    if len(labels) != examples:
        raise fault(where, f"holds {len(labels)} labels for {examples} images; each needs one")
    limit = MAX_CLASSES if classes is None else classes
    if (outside := (labels < -1) | (labels >= limit)).any():
        first = int(outside.argmax())
        raise fault(
            where,
            f"label {first} is {labels[first]}; labels must be 0 to {limit - 1}, or -1 for unknown",
        )
    return labels.astype(np.int32)
