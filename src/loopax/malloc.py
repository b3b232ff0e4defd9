"""Memory that is taken again and again: glibc's allocator gives it back to the system too eagerly.

On a CPU, XLA takes one large piece of memory whenever a compiled program runs, for all that it
keeps on the way, and frees it at the end. glibc gives such a piece back to the system at once,
which fills it with zeros, page by page, when it is taken again: up to two fifths of the time of a
convolutional network. Of the memory of other threads than the first one glibc never keeps such
pieces, so all threads share that of the first.
"""

from __future__ import annotations

import ctypes
import os

PIECE_BYTES = 1 << 30
"""Freed memory up to this size is kept for the next time, as a piece and at the end of the heap."""
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""As `malloc.h` of glibc numbers them: https://man7.org/linux/man-pages/man3/mallopt.3.html"""


def keep_freed_memory() -> None:
    """Lets the process keep what it frees, up to 1 GiB; called before it starts a thread.

    Whoever has set glibc's own variables (`MALLOC_...`, `GLIBC_TUNABLES`) is left alone, and where
    the allocator is another one nothing happens.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # Not glibc, or Windows.
        return
    mallopt(ARENA_MAX, 1)
    mallopt(MMAP_THRESHOLD, PIECE_BYTES)
    mallopt(TRIM_THRESHOLD, PIECE_BYTES)
