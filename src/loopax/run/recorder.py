"""From the rows of compiled chunks to logged rows: read late, averaged, checked, handed on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from loopax.account import Account
from loopax.compute.rows import SKIPPED, WEIGHT, Rows, means
from loopax.errors import NonFiniteError
from loopax.jsonlines import Row
from loopax.paths import PyTree, leaf_path
from loopax.run.display import Display, tell
from loopax.run.history import History
from loopax.run.turns import Clock
from loopax.run.writers import Writer

SKIP_LIMIT = 100


@dataclass(frozen=True)
class Pending:
    """A chunk that was dispatched and not yet read.

    `norms` were probed before its first step; `examples` gives the batch of one of its steps;
    `dispatched` is when it was given to the device.
    """

    start: int
    count: int
    rows: Rows
    norms: Mapping[str, Array] | None
    examples: Callable[[int], PyTree]
    dispatched: float


@dataclass(frozen=True)
class Tail:
    """The recorder's part of a checkpoint: what was read and is not in a logged row.

    Attributes:
        log_every: steps in an interval.
        rows: the metrics of each step since the last logged row.
        skipped: how many of the last updates in a row were skipped.
    """

    log_every: int
    rows: list[dict[str, float]] = field(default_factory=list)
    skipped: int = 0


class Recorder:
    """Keeps the history of a run and passes each row to the writers and the display.

    A row of source `train` holds the means over the `log_every` steps before it, whatever chunks
    they came in, so equal runs write equal rows. Only the learning rate is that of the last step.
    A row of source `probe` holds the norms and the rate of the one update that led to its step.
    """

    def __init__(
        self,
        history: History,
        display: Display,
        account: Account,
        clock: Clock,
        log_every: int,
        steps_per_epoch: int | None,
    ) -> None:
        self.writers: list[Writer] = []
        self._history, self._display, self._account = history, display, account
        self._clock = clock
        self._log_every, self._steps_per_epoch = log_every, steps_per_epoch
        self.step = 0
        self._pending: list[Pending] = []
        self._interval: list[dict[str, float]] = []
        self._read_at = self._seconds = 0.0
        self._skipped, self._finished, self._weightless = 0, -1, False
        account.device_is_busy = lambda: (
            bool(self._pending) and not self._pending[-1].rows.is_ready()
        )

    @property
    def tail(self) -> Tail:
        """For a checkpoint: what was read since the last logged row, and skipped just now."""
        return Tail(self._log_every, list(self._interval), self._skipped)

    @property
    def rows(self) -> int:
        """For a checkpoint: the rows that stay when it is continued, without a short interval's."""
        is_short = bool(self._interval) and self._finished == self.step
        return len(self._history) - is_short

    def resume(self, step: int, tail: Tail) -> None:
        """Continues at `step`, in the interval in which its checkpoint was made."""
        self.step = step
        self._skipped = tail.skipped
        if tail.log_every == self._log_every:
            self._interval = list(tail.rows)

    def add(
        self,
        start: int,
        count: int,
        rows: Rows,
        norms: Mapping[str, Array] | None,
        examples: Callable[[int], PyTree],
    ) -> None:
        """Takes over the rows of a chunk that was just dispatched."""
        dispatched = self._clock.dispatched()
        self._pending.append(Pending(start, count, rows, norms, examples, dispatched))
        self.step = start + count

    def settle(self, *, but: int = 0) -> None:
        """Reads pending chunks, which waits for the device, and logs what became complete.

        Args:
            but: so many of the newest are left to be read later.

        Raises:
            NonFiniteError: the loss of one of their steps is NaN or infinite.
        """
        while len(self._pending) > but:
            self._read(self._pending[0])

    def _read(self, chunk: Pending) -> None:
        with self._account.section("compute"):
            read, norms = jax.device_get((chunk.rows, chunk.norms))
        self._pending.remove(chunk)
        self._account.reads += 1
        self._clock.read(chunk.count, chunk.dispatched)
        rows = read.steps(chunk.count)
        if SKIPPED in rows[0]:
            self._check_skipped(chunk, rows)
        else:
            _check_finite(chunk, rows, self._interval)
        if norms is not None:
            self.log(chunk.start + 1, "probe", {name: float(norms[name]) for name in sorted(norms)})
        before, self._read_at = self._read_at, self._account.training_seconds()
        for step, row in enumerate(rows, chunk.start + 1):
            self._interval.append(row)
            self._seconds += (self._read_at - before) / chunk.count
            if step % self._log_every == 0:
                self._log_interval(step)

    def finish(self, step: int) -> None:
        """Reads what is pending and logs the last, shorter interval, once."""
        self.settle()
        if self._interval and self._finished != step:
            self._finished = step
            interval = self._interval
            self._log_interval(step)
            # A checkpoint made here must know it: a longer run would go on with this interval.
            self._interval = interval

    def log(self, step: int, source: str, values: Mapping[str, Any]) -> None:
        """Adds one row of values measured at `step`; arrays become lists."""
        row: Row = {"step": step, "source": source}
        if self._steps_per_epoch:
            row["epoch"] = round(step / self._steps_per_epoch, 4)
        for name, value in values.items():
            row[name] = value.tolist() if isinstance(value, np.ndarray) else value
        self._history.append(row)
        self._display.row(row)
        self._write(row)

    def warn(self, message: str) -> None:
        """Says one line that must not go unheard."""
        tell(self._display, message)

    def sync(self) -> None:
        """Returns when every row that was logged is on the disk itself."""
        for writer in self.writers:
            writer.sync()

    def _write(self, row: Row) -> None:
        for writer in self.writers:
            writer.write(row)

    def _log_interval(self, step: int) -> None:
        rows, rate = self._interval, len(self._interval) / max(self._seconds, 1e-9)
        self._display.update(step, rate)
        values = {"steps": len(rows), **means(rows)}
        if not self._weightless and not any(row.get(WEIGHT, 1) for row in rows):
            self._weightless = True
            self.warn(
                f"the loss returned the weight 0 for each of the {len(rows)} steps up to "
                f"{step:,}, so their means are of nothing; 'weight' says how many things a mean "
                "is over: give a coefficient another name"
            )
        if any(SKIPPED in row for row in rows):
            values["skipped_steps"] = sum(bool(row.get(SKIPPED)) for row in rows)
        self.log(step, "train", values)
        self._write({"step": step, "source": "time", "steps_per_s": round(rate, 2)})
        self._interval, self._seconds = [], 0.0

    def _check_skipped(self, chunk: Pending, rows: Sequence[dict[str, float]]) -> None:
        for step, row in enumerate(rows, chunk.start):
            self._skipped = self._skipped + 1 if row[SKIPPED] else 0
            if self._skipped > SKIP_LIMIT:
                raise NonFiniteError(
                    f"all of the last {SKIP_LIMIT} steps up to {step} were skipped because the "
                    f"loss or the gradient was not finite; {_advice(chunk, step - chunk.start)}",
                    step=step,
                    metric="loss",
                )


