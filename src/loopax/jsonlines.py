"""Logged rows, and files of them: a JSON object a line, and equal for equal runs."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from loopax.files import replacing, storing, write_text

Row = dict[str, Any]
"""`{"step": 100, "source": "train", "loss": 49.4, ...}`."""

BLOCK = 2**16
OWN_SOURCES = ("train", "probe", "hook", "time")
"""The sources of rows that the loop names itself; all others are evaluations."""


class JsonLines:
    """One JSON object a line. A file that is deleted while it is written is made again.

    Args:
        path: the file.
        kept: what it begins with.
        say: is told of a file that was deleted.
    """

    def __init__(
        self,
        path: Path,
        kept: Iterable[Row] = (),
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._path, self._say = path, say
        with storing(path):
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
    with storing(path), path.open("rb") as file:
        rows = map(as_row, file)
        return [row for row in rows if row is not None]


def rows_backwards(path: Path) -> Iterator[Row]:
    """The rows of a file, the last one first, read block by block."""
    with storing(path), path.open("rb") as file:
        at, rest = file.seek(0, os.SEEK_END), b""
        while at > 0:
            size = min(BLOCK, at)
            at -= size
            file.seek(at)
            rest, *lines = (file.read(size) + rest).split(b"\n")
            yield from filter(None, map(as_row, reversed(lines)))
    yield from filter(None, [as_row(rest)])


def as_row(line: bytes) -> Row | None:
    """A line of such a file as a row; None where it is none."""
    try:
        row = json.loads(line, object_hook=_as_logged)
    except (ValueError, RecursionError):
        return None
    placed = isinstance(row, dict) and isinstance(row.get("source"), str)
    return row if placed and isinstance(row.get("step"), int) else None


def values_of(row: Row) -> Mapping[str, float]:
    """The measured numbers of a row, without what places it and without arrays."""
    places = ("step", "epoch", "source", "steps")
    return {k: v for k, v in row.items() if k not in places and not isinstance(v, list)}


def _line(row: Row) -> str:
    return json.dumps(as_json(row)) + "\n"


def as_json(value: Any) -> Any:
    """A value with words for NaN and infinities.

    They are not JSON; a reader of another language would refuse the whole file.
    """
    match value:
        case float():
            return repr(value) if value - value != 0 else value
        case list() | tuple():
            return [as_json(item) for item in value]
        case dict():
            return {name: as_json(item) for name, item in value.items()}
    return value


def _as_logged(row: Row) -> Row:
    """What `_line` wrote as a word is a number again."""
    return {sys.intern(k): v if k == "source" else _as_number(v) for k, v in row.items()}


def _as_number(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_number(item) for item in value]
    return float(value) if value in ("nan", "inf", "-inf") else value
