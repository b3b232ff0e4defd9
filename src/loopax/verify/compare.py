"""What two trials of a program left behind, compared bit by bit."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from loopax.paths import form_of

GROUPS = ("parameters", "optimiser state", "keys", "other state")
"""Of the arrays in a state."""


KINDS = {
    **dict.fromkeys(GROUPS, ("arrays", "{}")),
    "data order": ("steps", "step {}"),
    "metrics": ("steps", "step {}"),
    "logged rows": ("rows", "line {}"),
}
"""What is compared: how things of a kind are counted, and how one of them is named."""

EXAMPLES = 3
"""How many of those that differ are shown."""


class Outcome(NamedTuple):
    """What a program that was run to its end left behind.

    Attributes:
        steps: how many were made.
        parts: of each kind in `KINDS` the things by path, step or line: arrays, or JSON as text.
    """

    steps: int
    parts: Mapping[str, Mapping[Any, Any]]


@dataclass(frozen=True)
class Comparison:
    """How many things of one kind were compared, how many differ, and the first of these."""

    what: str
    unit: str
    compared: int
    differing: int
    examples: tuple[str, ...]


def compare(straight: Outcome, other: Outcome) -> tuple[Comparison, ...]:
    """All that a trial without interruption and another one left, kind by kind."""
    return tuple(_compared(name, straight.parts[name], other.parts[name]) for name in KINDS)


def _compared(name: str, straight: Mapping[Any, Any], other: Mapping[Any, Any]) -> Comparison:
    (unit, place), keys = KINDS[name], list({**straight, **other})
    differing = [key for key in keys if _bits(straight.get(key)) != _bits(other.get(key))]
    examples = tuple(
        f"{place.format(key)}: {_difference(straight.get(key), other.get(key))}"
        for key in differing[:EXAMPLES]
    )
    return Comparison(name, unit, len(keys), len(differing), examples)


def _bits(value: np.ndarray | str | None) -> Hashable:
    """What is the same for values that are, NaN and the sign of a zero included."""
    if isinstance(value, np.ndarray):
        return value.dtype.name, value.shape, value.tobytes()
    return value


def _difference(one: Any, two: Any) -> str:
    """How two arrays differ, or two mappings written as JSON: `loss 0.5 and 0.6`."""
    if one is None or two is None:
        return "only with interruption" if one is None else "only without interruption"
    if not isinstance(one, np.ndarray):
        before, after = json.loads(one), json.loads(two)
        names = {**before, **after}
        pairs = [(name, repr(before.get(name)), repr(after.get(name))) for name in names]
        return ", ".join(f"{name} {a} and {b}" for name, a, b in pairs if a != b)
    if (one.dtype, one.shape) != (two.dtype, two.shape):
        return f"{form_of(one)} and {form_of(two)}"
    # As plain bytes two numbers are equal only where all of their bits are.
    first, second = (np.frombuffer(each.tobytes(), f"V{each.itemsize}") for each in (one, two))
    wide = np.complex128 if one.dtype.kind == "c" else np.float64
    with np.errstate(invalid="ignore"):
        most = np.abs(one.astype(wide) - two.astype(wide)).max()
    count = np.count_nonzero(first != second)
    return f"{count:,} of {one.size:,} numbers, by up to {most:.3g}"
