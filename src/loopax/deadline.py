"""A time limit for work that comes in portions: what trains has its own look at the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_deadlines: list[float] = []


class _OverError(Exception):
    """The innermost time limit is over."""


@contextmanager
def time_limit(seconds: float | None, over: Callable[[], object]) -> Iterator[None]:
    """Gives the body so much time; None is as much as it needs.

    The body looks at the clock by `check_time`, between portions of its work, and is left there
    when the time is over; then `over` is called, and the program goes on behind the block.
    """
    if seconds is None:
        yield
        return
    _deadlines.append(time.monotonic() + seconds)
    try:
        yield
    except _OverError:
        over()
    finally:
        _deadlines.pop()


def seconds_left() -> float | None:
    """What is left of the time limit around the caller, above 0; None without one."""
    return max(1e-3, min(_deadlines) - time.monotonic()) if _deadlines else None


def check_time(needed: float = 0.0) -> None:
    """Leaves the block of `time_limit` around the caller when its time is over.

    With `needed` it does so when no more than that many seconds are left, and with infinity
    however many are: a training inside of it, which has to save, ends before its time is up.
    """
    if _deadlines and min(_deadlines) - time.monotonic() <= needed:
        raise _OverError
