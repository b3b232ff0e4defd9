"""A dataset in memory: named columns, kept as they were stored, and batches of their examples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from loopax.data.batches import LEAST_CAPACITY, Batches, Feed, Items, affordable
from loopax.errors import ConfigError, DataError
from loopax.paths import PyTree

RESIDENT_LIMIT_BYTES = 2 * 2**30


@dataclass(frozen=True, eq=False)
class Dataset:
    """Named columns whose first axis counts the examples.

    Images are stored as `uint8` with shape `(examples, height, width, channels)` in the column
    `image`; integer classes in `label`. They become `float32` in [0, 1] inside the compiled step.
    A label of -1 means that the class is not known.

    Attributes:
        columns: the arrays by name.
        name: what it is called in messages.
        class_names: the name of each class, in the order of the labels.
        source: what it was read from, in words.
        held_out: the fraction by which a whole was split into this and its counterpart; None if
            the parts were given.

    Raises:
        DataError: there are no columns, or their lengths differ.
    """

    columns: Mapping[str, np.ndarray]
    name: str = "data"
    class_names: tuple[str, ...] = field(default=())
    source: str = ""
    held_out: float | None = None

    def __post_init__(self) -> None:
        if not self.columns:
            raise DataError(f"{self.name}: a dataset needs at least one column")
        lengths = {key: len(column) for key, column in self.columns.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"{self.name}: columns differ in length: {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def batches(self, batch_size: int, **options: Any) -> DatasetBatches:
        """Batches to train on or to evaluate with; the options are those of `DatasetBatches`."""
        return DatasetBatches(self, batch_size, **options)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns as stored."""
        return sum(column.nbytes for column in self.columns.values())

    @property
    def example(self) -> PyTree:
        """A batch of one example, as a loss sees it: to initialise a model with."""
        return self.batches(1).example

    @cached_property
    def on_device(self) -> Mapping[str, jax.Array]:
        """The columns on the device, as stored; put there once and shared by all batches."""
        return jax.device_put(dict(self.columns))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, types, shapes and bytes of the columns: the identity of the data."""
        digest = hashlib.sha256()
        for key, column in sorted(self.columns.items()):
            digest.update(f"{key}:{column.dtype.str}:{column.shape};".encode())
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()


class DatasetBatches(Batches):
    """Batches of a `Dataset`: gathered and scaled on the device, in an order per (seed, epoch).

    Args:
        dataset: where the examples come from.
        batch_size: examples in a batch.
        shuffle: a new order each epoch; otherwise the stored order.
        drop_last: leave out the last batch of an epoch when it is not full.
        resident: keep the columns on the device; by default when they take at most 2 GiB.
            Otherwise batches are gathered on the host; the result is the same bit for bit.
        transform: a pure function of a batch, traced into the step after `uint8` columns have
            become `float32` in [0, 1].

    Raises:
        ConfigError: the batch size is not between 1 and the number of examples.
    """

    steps_per_epoch: int

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
        resident: bool | None = None,
        transform: Callable[[PyTree], PyTree] | None = None,
    ) -> None:
        if resident is None:
            resident = dataset.nbytes <= RESIDENT_LIMIT_BYTES
        self.dataset = dataset
        self.batch_size = checked_batch_size(batch_size, dataset)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.transform = transform
        self.steps_per_epoch = _batch_count(len(dataset), self.batch_size, drop_last)
        self.resident = dataset.on_device if resident else None

    @property
    def identity(self) -> Mapping[str, Any]:
        return {
            "data": self.dataset.fingerprint,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }

    @property
    def example(self) -> PyTree:
        """One batch, as the loss will see it."""
        item = self._item(np.arange(self.batch_size, dtype=np.int32))
        return jax.jit(lambda resident, item: self.assemble(resident, item, None))(
            self.resident, item
        )

    def feed(self, seed: Sequence[int], start: int, capacity: int) -> Feed:
        return _DatasetFeed(self, seed, start, capacity)

    def once(self, capacity: int) -> Iterator[Items]:
        order = np.arange(len(self.dataset), dtype=np.int32)
        full = len(order) // self.batch_size
        rows = order[: full * self.batch_size].reshape(full, self.batch_size)
        capacity = min(self.affordable(capacity), max(1, full))
        for first in range(0, full, capacity):
            yield self.items(rows[first : first + capacity], capacity)
        if rest := order[full * self.batch_size :].size:
            yield self.items(order[-rest:][None], 1)

    def gather(self, resident: PyTree, item: PyTree) -> PyTree:
        return item if resident is None else {k: column[item] for k, column in resident.items()}

    def prepare(self, examples: PyTree, rngs: Any) -> PyTree:
        del rngs
        batch = {k: _scaled(column) for k, column in examples.items()}
        return batch if self.transform is None else self.transform(batch)

    def affordable(self, capacity: int) -> int:
        """How many batches are stacked at once: what is gathered on the host stays small."""
        if self.resident is not None:
            return max(LEAST_CAPACITY, capacity)
        example_bytes = self.dataset.nbytes // len(self.dataset)
        return affordable(capacity, example_bytes * self.batch_size)

    def items(self, rows: Int32[np.ndarray, "steps batch"], capacity: int) -> Items:
        """The items of consecutive steps whose examples `rows` names, padded to `capacity`."""
        padded = np.zeros((capacity, rows.shape[1]), np.int32)
        padded[: len(rows)] = rows
        return Items(self._item(padded), len(rows))

    def _item(self, rows: Int32[np.ndarray, ...]) -> PyTree:
        if self.resident is not None:
            return rows
        return {key: column[rows] for key, column in self.dataset.columns.items()}


class _DatasetFeed:
    """Walks the epochs of a `DatasetBatches`; a take ends at the latest with its epoch."""

    def __init__(
        self, batches: DatasetBatches, seed: Sequence[int], start: int, capacity: int
    ) -> None:
        self._batches, self._seed, self._step = batches, seed, start
        self._capacity = batches.affordable(capacity)
        self._epoch, self._order = -1, np.empty(0, np.int32)

    def take(self, n: int) -> Items:
        batches, size = self._batches, self._batches.batch_size
        epoch, first = divmod(self._step, batches.steps_per_epoch)
        order = self._order_of(epoch)
        full = len(order) // size
        if first < full:
            last = min(first + min(n, self._capacity), full)
            rows = order[first * size : last * size].reshape(last - first, size)
            items = batches.items(rows, self._capacity)
        else:
            items = batches.items(order[full * size :][None], LEAST_CAPACITY)
        self._step += items.length
        return items

    def _order_of(self, epoch: int) -> Int32[np.ndarray, " examples"]:
        if epoch != self._epoch:
            count = len(self._batches.dataset)
            if self._batches.shuffle:
                generator = np.random.default_rng([*self._seed, epoch])
                self._order = generator.permutation(count).astype(np.int32)
            else:
                self._order = np.arange(count, dtype=np.int32)
            self._epoch = epoch
        return self._order


def checked_batch_size(batch_size: Any, dataset: Dataset) -> int:
    """`batch_size` as a number of examples that the dataset has.

    Raises:
        ConfigError: it is not a whole number between 1 and the number of examples.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer):
        raise ConfigError(f"batch_size is {batch_size!r}; it must be a whole number")
    if not 1 <= batch_size <= len(dataset):
        raise ConfigError(
            f"batch_size is {batch_size}; {dataset.name} has {len(dataset)} examples, so it "
            f"must be from 1 to {len(dataset)}"
        )
    return int(batch_size)


def _batch_count(examples: int, batch_size: int, drop_last: bool) -> int:
    return examples // batch_size if drop_last else -(-examples // batch_size)


def _scaled(column: jax.Array) -> jax.Array:
    return column.astype(jnp.float32) / 255 if column.dtype == jnp.uint8 else column
