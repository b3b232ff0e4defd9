"""What commands print: tables, paths and lines, to readers who may have left."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from loopax import processes

PIPED_WIDTH = 200
"""Columns of a file or a pipe, which has no edge to break lines at."""


SOON, PLAIN_SECONDS = 3.0, 30.0
"""When progress is first shown, and how often there is a line of it outside of a terminal."""


@contextmanager
def output_optional() -> Iterator[None]:
    """In it, what nobody can read any more is dropped: the work is not done for what it says.

    The reader of a pipe has left, the disk of a log is full, or there is no output at all.
    """
    whole = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, stream and _Optional(stream)) for stream in whole)
    try:
        yield
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    finally:
        sys.stdout, sys.stderr = whole


class _Optional:
    """A stream that may end before what writes to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def to_stderr(*lines: str) -> None:
    """Says what is no result, such as which checkpoint one is of."""
    for line in lines:
        print(line, file=sys.stderr)


class Progress:
    """How far work of many portions is, on standard error, once it has taken some seconds.

    In a terminal it is one line that changes, elsewhere a line now and then. Of several processes
    that train together one shows it.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._begun = time.monotonic()
        self._next = self._begun + SOON
        self._is_shown = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown and self._in_place:
            self._write("\r\x1b[K")

    def at(self, done: int) -> None:
        """So many are done."""
        now = time.monotonic()
        if now < self._next or not done:
            return
        left = (now - self._begun) / done * (self._total - done)
        said = f"{self._what}: {done:,} of {self._total:,}, {left:,.0f} s left"
        self._write(f"\r\x1b[K{said}" if self._in_place else f"{said}\n")
        self._is_shown = True
        self._next = now + (0.25 if self._in_place else PLAIN_SECONDS)

    @property
    def _in_place(self) -> bool:
        return sys.stderr is not None and sys.stderr.isatty()

    def _write(self, text: str) -> None:
        if sys.stderr is not None and processes.is_writer():
            with suppress(OSError):
                sys.stderr.write(text)
                sys.stderr.flush()


def table(*columns: str) -> Any:
    """A table whose first column is text and whose others are numbers."""
    from rich.table import Table

    made = Table()
    made.add_column(columns[0], overflow="fold")  # Half a path is of no use.
    for column in columns[1:]:
        made.add_column(column, justify="right")
    return made


def show(content: Any) -> None:
    """Prints it to standard output."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # which is no failure of ours, and rich would end with 1

    # Names of classes are the user's own: `[red]` in them is no colour.
    console = Output(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = max(console.width, PIPED_WIDTH)
    console.print(content)


def show_tables(tables: Any) -> None:
    """Prints tables of a title, columns and rows."""
    for each in tables:
        made = table(*each.columns)
        made.title = each.title
        made.title_justify = "left"
        for row in each.rows:
            made.add_row(*row)
        show(made)
