"""The files of rows that every run has: JSON lines, and events for TensorBoard."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopax.errors import ConfigError
from loopax.files import storing
from loopax.jsonlines import JsonLines, Row, values_of
from loopax.run.directory import RunDir
from loopax.run.history import History
from loopax.run.run import Run

FLUSH_SECONDS = 10.0


class RunFiles:
    """`metrics.jsonl`, and `timing.jsonl` for rows of source `time`, which differ in equal runs.

    Resuming rests on them, so that the loop lets what they raise end the run. They begin with the
    rows up to the step from which it goes on.

    Args:
        say: is told of a file that was deleted.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def open(self, run: Run, step: int) -> None:
        directory = directory_of(run, self)
        speed = History.up_to(step, directory.timing_file)
        self._metrics = _lines_after(directory.metrics_file, run.history, self._say)
        self._timing = _lines_after(directory.timing_file, speed, self._say)

    def write(self, row: Row) -> None:
        (self._timing if row["source"] == "time" else self._metrics).write(row)

    def sync(self) -> None:
        self._metrics.sync()
        self._timing.sync()

    def close(self) -> None:
        try:
            self._metrics.close()
        finally:
            self._timing.close()


def _lines_after(path: Path, history: History, say: Callable[[str], None]) -> JsonLines:
    """A file that goes on where this history of it ends."""
    past = 0 if history.past is None else history.past.end
    return JsonLines(path, history.rows, say, past)


class TensorBoard:
    """An event file for TensorBoard; each metric is drawn as `<source>/<name>`.

    tensorboardX's own `SummaryWriter` hands events to a thread and waits for ever once a full disk
    has ended that thread; so they are written here, one by one.
    """

    def open(self, run: Run, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._path, self._synced = directory_of(run, self).tensorboard, time.monotonic()
        with storing(self._path):
            self._path.mkdir(exist_ok=True)
            # A second start within a second would else write over the first one's file.
            unique = f".{os.getpid()}.{time.time_ns()}"
            self._events = EventsWriter(str(self._path / "events"), unique)
        # Readers pass over what was logged from this step on by a run that was cut short. The rows
        # of the step at which it continues are its own.
        begun = Event(
            wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START)
        )
        self._write(begun)

    def write(self, row: Row) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=f"{row['source']}/{name}", simple_value=value)
            for name, value in values_of(row).items()
        ]
        summary = Summary(value=values)
        self._write(Event(wall_time=time.time(), step=row["step"], summary=summary))
        if time.monotonic() - self._synced > FLUSH_SECONDS:
            self.sync()

    def sync(self) -> None:
        self._synced = time.monotonic()
        with storing(self._path):
            self._events.flush()

    def close(self) -> None:
        with storing(self._path):
            self._events.close()

    def _write(self, event: Any) -> None:
        with storing(self._path):
            self._events.write_event(event)


def directory_of(run: Run, writer: object) -> RunDir:
    """The directory of a run that has one.

    Raises:
        ConfigError: it has none.
    """
    if run.dir is None:
        raise ConfigError(f"{type(writer).__name__} writes into the run directory; give a run_dir")
    return run.dir
