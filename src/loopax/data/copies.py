"""Images that are copies of each other, or all but copies of their neighbours."""

from __future__ import annotations

import hashlib

import numpy as np

_PAIRS = 1000
_FEWEST_PAIRS = 20
_VALUES = 4096


def digests_of(images: np.ndarray) -> list[bytes]:
    """A digest of the pixels of each of `images`, `(examples, ...)`; of equal ones it is equal."""
    return [
        hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
        for image in images
    ]


def are_alike_in_a_row(images: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> bool:
    """Whether images are like those stored beside them, as frames of a film are.

    They are where neighbours of one class differ by less than half of what images differ by that
    lie half of their class apart: the medians, over up to 1,000 pairs, of mean absolute
    differences. Of fewer than 20 pairs nothing can be said.

    Args:
        images: `(examples, height, width, channels)`.
        labels: the class of each, `(examples,)`.
        rows: which of them to look at, in their order.
    """
    pairs = []
    for label in np.unique(labels):
        of = rows[labels[rows] == label]
        pairs.append(np.stack([of, np.roll(of, -1), np.roll(of, -(len(of) // 2))])[:, :-1])
    first, beside, apart = np.concatenate(pairs, axis=1)
    if len(first) < _FEWEST_PAIRS:
        return False
    some = np.linspace(0, len(first) - 1, min(len(first), _PAIRS)).astype(int)
    near = _distances(images, first[some], beside[some])
    far = _distances(images, first[some], apart[some])
    return bool(np.median(near) < np.median(far) / 2)


def ending_split(images: np.ndarray, labels: np.ndarray, fraction: float) -> np.ndarray:
    """Picks the last of every class, from where two neighbours differ most.

    At least `fraction` of a class, rounded, are picked, and at most half as many more.

    Returns:
        Which rows are picked, bool `(rows,)`.
    """
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        picked = min(max(1, int(len(rows) * fraction + 0.5)), len(rows) - 1)
        if picked:
            last = len(rows) - picked
            cuts = np.arange(max(1, last - picked // 2), last + 1)
            jumps = _distances(images, rows[cuts - 1], rows[cuts])
            # Of equal jumps the last, which leaves the most to train on.
            chosen[rows[cuts[::-1][jumps[::-1].argmax()] :]] = True
    return chosen


def _distances(images: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean absolute differences, over up to some 4,096 values, of pairs of rows."""
    values = images.reshape(len(images), -1)
    some = slice(None, None, max(1, values.shape[1] // _VALUES))
    return np.array(
        [
            np.abs(values[a, some].astype(np.float32) - values[b, some]).mean()
            for a, b in zip(one, other, strict=True)
        ]
    )
