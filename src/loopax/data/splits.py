"""The parts of a dataset, and what it is in one line: was it read as its owner meant it?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from loopax.data.dataset import Dataset
from loopax.data.reading import fault, shown
from loopax.data.splitting import even_split
from loopax.errors import ConfigError

VALIDATION_NAMES = ("val", "valid", "validation")
"""What the part to choose by may be called."""
PART_NAMES = ("train", "test", *VALIDATION_NAMES)
"""What a part may be called, in names of folders, files and arrays."""

_MANY = 6
_LONG = 40


class Splits(NamedTuple):
    """The parts of a dataset: one to train on, one to choose by, one for the figures at the end.

    Attributes:
        train: what is trained on.
        validation: what a checkpoint, a setting or the moment to stop is chosen by; None where
            there is no such part.
        test: what nothing is trained on or chosen by.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset

    @property
    def parts(self) -> dict[str, Dataset]:
        """The parts there are, by the names of the attributes."""
        return {name: part for name, part in self._asdict().items() if part is not None}

    def with_validation(self, fraction: float = 0.1) -> Splits:
        """The same with a validation part: held out of the training part where none was given.

        Of each class `fraction` of the examples to train on are held out, rounded, but at least
        one and never all. They are evenly spaced in the stored order, so this is a function of the
        labels alone. The test part is not touched. A validation part that is there stays as it is.

        Raises:
            ConfigError: `fraction` is not between 0 and 1.
            DataError: no class has two examples.
        """
        check_fraction("fraction", fraction)
        if self.validation is not None:
            return self
        train, validation = hold_out(self.train, fraction)
        name = f"{self.train.name.removesuffix(' train')} validation"
        return Splits(train, replace(validation, name=name), self.test)

    @property
    def description(self) -> str:
        """What the data is, in one line: how it was read, counts, sizes, classes."""
        train = self.train
        source = f" ({train.source})" if train.source else ""
        name = _brief(train.name.removesuffix(" train"))
        return f"{name}{source}: {', '.join(_facts(self))}"


def check_fraction(name: str, value: Any) -> None:
    """Raises a ConfigError unless a value is a number between 0 and 1."""
    if not isinstance(value, Real) or not 0 < float(value) < 1:
        raise ConfigError(f"{name} is {value!r}; it must be a number between 0 and 1")


def hold_out(dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """What is left of a dataset, and the `fraction` of each class that is held out of it.

    Which examples these are says `even_split`; both keep the stored order. Where `label` is no
    column of whole numbers all examples count as one class.

    Raises:
        DataError: no class has two examples.
    """
    labels = dataset.columns.get("label")
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        labels = np.zeros(len(dataset), np.int32)
    chosen = even_split(labels, fraction)
    if not chosen.any():
        raise fault(dataset.name, "has 1 example of each class; to hold some out one must have 2")
    left, held = (
        replace(
            dataset,
            columns={key: column[rows] for key, column in dataset.columns.items()},
            held_out=fraction,
        )
        for rows in (~chosen, chosen)
    )
    return left, held


def _facts(splits: Splits) -> Iterator[str]:
    train, validation, test = splits
    yield f"{len(train):,} to train on"
    if validation is not None:
        origin = _origin(validation, len(train) + len(validation), "training data")
        yield f"{len(validation):,} to choose by ({origin})"
    whole = sum(map(len, splits.parts.values()))
    yield f"{len(test):,} to test on ({_origin(test, whole)})"
    if (images := train.columns.get("image")) is not None and images.ndim == 4:
        palette = {1: "grey", 3: "colour"}.get(images.shape[3], f"{images.shape[3]} channels")
        yield f"{images.shape[1]} x {images.shape[2]} {palette}"
    if (labels := train.columns.get("label")) is not None and train.class_names:
        yield from _facts_of_classes(train.class_names, labels)
        labelled = [part.columns["label"] for part in splits.parts.values()]
        if unlabelled := sum(int((each < 0).sum()) for each in labelled):
            yield f"{unlabelled:,} without a label"


def _origin(part: Dataset, total: int, whole: str = "") -> str:
    """Where a part is from: given, perhaps under another name, or so much of the whole."""
    if part.held_out is not None:
        of = f" of the {whole}" if whole else ""
        return f"1 in {round(total / len(part), 1):g}{of} held out"
    word = part.name.rpartition(" ")[2]
    return f"given as {word}" if word in VALIDATION_NAMES and not whole else "given"


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
