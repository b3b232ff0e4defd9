"""The next chunk of data in flight while the device is busy with this one."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np

from loopax.data.batches import Feed, Items


class Loader:
    """Takes items from a feed in the background and puts them on the device.

    Ask with `request`, fetch with `take`; whatever the source raises comes out of `take`.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="loopax-data")
        self._next: Future[tuple[Items, int]] | None = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    def request(self, n: int) -> None:
        """Begins to load the items of up to `n` next steps; nothing when `n` is 0."""
        self._next = self._worker.submit(self._load, n) if n else None

    def take(self) -> tuple[Items, int]:
        """The items that were asked for, on the device, and how many steps they are."""
        assert self._next is not None
        return self._next.result()

    def _load(self, n: int) -> tuple[Items, int]:
        items = self._feed.take(n)
        return jax.device_put(items._replace(length=np.int32(items.length))), items.length
