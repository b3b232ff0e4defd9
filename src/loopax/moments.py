"""What happens between chunks: evaluations, hooks, saves, and when each of them is due."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax

from loopax.account import Account
from loopax.checkpoint import CheckpointStore, checkpoint_meta
from loopax.data.batches import Batches
from loopax.errors import ConfigError, StorageError
from loopax.evaluation import Evaluation, evaluator
from loopax.recorder import Recorder
from loopax.run import Run
from loopax.soundness import check_sound, flags_of
from loopax.step import LossFn
from loopax.writers import Row, values_of

FIRST_SAVE_SECONDS = 2.0


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
    """Saves by steps, by time, at each new best, and at the end; never a state gone bad."""

    section = "checkpoint"

    def __init__(
        self,
        run: Run,
        store: CheckpointStore,
        recorder: Recorder,
        batches: Batches,
        total: int,
        check: Callable[[], None],
    ) -> None:
        """`check` is called before each save; it raises when the directory is another's by now."""
        assert store.settings is not None, "opened for reading"
        self.every = store.settings.every
        self._run, self._store, self._recorder = run, store, recorder
        self._identity, self._settings = dict(batches.identity), store.settings
        self._total, self._check = total, check
        self._lenient = store.settings.on_failure == "go_on"
        self._saved_step = run.step if run.step in store.steps else None
        self._begun = self._saved_at = math.nan
        self._best = math.inf
        for row in run.history:
            self._improves(row)

    def is_due(self, step: int, total: int) -> bool:
        if math.isnan(self._begun):  # So that compiling the first chunk does not count.
            self._begun = self._saved_at = time.perf_counter()
        if self._store.has_settled:
            self._settle()
        improved = any(self._improves(row) for row in self._measured())
        return (
            step == total
            or improved
            or bool(self.every and step % self.every == 0)
            or self._is_late()
        )

    def act(self) -> None:
        self._check()
        self._settle()
        step, flags = self._run.step, flags_of(self._run.state)
        meta = checkpoint_meta(
            step,
            self._identity,
            self._recorder.tail,
            len(self._run.history),
            self._run.rollbacks,
        )
        metrics = {
            f"{row['source']}/{name}": value
            for row in self._measured()
            for name, value in values_of(row).items()
        }

        def check() -> None:
            self._check()  # again: Orbax makes the folders of a run that was moved away anew
            check_sound(flags, step)

        # What a checkpoint says was logged must outlast a power cut as the checkpoint does.
        self._recorder.sync()
        with self._failing():
            self._store.save(self._run.state, meta, metrics, check)
            self._saved_step = self._run.step
        self._saved_at = time.perf_counter()

    def finish(self) -> None:
        """Saves what was reached and returns when it is on the disk, and found whole there."""
        self._settle()
        self._lenient = False
        if self._saved_step != self._run.step:
            self.act()
        self._store.wait()
        self._store.verify(self._run.step)

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
            self.finish()

    def _is_late(self) -> bool:
        """Saves come after 2, 4, 8 seconds and so on, up to as far apart as they may be."""
        if self._settings.seconds is None:
            return False
        patience = max(FIRST_SAVE_SECONDS, self._saved_at - self._begun)
        waited = time.perf_counter() - self._saved_at
        return waited >= min(self._settings.seconds, patience)

    def _settle(self) -> None:
        with self._failing():
            self._store.wait()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Goes on after a save that failed, if that is wanted and another one will come."""
        try:
            yield
        except StorageError as error:
            self._saved_step = None
            if not self._lenient or self._run.step >= self._total:
                raise
            self._store.say(f"{error}; going on without it")

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
