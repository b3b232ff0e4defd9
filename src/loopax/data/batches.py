"""Batches as a function of (seed, step), from the device, from host memory or from any iterable.

Every source answers the loop in the same two steps: on the host `Feed.take` gives the next few
*items*, stacked; on the device `gather` turns one item into the examples that it stands for, as
stored, and `prepare` these into the batch that the loss sees. For data that lives on the device an
item is a row of indices, otherwise it is the examples themselves.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from loopax.errors import ConfigError, DataError
from loopax.paths import PyTree, leaf_path

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

    resident: PyTree
    """Arrays that stay on the device during the whole run."""

    @property
    @abc.abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What must be the same for a run to be continued exactly; kept in each checkpoint."""

    @abc.abstractmethod
    def feed(self, seed: Sequence[int], start: int, capacity: int) -> Feed:
        """A feed that begins with the batch of step `start` and stacks at most `capacity`."""

    @abc.abstractmethod
    def once(self, capacity: int) -> Iterator[Items]:
        """One pass in stored order in which every example comes exactly once."""

    @abc.abstractmethod
    def gather(self, resident: PyTree, item: PyTree) -> PyTree:
        """The examples of one item, as they are stored; traced."""

    def prepare(self, examples: PyTree, rngs: Any) -> PyTree:
        """What the loss sees of gathered examples; traced into the step, whose keys `rngs` has."""
        del rngs
        return examples

    def assemble(self, resident: PyTree, item: PyTree, rngs: Any) -> PyTree:
        """One item to one batch: both at once."""
        return self.prepare(self.gather(resident, item), rngs)


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

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"data": f"iterable {type(self.source).__name__}"}

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
        capacity = affordable(self._capacity, sum(leaf.nbytes for leaf in leaves))
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


def affordable(capacity: int, batch_bytes: int) -> int:
    """How many batches of that size are stacked at once: what waits on the host stays small."""
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
