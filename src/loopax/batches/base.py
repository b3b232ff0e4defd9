"""Batches as a function of (seed, step), from the device, from host memory or from any iterable.

Every source answers the loop in the same two steps: on the host `Feed.take` gives the next few
*items*, stacked; on the device `gather` turns one item into the examples that it stands for, as
stored, and `prepare` these into the batch that the loss sees. For data that lives on the device an
item is a row of indices, otherwise it is the examples themselves.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from loopax import processes
from loopax.errors import DataError
from loopax.paths import PyTree
from loopax.placement import Placement

CHUNK_LIMIT_BYTES = 64 * 2**20
LEAST_CAPACITY = 2
"""Items on a stack. An axis of one is compiled away, and what is around it then differently."""


class Items(NamedTuple):
    """What `length` steps in a row need.

    Attributes:
        stacked: leaves `[n, ...]`, of which the first `length` are filled. `n` is the same for
            every chunk, or `capacity` says to how many they are filled up on the device.
        length: how many steps these are.
        position: where the source stands after them, in values that JSON can hold, for the
            checkpoint of this very step; None where seed and step say it.
        capacity: None where `n` is it.
        checksum: of what an iterable gave, where several processes read it; else None.
    """

    stacked: PyTree
    length: Any
    position: Any = None
    capacity: int | None = None
    checksum: int | None = None

    def check_same(self, what: str, first: int, count: int) -> None:
        """Makes sure that all processes have read the same, before any of them computes with it.

        Args:
            what: what these are, as in `steps 40 to 59`.
            first: the number of the first one.
            count: how many there are, which is `length` on the host.

        Raises:
            DataError: one has read something else than process 0.
        """
        if self.checksum is None:
            return
        (checksum, most), *others = processes.everyone("batches", (self.checksum, count))
        for process, (other, length) in enumerate(others, 1):
            if other != checksum:
                raise DataError(
                    f"process {process} has read other batches than process 0 for {what} "
                    f"{first:,} to {first + max(most, length) - 1:,}; an iterable must give the "
                    "same in all processes: the same files, order and seed"
                )


class Feed(Protocol):
    """A position in the data; `take(n)` gives the items of up to `n` next steps."""

    def take(self, n: int) -> Items: ...


class Batches(abc.ABC):
    """What `fit` trains on: batches whose content and order are a function of (seed, step)."""

    steps_per_epoch: int | None
    """How many batches one pass has, or None when the source does not tell."""

    advice: str = ""
    """What to add where the identity is found to be another one."""

    threaded: bool = True
    """Whether a thread reads it while the device computes; otherwise that of the loop does."""

    @property
    @abc.abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What must be the same for a run to be continued exactly; kept in each checkpoint."""

    @property
    def content(self) -> Mapping[str, Any]:
        """What must be the same in all processes of a run, whatever the data is called."""
        return self.identity

    @abc.abstractmethod
    def feed(self, seed: Sequence[int], start: int, capacity: int) -> Feed:
        """A feed that begins with the batch of step `start` and stacks at most `capacity`."""

    def feed_from(
        self, seed: Sequence[int], start: int, capacity: int, position: Any = None
    ) -> Feed:
        """As `feed`, where `position` is that of the items up to `start`, if they had one."""
        del position
        return self.feed(seed, start, capacity)

    @abc.abstractmethod
    def once(self, capacity: int) -> Iterator[Items]:
        """One pass in stored order in which every example comes exactly once."""

    def resident(self, placement: Placement) -> PyTree:
        """Arrays that stay on the devices during the whole run; None where there are none."""
        del placement

    @abc.abstractmethod
    def gather(self, resident: PyTree, item: PyTree) -> PyTree:
        """The examples of one item, as they are stored; traced."""

    def prepare(self, examples: PyTree, rngs: Any) -> PyTree:
        """What the loss sees of gathered examples; traced into the step, whose keys `rngs` has."""
        del rngs
        return examples

    def assemble(self, resident: PyTree, item: PyTree, rngs: Any) -> PyTree:
        """One item to one batch: `gather`, then `prepare`."""
        return self.prepare(self.gather(resident, item), rngs)


def affordable(capacity: int, batch_bytes: int) -> int:
    """How many batches of that size are stacked at once, to bound the memory on the host."""
    return max(LEAST_CAPACITY, min(capacity, CHUNK_LIMIT_BYTES // max(1, batch_bytes)))
