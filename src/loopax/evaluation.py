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
from loopax.paths import leaf_path
from loopax.program import EvalProgram
from loopax.rows import WEIGHT, means
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
        chunks, first = [], 0
        for items in batches.once(EVAL_CAPACITY):
            stacked, count, index = jax.device_put(
                (items.stacked, np.int32(items.length), np.int32(first))
            )
            rows = program(state, items._replace(stacked=stacked, length=count), index)
            weighted = any(WEIGHT in names for names in rows.names)
            examples = None if weighted else _examples(batches, state, items.stacked)
            chunks.append((rows, items.length, examples))
            first += items.length
        if not chunks:
            raise DataError("there is no batch to evaluate; the data is empty or used up")
        account.reads += 1
        guessed = all(examples is not None for _, _, examples in chunks)
        return means(
            [
                row if examples is None or not guessed else {WEIGHT: examples, **row}
                for rows, count, examples in chunks
                for row in rows.steps(count)
            ]
        )

    return measure


def _examples(batches: Batches, state: TrainState, stacked: Any) -> int:
    """How many examples one batch of these items holds: the leading axis of its leaves.

    Raises:
        ConfigError: they do not agree on one.
    """
    item = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), stacked)
    batch = jax.eval_shape(
        lambda state, resident, item: batches.assemble(resident, item, evaluation_rngs(state, 0)),
        state,
        batches.resident,
        item,
    )
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    sizes = {leaf_path(path) or "batch": leaf.shape[0] for path, leaf in leaves if leaf.shape}
    if len({*sizes.values()}) > 1:
        raise ConfigError(
            "how many examples a batch holds is not known, as the leading axes of its leaves "
            f"differ ({', '.join(f'{name} {size}' for name, size in sizes.items())}); return "
            "'weight' among the loss's metrics: how many examples its means are over"
        )
    return next(iter(sizes.values()), 1)
