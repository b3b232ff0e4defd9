"""What steps measure: scalars by name, a row a step, and the means over rows."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, Num

from loopax.errors import ConfigError

SKIPPED = "skipped"
WEIGHT = "weight"
LEARNING_RATE = "learning_rate"
RESERVED = (
    *("step", "epoch", "source", "steps", "loss", LEARNING_RATE, "grad_norm", "update_norm"),
    *(SKIPPED, "skipped_steps"),
)
"""What the log calls its own numbers; so no metric of a loss or a hook is called like that."""


def check_names(names: Iterable[Any], source: str) -> None:
    """Makes sure that values can be logged under these names.

    Raises:
        ConfigError: one is no string, empty, or the log's own; `source` is who returns them.
    """
    for name in names:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{source} returned a value named {name!r}; names are strings")
        if name in RESERVED or _is_rate(name):
            raise ConfigError(
                f"{source} returned {name!r}, as the log calls a number of its own; give it "
                "another name"
            )


def _is_rate(name: str) -> bool:
    return name.partition("/")[0] == LEARNING_RATE


@functools.partial(jax.tree_util.register_dataclass, data_fields=["buffers"], meta_fields=["names"])
@dataclass(frozen=True)
class Rows:
    """The metrics of up to `capacity` steps, written by a compiled loop; unused rows are zeros.

    Attributes:
        buffers: one `[capacity, metrics]` array for each type of number, so usually a single one,
            which is cheap to write and to read. Counts keep the type that holds them exactly.
        names: what the columns of each buffer are.
    """

    buffers: tuple[Num[Array, "capacity metrics"], ...]
    names: tuple[tuple[str, ...], ...]

    @classmethod
    def empty(cls, metrics: Mapping[str, Any], capacity: int) -> Self:
        """Rows of zeros for scalars of these types, the loss first."""
        names: dict[np.dtype, list[str]] = {}
        for name in sorted(metrics, key=_loss_first):
            names.setdefault(metrics[name].dtype, []).append(name)
        buffers = (jnp.zeros((capacity, len(group)), dtype) for dtype, group in names.items())
        return cls(tuple(buffers), tuple(map(tuple, names.values())))

    def with_row(self, index: Int32[Array, ""], metrics: Mapping[str, Any]) -> Rows:
        """These rows with the one at `index` filled; traced."""
        rows = (jnp.stack([metrics[name] for name in names]) for names in self.names)
        buffers = (
            buffer.at[index].set(row) for buffer, row in zip(self.buffers, rows, strict=True)
        )
        return Rows(tuple(buffers), self.names)

    def columns(self, count: int) -> dict[str, Num[np.ndarray, " count"]]:
        """Each metric of the first `count` steps; reading them waits for the device."""
        return {
            name: buffer[:count, column]
            for buffer, names in zip(jax.device_get(self.buffers), self.names, strict=True)
            for column, name in enumerate(names)
        }

    def steps(self, count: int) -> list[dict[str, float]]:
        """The first `count` rows, each a dict of plain numbers; reading them waits."""
        columns = self.columns(count)
        values = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in values]

    def is_ready(self) -> bool:
        """Whether reading would not have to wait."""
        # A method of jax.Array that jaxtyping's Array, which is checked here, does not declare.
        return all(buffer.is_ready() for buffer in self.buffers)  # type: ignore[attr-defined]


Sums = dict[str, tuple[Num[Array, "..."], Num[Array, "..."]]]
"""Arrays added up over batches, each in two parts, so that no digit of a count is lost."""


def no_sums(metrics: Mapping[str, Any]) -> Sums:
    """Where adding up arrays of these shapes and types begins."""
    zeros = {name: jnp.zeros(value.shape, value.dtype) for name, value in metrics.items()}
    return {name: (zero, zero) for name, zero in zeros.items()}


def with_arrays(sums: Sums, metrics: Mapping[str, Any]) -> Sums:
    """The sums with the arrays of one more batch; traced."""
    return {name: _added(*parts, metrics[name]) for name, parts in sums.items()}


def _added(high: Array, low: Array, value: Array) -> tuple[Array, Array]:
    if jnp.issubdtype(value.dtype, jnp.integer):
        bits = 4 * value.dtype.itemsize
        return high + (value >> bits), low + (value & (2**bits - 1))
    # What rounding the sum loses is kept beside it.
    total = high + value
    part = total - high
    return total, low + ((high - (total - part)) + (value - part))


def totals(many: Sequence[Sums]) -> dict[str, np.ndarray]:
    """The sums of several chunks, in int64 or float64; reading them waits for the device."""
    found: dict[str, np.ndarray] = {}
    for sums in jax.device_get(many):
        for name, (high, low) in sums.items():
            if high.dtype.kind == "f":
                value = high.astype(np.float64) + np.where(np.isfinite(high), low, 0)
            else:
                value = (high.astype(np.int64) << 4 * high.itemsize) + low.astype(np.int64)
            before = found.get(name, np.zeros_like(value))
            if before.shape != value.shape:
                raise ConfigError(
                    f"the metric {name!r} has shape {before.shape} for some batches and "
                    f"{value.shape} for others; arrays are added up over an evaluation"
                )
            found[name] = before + value
    return found


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over the rows that have it and were not skipped.

    Each row counts as often as its `weight` says, and once where it has none. What is over nothing
    is NaN. Of a learning rate it is the last value.

    Raises:
        ConfigError: a weight is no count, or only some rows have one.
    """
    rates = {name: row[name] for row in rows for name in row if _is_rate(name)}
    rows = [row for row in rows if not row.get(SKIPPED)]
    if 0 < (weighted := sum(WEIGHT in row for row in rows)) < len(rows):
        raise ConfigError(
            f"the loss returned 'weight' for {weighted} of {len(rows)} batches; return it for all"
        )
    values: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        weight = row.get(WEIGHT, 1)
        if not 0 <= weight < math.inf:
            raise ConfigError(
                f"the loss returned the weight {weight}; it says how many things the means are "
                "over, so it is finite and not negative"
            )
        for name, value in row.items():
            values.setdefault(name, []).append((value, weight))
    found = {name: _mean(pairs) for name, pairs in values.items()} | rates
    names = sorted(found.keys() - {SKIPPED, WEIGHT}, key=_loss_first)
    return {name: found[name] for name in names}


def _loss_first(name: str) -> tuple[bool, str]:
    return (name != "loss", name)


def _mean(pairs: Sequence[tuple[float, float]]) -> float:
    """The mean of values by weights; a value that weighs nothing may be NaN."""
    counted = [(value, weight) for value, weight in pairs if weight]
    if not counted:
        return math.nan
    values, weights = zip(*counted, strict=True)
    return float(np.average(values, weights=weights))
