"""Logged rows: those that a resumed run has in its file are counted, and read when asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from loopax.files import storing, sync
from loopax.jsonlines import Row, as_row

SMALL = 10_000
"""Up to so many rows of earlier starts are kept in memory; more are read from the file."""
BLOCK = 2**16


@dataclass(frozen=True)
class Extent:
    """The part of a file of rows up to a step, found without reading more of a row than that.

    Attributes:
        path: the file, which may be missing.
        rows, end: how much of it that is.
        other: how many lines of it are no rows.
        begin: where the rows of the step itself begin.
        last: these rows, as they stand there.
    """

    path: Path
    rows: int = 0
    end: int = 0
    other: int = 0
    begin: int = 0
    last: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, path: Path, step: int) -> Extent:
        """The rows up to `step`; what comes after the first later one is left out.

        Raises:
            StorageError: the file cannot be read.
        """
        rows = end = offset = other = passed = begin = 0
        last: list[bytes] = []
        if not path.exists():
            return cls(path)
        with storing(path), path.open("rb") as file:
            for line in file:
                at = _step_of(line)
                if at is not None and at > step:
                    break
                if at is None:
                    passed += 1
                else:
                    if at == step and not last:
                        begin = offset
                    last = [*last, line] if at == step else []
                    rows, end, other = rows + 1, offset + len(line), passed
                offset += len(line)
        return cls(path, rows, end, other, begin if last else end, tuple(last))

    def cut(self, *, without: str = "") -> Extent:
        """Takes everything else out of the file, and of the step itself the rows of one source."""
        last = [line for line in self.last if not without or source_of(line) != without]
        kept = b"".join(line.rstrip(b"\n") + b"\n" for line in last)
        with storing(self.path), self.path.open("r+b" if self.path.exists() else "w+b") as file:
            # Over what was there first, so that a kill in between loses no row.
            file.seek(self.begin)
            file.write(kept)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        sync(self.path.parent)
        gone, size = len(self.last) - len(last), self.begin + len(kept)
        return Extent(self.path, self.rows - gone, size, self.other, self.begin, tuple(last))


class History(Sequence[Row]):
    """Every logged row of a run in order, those from before a resumption too.

    These are read from `metrics.jsonl` when they are asked for, as there may be millions.
    """

    def __init__(self, extent: Extent | None = None) -> None:
        self._extent = extent or Extent(Path())
        self._new: list[Row] = []
        self._kept = list(self._read()) if self._extent.rows <= SMALL else None
        self._latest: dict[str, Row] = {}

    def cut(self, *, without: str = "") -> History:
        """This history in a file that holds no more, and of the last step no rows of one source."""
        return History(self._extent.cut(without=without))

    def append(self, row: Row) -> None:
        """Adds a row that was just logged."""
        self._new.append(row)

    def of(self, source: str) -> Iterator[Row]:
        """The rows of one source; of the others only that much is read."""
        for row in self._earlier(source):
            if row["source"] == source:
                yield row
        yield from (row for row in self._new if row["source"] == source)

    def latest(self, source: str) -> Row:
        """The newest row of a source, or {}."""
        found = next((row for row in reversed(self._new) if row["source"] == source), None)
        if found is None and source not in self._latest:
            earlier = (row for row in self._backwards() if row["source"] == source)
            self._latest[source] = next(earlier, {})
        return self._latest[source] if found is None else found

    def __len__(self) -> int:
        return self._extent.rows + len(self._new)

    def __iter__(self) -> Iterator[Row]:
        yield from self._earlier()
        yield from self._new

    def __reversed__(self) -> Iterator[Row]:
        yield from reversed(self._new)
        yield from self._backwards()

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        earlier = self._extent.rows
        if isinstance(index, int):
            at = index + len(self) if index < 0 else index
            if earlier <= at < len(self):
                return self._new[at - earlier]
        return list(self)[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    # It grows, so it can be no key. Mypy wants a method here, where Python wants None.
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self):,} rows>"

    def __reduce__(self) -> tuple[Any, ...]:
        return History.of_rows, (list(self),)

    @classmethod
    def of_rows(cls, rows: Sequence[Row]) -> History:
        """A history of these rows, in memory."""
        history = cls()
        history._new.extend(rows)
        return history

    def _earlier(self, source: str = "") -> Iterator[Row]:
        return iter(self._kept) if self._kept is not None else self._read(source)

    def _read(self, source: str = "") -> Iterator[Row]:
        """The rows of earlier starts, from the file; those that do not name the source left out."""
        if not self._extent.rows:
            return
        name, left = json.dumps(source).encode() if source else b"", self._extent.end
        with storing(self._extent.path), self._extent.path.open("rb") as file:
            for line in file:
                left -= len(line)
                if left < 0:
                    return
                if name in line and (row := as_row(line)) is not None:
                    yield row

    def _backwards(self) -> Iterator[Row]:
        if self._kept is not None:
            yield from reversed(self._kept)
        else:
            yield from rows_backwards(self._extent.path, self._extent.end)


def rows_backwards(path: Path, end: int | None = None) -> Iterator[Row]:
    """The rows of a file, or of its first `end` bytes, the last one first, block by block."""
    with storing(path), path.open("rb") as file:
        at = file.seek(0, os.SEEK_END) if end is None else end
        rest = b""
        while at > 0:
            size = min(BLOCK, at)
            at -= size
            file.seek(at)
            rest, *lines = (file.read(size) + rest).split(b"\n")
            for line in reversed(lines):
                if (row := as_row(line)) is not None:
                    yield row
    if (row := as_row(rest)) is not None:
        yield row


def source_of(line: bytes) -> str:
    """The source of a row as it stands in the file."""
    return str((as_row(line) or {}).get("source"))


def _step_of(line: bytes) -> int | None:
    """The step of a row as it stands in the file, or None where the line is no row."""
    if line.startswith(b'{"step": ') and line.endswith(b"}\n"):
        number = line[9 : line.find(b",", 9)]
        if number.isdigit():
            return int(number)
    row: Any = as_row(line)
    return row["step"] if row is not None else None
