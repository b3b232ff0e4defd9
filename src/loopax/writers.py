"""Where logged rows go: JSON lines that are equal for equal runs, and TensorBoard events."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from loopax.durable import replacing, storing, write_text

FLUSH_SECONDS = 10.0

Row = dict[str, Any]
"""`{"step": 100, "source": "train", "loss": 49.4, ...}`."""


OWN_SOURCES = ("train", "probe", "hook", "time")
"""The sources of rows that the loop names itself; all others are evaluations."""


class Writer(Protocol):
    """Anything that rows can be given to; `sync` returns when they are on the disk itself.

    Raises:
        StorageError: they cannot be written.
    """

    def write(self, row: Row) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line. A file that is deleted while it is written is made again.

    Args:
        path: the file.
        kept: what it begins with; None continues the file as it is.
        say: is told of a file that was deleted.
    """

    def __init__(
        self,
        path: Path,
        kept: Iterable[Row] | None = (),
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._path, self._say = path, say
        with storing(path):
            if kept is not None:
                write_text(path, "".join(map(_line, kept)))
            # Nothing waits in a buffer: what cannot be written is known at once, and only once.
            self._file = path.open("a+b", buffering=0)

    def write(self, row: Row) -> None:
        line = _line(row).encode()
        with storing(self._path):
            # A disk that takes a part of it says why with the rest.
            while line:
                line = line[self._file.write(line) :]

    def sync(self) -> None:
        with storing(self._path):
            self._make_again()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with storing(self._path):
            self._make_again()
            self._file.close()

    def _make_again(self) -> None:
        """What was written is still there for whoever has the file open."""
        if self._path.exists() or not self._path.parent.is_dir():
            return
        self._say(f"{self._path}: was deleted while the run went on; written again")
        with replacing(self._path) as partial:
            self._file.seek(0)
            with partial.open("wb") as copy:
                shutil.copyfileobj(self._file, copy)
        self._file.close()
        self._file = self._path.open("a+b", buffering=0)


def read_json_lines(path: Path) -> list[Row]:
    """The rows of a JSON lines file; what is no row, as a line that a crash cut, is passed over."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        rows = map(as_row, file)
        return [row for row in rows if row is not None]


def as_row(line: bytes) -> Row | None:
    """A line of such a file as a row; None where it is none."""
    try:
        row = json.loads(line, object_hook=_as_logged)
    except (ValueError, RecursionError):
        return None
    placed = isinstance(row, dict) and isinstance(row.get("source"), str)
    return row if placed and isinstance(row.get("step"), int) else None


class TensorBoard:
    """An event file for TensorBoard; each metric is drawn as `<source>/<name>`.

    tensorboardX's own `SummaryWriter` hands events to a thread and waits for ever once a full disk
    has ended that thread; so they are written here, one by one.
    """

    def __init__(self, directory: Path, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._path, self._synced = directory, time.monotonic()
        with storing(directory):
            directory.mkdir(exist_ok=True)
            # A second start within a second would else write over the first one's file.
            unique = f".{os.getpid()}.{time.time_ns()}"
            self._events = EventsWriter(str(directory / "events"), unique)
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


def values_of(row: Row) -> Mapping[str, float]:
    """The measured numbers of a row, without what places it and without arrays."""
    places = ("step", "epoch", "source", "steps")
    return {k: v for k, v in row.items() if k not in places and not isinstance(v, list)}


def _line(row: Row) -> str:
    return json.dumps(_as_json(row)) + "\n"


def _as_json(value: Any) -> Any:
    """A value with words for NaN and infinities.

    They are not JSON; a reader of another language would refuse the whole file.
    """
    match value:
        case float():
            return repr(value) if value - value != 0 else value
        case list():
            return [_as_json(item) for item in value]
        case dict():
            return {name: _as_json(item) for name, item in value.items()}
    return value


def _as_logged(row: Row) -> Row:
    """What `_line` wrote as a word is a number again."""
    return {k: v if k == "source" else _as_number(v) for k, v in row.items()}


def _as_number(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_number(item) for item in value]
    return float(value) if value in ("nan", "inf", "-inf") else value
