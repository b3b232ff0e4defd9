"""The logged rows of a run, those from before a resumption too."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from loopax.jsonlines import Row, read_json_lines


class History(list[Row]):
    """Every logged row of a run, in order."""

    @classmethod
    def up_to(cls, step: int, path: Path) -> History:
        """The rows of a file that come before the first one of a step after `step`.

        Raises:
            StorageError: the file cannot be read.
        """
        return cls(takewhile(lambda row: row["step"] <= step, read_json_lines(path)))

    def of(self, source: str) -> Iterator[Row]:
        """The rows of one source."""
        return (row for row in self if row["source"] == source)

    def latest(self, source: str) -> Row:
        """The newest row of a source, or {}."""
        return next((row for row in reversed(self) if row["source"] == source), {})

    def __repr__(self) -> str:
        return f"<{len(self):,} rows>"
