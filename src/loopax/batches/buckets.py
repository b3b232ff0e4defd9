"""Batches of sequences, each cut to the length that its longest member needs.

Sequences of similar length share a batch, so little is computed on padding; the lengths that a
batch can have are few, so little is compiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from loopax.batches.base import LEAST_CAPACITY, Batches, Feed, Items
from loopax.batches.dataset import Dataset, checked_batch_size
from loopax.batches.transforms import scaled, scaled_columns
from loopax.errors import ConfigError, DataError
from loopax.paths import PyTree
from loopax.placement import Placement, taken

SHORTEST = 32
"""Below this length padding costs less than another compilation."""

Rows = Int32[np.ndarray, " batch"]


class BucketedBatches(Batches):
    """Batches of a dataset of padded sequences, in an order per (seed, epoch).

    A bucket holds the sequences up to its length and longer than those of the bucket before. Each
    epoch shuffles the examples, fills batches from each bucket, hands what is left over to the
    next longer one, and shuffles the batches. Every batch is full, so an epoch leaves out less
    than one batch, of the longest sequences.

    Args:
        dataset: padded sequences `[examples, longest]` in the columns `cut`, and the number of
            true elements of each example in the column `length`.
        batch_size: examples in a batch.
        cut: the columns that are cut to the length of the bucket; the others are left whole.
        fingerprint: the identity of the data, where its columns were computed from others.
        scale: the `uint8` columns that become `float32` in [0, 1], as in `DatasetBatches`.

    Raises:
        ConfigError: the batch size is not between 1 and the number of examples, `cut` names what
            is not there, or another argument cannot work.
        DataError: there are no examples, the lengths are not those of sequences, or a value is
            beyond what the device can hold.
    """

    steps_per_epoch: int

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        cut: Sequence[str],
        fingerprint: str | None = None,
        scale: Sequence[str] | None = None,
    ) -> None:
        self.dataset, self.cut = dataset, _checked_cut(dataset, cut)
        self.batch_size = checked_batch_size(batch_size, dataset)
        self.scale = scaled_columns(dataset.columns, scale, dataset.name)
        self.lengths = _checked_lengths(dataset, self.cut)
        self.buckets = bucket_lengths(int(self.lengths.max()))
        self.steps_per_epoch = len(dataset) // self.batch_size
        self.fingerprint = fingerprint or dataset.fingerprint

    @property
    def identity(self) -> Mapping[str, Any]:
        return {
            "data": self.fingerprint,
            "batch_size": self.batch_size,
            "buckets": list(self.buckets),
            "scale": list(self.scale),
        }

    def resident(self, placement: Placement) -> PyTree:
        return self.dataset.resident(placement)

    def feed(self, seed: Sequence[int], start: int, capacity: int) -> Feed:
        return _BucketedFeed(self, seed, start, capacity)

    def once(self, capacity: int) -> Iterator[Items]:
        order = np.argsort(self.lengths, kind="stable").astype(np.int32)
        size = self.batch_size
        full = len(order) // size
        rows = order[: full * size].reshape(full, size)
        bounds = [self.bucket_of(batch) for batch in rows]
        first = 0
        while first < full:
            last = _alike(bounds, first, first + max(LEAST_CAPACITY, capacity))
            yield self.items(rows[first:last], bounds[first], max(LEAST_CAPACITY, capacity))
            first = last
        if rest := len(order) - full * size:
            yield self.items(order[-rest:][None], self.bucket_of(order[-rest:]), LEAST_CAPACITY)

    def gather(self, resident: PyTree, item: PyTree) -> PyTree:
        rows, span = item["rows"], item["span"].shape[-1]
        columns = self.dataset.columns
        return {
            name: taken(
                column, (rows, slice(span)) if name in self.cut else rows, columns[name].dtype
            )
            for name, column in resident.items()
        }

    def prepare(self, examples: PyTree, rngs: Any) -> PyTree:
        del rngs
        return scaled(examples, self.scale)

    def bucket_of(self, rows: Rows) -> int:
        """The length of the bucket that these examples need."""
        return next(bound for bound in self.buckets if bound >= self.lengths[rows].max())

    def items(self, rows: Int32[np.ndarray, "steps batch"], bound: int, capacity: int) -> Items:
        """The items of consecutive steps of one bucket, padded to `capacity`."""
        padded = np.zeros((capacity, rows.shape[1]), np.int32)
        padded[: len(rows)] = rows
        # The length is part of the item's shape: that is what the step is compiled for.
        span = np.zeros((capacity, min(bound, self._longest) if self.cut else 0), np.bool_)
        return Items({"rows": padded, "span": span}, len(rows))

    @property
    def _longest(self) -> int:
        """The length that the columns were padded to."""
        return min(self.dataset.columns[name].shape[1] for name in self.cut)

    def epoch(self, seed: Sequence[int], epoch: int) -> list[tuple[int, Rows]]:
        """The batches of an epoch in their order: the length of each one's bucket, and its rows."""
        generator = np.random.default_rng([*seed, epoch])
        order = generator.permutation(len(self.dataset)).astype(np.int32)
        home = np.searchsorted(self.buckets, self.lengths[order])
        batches: list[tuple[int, Rows]] = []
        left = order[:0]
        for number, bound in enumerate(self.buckets):
            rows = np.concatenate([left, order[home == number]])
            full = len(rows) // self.batch_size * self.batch_size
            batches += [(bound, part) for part in rows[:full].reshape(-1, self.batch_size)]
            left = rows[full:]
        return [batches[index] for index in generator.permutation(len(batches))]


