"""Loads the next chunk of data in a thread while the device works on this one."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import Future
from queue import SimpleQueue

import numpy as np

from loopax.batches.base import Feed, Items
from loopax.placement import ONE, Placement
from loopax.threads import as_here

PATIENCE_SECONDS = 10.0
"""How long the end of a run waits for a source that is just being read."""


class Loader:
    """Takes items from a feed in the background and puts them on the device.

    Ask with `request`, fetch with `take`; whatever the source raises comes out of `take`. The
    source is read as if by the caller: with its context variables and its settings of JAX.
    """

    def __init__(self, feed: Feed, placement: Placement = ONE) -> None:
        self._feed, self._placement = feed, placement
        self._asked: SimpleQueue[tuple[int, Future[tuple[Items, int]]] | None] = SimpleQueue()
        self._next: Future[tuple[Items, int]] | None = None
        # A source may block for ever, and the process must end nevertheless.
        self._worker = threading.Thread(target=as_here(self._work), name="loopax-data", daemon=True)
        self._worker.start()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        """Waits until the source is no longer read, so that others can read it."""
        if self._next is not None:
            self._next.cancel()
        self._asked.put(None)
        self._worker.join(PATIENCE_SECONDS)
        if self._worker.is_alive():
            warnings.warn(
                f"the data gave no batch for {PATIENCE_SECONDS:g} s after the end of the run; its "
                "source is still being read",
                stacklevel=2,
            )

    def request(self, n: int) -> None:
        """Begins to load the items of up to `n` next steps; nothing when `n` is 0."""
        self._next = Future() if n else None
        if self._next is not None:
            self._asked.put((n, self._next))

    def take(self) -> tuple[Items, int]:
        """The items that were asked for, on the device, and how many steps they are."""
        assert self._next is not None
        return self._next.result()

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            n, future = asked
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._load(n))
                except BaseException as error:
                    future.set_exception(error)

    def _load(self, n: int) -> tuple[Items, int]:
        items = self._feed.take(n)
        return on_device(items, self._placement), items.length


def on_device(items: Items, placement: Placement) -> Items:
    """Items where a chunk takes them from, their number as it counts them."""
    return placement.put(items._replace(length=np.int32(items.length)))
