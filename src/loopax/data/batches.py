"""Batches as a function of (seed, step), from the device, from host memory or from any iterable.

Every source answers the loop in the same two steps: on the host `Feed.take` gives the next few
*items*, stacked; on the device `gather` turns one item into the examples that it stands for, as
stored, and `prepare` these into the batch that the loss sees. For data that lives on the device an
item is a row of indices, otherwise it is the examples themselves.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from loopax.errors import ConfigError, DataError
from loopax.paths import PyTree, leaf_path

if TYPE_CHECKING:
    from loopax.data.dataset import Dataset

RESIDENT_LIMIT_BYTES = 2 * 2**30
CHUNK_LIMIT_BYTES = 64 * 2**20
LEAST_CAPACITY = 2
"""Items on a stack. An axis of one is compiled away, and what is around it then differently."""


class Items(NamedTuple):
    """What `length` steps in a row need: leaves `[capacity, ...]`, of which `length` are filled."""

    stacked: PyTree
    length: Any


class Feed(Protocol):
    """A position in the data; `take(n)` gives the items of up to `n` next steps."""

    def take(self, n: int) -> Items: ...


class Batches(abc.ABC):
    """What `fit` trains on: batches whose content and order are a function of (seed, step)."""

    steps_per_epoch: int | None
    """How many batches one pass has, or None when the source does not tell."""

    identity: Mapping[str, Any]
    """What must be the same for a run to be continued exactly; kept in each checkpoint."""

    resident: PyTree
    """Arrays that stay on the device during the whole run."""

    @abc.abstractmethod
    def feed(self, seed: Sequence[int], start: int, capacity: int) -> Feed:
        """A feed that begins with the batch of step `start` and stacks at most `capacity`."""

    @abc.abstractmethod
    def once(self, capacity: int) -> Iterator[Items]:
        """One pass in stored order in which every example comes exactly once."""

    @abc.abstractmethod
    def gather(self, resident: PyTree, item: PyTree) -> PyTree:
        """The examples of one item, as they are stored; traced."""

    def prepare(self, examples: PyTree) -> PyTree:
        """What the loss sees of gathered examples; traced into the step."""
        return examples

    def assemble(self, resident: PyTree, item: PyTree) -> PyTree:
        """One item to one batch: both at once."""
        return self.prepare(self.gather(resident, item))


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
        if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer):
            raise ConfigError(f"batch_size is {batch_size!r}; it must be a whole number")
        if not 1 <= batch_size <= len(dataset):
            raise ConfigError(
                f"batch_size is {batch_size}; {dataset.name} has {len(dataset)} examples, so it "
                f"must be from 1 to {len(dataset)}"
            )
        if resident is None:
            resident = dataset.nbytes <= RESIDENT_LIMIT_BYTES
        self.dataset = dataset
        self.batch_size = int(batch_size)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.transform = transform
        self.steps_per_epoch = _batch_count(len(dataset), self.batch_size, drop_last)
        self.resident = dataset.on_device if resident else None

    @property
    def identity(self) -> Mapping[str, Any]:  # type: ignore[override]
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
        return jax.jit(self.assemble)(self.resident, item)

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

    def prepare(self, examples: PyTree) -> PyTree:
        batch = {k: _scaled(column) for k, column in examples.items()}
        return batch if self.transform is None else self.transform(batch)

    def affordable(self, capacity: int) -> int:
        """How many batches are stacked at once: what is gathered on the host stays small."""
        if self.resident is not None:
            return max(LEAST_CAPACITY, capacity)
        example_bytes = self.dataset.nbytes // len(self.dataset)
        return _affordable(capacity, example_bytes * self.batch_size)

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


class IterableBatches(Batches):
    """Batches that come ready-made from an iterable: a Grain dataset, a DataLoader, a generator.

    A batch is any PyTree of arrays; the loss sees it as it is. When the iterable ends it is begun
    again, as the next epoch. To continue a run the loop asks for the batch of the step it is at: a
    sequence is indexed, anything else is read from its beginning up to there, so an iterable is
    resumed exactly when it gives the same batches each time it is begun.
    """

    def __init__(self, source: Iterable[PyTree]) -> None:
        self.source = source
        self.resident = None
        try:
            self.steps_per_epoch = len(source)  # type: ignore[arg-type]
        except TypeError:
            self.steps_per_epoch = None
        self.identity = {"data": f"iterable {type(source).__name__}"}

    def feed(self, seed: Sequence[int], start: int, capacity: int) -> Feed:
        del seed
        return _IterableFeed(self._from(start), capacity)

    def once(self, capacity: int) -> Iterator[Items]:
        feed = _IterableFeed(iter(self.source), capacity)
        while (items := feed.take(capacity)).length:
            yield items

    def gather(self, resident: PyTree, item: PyTree) -> PyTree:
        del resident
        return item

    def _from(self, start: int) -> Iterator[PyTree]:
        step = 0
        while True:
            begun_at = step
            if self.steps_per_epoch and hasattr(self.source, "__getitem__"):
                whole_epochs = max(0, start - step) // self.steps_per_epoch
                step += whole_epochs * self.steps_per_epoch
                skipped = max(0, start - step)
                step += skipped
                for index in range(skipped, self.steps_per_epoch):
                    step += 1
                    yield self.source[index]
            else:
                for batch in self.source:
                    step += 1
                    if step > start:
                        yield batch
            if step == begun_at:
                raise DataError(
                    f"the data ended after {step} batches, and {type(self.source).__name__} cannot "
                    "be begun again; train for fewer steps, or pass something that can be iterated "
                    "more than once"
                )


class _IterableFeed:
    """Stacks batches from an iterator; a take ends early where the shape of the batches changes."""

    def __init__(self, iterator: Iterator[PyTree], capacity: int) -> None:
        self._iterator, self._capacity = iterator, capacity
        self._waiting: PyTree = None

    def take(self, n: int) -> Items:
        first = self._next()
        if first is None:
            return Items(None, 0)
        leaves, structure = jax.tree.flatten(first)
        capacity = _affordable(self._capacity, sum(leaf.nbytes for leaf in leaves))
        stacked = [np.zeros((capacity, *leaf.shape), leaf.dtype) for leaf in leaves]
        count, batch = 0, first
        while True:
            for target, leaf in zip(stacked, jax.tree.leaves(batch), strict=True):
                target[count] = leaf
            count += 1
            if count == min(n, capacity):
                break
            batch = self._next()
            if batch is None or not _alike(batch, first):
                self._waiting = batch
                break
        return Items(jax.tree.unflatten(structure, stacked), count)

    def _next(self) -> PyTree:
        if self._waiting is not None:
            batch, self._waiting = self._waiting, None
            return batch
        batch = next(self._iterator, None)
        return None if batch is None else jax.tree_util.tree_map_with_path(_as_array, batch)


def as_batches(data: Any) -> Batches:
    """What `fit` was given, as `Batches`.

    Raises:
        ConfigError: it is neither `Batches` nor an iterable.
    """
    if isinstance(data, Batches):
        return data
    if hasattr(data, "batches"):
        raise ConfigError(
            f"data is a {type(data).__name__}; say how large a batch is: data.batches(16)"
        )
    if isinstance(data, Iterable):
        return IterableBatches(data)
    raise ConfigError(
        f"data is {type(data).__name__}; it must be dataset.batches(n) or an iterable of batches"
    )


def _batch_count(examples: int, batch_size: int, drop_last: bool) -> int:
    return examples // batch_size if drop_last else -(-examples // batch_size)


def _scaled(column: jax.Array) -> jax.Array:
    return column.astype(jnp.float32) / 255 if column.dtype == jnp.uint8 else column


def _affordable(capacity: int, batch_bytes: int) -> int:
    return max(LEAST_CAPACITY, min(capacity, CHUNK_LIMIT_BYTES // max(1, batch_bytes)))


def _alike(batch: PyTree, other: PyTree) -> bool:
    same: bool = jax.tree.structure(batch) == jax.tree.structure(other)  # type: ignore[operator]
    return same and all(
        one.shape == two.shape and one.dtype == two.dtype
        for one, two in zip(jax.tree.leaves(batch), jax.tree.leaves(other), strict=True)
    )


def _as_array(key_path: tuple[Any, ...], leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise DataError(
            f"the batch's {leaf_path(key_path) or 'leaf'!r} is {array.dtype}; batches are numbers"
        )
    return array
