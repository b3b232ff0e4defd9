"""Logged rows, and files of them: a JSON object a line, and equal for equal runs."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from loopax.files import replacing, storing

Row = dict[str, Any]
"""`{"step": 100, "source": "train", "loss": 49.4, ...}`."""

BLOCK = 2**16
OWN_SOURCES = ("train", "probe", "hook", "time")
"""The sources of rows that the loop names itself; all others are evaluations."""


class JsonLines:
    """One JSON object a line. A file that is deleted while it is written is made again.

    Args:
        path: the file.
        kept: what it begins with, after its `past`.
        say: is told of a file that was deleted.
        past: bytes that stay as they are.
    """

    def __init__(
        self,
        path: Path,
        kept: Iterable[Row] = (),
        say: Callable[[str], None] = lambda message: None,
        past: int = 0,
    ) -> None:
        self._path, self._say = path, say
        with storing(path):
            _keep(path, past, "".join(map(_line, kept)).encode())
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


def _keep(path: Path, past: int, text: bytes) -> None:
    """Makes a file end with `text` after `past` bytes of it; cuts it, where that is enough."""
    if past:
        with path.open("r+b") as file:
            file.seek(past)
            if file.read(len(text)) == text:
                file.truncate(past + len(text))
                return
    with replacing(path) as partial, partial.open("wb") as new:
        if past:
            with path.open("rb") as old:
                for at in range(0, past, BLOCK):
                    new.write(old.read(min(BLOCK, past - at)))
        new.write(text)


def read_json_lines(path: Path, past: int | None = None, source: str = "") -> list[Row]:
    """The rows of a JSON lines file; what is no row, as a line that a crash cut, is passed over.

    Args:
        path: the file.
        past: read only so many bytes.
        source: read only rows of this source.
    """
    if not path.exists():
        return []
    with storing(path), path.open("rb") as file:
        lines: Iterable[bytes] = file if past is None else _lines(file, past)
        if source:
            named = json.dumps({"source": source})[1:-1].encode()
            lines = (line for line in lines if named in line)
        return [row for row in map(as_row, lines) if row is not None]


def _lines(file: BinaryIO, past: int) -> Iterator[bytes]:
    """The lines of the first `past` bytes."""
    at = 0
    for line in file:
        at += len(line)
        if at > past:
            return
        yield line


def count_rows(path: Path, past: int) -> int:
    """How many lines of the first `past` bytes of a file look like rows; none is read as JSON."""
    if not path.exists():
        return 0
    with storing(path), path.open("rb") as file:
        lines = _lines(file, past)
        return sum(line.startswith(b'{"step": ') and line.endswith(b"}\n") for line in lines)


def rows_backwards(path: Path, past: int | None = None) -> Iterator[Row]:
    """The rows of a file, or of its first `past` bytes, the last one first."""
    rows = (as_row(line) for _, line in lines_backwards(path, past))
    return (row for row in rows if row is not None)


def lines_backwards(path: Path, past: int | None = None) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, the last one first, read block by block; and where each begins."""
    if not path.exists():
        return
    with storing(path), path.open("rb") as file:
        at, rest = file.seek(0, os.SEEK_END) if past is None else past, b""
        while at > 0:
            size = min(BLOCK, at)
            at -= size
            file.seek(at)
            rest, *lines = (file.read(size) + rest).split(b"\n")
            begin = at + len(rest) + sum(1 + len(line) for line in lines)
            for line in reversed(lines):
                begin -= len(line)
                yield begin, line
                begin -= 1
    yield 0, rest


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
