"""Batches that come ready-made from an iterable, and what else `fit` may be given."""

from __future__ import annotations

import hashlib
import math
import os
import threading
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from loopax import processes
from loopax.batches.arrays import as_arrays, owned
from loopax.batches.base import CHUNK_LIMIT_BYTES, Batches, Feed, Items, affordable
from loopax.batches.readers import Batch, Place, reader_of, state_methods
from loopax.batches.stacks import Stack
from loopax.errors import ConfigError
from loopax.paths import PyTree, forms

HEAD = 2
"""Batches that tell data apart from other data."""


class IterableBatches(Batches):
    """Batches that come ready-made: from Grain, `datasets`, a DataLoader, a sequence, a generator.

    A batch is any PyTree of arrays; the loss sees it as it is, and `{}` is a batch for a loss that
    needs no data. When the source ends it is begun again, as the next epoch; where it has a
    `set_epoch`, that is called before. To continue a run, what can be indexed is entered at the
    step; what has a state (`get_state` and `set_state`, or `state_dict` and `load_state_dict`, of
    the source or of its iterator) is put back into that of exactly the batches that were trained
    on; all else is read from its beginning up to there. A run is not continued with other batches,
    which the first two have to prove.

    Args:
        source: the iterable, or anything with `__getitem__` and `__len__`.
        identity: a name for the data, to be compared instead of its first batches when a run goes
            on. A loader that is shuffled without a seed needs one: its batches are never the
            same, and such a run is not continued exactly.
        workers: processes that Grain starts to read a sequence or a `grain.MapDataset`. They use
            no accelerator. The program must be importable: `if __name__ == "__main__":`.
        threaded: whether a thread reads ahead while the device computes. Without it the thread of
            the loop reads, as SQLite's connections and other thread-local things need it.

    Raises:
        ConfigError: the source is no collection of batches, or has no use for `workers`.
    """

    advice = (
        " (a loader that is shuffled without a seed is never the same: give it a seed, or a name, "
        "loopax.data.IterableBatches(loader, identity='...'))"
    )

    def __init__(
        self,
        source: Any,
        *,
        identity: str | None = None,
        workers: int = 0,
        threaded: bool = True,
    ) -> None:
        if said := _wrong_kind(source):
            raise ConfigError(f"data is {said}")
        if identity is not None and not isinstance(identity, str):
            raise ConfigError(f"identity is {identity!r}; it must be a name, such as 'v2, seed 3'")
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 0:
            raise ConfigError(f"workers is {workers!r}; it must be a number of processes")
        self.source, self.threaded = source, bool(threaded)
        self.reader = reader_of(source, workers)
        self.steps_per_epoch = self.reader.length
        self._name = identity
        self._told: Mapping[str, Any] | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        return self.content if self._name is None else {"data": self._name}

    @property
    def content(self) -> Mapping[str, Any]:
        if self._told is None:
            told = _identity_of(self.reader.head(HEAD))
            own = getattr(self.source, "_fingerprint", None)  # as `datasets` calls it
            self._told = told | ({"fingerprint": own} if isinstance(own, str) else {})
        return {**self._told, "batches_per_epoch": self.steps_per_epoch}

    @property
    def batch_size(self) -> int | None:
        """Examples in the first batch, where several devices are to share them, and its leaves
        have as many; otherwise None, and nothing is read."""
        if len(processes.devices()) == 1:
            return None
        leaves = jax.tree.leaves(self.reader.head(HEAD)[:1])
        sizes = {leaf.shape[0] for leaf in leaves if leaf.shape}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def keeps_position(self) -> bool:
        """Whether the source itself, and not its iterator, knows where it stands."""
        return state_methods(self.source) is not None

    def feed(self, seed: Sequence[int], start: int, capacity: int) -> Feed:
        return self.feed_from(seed, start, capacity)

    def feed_from(
        self, seed: Sequence[int], start: int, capacity: int, position: Any = None
    ) -> Feed:
        del seed
        place = None if position is None else Place(*position)
        reads_ahead = not self.reader.is_read_once
        return _IterableFeed(self.reader.read(start, place), capacity, reads_ahead)

    def once(self, capacity: int) -> Iterator[Items]:
        feed = _IterableFeed(self.reader.once(), capacity)
        while (items := feed.take(capacity)).length:
            yield items

    def gather(self, resident: PyTree, item: PyTree) -> PyTree:
        del resident
        return item["batch"]


