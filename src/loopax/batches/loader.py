"""Loads the next chunk of data in a thread while the device works on this one.

A source that is slow at times, as at the beginning of each file, is read ahead by a second thread:
the first one goes on with what was read while the second one waits.
"""

from __future__ import annotations

import functools
import math
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

from loopax.batches.base import Feed, Items
from loopax.batches.stacks import on_device
from loopax.placement import ONE, Placement
from loopax.threads import as_here

PATIENCE_SECONDS = 10.0
"""How long the end of a run waits for a source that is just being read."""

Loaded = tuple[Items, int]
"""Items on the device, and how many steps they are."""
Asked = tuple[int, Future[Loaded]]


class Loader:
    """Takes items from a feed in the background and puts them on the device.

    Ask with `request`, fetch with `take`; whatever the source raises comes out of `take`. The
    source is read as if by the caller: with its context variables and its settings of JAX. Once
    somebody had to wait for it, it is read ahead of what is asked for, where the feed can do that:
    `read_ahead(most)` reads one batch, in a thread of its own, unless enough wait or `most` were
    read in all, and says whether it did.

    Args:
        feed: what is read.
        placement: the devices.
        steps: how many are made; no more is read ahead.
        threaded: without it `request` reads, in the thread that calls it.
    """

    def __init__(
        self,
        feed: Feed,
        placement: Placement = ONE,
        *,
        steps: float = math.inf,
        threaded: bool = True,
    ) -> None:
        self._feed, self._placement, self._steps = feed, placement, steps
        self._asked: SimpleQueue[Asked | None] = SimpleQueue()
        self._next: Future[Loaded] | None = None
        self._takes, self._is_over, self._has_room = 0, False, threading.Event()
        self._threads: list[threading.Thread] = []
        self._is_threaded = threaded
        if threaded:
            self._start(self._work)

    def _start(self, work: Callable[[], None]) -> None:
        # A source may block for ever, and the process must end nevertheless.
        thread = threading.Thread(target=as_here(work), name="loopax-data", daemon=True)
        self._threads.append(thread)
        thread.start()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        """Waits until the source is no longer read, so that others can read it."""
        if self._next is not None:
            self._next.cancel()
        self._is_over = True
        self._has_room.set()
        self._asked.put(None)
        until = time.monotonic() + PATIENCE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            warnings.warn(
                f"the data gave no batch for {PATIENCE_SECONDS:g} s after the end of the run; its "
                "source is still being read",
                stacklevel=2,
            )

    def request(self, n: int) -> None:
        """Begins to load the items of up to `n` next steps; nothing when `n` is 0."""
        self._next = Future() if n else None
        if self._next is None:
            return
        if self._is_threaded:
            self._asked.put((n, self._next))
        else:
            self._load(n, self._next)

    def take(self) -> Loaded:
        """The items that were asked for, on the device, and how many steps they are."""
        assert self._next is not None
        # The first ones always have to be waited for.
        is_slow = self._takes > 0 and not self._next.done()
        if is_slow and len(self._threads) == 1 and hasattr(self._feed, "read_ahead"):
            self._start(functools.partial(self._work_ahead, self._feed.read_ahead))
        self._takes += 1
        return self._next.result()

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            self._load(*asked)

    def _work_ahead(self, read_ahead: Callable[[float], bool]) -> None:
        while True:
            self._has_room.clear()  # before looking: what is set from here on is not lost
            if self._is_over:
                return
            if not read_ahead(self._steps):
                self._has_room.wait()

    def _load(self, n: int, future: Future[Loaded]) -> None:
        if future.set_running_or_notify_cancel():
            try:
                items = self._feed.take(n)
                self._has_room.set()
                future.set_result((on_device(items, self._placement), items.length))
            except BaseException as error:
                future.set_exception(error)
