"""The chunks of a run, for whoever owns the loop: given out one by one, and left properly."""

from __future__ import annotations

import functools
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from loopax.errors import LoopaxError, RunInUseError
from loopax.moments import HookError
from loopax.run import Run


@dataclass(frozen=True)
class Chunk:
    """The steps from `start` up to `stop`, just dispatched; `run.state` comes after.

    Attributes:
        run: the run as far as it has come.
        start, stop: the steps of this chunk.
        read: gives `metrics`.
    """

    run: Run = field(repr=False)
    start: int
    stop: int
    read: Callable[[], dict[str, Num[np.ndarray, " steps"]]] = field(repr=False)

    @functools.cached_property
    def metrics(self) -> dict[str, Num[np.ndarray, " steps"]]:
        """Every metric of each of these steps. Reading them waits for the device."""
        return self.read()

    def to_json(self) -> dict[str, Any]:
        """The chunk without its run, for the checkpoint at which the caller has left the loop."""
        metrics = {name: [str(v.dtype), v.tolist()] for name, v in self.metrics.items()}
        return {"start": self.start, "stop": self.stop, "metrics": metrics}

    @classmethod
    def from_json(cls, run: Run, stored: Mapping[str, Any]) -> Chunk:
        """The chunk that `to_json` gave."""
        metrics = {name: np.asarray(v, dtype) for name, (dtype, v) in stored["metrics"].items()}
        return cls(run, stored["start"], stored["stop"], lambda: metrics)


class Chunks(Iterator[Chunk]):
    """The chunks of a run, each as it was dispatched; `close` leaves the loop, with all saved.

    It is a context that closes itself, also when its body raises; the error then carries the run.
    One that is only dropped is closed as well: when nothing refers to it any more, when the same
    thread opens the run directory again, or when the interpreter ends.

    Attributes:
        run: the run as far as it has come, also when there was nothing left to train.
    """

    def __init__(self, run: Run, chunks: Generator[Chunk, None, Run]) -> None:
        self.run = run
        self._chunks, self._process, self._thread = chunks, os.getpid(), threading.get_ident()
        self._superseded = False
        _close_all_at_exit()
        _open.add(self)

    def __next__(self) -> Chunk:
        if self._superseded:
            raise RunInUseError(f"{run_name(self.run)}: was opened again, which closed this loop")
        self._thread = threading.get_ident()
        try:
            return next(self._chunks)
        except HookError as carrier:
            error = carrier.error
        if isinstance(error, StopIteration):  # which `for` would take for the end
            raise RuntimeError("a hook raised StopIteration") from error
        raise error

    def drain(self) -> Run:
        """Trains to the end with nobody looking on."""
        try:
            for _ in self._chunks:
                pass
        except HookError as carrier:
            error = carrier.error
        else:
            return self.run
        raise error

    def close(self) -> None:
        """Leaves the loop: what was trained is saved, and the run directory is free.

        Raises:
            NonFiniteError: the newest numbers are bad.
            StorageError: nothing can be written.
        """
        if self._process == os.getpid():  # and not in a forked child, which owns nothing
            self._chunks.close()

    def is_abandoned(self, directory: Path) -> bool:
        """Whether this was left open there by this thread, or by one that has ended."""
        alive = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
        suspended = inspect.getgeneratorstate(self._chunks) == inspect.GEN_SUSPENDED
        here = self.run.dir is not None and self.run.dir.path == directory
        return here and suspended and self._thread not in alive

    def supersede(self) -> None:
        """Closes this for another that trains in the same directory."""
        self._superseded = True
        self.close()

    def __enter__(self) -> Chunks:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            carry(error, self.run)
        # The error of the body is what is to be heard of.
        with nullcontext() if error is None else suppress(LoopaxError):
            self.close()

    def __del__(self) -> None:
        self.close()


_open: weakref.WeakSet[Chunks] = weakref.WeakSet()


def close_abandoned(directory: Path) -> None:
    """Closes the loops that this thread, or one that has ended, left open there."""
    for chunks in list(_open):
        if chunks.is_abandoned(directory):
            chunks.supersede()


def _close_all() -> None:
    for chunks in list(_open):
        with suppress(LoopaxError):
            chunks.close()


@functools.cache
def _close_all_at_exit() -> None:
    # Before `atexit`: then no thread can be started any more, and what saves needs some. Python
    # has no public name for it; concurrent.futures registers by this one too.
    threading._register_atexit(_close_all)  # type: ignore[attr-defined]


def carry(error: BaseException, run: Run) -> None:
    """Lets an error bring what was trained with it, the innermost run where several are open."""
    if getattr(error, "run", None) is None:
        # No exception declares this attribute, and some cannot be given one.
        with suppress(Exception):
            error.run = run  # type: ignore[attr-defined]


def run_name(run: Run) -> str:
    """What a run is called in messages: its directory, where it has one."""
    return str(run.dir.path) if run.dir is not None else "the run"
