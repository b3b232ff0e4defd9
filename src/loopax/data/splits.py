"""The two parts of a dataset, and what it is in one line: was it read as its owner meant it?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from loopax.data.dataset import Dataset
from loopax.data.reading import shown

_MANY = 6
_LONG = 40


class Splits(NamedTuple):
    """The two parts that every recipe needs: one to train on, one never trained on."""

    train: Dataset
    test: Dataset

    @property
    def description(self) -> str:
        """What the data is, in one line: how it was read, counts, sizes, classes."""
        train = self.train
        source = f" ({train.source})" if train.source else ""
        name = _brief(train.name.removesuffix(" train"))
        return f"{name}{source}: {', '.join(_facts(train, self.test))}"


def _facts(train: Dataset, test: Dataset) -> Iterator[str]:
    held_out = test.held_out
    origin = "given" if held_out is None else f"1 in {round(1 / held_out, 1):g} held out"
    yield f"{len(train):,} to train on"
    yield f"{len(test):,} to test on ({origin})"
    if (images := train.columns.get("image")) is not None and images.ndim == 4:
        palette = {1: "grey", 3: "colour"}.get(images.shape[3], f"{images.shape[3]} channels")
        yield f"{images.shape[1]} x {images.shape[2]} {palette}"
    if (labels := train.columns.get("label")) is not None and train.class_names:
        yield from _facts_of_classes(train.class_names, labels)
        if unlabelled := sum(int((part.columns["label"] < 0).sum()) for part in (train, test)):
            yield f"{unlabelled:,} without a label"


def _facts_of_classes(names: tuple[str, ...], labels: np.ndarray) -> Iterator[str]:
    if len(names) == 1:
        yield f"1 class ({_brief(names[0])})"
        return
    if names == tuple(map(str, range(len(names)))):
        listed = f"0 to {len(names) - 1}"
    elif len(names) <= _MANY:
        listed = ", ".join(map(_brief, names))
    else:
        listed = f"{_brief(names[0])}, {_brief(names[1])}, ... {_brief(names[-1])}"
    yield f"{len(names):,} classes ({listed})"
    counts = np.bincount(labels[labels >= 0], minlength=len(names))
    low, high = counts.min(), counts.max()
    yield f"{low:,} images each" if low == high else f"{low:,} to {high:,} images each"


def _brief(text: str) -> str:
    text = shown(text)
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."
