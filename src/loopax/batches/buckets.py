"""Batches of sequences, each cut to the length that its longest member needs.

Sequences of similar length share a batch, so little is computed on padding; the lengths that a
batch can have are few, so little is compiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from loopax.batches.base import LEAST_CAPACITY, Batches, Feed, Items
from loopax.batches.dataset import Dataset, DatasetBatches
from loopax.errors import ConfigError, DataError
from loopax.paths import PyTree
from loopax.placement import Placement, taken

SHORTEST = 32
"""Below this length padding costs less than another compilation."""
IN_A_ROW, RUNS = 16, 16
"""Batches of one bucket that follow each other at most; runs of them in an epoch at least."""

Rows = Int32[np.ndarray, " batch"]


class BucketedBatches(Batches):
    """Batches of a dataset of padded sequences, in an order per (seed, epoch).

    A bucket holds the sequences up to its length and longer than those of the bucket before. Each
    epoch shuffles the examples, fills batches from each bucket, and hands what is left over to the
    next longer one. Batches of one bucket follow each other in runs, whose order is shuffled: a
    run is compiled steps without a break. Every batch is full, so an epoch leaves out less than one
    batch, of the longest sequences.

    Args:
        dataset: padded sequences `[examples, longest]` in the columns `cut`, and the number of
            true elements of each example in the column `length`.
        batch_size: examples in a batch.
        cut: the columns that are cut to the length of the bucket; the others are left whole.
        fingerprint: the identity of the data, where its columns were computed from others.
        scale, resident: as in `DatasetBatches`.
        in_a_row: the batches of a run, at most; by default 16, and a sixteenth of an epoch where
            that is fewer. 1 shuffles single batches, as versions did that had no runs.

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
        resident: bool | None = None,
        in_a_row: int | None = None,
    ) -> None:
        self.dataset, self.cut = dataset, _checked_cut(dataset, cut)
        self._whole = DatasetBatches(dataset, batch_size, scale=scale, resident=resident)
        self.batch_size = self._whole.batch_size
        self.lengths = _checked_lengths(dataset, self.cut)
        self.buckets = bucket_lengths(int(self.lengths.max()))
        self.steps_per_epoch = self._whole.steps_per_epoch
        self.in_a_row = _checked_run(in_a_row, self.steps_per_epoch)
        self.fingerprint = fingerprint or dataset.fingerprint

    @property
    def identity(self) -> Mapping[str, Any]:
        # Without runs the order is that of versions which knew none.
        runs = {} if self.in_a_row == 1 else {"in_a_row": self.in_a_row}
        return {
            "data": self.fingerprint,
            "batch_size": self.batch_size,
            "buckets": list(self.buckets),
            "scale": list(self._whole.scale),
            **runs,
        }

    def resident(self, placement: Placement) -> PyTree:
        return self._whole.resident(placement)

    def feed(self, seed: Sequence[int], start: int, capacity: int) -> Feed:
        return _BucketedFeed(self, seed, start, capacity)

    def once(self, capacity: int) -> Iterator[Items]:
        order = np.argsort(self.lengths, kind="stable").astype(np.int32)
        size = self.batch_size
        full = len(order) // size
        rows = order[: full * size].reshape(full, size)
        bounds = [self.bucket_of(batch) for batch in rows]
        first, capacity = 0, self._whole.affordable(capacity)
        while first < full:
            last = _alike(bounds, first, first + capacity)
            yield self.items(rows[first:last], bounds[first], capacity)
            first = last
        if rest := len(order) - full * size:
            yield self.items(order[-rest:][None], self.bucket_of(order[-rest:]), LEAST_CAPACITY)

    def gather(self, resident: PyTree, item: PyTree) -> PyTree:
        rows, span = item["rows"], slice(item["span"].shape[-1])
        if resident is None:
            return {name: rows[name][:, span] if name in self.cut else rows[name] for name in rows}
        columns = self.dataset.columns
        return {
            name: taken(column, (rows, span) if name in self.cut else rows, columns[name].dtype)
            for name, column in resident.items()
        }

    def prepare(self, examples: PyTree, rngs: Any) -> PyTree:
        return self._whole.prepare(examples, rngs)

    def affordable(self, capacity: int) -> int:
        """How many batches are stacked at once."""
        return self._whole.affordable(capacity)

    def bucket_of(self, rows: Rows) -> int:
        """The length of the bucket that these examples need."""
        return next(bound for bound in self.buckets if bound >= self.lengths[rows].max())

    def items(self, rows: Int32[np.ndarray, "steps batch"], bound: int, capacity: int) -> Items:
        """The items of consecutive steps of one bucket, padded to `capacity`."""
        # The length is part of the item's shape: that is what the step is compiled for.
        span = np.zeros((capacity, min(bound, self._longest) if self.cut else 0), np.bool_)
        items = self._whole.items(rows, capacity)
        return items._replace(stacked={"rows": items.stacked, "span": span})

    @property
    def _longest(self) -> int:
        """The length that the columns were padded to."""
        return min(self.dataset.columns[name].shape[1] for name in self.cut)

    def epoch(self, seed: Sequence[int], epoch: int) -> Order:
        """The batches of an epoch in their order."""
        generator = np.random.default_rng([*seed, epoch])
        order = generator.permutation(len(self.dataset)).astype(np.int32)
        home = np.searchsorted(self.buckets, self.lengths[order])
        runs: list[tuple[int, np.ndarray]] = []
        left = order[:0]
        for number, bound in enumerate(self.buckets):
            rows = np.concatenate([left, order[home == number]])
            full, left = np.split(rows, [len(rows) // self.batch_size * self.batch_size])
            if len(batches := full.reshape(-1, self.batch_size)):
                parts = np.array_split(batches, -(-len(batches) // self.in_a_row))
                runs += [(bound, part) for part in parts]
        shuffled = [runs[index] for index in generator.permutation(len(runs))]
        bounds = [bound for bound, part in shuffled for _ in part]
        return Order(bounds, np.concatenate([part for _, part in shuffled]))


class Order(NamedTuple):
    """Batches in their order: the length of the bucket of each, and its rows."""

    bounds: list[int]
    rows: Int32[np.ndarray, "steps batch"]


class _BucketedFeed:
    """Walks the epochs; a take ends with its epoch, or where another bucket begins."""

    def __init__(
        self, batches: BucketedBatches, seed: Sequence[int], start: int, capacity: int
    ) -> None:
        self._batches, self._seed, self._step = batches, seed, start
        self._capacity = batches.affordable(capacity)
        self._epoch, self._order = -1, Order([], np.empty((0, 0), np.int32))

    def take(self, n: int) -> Items:
        epoch, first = divmod(self._step, self._batches.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._batches.epoch(self._seed, epoch)
        bounds, rows = self._order
        limit = first + min(n, self._capacity)
        # Where nothing is cut all batches look alike.
        last = _alike(bounds, first, limit) if self._batches.cut else min(limit, len(bounds))
        self._step += last - first
        return self._batches.items(rows[first:last], bounds[first], self._capacity)


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


def _checked_run(in_a_row: int | None, steps: int) -> int:
    """The batches of a run at most: of a short epoch few, so that its order stays mixed."""
    if in_a_row is None:
        return min(IN_A_ROW, max(1, steps // RUNS))
    if not isinstance(in_a_row, int) or isinstance(in_a_row, bool) or in_a_row < 1:
        raise ConfigError(f"in_a_row is {in_a_row!r}; it must be a whole number from 1 on")
    return in_a_row


def _alike(bounds: Sequence[int], first: int, limit: int) -> int:
    """Where the run of equal bounds that begins at `first` ends, at the latest at `limit`."""
    last = first + 1
    while last < min(limit, len(bounds)) and bounds[last] == bounds[first]:
        last += 1
    return last
