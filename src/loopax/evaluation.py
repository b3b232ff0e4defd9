"""Measuring a state on data it is not trained on: every example exactly once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from loopax.account import Account
from loopax.data.batches import Batches, as_batches
from loopax.errors import ConfigError, DataError
from loopax.program import EvalProgram
from loopax.state import TrainState
from loopax.step import LossFn, evaluation_rngs

EVAL_CAPACITY = 64


@dataclass(frozen=True)
class Evaluation:
    """What to measure during a run, and how often.

    Attributes:
        data: batches to measure, by name (`{"test": data.test.batches(500)}`), or one alone,
            which is then called `test`. Their order and `drop_last` play no part.
        loss_fn: what to measure them with; by default the loss that is trained.
        every: steps between evaluations; by default once an epoch. The last step always counts.
    """

    data: Any
    loss_fn: LossFn | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ConfigError(f"evaluation.every is {self.every}; it must be at least 1")

    @property
    def parts(self) -> dict[str, Batches]:
        """The data by name."""
        named = self.data if isinstance(self.data, Mapping) else {"test": self.data}
        return {name: as_batches(data) for name, data in named.items()}


def evaluate(state: TrainState, loss_fn: LossFn, data: Any) -> dict[str, float]:
    """The means of the loss and its metrics over all of `data`, each example exactly once.

    A last batch that is not full weighs as many examples as it has. Where the state has a moving
    average of the parameters, that is what is measured.

    Args:
        state: what to measure.
        loss_fn: as for `fit`.
        data: `dataset.batches(n)` or an iterable of batches.

    Raises:
        DataError: there is no batch.
    """
    batches = as_batches(data)
    return evaluator(loss_fn, batches, Account())(state)


def evaluator(
    loss_fn: LossFn, batches: Batches, account: Account
) -> Callable[[TrainState], dict[str, float]]:
    """`evaluate` compiled once, to be called many times."""
    program = EvalProgram(loss_fn, batches, account)

    def measure(state: TrainState) -> dict[str, float]:
        rows, weights, first = [], [], 0
        for items in batches.once(EVAL_CAPACITY):
            stacked, count, index = jax.device_put(
                (items.stacked, np.int32(items.length), np.int32(first))
            )
            rows.append(program(state, items._replace(stacked=stacked, length=count), index))
            weights.append(np.full(items.length, _examples(batches, state, items.stacked)))
            first += items.length
        if not rows:
            raise DataError("there is no batch to evaluate; the data is empty or used up")
        account.reads += 1
        values = np.concatenate(
            [row[: len(weight)] for row, weight in zip(jax.device_get(rows), weights, strict=True)]
        )
        means = np.average(values.astype(np.float64), axis=0, weights=np.concatenate(weights))
        return dict(zip(program.names, means.tolist(), strict=True))

    return measure


def _examples(batches: Batches, state: TrainState, stacked: Any) -> int:
    """How many examples one batch of these items holds: its leading axis."""
    item = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), stacked)
    batch = jax.eval_shape(
        lambda state, resident, item: batches.assemble(resident, item, evaluation_rngs(state, 0)),
        state,
        batches.resident,
        item,
    )
    leaves = jax.tree.leaves(batch)
    return next((leaf.shape[0] for leaf in leaves if leaf.shape), 1)
