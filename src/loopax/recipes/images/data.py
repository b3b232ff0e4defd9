"""Images that a configuration names, and which of them stand for all.

Data often lies class by class, so the first images are those of the first classes only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

import loopax
from loopax.data import Dataset, Splits
from loopax.deadline import check_time
from loopax.recipes.images.config import ImageSource

FEWEST_TO_CHOOSE_BY = 10
"""Images below which a difference between two checkpoints is chance."""
NUMBERS_AT_ONCE, NUMBERS_LIMIT = 2**23, 2**27
"""Of float32, in a portion and in all that is chosen: 32 and 512 MiB."""


def data_of(config: ImageSource) -> Splits:
    """The images that a configuration names.

    Raises:
        LoopaxError: they cannot be used.
    """
    if config.data == "mnist":
        return loopax.data.mnist()
    size = None if config.image_size is None else (config.image_size[0], config.image_size[1])
    return loopax.data.load(
        config.data,
        test_fraction=config.test_fraction,
        size=size,
        channels=config.channels,
        background=config.background,
        image_column=config.image_column,
        label_column=config.label_column,
    )


def with_validation(data: Splits, fraction: float) -> Splits:
    """The images with a part to choose by; without one where it would be too small to tell."""
    if data.validation is not None or fraction * len(data.train) < FEWEST_TO_CHOOSE_BY:
        return data
    return data.with_validation(fraction)


def known_only(dataset: Dataset) -> Dataset:
    """Without the images whose class is not known; all of them where none is."""
    known = dataset.columns["label"] >= 0
    return dataset.pick(known) if known.any() and not known.all() else dataset


def as_floats(images: Any) -> Any:
    """Stored images as a model sees them: bytes become float32 in [0, 1]."""
    return images.astype(np.float32) / 255 if images.dtype == np.uint8 else images


def some_of(things: np.ndarray, most: int) -> Int[np.ndarray, " n"]:
    """The places of at most `most` things, drawn with a fixed seed, in their order.

    Fewer of large images, which else would not fit into memory as floats.
    """
    most = min(most, max(1, NUMBERS_LIMIT // max(1, things[:1].size)))
    # Not every n-th: where classes take turns that could leave some of them out.
    return np.sort(np.random.default_rng(0).permutation(len(things))[:most])


def at_once(most: int, image_shape: Sequence[int]) -> int:
    """How many images a network is given together: `most`, or fewer of large ones.

    What its layers keep of an image grows with its pixels; each counts as if it had colour.
    """
    height, width, _ = image_shape
    return max(1, min(most, NUMBERS_AT_ONCE // (3 * height * width)))


def flat_portions(images: np.ndarray) -> Iterator[Float[np.ndarray, "n pixels"]]:
    """All images in [0, 1], uint8 or floats, a row each and so many at a time as fit anywhere."""
    size = max(1, NUMBERS_AT_ONCE // max(1, images[:1].size))
    for first in range(0, len(images), size):
        check_time()
        part = images[first : first + size]
        flat = part.reshape(len(part), -1).astype(np.float32)
        yield flat / 255 if images.dtype == np.uint8 else flat
