"""One line that describes data, so that people see whether it was read as they meant it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from loopax.data.classes import normalized
from loopax.data.files import VALIDATION_NAMES
from loopax.data.words import abridged, brief

if TYPE_CHECKING:
    from loopax.batches.dataset import Dataset
    from loopax.data.splits import Splits
    from loopax.data.texts.texts import Texts

_NOTHING = ("none", "nan", "na", "n/a", "null")


def described(name: str, source: str, facts: Iterator[str]) -> str:
    """The line: name, source, and facts."""
    return f"{brief(name)}{f' ({source})' if source else ''}: {', '.join(facts)}"


def facts_of_splits(splits: Splits) -> Iterator[str]:
    """How many examples there are of each part, of what size and classes, and what was noted."""
    train, validation, test = splits
    parts = splits.parts
    yield f"{len(train):,} to train on"
    if validation is not None:
        origin = _origin(validation, len(train) + len(validation), " of the training data")
        yield f"{len(validation):,} to choose by ({origin})"
    yield f"{len(test):,} to test on ({_origin(test, sum(map(len, parts.values())))})"
    if (images := train.columns.get("image")) is not None and images.ndim == 4:
        palette = {1: "grey", 3: "colour"}.get(images.shape[3], f"{images.shape[3]} channels")
        yield f"{images.shape[1]} x {images.shape[2]} {palette}"
    if (labels := train.columns.get("label")) is not None and train.class_names:
        yield from _classes_of_images(train.class_names, labels)
        yield from _unlabelled(np.concatenate([part.columns["label"] for part in parts.values()]))
        yield from _alike(train.class_names)
    for note in dict.fromkeys(note for part in parts.values() for note in part.notes):
        of = [name for name, part in parts.items() if note in part.notes]
        yield note if len(of) == len(parts) else f"{note} ({', '.join(of)})"


def facts_of_texts(texts: Texts) -> Iterator[str]:
    """How many texts there are, how they are labelled, and how long they are."""
    kind = "texts" if len(texts.columns.text) == 1 else "pairs"
    yield f"{len(texts):,} {kind}"
    yield from texts.notes
    if empty := sum(not all(map(str.strip, row)) for row in texts.rows):
        yield f"{empty:,} with an empty text"
    if names := texts.class_names:
        counts = np.bincount(texts.labels[texts.labels >= 0], minlength=len(names))
        listed = abridged(f"{brief(name)} {n:,}" for name, n in zip(names, counts, strict=True))
        yield f"{len(names):,} classes ({listed})"
        yield from _alike(names)
        if words := [repr(name) for name in names if name.casefold() in _NOTHING]:
            said = ", ".join(words)
            yield f"labels that are classes here: {said} (remove their rows if they mean nothing)"
        yield from _unlabelled(texts.labels)
    if texts.groups is not None:
        yield f"{len(set(texts.groups) - {''}):,} groups"
    if lengths := [sum(map(len, row)) for row in texts.rows]:
        yield f"{statistics.median_low(lengths):,} characters in the median"
        yield f"{max(lengths):,} at most"


def _origin(part: Dataset, total: int, whole: str = "") -> str:
    """The origin of a part: given, perhaps under another name, or held out of the whole."""
    if part.held_out is not None:
        return f"1 in {round(total / len(part), 1):g}{whole} held out"
    word = part.name.rpartition(" ")[2]
    return f"given as {word}" if word in VALIDATION_NAMES and not whole else "given"


def _classes_of_images(names: Sequence[str], labels: np.ndarray) -> Iterator[str]:
    if len(names) == 1:
        yield f"1 class ({brief(names[0])})"
        return
    is_numbered = [*names] == [*map(str, range(len(names)))]
    listed = f"0 to {len(names) - 1}" if is_numbered else abridged(map(brief, names))
    yield f"{len(names):,} classes ({listed})"
    counts = np.bincount(labels[labels >= 0], minlength=len(names))
    low, high = counts.min(), counts.max()
    yield f"{low:,} images each" if low == high else f"{low:,} to {high:,} images each"


def _unlabelled(labels: np.ndarray) -> Iterator[str]:
    if count := int((labels < 0).sum()):
        yield f"{count:,} without a label"


def _alike(names: Sequence[str]) -> Iterator[str]:
    """The names of classes that are probably meant to be one."""
    spelled: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        spelled.setdefault(normalized([name]), []).append(name)
    if same := [name for each in spelled.values() if len(each) > 1 for name in each]:
        yield f"classes that differ in case or spaces alone: {', '.join(map(brief, same))}"