class _IterableFeed:
    """Stacks batches from a reader; a take ends early where the shape of the batches changes."""

    def __init__(self, batches: Iterator[Batch], capacity: int, reads_ahead: bool = False) -> None:
        self._batches, self._capacity, self._reads_ahead = batches, capacity, reads_ahead
        self._waiting: deque[Batch | BaseException] = deque()
        self._count, self._is_reading, self._was_read = 0, False, threading.Condition()

    def take(self, n: int) -> Items:
        first = batch = self._next()
        if first is None:
            return _checked(Items(None, 0))
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(first[0]))
        capacity = affordable(self._capacity, size)
        stack, place = Stack(first[0], min(n, capacity), capacity), None
        while batch is not None and stack.takes(batch[0]):
            # Copied before the next one is asked for, which may come in the same memory.
            stack.add(batch[0])
            place = batch[1]
            batch = None if stack.is_full else self._next()
        if batch is not None:
            with self._was_read:
                self._waiting.appendleft(batch)
        return _checked(stack.items(place))

    def read_ahead(self, most: float = math.inf) -> bool:
        """Reads one more batch before it is asked for, beside a thread that takes.

        Returns:
            False where enough wait, or `most` were read in all, or there is no other.
        """
        with self._was_read:
            held = sum(leaf.nbytes for each in self._waiting for leaf in _leaves(each))
            if (
                not self._reads_ahead
                or self._is_reading
                or self._count >= most
                or len(self._waiting) >= self._capacity
                or held >= CHUNK_LIMIT_BYTES
                or (self._waiting and isinstance(self._waiting[-1], BaseException))
            ):
                return False
            self._is_reading = True
        found: list[Batch | BaseException] = []
        try:
            if (batch := self._read()) is not None:
                found.append((owned(batch[0]), batch[1]))
        except BaseException as error:  # comes in its turn, when all before it were taken
            found.append(error)
        with self._was_read:
            self._is_reading = False
            self._waiting += found
            self._was_read.notify()
        return bool(found)

    def _next(self) -> Batch | None:
        with self._was_read:
            self._was_read.wait_for(lambda: self._waiting or not self._is_reading)
            batch = self._waiting.popleft() if self._waiting else None
            self._is_reading |= batch is None
        if isinstance(batch, BaseException):
            raise batch
        if batch is not None:
            return batch
        try:
            return self._read()
        finally:
            self._is_reading = False

    def _read(self) -> Batch | None:
        found = next(self._batches, None)
        self._count += found is not None
        return None if found is None else (as_arrays(found[0]), found[1])


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


def _identity_of(head: Sequence[PyTree]) -> dict[str, Any]:
    """The identity of data by its first batches, if there are any."""
    if not head:
        return {"data": "an iterable without a batch"}
    told = ", ".join(f"{path or 'array'} {form}" for path, form in forms(head[0]).items())
    digest = hashlib.sha256()
    for batch in head:
        digest.update(repr(forms(batch)).encode())
        for leaf in jax.tree.leaves(batch):
            digest.update(np.asarray(leaf).tobytes())
    return {
        "data": f"an iterable whose first batches are {digest.hexdigest()[:16]}",
        "batch": told or "empty",
    }


def _checked(items: Items) -> Items:
    """With a checksum, where several processes read the same source, each by itself."""
    if processes.count() == 1:
        return items
    checksum = 0
    for leaf in jax.tree.leaves(items.stacked):
        array = np.ascontiguousarray(leaf)
        checksum = zlib.crc32(f"{array.dtype}{array.shape}".encode(), checksum)
        checksum = zlib.crc32(array.reshape(-1).view(np.uint8).data, checksum)
    return items._replace(checksum=checksum)


def _leaves(waiting: Batch | BaseException) -> list[Any]:
    return [] if isinstance(waiting, BaseException) else jax.tree.leaves(waiting[0])
