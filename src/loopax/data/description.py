"""One line that describes data, so that people see whether it was read as they meant it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from loopax.data.classes import normalized
from loopax.data.words import abridged, brief


def described(name: str, source: str, facts: Iterator[str]) -> str:
    """The line: name, source, and facts."""
    return f"{brief(name)}{f' ({source})' if source else ''}: {', '.join(facts)}"


def classes_of_images(names: Sequence[str], labels: np.ndarray) -> Iterator[str]:
    """The classes, and how many images each has."""
    if len(names) == 1:
        yield f"1 class ({brief(names[0])})"
        return
    is_numbered = [*names] == [*map(str, range(len(names)))]
    listed = f"0 to {len(names) - 1}" if is_numbered else abridged(map(brief, names))
    yield f"{len(names):,} classes ({listed})"
    counts = np.bincount(labels[labels >= 0], minlength=len(names))
    low, high = counts.min(), counts.max()
    yield f"{low:,} images each" if low == high else f"{low:,} to {high:,} images each"


def unlabelled(labels: np.ndarray) -> Iterator[str]:
    """How many examples have no label, where there are some."""
    if count := int((labels < 0).sum()):
        yield f"{count:,} without a label"


def alike(names: Sequence[str]) -> Iterator[str]:
    """The names of classes that are probably meant to be one."""
    spelled: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        spelled.setdefault(normalized([name]), []).append(name)
    if same := [name for each in spelled.values() if len(each) > 1 for name in each]:
        yield f"classes that differ in case or spaces alone: {', '.join(map(brief, same))}"
