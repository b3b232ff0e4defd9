"""What two trials of a program left behind, compared bit by bit."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from loopax.paths import form_of

GROUPS = ("parameters", "optimiser state", "keys", "other state")
"""Of the arrays in a state."""
ARRAYS_SHOWN = 3


@dataclass(frozen=True)
class Outcome:
    """What a program that was run to its end left behind.

    Attributes:
        steps: how many were made.
        arrays: those of the last checkpoint, by group and path.
        data, metrics: what each step was given and what it measured, as JSON.
        rows: the lines of `metrics.jsonl` by their number.
    """

    steps: int
    arrays: Mapping[str, np.ndarray]
    data: Mapping[int, str]
    metrics: Mapping[int, str]
    rows: Mapping[int, str]

    def group(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of one group by path; a single array is called by the group's name."""
        named = ((path.partition("/"), array) for path, array in self.arrays.items())
        return {rest or group: array for (group, _, rest), array in named if group == name}


@dataclass(frozen=True)
class Comparison:
    """How many of the things of one kind were compared, how many differ, and the first of these."""

    what: str
    unit: str
    compared: int
    differing: int
    examples: tuple[str, ...]


def compare(straight: Outcome, other: Outcome) -> tuple[Comparison, ...]:
    """All that a trial without interruption and another one left, kind by kind."""
    arrays = (
        _compared(name, "arrays", "{}", straight.group(name), other.group(name)) for name in GROUPS
    )
    return (
        *arrays,
        _compared("data order", "steps", "first at step {}", straight.data, other.data),
        _compared("metrics", "steps", "first at step {}", straight.metrics, other.metrics),
        _compared("logged rows", "rows", "first in line {}", straight.rows, other.rows),
    )


def _compared(
    what: str, unit: str, place: str, straight: Mapping[Any, Any], other: Mapping[Any, Any]
) -> Comparison:
    keys = list({**straight, **other})
    differing = [key for key in keys if _bits(straight.get(key)) != _bits(other.get(key))]
    examples = tuple(
        f"{place.format(key)}: {_difference(straight.get(key), other.get(key))}"
        for key in differing[: ARRAYS_SHOWN if unit == "arrays" else 1]
    )
    return Comparison(what, unit, len(keys), len(differing), examples)


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
    wide = np.complex128 if one.dtype.kind == "c" else np.float64
    with np.errstate(invalid="ignore"):
        distance = np.abs(one.astype(wide) - two.astype(wide))
    count = np.count_nonzero(_each(one) != _each(two))
    most = f"by up to {distance.max():.3g}" if distance.any() else "in the sign of zeros"
    return f"{count:,} of {one.size:,} numbers, {most}"


def _each(array: np.ndarray) -> np.ndarray:
    """The bits of each number, as something that can only be compared."""
    return np.frombuffer(array.tobytes(), f"V{array.itemsize}")
