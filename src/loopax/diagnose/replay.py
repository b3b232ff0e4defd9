"""Any step of a run, executed again: from the nearest checkpoint, by the program that made it."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from loopax.account import Account
from loopax.arguments import as_state, trained_by
from loopax.batches.iterable import as_batches
from loopax.batches.loader import Loader
from loopax.compute.losses import LossFn
from loopax.compute.program import TrainProgram
from loopax.compute.rows import SKIPPED
from loopax.compute.soundness import flags_of, unsound
from loopax.compute.state import TrainState
from loopax.compute.step import OwnStep
from loopax.diagnose.examine import StepReport, examine
from loopax.environment import numerics
from loopax.errors import CheckpointError, ConfigError, RunDirError
from loopax.files import replacing, storing, write_text
from loopax.jsonlines import as_json
from loopax.paths import PyTree, differing, form_of, forms, leaf_path
from loopax.placement import ONE, Placement, placement
from loopax.randomness import Rngs, key_words
from loopax.run.branching import branch_of
from loopax.run.checkpoint_reader import CheckpointReader
from loopax.run.configuration import as_mapping
from loopax.run.directory import RunDir, Start, starts_of
from loopax.run.recorder import Tail

CAPACITY = 100


@dataclass(frozen=True)
class Replayed:
    """One step, executed again.

    Attributes:
        step: how many updates had been made before it.
        batch: what the loss was given.
        metrics: its loss and metrics, by the compiled loop: the very bits of the run.
        norms: `grad_norm`, `update_norm` and the learning rate that the optimiser shows, by the
            program that measures them in a run; empty for a step of one's own.
        report: the step looked at closely, outside of the loop.
    """

    step: int
    batch: PyTree
    metrics: dict[str, float]
    norms: dict[str, float]
    report: StepReport

    def lines(self) -> list[str]:
        """The step for people: its batch, its numbers as the run had them, and a closer look."""
        return [
            *(
                f"{name}: {form_of(leaf)}, from {leaf.min():.6g} to {leaf.max():.6g}, "
                f"mean {leaf.mean():.6g}"
                for name, leaf in self._arrays.items()
            ),
            *(f"{name} {value!r}" for name, value in {**self.metrics, **self.norms}.items()),
            *self.report.lines(),
        ]

    def save(self, folder: Path) -> None:
        """Leaves `report.json` and the batch as `batch.npz`."""
        report = replace(self.report, metrics=self.metrics).to_json()
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / "batch.npz") as partial:
                np.savez(partial, **self._arrays)
            text = json.dumps({**report, "norms": as_json(self.norms)}, indent=2)
            write_text(folder / "report.json", f"{text}\n")

    @property
    def _arrays(self) -> dict[str, Any]:
        """The leaves of the batch by path."""
        leaves = jax.tree_util.tree_leaves_with_path(self.batch)
        return {leaf_path(path) or "batch": np.asarray(leaf) for path, leaf in leaves}


def _placement_of(start: Start) -> Placement:
    """The devices of that start; where there are fewer now, those there are, which is said."""
    try:
        return placement(start.mesh)
    except ConfigError as error:
        warnings.warn(f"{error}, so that a replay may differ in the last bits", stacklevel=4)
        return ONE


class Replay:
    """The steps of a run, executed again with what it was trained with.

    Args:
        run: the run's directory; nothing is written there.
        state, loss_fn, data, step: as they were given to `fit`.

    Raises:
        CheckpointError: a checkpoint does not fit the state.
        ConfigError: the run does not reach that far back.
    """

    def __init__(
        self,
        run: RunDir,
        state: Any,
        loss_fn: LossFn | None,
        data: Any,
        *,
        step: Callable[..., Any] | None = None,
    ) -> None:
        self._loss_fn = trained_by(loss_fn, step)
        state = as_state(state, self._loss_fn, data, own=isinstance(self._loss_fn, OwnStep))
        self._run, self._batches = run, as_batches(data)
        self._starts = starts_of(run)
        self._placement = _placement_of(self._starts[-1])
        self._initial = self._placement.put_state(state)
        self._store = CheckpointReader(run.checkpoints)
        self._positions: dict[int, Any] = {}  # where the data stood, by step
        skip = self._starts[-1].nonfinite == "skip"
        self._train = TrainProgram(
            self._loss_fn, self._batches, Account(), self._placement, skip=skip
        )

    def state_at(self, step: int) -> Any:
        """The state as it was when `step` updates had been made."""
        if step < 0:
            raise ConfigError(f"step is {step}; the first step of a run is 0")
        at = self._store.newest(step)
        if at is not None:
            state, meta = self._store.restore(self._initial, at)
            self._positions[at] = meta.get("position")
        elif self._starts[0].step == 0:
            state, at = self._placement.put_state(self._initial), 0
        else:
            raise ConfigError(
                f"{self._run.path}: begins at step {self._starts[0].step} and has no checkpoint up "
                f"to step {step}; name a later step, or replay the run that it was branched from"
            )
        return self._advanced(state, at, step)[0]

    def step(self, step: int) -> Replayed:
        """Executes the update that was made when `step` had been made before."""
        state = self.state_at(step)
        with Loader(self._feed(state, step), self._placement) as loader:
            loader.request(1)
            items, _ = loader.take()
        own = isinstance(self._loss_fn, OwnStep)
        norms = {} if own else jax.tree.map(float, self._train.probe(state, items))
        first = jax.tree.map(lambda leaf: leaf[0], items.stacked)
        rngs = Rngs(state.key, state.step)
        batch = jax.jit(self._batches.assemble)(
            self._batches.resident(self._placement), first, rngs
        )
        report = examine(self._loss_fn, state, batch)
        _, rows = self._train(state, items)
        return Replayed(step, batch, rows.steps(1)[0], norms, report)

    def culprit(self, step: int) -> int:
        """The step, `step` itself or one before it, whose update first made a number bad."""
        back = 1
        while unsound(flags_of(state := self.state_at(first := max(0, step - back)))) and first:
            back *= 8
        for at in range(first, step):
            state, _ = self._advanced(state, at, at + 1)
            if unsound(flags_of(state)):
                return at
        return step

    def branch(self, step: int, out: str | Path, *, state: Any, data: Any, config: Any) -> RunDir:
        """Makes a new run in `out` that begins with the first `step` updates of this one.

        `fit` with this `state`, `data` and `config` continues it. They may differ in what the past
        leaves open, such as the loss, the learning rate or the number of epochs.

        Raises:
            CheckpointError: the state or the data are of another form than those of the past.
            ConfigError: this run has not come to `step`.
            RunDirError: `out` holds something.
        """
        end = max([0, *self._store.steps, *(row["step"] for row in self._run.metrics)])
        if step > end:
            raise ConfigError(f"{self._run.path}: has made {end} steps; {step} is beyond its end")
        reached, start = self.state_at(step), self._start(step)
        here = {**as_batches(data).identity, "seed": key_words(state.key)}
        there = {**start.data, "seed": key_words(self._initial.key)}
        wrong = differing(forms(reached), forms(state)) or "; ".join(
            f"{name} was {there.get(name)} and would be {here.get(name)}"
            for name in there
            if there.get(name) != here.get(name)
        )
        if wrong:
            raise CheckpointError(f"{self._run.path}: cannot be branched like this: {wrong}")
        out = Path(out)
        if out.exists():
            raise RunDirError(f"{out}: is there already; name a new directory")
        rows = [row for row in self._run.metrics if row["step"] <= step]
        meta = {
            "step": step,
            "run": {"rows": len(rows)},
            "recorder": asdict(self._tail(step, start)),
            "data": start.data,
            "numerics": numerics(str(self._placement)),
            "position": self._positions.get(step),
        }
        parent = {"run": str(self._run.path.absolute()), "step": step}
        if isinstance(state, TrainState):
            reached = reached.replace(precision=state.precision, remat=state.remat)
        return branch_of(parent, out, as_mapping(config), rows, reached, meta)

    def _tail(self, step: int, start: Start) -> Tail:
        """What the run had read at `step` and not yet logged."""
        first = step - step % start.log_every
        rows: list[dict[str, float]] = []
        if first < step:
            _, rows = self._advanced(self.state_at(first), first, step)
        skipped = [row.get(SKIPPED, 0) for row in reversed(rows)]
        return Tail(start.log_every, rows, len(list(itertools.takewhile(bool, skipped))))

    def _advanced(self, state: Any, at: int, to: int) -> tuple[Any, list[dict[str, float]]]:
        """The state after the steps from `at` up to `to`, and their rows of metrics."""
        rows: list[dict[str, float]] = []
        with Loader(self._feed(state, at), self._placement) as loader:
            while at < to:
                loader.request(to - at)
                items, count = loader.take()
                state, chunk = self._train(state, items)
                rows.extend(chunk.steps(count))
                at += count
                self._positions[at] = items.position
        return state, rows

    def _feed(self, state: Any, step: int) -> Any:
        at = self._positions.get(step)
        return self._batches.feed_from(key_words(state.key), step, CAPACITY, at)

    def _start(self, step: int) -> Start:
        """How the run was going when it made this step: by the last start before it."""
        return [start for start in self._starts if start.step <= step][-1]
