"""Which images stand for all of them, and how many of them are looked at at once.

Data often lies class by class, so the first images are those of the first classes only.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from loopax.deadline import check_time

NUMBERS_AT_ONCE, NUMBERS_LIMIT = 2**24, 2**27
"""Of float32, in a portion and in all that is chosen: 64 and 512 MiB."""


def some_of(things: np.ndarray, most: int) -> Int[np.ndarray, " n"]:
    """The places of at most `most` things, drawn with a fixed seed, in their order.

    Fewer of large images, which else would not fit into memory as floats.
    """
    most = min(most, max(1, NUMBERS_LIMIT // max(1, things[:1].size)))
    # Not every n-th: where classes take turns that could leave some of them out.
    return np.sort(np.random.default_rng(0).permutation(len(things))[:most])


def with_labels(
    labels: Int[np.ndarray, " n"], wanted: Int[np.ndarray, " m"], *, seed: int = 0
) -> Int[np.ndarray, " m"]:
    """The places of things with the wanted labels, one for each, drawn with a fixed seed.

    Each is taken once as long as its class lasts. A class without any is replaced by whatever has
    a known label.
    """
    rng = np.random.default_rng(seed)
    places = np.empty(len(wanted), np.int64)
    for label in np.unique(wanted):
        own = np.flatnonzero(labels == label)
        own = own if len(own) else np.flatnonzero(labels >= 0)
        here = np.flatnonzero(wanted == label)
        places[here] = np.resize(rng.permutation(own), len(here))
    return places


def flat_portions(images: np.ndarray) -> Iterator[Float[np.ndarray, "n pixels"]]:
    """All images in [0, 1], uint8 or floats, a row each and so many at a time as fit anywhere."""
    size = max(1, NUMBERS_AT_ONCE // max(1, images[:1].size))
    for first in range(0, len(images), size):
        check_time()
        part = images[first : first + size]
        flat = part.reshape(len(part), -1).astype(np.float32)
        yield flat / 255 if images.dtype == np.uint8 else flat
