"""Batches that come ready-made from an iterable, and what else `fit` may be given."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from loopax.batches.arrays import as_held, as_numbers
from loopax.batches.base import Batches, Feed, Items, affordable
from loopax.errors import ConfigError, DataError
from loopax.paths import PyTree, forms, leaf_path

ENDLESS = 2**53
"""A length from which on it says that there is no end, as Grain has it for what is repeated."""
NOTHING: Any = object()


class IterableBatches(Batches):
    """Batches that come ready-made from an iterable: a Grain dataset, a DataLoader, a generator.

    A batch is any PyTree of arrays; the loss sees it as it is, and `{}` is a batch for a loss that
    needs no data. When the iterable ends it is begun again, as the next epoch. To continue a run
    the loop asks for the batch of the step it is at: a sequence is indexed, anything else is read
    from its beginning up to there. So a run is continued exactly when the iterable gives the same
    batches each time it is begun, which the first batch has to prove.

    Args:
        source: the iterable, or anything with `__getitem__` and `__len__`.
        identity: a name for the data, to be compared instead of its first batch when a run goes
            on. A loader that is shuffled without a seed needs one: its batches are never the
            same, and such a run is not continued exactly.

    Raises:
        ConfigError: the source is no collection of batches.
    """

    advice = (
        " (a loader that is shuffled without a seed is never the same: give it a seed, or a name, "
        "loopax.data.IterableBatches(loader, identity='...'))"
    )

    def __init__(self, source: Any, *, identity: str | None = None) -> None:
        if said := _wrong_kind(source):
            raise ConfigError(f"data is {said}")
        if identity is not None and not isinstance(identity, str):
            raise ConfigError(f"identity is {identity!r}; it must be a name, such as 'v2, seed 3'")
        self.source = source
        count = _length(source)
        self.steps_per_epoch = None if count is None or count >= ENDLESS else count
        self.is_read_once = isinstance(source, Iterator)
        self._name = identity
        self._count = count if count is not None and hasattr(source, "__getitem__") else None
        self._begun: Iterator[PyTree] | None = None
        self._first: Mapping[str, Any] | None = None
        self._is_used = False

    @property
    def identity(self) -> Mapping[str, Any]:
        if self._name is not None:
            return {"data": self._name}
        if self._first is None:
            # What was read is kept for the feed: begun twice, a loader would start its workers
            # twice, and an iterator would have lost a batch.
            begun = self._iterator()
            head = list(itertools.islice(begun, 1))
            self._begun = itertools.chain(head, begun)
            self._first = _first_batch_identity(head)
        return {**self._first, "batches_per_epoch": self.steps_per_epoch}

    def feed(self, seed: Sequence[int], start: int, capacity: int) -> Feed:
        del seed
        return _IterableFeed(self._from(start), capacity)

    def once(self, capacity: int) -> Iterator[Items]:
        feed = _IterableFeed(self._iterator(), capacity)
        while (items := feed.take(capacity)).length:
            yield items

    def gather(self, resident: PyTree, item: PyTree) -> PyTree:
        del resident
        return item["batch"]

    def _iterator(self, first: int = 0) -> Iterator[PyTree]:
        """One pass; a sequence is entered at its batch `first`.

        Raises:
            DataError: the source can be read once only, and was.
        """
        if self._begun is not None and not first:
            begun, self._begun = self._begun, None
            return begun
        if self._count is not None:
            return (self.source[index] for index in range(first, self._count))
        if self._is_used:
            raise DataError(
                f"{type(self.source).__name__} can be read only once, and cannot be begun again; "
                "pass something that can be iterated more than once"
            )
        self._is_used = self.is_read_once
        return iter(self.source)

    def _from(self, start: int) -> Iterator[PyTree]:
        """Epoch after epoch from step `start`; what comes before it is read and left out."""
        step = 0
        if self._count:
            step = start
            for batch in self._iterator(start % self._count):
                step += 1
                yield batch
        while True:
            begun_at = step
            if not (self.is_read_once and begun_at):
                for batch in self._iterator():
                    step += 1
                    if step > start:
                        yield batch
            if step == begun_at:
                raise DataError(
                    f"the data ended after {step} batches, and {type(self.source).__name__} cannot "
                    "be begun again; train for fewer steps, or pass something that can be iterated "
                    "more than once"
                    if step
                    else f"there is no batch to train on; {type(self.source).__name__} is empty or "
                    "used up"
                )


class _IterableFeed:
    """Stacks batches from an iterator; a take ends early where the shape of the batches changes."""

    def __init__(self, iterator: Iterator[PyTree], capacity: int) -> None:
        self._iterator, self._capacity = iterator, capacity
        self._waiting: PyTree = NOTHING

    def take(self, n: int) -> Items:
        batch = first = self._next()
        if first is NOTHING:
            return Items(None, 0)
        leaves, structure = jax.tree.flatten(first)
        capacity = affordable(self._capacity, sum(leaf.nbytes for leaf in leaves))
        stacked = [np.zeros((capacity, *leaf.shape), leaf.dtype) for leaf in leaves]
        # A batch may have no leaves at all; these tell how many there are.
        filled = np.zeros(capacity, np.bool_)
        for index in range(min(n, capacity)):
            if index:
                batch = self._next()
            if batch is NOTHING or not _alike(batch, first):
                self._waiting = batch
                break
            # Copied before the next one is asked for, which may come in the same memory.
            for target, leaf in zip(stacked, jax.tree.leaves(batch), strict=True):
                target[index] = leaf
            filled[index] = True
        tree = {"batch": jax.tree.unflatten(structure, stacked), "filled": filled}
        return Items(tree, int(filled.sum()))

    def _next(self) -> PyTree:
        if self._waiting is not NOTHING:
            batch, self._waiting = self._waiting, NOTHING
            return batch
        batch = next(self._iterator, NOTHING)
        return NOTHING if batch is NOTHING else _as_arrays(batch)


def as_batches(data: Any) -> Batches:
    """What `fit` was given, as `Batches`.

    Raises:
        ConfigError: it is neither `Batches` nor an iterable of batches.
    """
    return data if isinstance(data, Batches) else IterableBatches(data)


def _wrong_kind(source: Any) -> str | None:
    """For a source that holds no batches: what it is, and what would be right. Otherwise None."""
    kind = type(source).__name__
    if hasattr(getattr(source, "train", None), "batches"):
        return f"a {kind}; say which part, and how large a batch is: data.train.batches(16)"
    if hasattr(source, "batches"):
        return f"a {kind}; say how large a batch is: data.batches(16)"
    if isinstance(source, str | bytes | os.PathLike):
        return f"{source!r}; if this is a path, say loopax.data.load(path).train.batches(16)"
    is_pair = isinstance(source, tuple) and (
        hasattr(source, "_fields") or (len(source) > 1 and all(map(_is_array, source)))
    )
    if isinstance(source, Mapping) or _is_array(source) or is_pair or hasattr(source, "to_numpy"):
        return (
            f"{kind}; one batch is given as [batch], columns as "
            "loopax.data.Dataset({'x': x, 'y': y}).batches(16)"
        )
    if isinstance(source, type | Batches) or not (
        isinstance(source, Iterable) or hasattr(source, "__getitem__")
    ):
        called = f" {source.__name__}" if hasattr(source, "__name__") else ""
        return (
            f"{kind}{called}; it must be dataset.batches(n) or an iterable of batches, such as "
            "[{}] for a loss that needs no data"
        )
    return None


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except TypeError:
        return None


def _first_batch_identity(head: Sequence[PyTree]) -> dict[str, Any]:
    """The identity of data by its first batch, if there is one."""
    if not head:
        return {"data": "an iterable without a batch"}
    batch = _as_arrays(head[0])
    told = ", ".join(f"{path or 'array'} {form}" for path, form in forms(batch).items())
    digest = hashlib.sha256(told.encode())
    for leaf in jax.tree.leaves(batch):
        digest.update(leaf.tobytes())
    return {
        "data": f"an iterable whose first batch is {digest.hexdigest()[:16]}",
        "batch": told or "empty",
    }


def _alike(batch: PyTree, other: PyTree) -> bool:
    same: bool = jax.tree.structure(batch) == jax.tree.structure(other)  # type: ignore[operator]
    return same and all(
        one.shape == two.shape and one.dtype == two.dtype
        for one, two in zip(jax.tree.leaves(batch), jax.tree.leaves(other), strict=True)
    )


def _as_arrays(batch: PyTree) -> PyTree:
    """A batch as the device will hold it.

    Raises:
        DataError: something in it is not made of numbers, or a value is beyond them.
    """
    if batch is None:
        raise DataError("a batch is None; a batch without arrays is {}")

    def array(key_path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        path = leaf_path(key_path)
        name = f"the batch's {path!r}" if path else "the batch"
        return as_held(name, as_numbers(name, leaf))

    return jax.tree_util.tree_map_with_path(array, batch)
