"""What happens between chunks: evaluations, hooks, saves, and when each of them is due."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from loopax.account import Account
from loopax.checkpoint import Checkpoints, CheckpointStore
from loopax.data.batches import Batches
from loopax.errors import ConfigError
from loopax.evaluation import Evaluation, evaluator
from loopax.recorder import Recorder
from loopax.run import Run
from loopax.step import LossFn
from loopax.writers import Row, values_of


@dataclass(frozen=True)
class Hook:
    """Calls `function(run)` each time `every` steps have been made, and at the end.

    It may draw, print, save or measure; numbers that it returns by name are logged. Whatever it
    does, the trained parameters stay the same.
    """

    function: Callable[[Run], Mapping[str, float] | None]
    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"hook.every is {self.every}; it must be at least 1")


@dataclass(frozen=True)
class Moment:
    """Something to do each time `every` steps have been made, and at the end."""

    act: Callable[[], None]
    every: int | None
    section: str = "hooks"

    def is_due(self, step: int, total: int) -> bool:
        return step == total or bool(self.every and step % self.every == 0)


class Saving:
    """Saves by steps, by time, at each new best, and at the end."""

    section = "checkpoint"

    def __init__(
        self,
        run: Run,
        store: CheckpointStore,
        recorder: Recorder,
        batches: Batches,
        settings: Checkpoints,
    ) -> None:
        self.every = settings.every
        self._run, self._store, self._recorder = run, store, recorder
        self._identity, self._settings = dict(batches.identity), settings
        self._saved_at = time.perf_counter()
        self._best = math.inf
        for row in run.history:
            self._improves(row)

    def is_due(self, step: int, total: int) -> bool:
        improved = any(self._improves(row) for row in self._measured())
        seconds = self._settings.seconds
        return (
            step == total
            or improved
            or bool(self.every and step % self.every == 0)
            or (seconds is not None and time.perf_counter() - self._saved_at >= seconds)
        )

    def act(self) -> None:
        meta = {
            "format": 1,
            "step": self._run.step,
            "data": self._identity,
            "tail": self._recorder.tail,
        }
        metrics = {
            f"{row['source']}/{name}": value
            for row in self._measured()
            for name, value in values_of(row).items()
        }
        self._store.save(self._run.state, meta, metrics)
        self._saved_at = time.perf_counter()

    def keep_what_was_reached(self, kind: type[BaseException] | None, *_: object) -> None:
        """Saves when the loop is left early by its caller or by Ctrl-C, not when it failed.

        An interrupt can strike while the state is being handed to a chunk; then it is gone, and
        the checkpoint before is what there is.
        """
        whole = self._recorder.step == self._run.step and not any(
            leaf.is_deleted() for leaf in jax.tree.leaves(self._run.state)
        )
        if kind in (GeneratorExit, KeyboardInterrupt) and whole:
            self._recorder.finish(self._run.step)
            if self._store.steps[-1:] != [self._run.step]:
                self.act()

    def _measured(self) -> list[Row]:
        """The rows of this very step; they are the last ones of the history."""
        rows = itertools.takewhile(
            lambda row: row["step"] == self._run.step, reversed(self._run.history)
        )
        return [row for row in rows if row["source"] != "train"]

    def _improves(self, row: Row) -> bool:
        source, _, name = (self._settings.best or "/").rpartition("/")
        value = row.get(name) if row["source"] == source else None
        if not isinstance(value, float) or not math.isfinite(value):
            return False
        rank = value if self._settings.mode == "min" else -value
        improved, self._best = rank < self._best, min(rank, self._best)
        return improved


def evaluations(
    run: Run,
    evaluation: Any,
    loss_fn: LossFn,
    recorder: Recorder,
    batches: Batches,
    account: Account,
) -> list[Moment]:
    """A moment for each part of the evaluation data."""
    if evaluation is None:
        return []
    if not isinstance(evaluation, Evaluation):
        evaluation = Evaluation(evaluation)

    def measuring(name: str, data: Batches) -> Callable[[], None]:
        measure = evaluator(evaluation.loss_fn or loss_fn, data, account)
        return lambda: recorder.log(run.step, name, measure(run.state))

    every = evaluation.every or batches.steps_per_epoch
    return [
        Moment(measuring(name, data), every, "evaluation")
        for name, data in evaluation.parts.items()
    ]


def calling(hook: Hook, run: Run, recorder: Recorder) -> Callable[[], None]:
    """Calls a hook and logs the numbers that it returns."""

    def call() -> None:
        # A tree of its own: whatever the hook does to it, the run keeps what was trained.
        shown = dataclasses.replace(run, state=jax.tree.map(lambda leaf: leaf, run.state))
        values = hook.function(shown)
        if values:
            recorder.log(run.step, "hook", {k: float(value) for k, value in values.items()})

    return call
