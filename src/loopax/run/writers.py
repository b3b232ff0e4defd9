"""What a writer of rows is, and how the loop treats one that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from loopax.arguments import kind_of
from loopax.errors import ConfigError
from loopax.jsonlines import Row
from loopax.run.run import Run

METHODS = ("open", "write", "sync", "close")


@runtime_checkable
class Writer(Protocol):
    """Takes the rows that a run logs, and puts them where they are wanted.

    All four are called in the thread that trains, one at a time, and the device may wait for them:
    what takes long belongs into a thread of the writer's own. What they raise never stops the run;
    there is one warning, and the writer gets no more rows.
    """

    def open(self, run: Run, step: int) -> None:
        """Begins, or goes on, with a run that has made `step` steps.

        Rows of later steps were written by a start that was cut short. The same rows come again,
        bit for bit, so they are removed here, or passed over when they come. A writer that was
        closed can be opened again.
        """

    def write(self, row: Row) -> None:
        """Takes one row: its `step`, `source`, mostly `epoch`, and what was measured by name.

        The source is `train`, `probe`, `hook`, `time` (the speed, which differs in equal runs) or
        the name of an evaluation. Values are numbers or, of arrays, nested lists of them; `steps`
        of a `train` row is how many it holds the means over.
        """

    def sync(self) -> None:
        """Returns when no row can be lost any more; a checkpoint is about to be saved."""

    def close(self) -> None:
        """Ends, also after a failure or an `open` that raised."""


class Guarded:
    """A writer whose failure ends its own work and not the run.

    Args:
        writer: what is guarded.
        warn: is told once why it failed.
    """

    def __init__(self, writer: Writer, warn: Callable[[str], None]) -> None:
        self._writer, self._warn, self._failed = writer, warn, False

    def open(self, run: Run, step: int) -> None:
        self._call("open", run, step)

    def write(self, row: Row) -> None:
        self._call("write", dict(row))  # the history keeps the row itself

    def sync(self) -> None:
        self._call("sync")

    def close(self) -> None:
        self._call("close")

    def _call(self, method: str, *arguments: Any) -> None:
        if self._failed and method != "close":
            return
        try:
            getattr(self._writer, method)(*arguments)
        except Exception as error:
            known, self._failed = self._failed, True
            if not known:
                said = " ".join(str(error).split())
                self._warn(
                    f"{name_of(self._writer)}: {method} failed ({type(error).__name__}: {said}); "
                    "the run goes on, and no more rows are written there"
                )


def name_of(writer: Writer) -> str:
    """The name by which a writer is spoken of: that of its class."""
    return type(writer).__name__


def as_writers(writers: Any) -> tuple[Writer, ...]:
    """What `fit` was given as `writers`.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(writers, Iterable) or isinstance(writers, str | dict):
        raise ConfigError(
            f"writers is {kind_of(writers)}; it must be a list, such as [loopax.writers.CSV()]"
        )
    given: Sequence[Any] = tuple(writers)
    for index, writer in enumerate(given):
        if isinstance(writer, type) or not isinstance(writer, Writer):
            raise ConfigError(
                f"writers[{index}] is {kind_of(writer)}; it must be an object with the methods "
                f"{', '.join(METHODS)}, such as loopax.writers.CSV()"
            )
    return tuple(given)
