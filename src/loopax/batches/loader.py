"""Loads the next chunk of data in a thread while the device works on this one."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue

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
    somebody had to wait for it, it is read ahead of what is asked for, where the feed can do that
    (`read_ahead(most)`, which reads one batch unless `most` are waiting, and says whether it did).

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
        self._feed, self._placement, self._left = feed, placement, steps
        self._read_ahead: Callable[[float], bool] = getattr(feed, "read_ahead", lambda most: False)
        self._asked: SimpleQueue[Asked | None] = SimpleQueue()
        self._next: Future[Loaded] | None = None
        self._takes, self._is_slow = 0, False
        self._worker: threading.Thread | None = None
        if not threaded:
            return
        # A source may block for ever, and the process must end nevertheless.
        self._worker = threading.Thread(target=as_here(self._work), name="loopax-data", daemon=True)
        self._worker.start()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        """Waits until the source is no longer read, so that others can read it."""
        if self._next is not None:
            self._next.cancel()
        if self._worker is None:
            return
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
        if self._next is None:
            return
        if self._worker is None:
            self._load(n, self._next)
        else:
            self._asked.put((n, self._next))

    def take(self) -> Loaded:
        """The items that were asked for, on the device, and how many steps they are."""
        assert self._next is not None
        # The first ones always have to be waited for.
        self._is_slow |= self._takes > 0 and not self._next.done()
        self._takes += 1
        return self._next.result()

    def _work(self) -> None:
        while (asked := self._wait()) is not None:
            self._load(*asked)

    def _wait(self) -> Asked | None:
        """What is asked for next; until then the source is read ahead."""
        while self._is_slow:
            with suppress(Empty):
                return self._asked.get_nowait()
            if not self._read_ahead(self._left):
                break
        return self._asked.get()

    def _load(self, n: int, future: Future[Loaded]) -> None:
        if future.set_running_or_notify_cancel():
            try:
                items = self._feed.take(n)
                self._left -= items.length
                future.set_result((on_device(items, self._placement), items.length))
            except BaseException as error:
                future.set_exception(error)
