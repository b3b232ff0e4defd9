"""Any step of a run, executed again: from the nearest checkpoint, by the program that made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loopax.account import Account
from loopax.autopsy import StepReport, examine
from loopax.checkpoint import CheckpointStore
from loopax.data.batches import Batches, as_batches
from loopax.data.loader import Loader
from loopax.errors import ConfigError
from loopax.paths import PyTree
from loopax.program import TrainProgram, probe_program
from loopax.rundir import RunDir
from loopax.soundness import unsound
from loopax.state import TrainState
from loopax.step import LossFn

CAPACITY = 100


@dataclass(frozen=True)
class Replayed:
    """One step, executed again.

    Attributes:
        step: how many updates had been made before it.
        batch: what the loss was given.
        metrics: its loss and metrics, by the compiled loop: the very bits of the run.
        norms: `grad_norm` and `update_norm`, by the program that measures them in a run.
        report: the step looked at closely, outside of the loop.
    """

    step: int
    batch: PyTree
    metrics: dict[str, float]
    norms: dict[str, float]
    report: StepReport


class Replay:
    """The steps of the run in `run`, for whoever has what it was trained with.

    Args:
        run: the run's directory; nothing is written there.
        state, loss_fn, data: as they were given to `fit`.

    Raises:
        CheckpointError: a checkpoint does not fit the state.
        ConfigError: the run does not reach that far back.
    """

    def __init__(self, run: RunDir, state: TrainState, loss_fn: LossFn, data: Any) -> None:
        self._initial, self._loss_fn = state, loss_fn
        self._batches: Batches = as_batches(data)
        self._starts: list[dict[str, Any]] = run.read_json("run.json")["starts"]
        self._store = CheckpointStore(run.checkpoints)
        skip = self._starts[-1]["nonfinite"] == "skip"
        self._train = TrainProgram(loss_fn, self._batches, Account(), skip=skip)
        self._probe = probe_program(loss_fn, self._batches, Account())

    def state_at(self, step: int) -> TrainState:
        """The state as it was when `step` updates had been made."""
        at = self._store.newest(step)
        if at is not None:
            state, _ = self._store.restore(self._initial, at)
        elif self._starts[0]["step"] == 0:
            state, at = jax.tree.map(jnp.copy, self._initial), 0
        else:
            raise ConfigError(
                f"{self._store.directory}: begins at step {self._starts[0]['step']}; an earlier "
                "step is found in the run that it was branched from"
            )
        while at < step:
            state, at = self._advanced(state, at, step)
        return state

    def step(self, step: int) -> Replayed:
        """Executes the update that was made when `step` had been made before."""
        state = self.state_at(step).replace(key=self._key(step))
        with Loader(self._feed(state, step)) as loader:
            loader.request(1)
            items, _ = loader.take()
        norms = {name: float(norm) for name, norm in self._probe(state, items).items()}
        first = jax.tree.map(lambda leaf: leaf[0], items.stacked)
        batch = jax.jit(self._batches.assemble)(self._batches.resident, first)
        report = examine(self._loss_fn, state, batch)
        _, rows = self._train(state, items)
        metrics = dict(zip(self._train.names, np.asarray(rows[0]).tolist(), strict=True))
        return Replayed(step, batch, metrics, norms, report)

    def culprit(self, step: int) -> int:
        """The step, `step` itself or one before it, whose update first made a number bad."""
        back = 1
        while unsound(state := self.state_at(first := max(0, step - back))) and first:
            back *= 8
        for at in range(first, step):
            state, _ = self._advanced(state, at, at + 1)
            if unsound(state):
                return at
        return step

    def _advanced(self, state: TrainState, at: int, to: int) -> tuple[TrainState, int]:
        """The state after the steps from `at` up to `to`, or up to where the run changed its key.

        It changes it when it goes back to a checkpoint because of bad numbers.
        """
        to = min([to, *(start["step"] for start in self._starts if start["step"] > at)])
        state = state.replace(key=self._key(at))
        with Loader(self._feed(state, at)) as loader:
            while at < to:
                loader.request(to - at)
                items, count = loader.take()
                state, _ = self._train(state, items)
                at += count
        return state, at

    def _feed(self, state: TrainState, step: int) -> Any:
        words = np.asarray(jax.random.key_data(state.key)).ravel().tolist()
        return self._batches.feed(words, step, CAPACITY)

    def _key(self, step: int) -> Any:
        """The root key that the step was made with: that of the last start before it."""
        words = [start["key"] for start in self._starts if start["step"] <= step][-1]
        key = self._initial.key
        shape = jax.eval_shape(jax.random.key_data, key).shape
        return jax.random.wrap_key_data(
            jnp.asarray(words, jnp.uint32).reshape(shape), impl=jax.random.key_impl(key)
        )
