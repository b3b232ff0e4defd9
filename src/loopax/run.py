"""A run as far as it has come: what `fit` returns, and what hooks are shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from loopax.history import History
from loopax.rundir import RunDir
from loopax.state import TrainState
from loopax.writers import Row


@dataclass
class Run:
    """A run as far as it has come.

    Attributes:
        state: the state after `step` steps. While the run goes on it belongs to the loop, which
            gives its memory to the next chunk: a hook that keeps a part of it must copy it.
        step: how many steps have been made.
        history: every logged row in order, those from before a resumption too; a sequence that
            reads these from the run directory.
        dir: the run directory, or None.
        account: where the wall time went, when the run has ended.
        rollbacks: how many times the run went back to a checkpoint because of bad numbers.
    """

    state: TrainState
    step: int = 0
    history: History = field(default_factory=History)
    dir: RunDir | None = None
    account: dict[str, Any] = field(default_factory=dict)
    rollbacks: int = 0

    def latest(self, source: str) -> Row:
        """The newest row of a source (`train`, `hook`, or the name of evaluation data), or {}."""
        return self.history.latest(source)
