"""Early stopping: a hook that ends a run which gets no better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loopax.errors import ConfigError
from loopax.jsonlines import values_of
from loopax.run.retention import Mode, direction

if TYPE_CHECKING:
    from loopax.run.run import Run


@dataclass(frozen=True)
class EarlyStopping:
    """A hook that ends the run after `patience` evaluations without a better one.

    An evaluation that is NaN or infinite is no better than any, and any number is better than it.
    As many of them as `patience` from the beginning on end the run too.

    Attributes:
        metric: what is looked at, as `Checkpoints.best` names it: `validation/accuracy`.
        patience: evaluations that a better one is waited for.
        mode: whether the best is the lowest or the highest, as of `Checkpoints`.
        every: steps between two evaluations that count, by default those of `fit`'s evaluation; a
            run that once ended in between measured once more there.
    """

    metric: str
    patience: int = 3
    mode: Mode | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str) or not all(self.metric.rpartition("/")):
            raise ConfigError(
                f"EarlyStopping looks at {self.metric!r}; name what is measured and its metric, "
                "such as 'validation/loss'"
            )
        if not isinstance(self.patience, int) or self.patience < 1:
            raise ConfigError(
                f"patience is {self.patience!r}; it must be a whole number of at least 1"
            )
        mode = direction("EarlyStopping's metric", self.metric, self.mode)
        object.__setattr__(self, "mode", mode)

    def __call__(self, run: Run) -> None:
        source, _, name = self.metric.rpartition("/")
        rows = [row for row in run.history.of(source) if name in row]
        if not rows:
            measured = [f"{source}/{name}" for name in values_of(run.latest(source))]
            raise ConfigError(
                f"EarlyStopping looks at {self.metric!r}, and "
                f"{', '.join(measured) or f'no {source!r}'} is what the run measures"
            )
        if self.has_stalled(rows):
            counted = f"{self.patience} evaluations" if self.patience > 1 else "an evaluation"
            run.stop(f"{counted} without a better {self.metric}")

    def has_stalled(self, rows: Iterable[Mapping[str, Any]]) -> bool:
        """Whether the last `patience` of an evaluation's rows are no better than one before."""
        name, sign = self.metric.rpartition("/")[2], 1 if self.mode == "min" else -1
        best, since = math.inf, 0
        for row in rows:
            if row["step"] % (self.every or 1) == 0:
                value = sign * float(row[name])
                best, since = (
                    (value, 0) if value < best and math.isfinite(value) else (best, since + 1)
                )
        return since >= self.patience
