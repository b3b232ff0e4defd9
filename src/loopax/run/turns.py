"""What each turn of the loop is to do, decided in one place and in whole numbers.

Signals, deadlines, finished saves and the pace of the steps are looked at here and nowhere else in
the loop: whatever many processes must agree on is in the `Turn` that `decide` gives.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loopax import processes
from loopax.run.checkpoint import CheckpointStore
from loopax.run.lock import RunLock
from loopax.run.signals import PoliteStop

CHUNK_SECONDS = 1.0
FIRST_SAVE_SECONDS = 2.0
SHARE = 0.1
"""Of the time, for saving each new best."""


@dataclass(frozen=True)
class Plan:
    """Where chunks end.

    Attributes:
        total: the last step.
        marks: at each multiple of one of them a chunk ends, as something is due there.
        probe_every: at each multiple a step is measured; it is the first of its chunk.
        capacity: steps in a chunk, at most.
        stops: steps at which a chunk ends beside these.
    """

    total: int
    marks: Sequence[int]
    probe_every: int | None
    capacity: int
    stops: Sequence[int] = ()

    def length(self, step: int, limit: int) -> int:
        """Steps in the chunk that begins at `step`, at most `limit`; 0 where all is done."""
        ends = [self.total, *((step // mark + 1) * mark for mark in self.marks)]
        if self.probe_every:
            ends.append(((step + 1) // self.probe_every + 1) * self.probe_every - 1)
        ends += [stop for stop in self.stops if stop > step]
        return min(*(end - step for end in ends), limit, self.capacity)

    def is_probed(self, step: int) -> bool:
        """Whether the update that is made after `step` others is measured."""
        return self.probe_every is not None and (step + 1) % self.probe_every == 0

    def has_probe_after(self, step: int) -> bool:
        """Whether one of the updates after that one is measured."""
        return self.probe_every is not None and self.total // self.probe_every > (
            (step + 1) // self.probe_every
        )


class Turn(NamedTuple):
    """What is decided once a turn.

    Attributes:
        limit: steps in the chunk after this one, at most.
        save: whether so much time has passed that the state is to be saved.
        rank: whether so much time has passed that a new best may be saved.
        settled: whether a save has finished, well or not.
        stop: whether the loop ends here.
        signal: the signal that ends it, or 0.
    """

    limit: int
    save: bool
    rank: bool
    settled: bool
    stop: bool
    signal: int = 0


class Clock:
    """How long chunks, turns and saves take, and what is decided by that."""

    def __init__(
        self,
        began: float,
        max_seconds: float,
        chunk_steps: int | None,
        store: CheckpointStore | None,
        lock: RunLock | None,
        stop: PoliteStop,
    ) -> None:
        """`began` is when the call that may last `max_seconds` began, by `time.monotonic`."""
        self._began, self._max_seconds, self._chunk_steps = began, max_seconds, chunk_steps
        self._store, self._lock, self._stop = store, lock, stop
        self._read_at = time.monotonic()
        self._pace = 1
        self._saved_at = self._saving_since = 0.0
        self._has_read = False
        self._turn_at, self._turns, self._slowest = 0.0, 0, 0.0
        self._signalled = processes.Wish("signal")

    def decide(self) -> Turn:
        """What this turn is to do: what process 0 says, whichever of them a signal has reached.

        Raises:
            RunInUseError: another process has taken the run directory over.
        """
        if self._stop.received is not None:
            self._signalled.make(int(self._stop.received))
        turn = Turn(*processes.by_one("turn", self._decided))
        if turn.signal:
            self._stop.take_over(turn.signal)
        return turn

    def _decided(self) -> Turn:
        if self._lock is not None:
            self._lock.check()
        now = time.monotonic()
        if self._turns > 1:  # The first turn was slow because it was compiled.
            self._slowest = max(self._slowest, now - self._turn_at)
        is_over = self._turns > 0 and self.seconds_left() <= self._slowest
        self._turn_at, self._turns = now, self._turns + 1
        signal = int(self._stop.received or self._signalled.value)
        return Turn(self.limit(), *self._saves(now), stop=bool(signal) or is_over, signal=signal)

    def _saves(self, now: float) -> tuple[bool, bool, bool]:
        """Saves come after 2, 4, 8 seconds and so on, up to as far apart as they may be."""
        store = self._store
        if store is None or store.settings is None:
            return False, False, False
        # So that compiling the first chunk does not count.
        waited = now - self._saved_at if self._has_read else 0.0
        patience = max(FIRST_SAVE_SECONDS, self._saved_at - self._saving_since)
        apart = store.settings.seconds
        is_late = apart is not None and waited >= min(apart, patience)
        return is_late, not store.is_saving and waited >= store.seconds / SHARE, store.has_settled

    def limit(self) -> int:
        """Steps in a chunk: what takes about a second, as far as is known, or what was asked for.

        Where there is a deadline the first chunk is one step, which is made in any case.
        """
        if self._turns == 0 and self._max_seconds < math.inf:
            return 1
        seconds = max(0.0, min(CHUNK_SECONDS, self.seconds_left() / 2))
        return self._chunk_steps or max(1, int(self._pace * seconds))

    def dispatched(self) -> float:
        """A chunk was given to the device; returns the time, for `read`."""
        return time.monotonic()

    def read(self, steps: int, dispatched: float) -> None:
        """A chunk was read. The next ones grow towards a second, at most fourfold at a time."""
        now = time.monotonic()
        spent = now - max(self._read_at, dispatched)
        self._read_at = now
        self._pace = min(4 * max(self._pace, steps), int(steps / max(spent, 1e-9)))
        if not self._has_read:
            self._has_read, self._saved_at, self._saving_since = True, now, now

    def saved(self) -> None:
        """A state was given to the store."""
        self._saved_at = time.monotonic()

    def seconds_left(self) -> float:
        """Until what was reached must be saved."""
        saving = 0.0
        if self._store is not None:
            saving = 2 * self._store.seconds or min(CHUNK_SECONDS, self._max_seconds / 4)
        return -self.seconds_over() - saving

    def seconds_over(self) -> float:
        """Since the time was up; negative before."""
        return time.monotonic() - self._began - self._max_seconds
