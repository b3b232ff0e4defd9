"""What a person sees while a run goes on: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
import warnings
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from loopax.jsonlines import Row, values_of

PLAIN_SECONDS = 5.0


class Display:
    """Shows where a run is; this one shows nothing."""

    def begin(self, step: int) -> None:
        """A run begins, or goes on, at a step."""

    def update(self, step: int, steps_per_s: float) -> None:
        """So many steps are made, at this rate."""

    def row(self, row: Row) -> None:
        """A row was logged."""

    def say(self, message: str) -> None:
        """One line."""

    def close(self) -> None:
        """The run has ended."""


class Quiet(Display):
    """For all processes of a run but the one that shows it."""


def display(total: int, console: Terminal | None = None) -> Display:
    """The display that suits where standard error goes."""
    # A notebook gets plain lines too: rich would make an HTML output of each.
    console = console or Terminal(stderr=True, force_jupyter=False)
    return Live(total, console) if console.is_terminal else Lines(total, console)


class Terminal(Console):
    """Standard error, which may be gone or full: what cannot be shown must not end a run."""

    def print(self, *content: Any, **style: Any) -> None:
        with suppress(OSError):
            # A name in brackets is a name, and no style.
            super().print(*content, highlight=False, markup=False, soft_wrap=True, **style)

    def on_broken_pipe(self) -> None:
        self.quiet = True


def tell(shown: Display, message: str) -> None:
    """Says what must not go unheard; where nothing is shown, as a warning."""
    if type(shown) is Display:
        depth, frame = 1, sys._getframe()
        while frame.f_back is not None and frame.f_globals["__name__"].startswith("loopax."):
            depth, frame = depth + 1, frame.f_back
        warnings.warn(message, UserWarning, stacklevel=depth)  # as of the user's own line
    else:
        shown.say(message)


class Live(Display):
    """A bar with rate and time left, redrawn four times a second, and a line an evaluation."""

    def __init__(self, total: int, console: Terminal) -> None:
        self._bar = Progress(
            BarColumn(bar_width=16),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[rate]}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            # What does not fit is cut off here, and is in the run directory.
            TextColumn("{task.fields[values]}", table_column=Column(no_wrap=True, ratio=1)),
            console=console,
            expand=True,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("", total=total, rate="compiling", values="")
        self._bar.start()

    def begin(self, step: int) -> None:
        # A new start, so that the steps before are not taken for a rate.
        self._bar.reset(self._task, completed=step, rate="compiling", values="")

    def update(self, step: int, steps_per_s: float) -> None:
        self._bar.update(self._task, completed=step, rate=_speed(steps_per_s))

    def row(self, row: Row) -> None:
        if row["source"] == "train":
            self._bar.update(self._task, values=_short(row))
        elif row["source"] != "probe":
            self._bar.console.print(_line(row))

    def say(self, message: str) -> None:
        self._bar.console.print(message)

    def close(self) -> None:
        self._bar.stop()


class Lines(Display):
    """Plain lines for logs and pipes: evaluations always, training every few seconds."""

    def __init__(self, total: int, console: Terminal) -> None:
        self._total, self._console = total, console
        self._rate = 0.0
        self._last = -PLAIN_SECONDS

    def update(self, step: int, steps_per_s: float) -> None:
        self._rate = steps_per_s

    def row(self, row: Row) -> None:
        if row["source"] == "probe":
            return
        now = time.monotonic()
        if row["source"] == "train":
            if now - self._last < PLAIN_SECONDS:
                return
            self._last = now
        rate = f"  {_speed(self._rate)}" if row["source"] == "train" and self._rate else ""
        self.say(f"{_line(row, self._total)}{rate}")

    def say(self, message: str) -> None:
        self._console.print(message)


def _line(row: Row, total: int | None = None) -> str:
    step = f"{row['step']:,}" + (f"/{total:,}" if total else "")
    return f"{row['source']:>5} step {step}  {_short(row)}"


def _speed(steps_per_s: float) -> str:
    """Steps a second in three digits; of slow ones the seconds of a step."""
    if 0 < steps_per_s < 1:
        return f"{1 / steps_per_s:.3g} s/step"
    return f"{steps_per_s:,.0f} steps/s" if steps_per_s >= 100 else f"{steps_per_s:.3g} steps/s"


def _short(row: Row) -> str:
    return "  ".join(f"{name} {_number(value)}" for name, value in values_of(row).items())


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