def _check_finite(
    chunk: Pending, rows: Sequence[dict[str, float]], before: Sequence[dict[str, float]]
) -> None:
    first = next((i for i, row in enumerate(rows) if not math.isfinite(row.get("loss", 0.0))), None)
    if first is None:
        return
    step, values = chunk.start + first, rows[first]
    metric = next((n for n, v in values.items() if n != "loss" and not math.isfinite(v)), "loss")
    earlier = rows[first - 1]["loss"] if first else (before[-1]["loss"] if before else None)
    last = "" if earlier is None else f"; the step before had {earlier:.6g}"
    shown = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
    raise NonFiniteError(
        f"the loss became {values['loss']} at step {step} ({shown}){last}; {_advice(chunk, first)}",
        step=step,
        metric=metric,
    )


def _advice(chunk: Pending, index: int) -> str:
    """What to look at when a step of a chunk went bad: its batch first, and then the rest."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(chunk.examples(index)))
    batch = {leaf_path(path) or "batch": np.asarray(leaf) for path, leaf in leaves}
    numbers = {
        name: leaf for name, leaf in batch.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    if bad := [repr(name) for name, leaf in numbers.items() if np.isnan(leaf).any()]:
        return f"the batch's {' and '.join(bad)} holds NaN: look at the data"
    advice = "try a lower learning rate or clipping, and look for division by zero or log of zero"
    if bad := [repr(name) for name, leaf in numbers.items() if np.isinf(leaf).any()]:
        advice += f"; the batch's {' and '.join(bad)} holds infinities"
    ranges = [
        f"{name!r} goes from {leaf.min()} to {leaf.max()}"
        for name, leaf in batch.items()
        if leaf.size and jnp.issubdtype(leaf.dtype, jnp.integer) and leaf.dtype != np.uint8
    ]
    if ranges:
        advice += f"; the batch's {', '.join(ranges)}: is a label or an index out of range?"
    return advice
