"""The logged rows of a run, those from before a resumption too."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from loopax.jsonlines import (
    Row,
    as_row,
    count_rows,
    lines_backwards,
    read_json_lines,
    rows_backwards,
)


class Past(NamedTuple):
    """The first bytes of a file: rows that are read when somebody asks for them."""

    path: Path
    end: int


class History(Sequence[Row]):
    """Every logged row of a run, in order.

    Attributes:
        rows: those that are in memory, the newest.
        past: those before them, which lie in a file.
    """

    def __init__(self, rows: Iterable[Row] = (), past: Past | None = None) -> None:
        self.rows, self.past = list(rows), past
        self._past_of: dict[str, list[Row]] = {}

    @classmethod
    def up_to(cls, step: int, path: Path) -> History:
        """The rows of a file up to `step`, found from its end.

        Raises:
            StorageError: the file cannot be read.
        """
        rows: list[Row] = []
        if not path.exists():
            return cls()
        size = path.stat().st_size
        for begin, line in lines_backwards(path):
            row, end = as_row(line), begin + len(line)
            if row is not None and row["step"] < step and end < size:
                return cls(reversed(rows), Past(path, end + 1))
            if row is not None and row["step"] <= step:
                rows.append(row)
        return cls(reversed(rows))

    def append(self, row: Row) -> None:
        """Adds the newest row."""
        self.rows.append(row)

    def of(self, source: str) -> Iterator[Row]:
        """The rows of one source."""
        if source not in self._past_of:
            past = [] if self.past is None else read_json_lines(*self.past, source)
            self._past_of[source] = [row for row in past if row["source"] == source]
        return chain(self._past_of[source], (row for row in self.rows if row["source"] == source))

    def latest(self, source: str) -> Row:
        """The newest row of a source, or {}."""
        return next((row for row in reversed(self) if row["source"] == source), {})

    def __len__(self) -> int:
        return self._past_count + len(self.rows)

    @functools.cached_property
    def _past_count(self) -> int:
        return 0 if self.past is None else count_rows(*self.past)

    def __iter__(self) -> Iterator[Row]:
        return chain([] if self.past is None else read_json_lines(*self.past), self.rows)

    def __reversed__(self) -> Iterator[Row]:
        return chain(reversed(self.rows), () if self.past is None else rows_backwards(*self.past))

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    # It grows, as a list does; types declare a method here.
    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return History, (list(self),)

    def __repr__(self) -> str:
        return f"<{len(self):,} rows>"
