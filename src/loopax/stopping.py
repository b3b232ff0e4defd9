"""Early stopping: whether a run gets no better any more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal


def has_stalled(
    history: Sequence[Mapping[str, Any]],
    metric: str,
    *,
    patience: int,
    mode: Literal["min", "max"] = "min",
    every: int = 1,
) -> bool:
    """Whether the last `patience` evaluations were all no better than one before.

    An evaluation that is NaN or infinite is no better than any, and any number is better than it.
    As many of them as `patience` from the beginning on are a stall too.

    Args:
        history: rows as a run logs them.
        metric: what is looked at, as `Checkpoints.best` names it: `validation/accuracy`.
        patience: evaluations that a better one is waited for.
        mode: whether the best is the lowest or the highest.
        every: only evaluations at multiples of this step count; a run that was stopped in between
            measured once more.
    """
    source, _, name = metric.rpartition("/")
    sign = 1 if mode == "min" else -1
    best, since = math.inf, 0
    for row in history:
        if row["source"] != source or name not in row or row["step"] % every:
            continue
        value = sign * float(row[name])
        best, since = (value, 0) if value < best and math.isfinite(value) else (best, since + 1)
    return since >= patience
