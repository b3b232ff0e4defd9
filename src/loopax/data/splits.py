"""The parts of a dataset, and what it is in one line: was it read as its owner meant it?"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from loopax.batches.dataset import Dataset
from loopax.data.copies import are_alike_in_a_row, digests_of, ending_split
from loopax.data.files import fault
from loopax.data.splitting import even_split, grouped_split
from loopax.data.words import shown
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
        one and never all. Which ones is a function of the data, as `hold_out` says; copies of an
        image stay together. The test part is not touched. A validation part that is there stays
        as it is.

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

    They are spread over the stored order, as `even_split` says. Of images whose neighbours are
    alike, as those of a film are, the last of each class are held out, as a frame that is held out
    of the middle was all but trained on. Copies of an image, of equal pixels, stay together. Both
    keep the stored order. Where `label` is no column of whole numbers all examples count as one
    class.

    Raises:
        DataError: no class has two examples that differ, or the parts do not fit in memory.
    """
    labels = dataset.columns.get("label")
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        labels = np.zeros(len(dataset), np.int32)
    if (images := dataset.columns.get("image")) is not None:
        chosen, notes = _image_split(images, labels, fraction)
    else:
        chosen, notes = even_split(labels, fraction), ()
    if not chosen.any():
        raise fault(
            dataset.name,
            "has 1 example of each class, copies not counted; to hold some out one must have 2",
        )
    # What was said of a whole holds of its parts when they are split again.
    said = dataset.notes if dataset.held_out is not None else (*dataset.notes, *notes)
    left, held = (
        replace(_rows_of(dataset, rows), held_out=fraction, notes=said)
        for rows in (~chosen, chosen)
    )
    return left, held


def without_copies(splits: Splits) -> Splits:
    """The parts without images that are trained on, or chosen by, and come again further on.

    What is to test on stays whole; the part to choose by loses copies of its images, of equal
    pixels, and the part to train on loses copies of images of both.

    Raises:
        DataError: nothing is left of a part.
    """
    seen: set[bytes] = set()
    kept = splits._asdict()
    for name, part in reversed(splits.parts.items()):
        digests = digests_of(part.columns["image"])
        copies = np.array([digest in seen for digest in digests])
        seen.update(digests)
        if copies.all():
            raise fault(
                part.name, "all its images are also in another part; parts must not share images"
            )
        if copies.any():
            note = f"left out as copies of images in other parts: {copies.sum():,}"
            kept[name] = replace(_rows_of(part, ~copies), notes=(*part.notes, note))
    return Splits(**kept)


def _image_split(
    images: np.ndarray, labels: np.ndarray, fraction: float
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Which images are held out, bool `(examples,)`, and what is to be said of it."""
    digests, notes = digests_of(images), list[str]()
    firsts = np.sort(np.unique(digests, return_index=True)[1])
    if copies := len(digests) - len(firsts):
        notes.append(f"copies of images kept on one side of each split: {copies:,}")
    if alike := are_alike_in_a_row(images, labels, firsts):
        chosen = ending_split(images, labels, fraction)
        notes.append(
            "neighbours are alike, like frames of a film, so the last of each class are held out "
            "(better: give other films as a part to test on)"
        )
    else:
        chosen = even_split(labels, fraction)
    if copies:
        # What is alike in a row is one block; otherwise each of the chosen is asked for first.
        blocks = [
            label if alike and row else None for label, row in zip(labels, chosen, strict=True)
        ]
        ranks = [(not row, position) for position, row in enumerate(chosen)]
        chosen = grouped_split(list(zip(digests, blocks, strict=True)), ranks, labels, fraction)
    return chosen, tuple(notes)


def _rows_of(dataset: Dataset, rows: np.ndarray) -> Dataset:
    try:
        columns = {key: column[rows] for key, column in dataset.columns.items()}
    except MemoryError as error:
        raise fault(
            dataset.name,
            f"its parts do not fit in memory beside the whole, {dataset.nbytes:,} bytes; make "
            "images smaller by size= (--image-size)",
        ) from error
    return replace(dataset, columns=columns)


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
        yield from _facts_of_spelling(train.class_names)
    yield from _noted(splits)


def _noted(splits: Splits) -> Iterator[str]:
    """What is to be said of all parts, and what only of some."""
    parts = splits.parts
    for note in dict.fromkeys(note for part in parts.values() for note in part.notes):
        of = [name for name, part in parts.items() if note in part.notes]
        yield note if len(of) == len(parts) else f"{note} ({', '.join(of)})"


def _facts_of_spelling(names: Sequence[str]) -> Iterator[str]:
    """Classes that may be meant to be one."""
    spelled: dict[str, list[str]] = {}
    for name in names:
        key = unicodedata.normalize("NFKC", name).casefold().strip()
        spelled.setdefault(key, []).append(name)
    for same in spelled.values():
        if len(same) > 1:
            yield f"{' and '.join(map(repr, same))} are different classes"


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