class _BucketedFeed:
    """Walks the epochs; a take ends with its epoch, or where another bucket begins."""

    def __init__(
        self, batches: BucketedBatches, seed: Sequence[int], start: int, capacity: int
    ) -> None:
        self._batches, self._seed, self._step = batches, seed, start
        self._capacity = max(LEAST_CAPACITY, capacity)
        self._epoch = -1
        self._order: list[tuple[int, Rows]] = []

    def take(self, n: int) -> Items:
        epoch, first = divmod(self._step, self._batches.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._batches.epoch(self._seed, epoch)
        bounds = [bound for bound, _ in self._order]
        limit = first + min(n, self._capacity)
        # Where nothing is cut all batches look alike.
        last = _alike(bounds, first, limit) if self._batches.cut else min(limit, len(bounds))
        rows = np.stack([rows for _, rows in self._order[first:last]])
        self._step += last - first
        return self._batches.items(rows, bounds[first], self._capacity)


def bucket_lengths(longest: int) -> tuple[int, ...]:
    """The lengths of the buckets: doubling from 32, up to what the longest sequence needs."""
    bounds = [SHORTEST]
    while bounds[-1] < longest:
        bounds.append(2 * bounds[-1])
    return tuple(bounds)


def _checked_cut(dataset: Dataset, cut: Sequence[str]) -> tuple[str, ...]:
    if isinstance(cut, str):
        raise ConfigError(f"cut is {cut!r}; it must be a list of columns: cut=[{cut!r}]")
    for name in cut:
        column = dataset.columns.get(name)
        if column is None or column.ndim < 2:
            padded = [each for each, column in dataset.columns.items() if column.ndim > 1]
            raise ConfigError(
                f"cut names {name!r}, which is no column of padded sequences of {dataset.name}; "
                f"there are: {', '.join(padded) or 'none'}"
            )
    return tuple(cut)


def _checked_lengths(dataset: Dataset, cut: Sequence[str]) -> np.ndarray:
    """The column `length`: without it, or where it lies, what is cut off would be lost."""
    lengths = dataset.columns.get("length")
    if lengths is None or lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise DataError(
            f"{dataset.name}: batches by length need a column 'length' of integers, one for each "
            f"example; there are {', '.join(dataset.columns)}"
        )
    longest = min((dataset.columns[name].shape[1] for name in cut), default=lengths.max())
    if (wrong := lengths[(lengths < 0) | (lengths > longest)]).size:
        raise DataError(
            f"{dataset.name}: the column 'length' has the value {wrong[0]}; sequences that were "
            f"padded to {longest} have lengths from 0 to {longest}"
        )
    return lengths


def _alike(bounds: Sequence[int], first: int, limit: int) -> int:
    """Where the run of equal bounds that begins at `first` ends, at the latest at `limit`."""
    last = first + 1
    while last < min(limit, len(bounds)) and bounds[last] == bounds[first]:
        last += 1
    return last
