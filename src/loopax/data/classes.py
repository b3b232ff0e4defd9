"""The names of classes: how many there can be, their order, and which are spelled alike."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

MAX_CLASSES = 65_536
"""A label beyond this is taken for damage; the largest sets in use have some 22,000 classes."""


def class_order(names: Iterable[str]) -> Callable[[str], Any]:
    """The sort key of class names: by number if all are numbers, otherwise by name."""
    try:
        numbers = {name: float(name) for name in names}
    except ValueError:
        return str
    return (
        (lambda name: (numbers[name], name)) if all(map(math.isfinite, numbers.values())) else str
    )


def normalized(row: Sequence[str]) -> tuple[str, ...]:
    """Texts without differences of case, spaces and Unicode form, which most models do not see."""
    folded = (unicodedata.normalize("NFKC", text).casefold() for text in row)
    return tuple(" ".join(text.split()) for text in folded)
