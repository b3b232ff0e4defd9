"""Measuring a state on data it is not trained on: every example exactly once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from loopax import jaxprs
from loopax.account import Account
from loopax.arguments import as_state, kind_of, whole
from loopax.batches.base import Batches, Items
from loopax.batches.iterable import IterableBatches, as_batches
from loopax.batches.stacks import on_device
from loopax.compute.losses import Batch, LossFn
from loopax.compute.program import EvalProgram
from loopax.compute.rows import WEIGHT, Sums, means, totals
from loopax.compute.state import TrainState
from loopax.compute.step import evaluated, evaluation_rngs
from loopax.errors import ConfigError, DataError
from loopax.jsonlines import OWN_SOURCES
from loopax.paths import PyTree, leaf_path
from loopax.placement import Placement

EVAL_CAPACITY = 64
AHEAD = 2
"""Chunks that are dispatched before the device has computed them."""

Measures = dict[str, Any]
"""Means as floats and, where metrics are arrays, sums as NumPy arrays, by name."""


@dataclass(frozen=True)
class Evaluation:
    """What to measure during a run, and how often.

    Attributes:
        data: batches to measure, by name (`{"test": data.test.batches(500)}`), or one alone,
            which is then called `test`. Their order and `drop_last` play no part.
        loss_fn: what to measure them with; by default the loss that is trained. Of a state
            of one's own it is `(state, batch, rngs) -> metrics`.
        every: steps between evaluations; by default once an epoch. The last step always counts.

    Raises:
        ConfigError: a name cannot be used, the data can be read only once or is none, `loss_fn`
            cannot be called, or `every` is no whole number of at least 1.
    """

    data: Any
    loss_fn: LossFn | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None:
            object.__setattr__(self, "every", whole("evaluation.every", self.every))
        if self.loss_fn is not None and not callable(self.loss_fn):
            raise ConfigError(
                f"evaluation.loss_fn is {kind_of(self.loss_fn)}; it must be a function"
            )
        for name, batches in self.parts.items():
            _check_source(name)
            if isinstance(batches, IterableBatches) and isinstance(batches.source, Iterator):
                raise ConfigError(
                    f"the evaluation {name!r} is a {type(batches.source).__name__}, which can be "
                    "read only once; give a list, or an object whose __iter__ begins anew"
                )

    @property
    def parts(self) -> dict[str, Batches]:
        """The data by name."""
        named = self.data if isinstance(self.data, Mapping) else {"test": self.data}
        if not named:
            raise ConfigError("the evaluation has no data; give batches, or batches by name")
        return {name: _batches(f"the evaluation {name!r}", data) for name, data in named.items()}


def as_evaluation(evaluation: Any) -> Evaluation | None:
    """What `fit` was given to evaluate, checked: an `Evaluation`, or just its data.

    Raises:
        ConfigError: it cannot be used.
    """
    if evaluation is None or isinstance(evaluation, Evaluation):
        return evaluation
    return Evaluation(evaluation)


def evaluate(state: TrainState, loss_fn: LossFn, data: Any) -> Measures:
    """The means of the loss and its metrics over all of `data`, each example exactly once.

    The loss is called with `rngs.training` False. A batch weighs as many examples as it has, or
    what the loss returns as `weight`, so a last batch that is not full counts as it should.
    Metrics that are arrays, such as a confusion matrix, are added up over the batches. Where the
    state has a moving average of the parameters, that is what is measured.

    Args:
        state: what to measure.
        loss_fn: as for `fit`; of a state of one's own `(state, batch, rngs) -> metrics`.
        data: `dataset.batches(n)` or an iterable of batches.

    Returns:
        Means as floats; sums as NumPy arrays, int64 or float64.

    Raises:
        ConfigError: the arguments are of other kinds, or how much a batch weighs is not known.
        DataError: there is no batch, or all of them weigh nothing.
    """
    state = as_state(state, loss_fn, data, own=True)
    return evaluator(loss_fn, _batches("data", data), Account(), _warn, Placement.of(state))(state)


def _warn(message: str) -> None:
    warnings.warn(f"loopax.evaluate: {message}", stacklevel=4)


def _batches(name: str, data: Any) -> Batches:
    """`as_batches`, where one says what is meant by `data`."""
    if hasattr(data, "train") and hasattr(data, "test"):
        raise ConfigError(f"{name} is {type(data).__name__}; say which part: .test.batches(500)")
    if callable(data) and not isinstance(data, Batches) and not hasattr(data, "__iter__"):
        raise ConfigError(f"{name} is {kind_of(data)}, and no batches; give dataset.batches(n)")
    return as_batches(data)


def _check_source(name: Any) -> None:
    if not isinstance(name, str) or not name or "/" in name or name in OWN_SOURCES:
        raise ConfigError(
            f"an evaluation is named {name!r}; its name must be a word without a slash, and none "
            f"of {', '.join(OWN_SOURCES)}, whose rows are in the log already"
        )


def evaluator(
    loss_fn: LossFn,
    batches: Batches,
    account: Account,
    warn: Callable[[str], None],
    placement: Placement,
) -> Callable[[TrainState], Measures]:
    """`evaluate` compiled once, to be called many times; `warn` is told, once, what misleads."""
    program = EvalProgram(loss_fn, batches, account, placement)
    warned = False

    def measure(state: TrainState) -> Measures:
        nonlocal warned
        chunks, sums, first = [], list[Sums](), 0
        for items in _once(batches, placement):
            rows, added = program(
                state, on_device(items, placement), placement.put(np.int32(first))
            )
            batch = _batch(batches, state, items.stacked)
            if not warned:
                warned = True
                if draws_dropout(loss_fn, state, batch):
                    warn(DROPOUT)
            weighted = any(WEIGHT in names for names in rows.names)
            chunks.append((rows, items.length, None if weighted else _examples(batch)))
            sums.append(added)
            first += items.length
            if len(chunks) > AHEAD:  # What is not computed yet holds its examples.
                jax.block_until_ready(chunks[-1 - AHEAD][0])
        if not chunks:
            raise DataError("there is no batch to evaluate; the data is empty or used up")
        account.reads += 1
        guessed = all(examples is not None for _, _, examples in chunks)
        values = [
            row if examples is None or not guessed else {WEIGHT: examples, **row}
            for rows, count, examples in chunks
            for row in rows.steps(count)
        ]
        if not any(row.get(WEIGHT, 1) for row in values):
            raise DataError("all batches weigh 0, so there is nothing to take a mean over")
        measures: Measures = means(values)
        return measures | totals(sums)

    return measure


def _once(batches: Batches, placement: Placement) -> Iterator[Items]:
    """One pass, of which all processes that hold the devices together have read the same."""
    first, items = 0, Items(None, 0)
    for items in batches.once(EVAL_CAPACITY):
        if placement.is_shared:
            items.check_same("evaluation batches", first, items.length)
        first += items.length
        yield items
    if placement.is_shared and items.checksum is not None:
        Items(None, 0, checksum=0).check_same("evaluation batches", first, 0)


DROPOUT = (
    "the loss still draws from the stream 'dropout' while it is evaluated, so it is measured with "
    "units left out; use deterministic=not rngs.training in the loss"
)


def draws_dropout(loss_fn: LossFn, state: TrainState, batch: Batch) -> bool:
    """Whether what a loss measures in an evaluation depends on the keys for dropout."""

    def measured(key: Any, state: TrainState, batch: Batch) -> Any:
        rngs = evaluation_rngs(state, 0)
        rngs["dropout"] = key
        return evaluated(loss_fn, state, batch, rngs)

    program = jax.make_jaxpr(measured)(state.key, state, batch)
    _, used = jaxprs.needed(program, [True] * len(program.out_avals))
    return used[0]


def _batch(batches: Batches, state: TrainState, stacked: PyTree) -> Batch:
    """The shapes and types of one batch of these items, as the loss sees it."""
    item = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), stacked)
    return jax.eval_shape(
        lambda state, resident, item: batches.assemble(resident, item, evaluation_rngs(state, 0)),
        state,
        batches.resident(Placement.of(state)),
        item,
    )


def _examples(batch: Batch) -> int:
    """How many examples a batch holds: the leading axis of its leaves.

    Raises:
        ConfigError: they do not agree on one.
    """
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    sizes = {leaf_path(path) or "batch": leaf.shape[0] for path, leaf in leaves if leaf.shape}
    if len({*sizes.values()}) > 1:
        raise ConfigError(
            "how many examples a batch holds is not known, as the leading axes of its leaves "
            f"differ ({', '.join(f'{name} {size}' for name, size in sizes.items())}); return "
            "'weight' among the loss's metrics: how many examples its means are over"
        )
    return next(iter(sizes.values()), 1)
