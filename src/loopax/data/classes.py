"""The classes of a dataset: how many there can be, and in which order they are."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

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


def normalized(row: Sequence[str]) -> tuple[str, ...]:
    """A row without what most models do not see: case, spaces, and forms of the same letter."""
    folded = (unicodedata.normalize("NFKC", text).casefold() for text in row)
    return tuple(" ".join(text.split()) for text in folded)
