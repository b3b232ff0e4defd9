"""Saving: by steps, by time, at each new best and at the end."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax

from loopax import processes
from loopax.batches.base import Batches
from loopax.compute.soundness import check_sound, flags_of
from loopax.compute.state import TrainState
from loopax.environment import numerics
from loopax.errors import (
    ConfigError,
    LoopaxError,
    NonFiniteError,
    RunInUseError,
    StorageError,
)
from loopax.placement import Placement, to_host
from loopax.run.checkpoint import CheckpointStore
from loopax.run.recorder import Recorder
from loopax.run.retention import source_of
from loopax.run.run import Run
from loopax.run.serialization import check_leaves
from loopax.run.turns import Clock, Turn


class Snapshot(NamedTuple):
    """What `CheckpointStore.save` takes."""

    state: TrainState
    meta: dict[str, Any]
    metrics: dict[str, float]


class Saving:
    """Saves by steps, by time, at each new best, and at the end; never a state gone bad.

    Saves at each new best may take a tenth of the time. One that comes too soon is held in
    memory and written when it may be, or before the next save; when the process is killed before
    that, the run goes on from a step before it, and comes by it again.
    """

    section = "checkpoint"

    def __init__(
        self,
        run: Run,
        store: CheckpointStore,
        recorder: Recorder,
        batches: Batches,
        total: int,
        clock: Clock,
        check: Callable[[], None],
    ) -> None:
        """`check` is called before each save; it raises when the directory is another's by now."""
        assert store.settings is not None, "opened for reading"
        check_leaves(run.state)  # before anything is trained that could not be saved
        self.every = store.settings.every
        self._run, self._store, self._recorder = run, store, recorder
        self._identity, self._settings = dict(batches.identity), store.settings
        self._total, self._clock, self._check = total, clock, check
        self._turn = Turn(0, save=False, rank=False, settled=False, stop=False)
        self._lenient = store.settings.on_failure == "go_on"
        self._saved_step = run.step if run.step in store.steps else None
        self._held: Snapshot | None = None
        self._best, self._improved, self._told = math.inf, False, False
        best = self._settings.best
        for row in run.history.of(best.partition("/")[0]) if best else ():
            self._improves(row["source"], row)
        if self._settings.best and self._settings.best.startswith("test/"):
            store.say(
                f"the best checkpoint is chosen by {self._settings.best}, which is test data then; "
                "give an evaluation named 'validation' to choose by"
            )

    def is_due(self, step: int, total: int, turn: Turn) -> bool:
        self._turn = turn
        if turn.settled:
            self._settle()
        self._check_ranked()
        self._improved = any(itertools.starmap(self._improves, self._run.measured.items()))
        held = self._held is not None and self._turn.rank
        return self._is_planned(step, total) or self._improved or held

    def act(self) -> None:
        planned, improved = self._is_planned(self._run.step, self._total), self._improved
        if improved:
            self._held = None  # It is the best no more.
        if improved and not planned and not self._turn.rank:
            # A chunk reuses the memory of the run's state.
            held = self._snapshot()
            self._held = held._replace(state=to_host(held.state))
            return
        processes.by_one("lock", self._check)
        self._settle()
        self._write_held()
        if planned or improved:
            self._write(self._snapshot())

    def finish(self) -> None:
        """Saves what was reached and returns when it is on the disk, and found whole there."""
        self._settle()
        self._lenient = False
        if self._saved_step != self._run.step:
            processes.by_one("lock", self._check)
            self._write_held()
            self._write(self._snapshot())
        self._store.wait()
        processes.by_one("verified", lambda: self._store.verify(self._run.step))

    def _snapshot(self) -> Snapshot:
        meta = {
            "step": self._run.step,
            "run": {"rows": self._recorder.rows},
            "recorder": dataclasses.asdict(self._recorder.tail),
            "data": self._identity,
            "numerics": numerics(str(Placement.of(self._run.state))),
        }
        if self._run.position is not None:
            meta["position"] = self._run.position
        metrics = {
            f"{source}/{name}": value
            for source, values in self._run.measured.items()
            for name, value in values.items()
            if isinstance(value, int | float)
        }
        return Snapshot(self._run.state, meta, metrics)

    def _write(self, snapshot: Snapshot) -> None:
        step, flags = snapshot.meta["step"], flags_of(snapshot.state)

        def check() -> None:
            self._check()  # again: it may have been taken over or moved away meanwhile
            check_sound(flags, step)

        # What a checkpoint says was logged must outlast a power cut as the checkpoint does.
        processes.by_one("rows", self._recorder.sync)
        with self._failing():
            self._store.save(snapshot.state, snapshot.meta, snapshot.metrics, check)
            self._saved_step = step
        self._clock.saved()

    def _write_held(self) -> None:
        held, self._held = self._held, None
        if held is not None and held.meta["step"] < self._run.step:
            self._write(held)

    def leave(self, error: BaseException | None) -> None:
        """Saves when the loop ends early: left by its caller, or because of an error.

        What was reached is not saved where the numbers are bad, nor anything where nothing can be
        written.

        Raises:
            LoopaxError: it cannot be saved, and there was no error.
        """
        if isinstance(error, StorageError | RunInUseError):
            return
        try:
            if not isinstance(error, NonFiniteError) and self._has_a_whole_state():
                self._recorder.finish(self._run.step)
                self.finish()
        except LoopaxError as failure:
            if error is None:
                raise
            # What ended the run is what its caller must hear of.
            self._store.say(str(failure))
        finally:
            self._keep_the_best()

    def _has_a_whole_state(self) -> bool:
        """Not when an interrupt struck while the state was being handed to a chunk: it is gone."""
        return self._recorder.step == self._run.step and not any(
            leaf.is_deleted() for leaf in jax.tree.leaves(self._run.state)
        )

    def _keep_the_best(self) -> None:
        if self._held is not None:
            try:
                self._write(self._held)
                self._store.wait()
            except LoopaxError as error:
                self._store.say(str(error))

    def _is_planned(self, step: int, total: int) -> bool:
        """Whether a save is due whatever was measured."""
        return step == total or bool(self.every and step % self.every == 0) or self._turn.save

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

    def _improves(self, source: str, values: Mapping[str, Any]) -> bool:
        value = self._ranked_value(source, values)
        if value is None or not math.isfinite(value):
            return False
        rank = value if self._settings.mode == "min" else -value
        improved, self._best = rank < self._best, min(rank, self._best)
        return improved

    def _ranked_value(self, source: str, values: Mapping[str, Any]) -> float | None:
        """The value by which these rank; None where they have none, or it is no number."""
        best = self._settings.best
        if best is None or source_of(best, [source]) is None:
            return None
        value = values.get(best.removeprefix(f"{source}/"))
        return float(value) if isinstance(value, int | float) else None

    def _check_ranked(self) -> None:
        """Says at once what would keep the best from being found.

        Raises:
            ConfigError: an evaluation has no such metric, or it is an array.
        """
        best = self._settings.best
        for source, values in self._run.measured.items():
            value = self._ranked_value(source, values)
            if value is not None and not math.isfinite(value) and not self._told:
                self._told = True
                self._store.say(
                    f"{best} is {value} at step {self._run.step:,}, which ranks nothing"
                )
            # A hook may be called less often than others, and be the one that measures it.
            if value is None and source != "hook" and source_of(best or "", [source]):
                scalars = [k for k, v in values.items() if isinstance(v, int | float)]
                raise ConfigError(
                    f"checkpoints.best is {best!r}, and the numbers that {source!r} has to "
                    f"rank by are {', '.join(scalars)}"
                )
