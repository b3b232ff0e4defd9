"""The compiled chunk: many steps in one dispatch, through one loop body whatever their number.

A single step or a remainder runs through the same compiled body as a full chunk, because another
program for the same mathematics need not give the same bits. The number of steps is a run-time
value, so one compilation serves every length. Each turn hands the next examples on to the following
one, so that the step is compiled by itself: fused with how they are gathered, its bits would depend
on where the data lies.
"""

from __future__ import annotations

import functools
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Int32

from loopax import jaxprs
from loopax.account import Account
from loopax.batches.base import Batches, Items
from loopax.compiled import Program, described, is_debugging
from loopax.compute.convolution import with_ordered_convolutions
from loopax.compute.losses import LossFn, Metrics
from loopax.compute.rows import Rows, Sums, no_sums, with_arrays
from loopax.compute.state import TrainState
from loopax.compute.step import (
    OwnStep,
    Step,
    eval_step,
    evaluation_rngs,
    gradient_of,
    probe_step,
    skipping,
    updating,
)
from loopax.errors import ConfigError, NonFiniteError
from loopax.paths import PyTree
from loopax.placement import ONE, Placement
from loopax.randomness import Rngs


def guarding_transfers() -> AbstractContextManager[Any]:
    """Nothing is transferred by accident inside, unless somebody debugs."""
    return nullcontext() if is_debugging() else jax.transfer_guard("disallow")


class TrainProgram:
    """Runs chunks of training steps."""

    def __init__(
        self,
        loss_fn: LossFn | OwnStep,
        batches: Batches,
        account: Account,
        placement: Placement = ONE,
        *,
        skip: bool = False,
    ) -> None:
        """`skip` passes over steps whose numbers are bad, instead of ending the chunk there."""
        self._batches, self._placement = batches, placement
        self._resident = batches.resident(placement)
        self._skip = skip
        if isinstance(loss_fn, OwnStep):
            step: Step = loss_fn
        else:
            gradient = gradient_of(loss_fn)
            step = updating(loss_fn, gradient)
            self._probe_step = probe_step(loss_fn, gradient)
        self._step = skipping(step) if skip else step
        self._program = Program("train", self._chunk, account, donates=True)
        self._probe = Program("probe", self._norms, account)

    def __call__(self, state: TrainState, items: Items) -> tuple[TrainState, Rows]:
        """The state after `items.length` steps, and their metrics, a row a step.

        After a step with a non-finite loss the rest of the chunk is not run.

        Raises:
            NonFiniteError: `jax_debug_nans` or `jax_debug_infs` is on and found such a number.
        """
        arguments = (state, self._resident, items.stacked, items.length)
        try:
            return self._program(*arguments)
        except FloatingPointError as error:
            with jax.debug_nans(False), jax.debug_infs(False):
                after, rows = self._program(*arguments)
            raise _located(
                int(state.step), rows.steps(int(after.step - state.step)), error
            ) from error

    def probe(self, state: TrainState, items: Items) -> Metrics:
        """The norms of the step that is about to be made with the first of the items."""
        norms: Metrics = self._probe(state, self._resident, items.stacked)
        return norms

    def prepare_probe(self, state: TrainState, items: Items) -> None:
        """Compiles `probe` in the background."""
        self._probe.prepare(state, self._resident, items.stacked)

    def compiled(self, state: TrainState, items: Items) -> jax.stages.Compiled:
        """The chunk that a call with these arguments runs, to ask what it needs."""
        return self._program.compiled(state, self._resident, items.stacked, items.length)

    def examples(self, items: Items, index: int) -> PyTree:
        """The examples of one of these items, as they are stored."""

        def gathered(resident: PyTree, stacked: PyTree) -> PyTree:
            return self._batches.gather(resident, _item(stacked, jnp.int32(index)))

        with jax.transfer_guard("allow"):
            # Whole in each process, as whoever asks reads them there.
            whole = jax.jit(gathered, out_shardings=self._placement.everywhere)
            return whole(self._resident, items.stacked)

    @property
    def is_compiled(self) -> bool:
        """Whether a chunk was compiled already, for whatever shapes."""
        return self._program.is_compiled

    def batch(self, state: TrainState, items: Items) -> PyTree:
        """The shapes and types of one batch of these items, as the loss sees it."""
        return jax.eval_shape(
            lambda state, resident, stacked: self._batches.assemble(
                resident, _item(stacked, jnp.int32(0)), Rngs(state.key, state.step)
            ),
            state,
            self._resident,
            items.stacked,
        )

    def _chunk(
        self, state: TrainState, resident: PyTree, stacked: PyTree, count: Int32[Array, ""]
    ) -> tuple[TrainState, Rows]:
        def gathered(index: Int32[Array, ""]) -> PyTree:
            examples = self._batches.gather(resident, _item(stacked, index))
            return self._placement.spread(examples)

        def prepared(state: TrainState, examples: PyTree) -> PyTree:
            return self._batches.prepare(examples, Rngs(state.key, state.step))

        first = gathered(jnp.int32(0))
        batch = jax.eval_shape(prepared, state, first)
        step, (after, metrics) = _traced(self._step, state, batch)
        _check_unchanged(state, after)

        def body(carry: Any) -> Any:
            index, _, state, examples, rows = carry
            state, metrics = step(state, prepared(state, examples))
            good = self._skip | jnp.isfinite(metrics.get("loss", 0.0))
            return index + 1, good, state, gathered(index + 1), rows.with_row(index, metrics)

        start = (jnp.int32(0), True, state, first, Rows.empty(metrics, _capacity(stacked)))
        end = jax.lax.while_loop(lambda carry: carry[1] & (carry[0] < count), body, start)
        _, _, state, _, rows = end
        return state, rows

    def _norms(self, state: TrainState, resident: PyTree, stacked: PyTree) -> Metrics:
        examples = self._batches.gather(resident, _item(stacked, jnp.int32(0)))
        rngs = Rngs(state.key, state.step)
        return self._probe_step(
            state, self._batches.prepare(self._placement.spread(examples), rngs)
        )


class EvalProgram:
    """Measures batches without training, many in a dispatch."""

    def __init__(
        self, loss_fn: LossFn, batches: Batches, account: Account, placement: Placement = ONE
    ) -> None:
        self._batches, self._placement = batches, placement
        self._resident = batches.resident(placement)
        self._step = eval_step(loss_fn)
        self._program = Program("evaluate", self._chunk, account)

    def __call__(
        self, state: TrainState, items: Items, first: Int32[ArrayLike, ""]
    ) -> tuple[Rows, Sums]:
        """The metrics of `items`, a row a batch, and the sums of those that are arrays.

        `first` is the index of the first batch.
        """
        return self._program(state, self._resident, items.stacked, items.length, first)

    def _chunk(
        self,
        state: TrainState,
        resident: PyTree,
        stacked: PyTree,
        count: Int32[Array, ""],
        first: Int32[Array, ""],
    ) -> tuple[Rows, Sums]:
        def batch(index: Int32[Array, ""]) -> PyTree:
            rngs = evaluation_rngs(state, first + index)
            examples = self._batches.gather(resident, _item(stacked, index))
            return self._batches.prepare(self._placement.spread(examples), rngs)

        zero = jnp.int32(0)
        step, metrics = _traced(self._step, state, jax.eval_shape(batch, zero), zero)

        def body(index: Int32[Array, ""], measured: tuple[Rows, Sums]) -> tuple[Rows, Sums]:
            rows, sums = measured
            metrics = step(state, batch(index), first + index)
            return rows.with_row(index, metrics), with_arrays(sums, metrics)

        scalars = {name: value for name, value in metrics.items() if value.shape == ()}
        arrays = {name: value for name, value in metrics.items() if value.shape != ()}
        nothing = (Rows.empty(scalars, _capacity(stacked)), no_sums(arrays))
        return jax.lax.fori_loop(0, count, body, nothing)


_traced = functools.partial(jaxprs.traced, change=with_ordered_convolutions)


def _item(stacked: PyTree, index: Int32[Array, ""]) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], stacked)


def _located(start: int, rows: list[dict[str, float]], error: FloatingPointError) -> NonFiniteError:
    """What JAX's own check found in a chunk that begins with `start`, with the step if it shows."""
    for step, row in enumerate(rows, start):
        for name, value in row.items():
            if not math.isfinite(value):
                return NonFiniteError(
                    f"{error}: {name} is {value} at step {step}", step=step, metric=name
                )
    last = start + len(rows) - 1
    where = f"at step {start}" if last <= start else f"in one of the steps {start} to {last}"
    return NonFiniteError(f"{error}, {where}; the loss is finite there", step=last, metric="state")


def _capacity(stacked: PyTree) -> int:
    capacity: int = jax.tree.leaves(stacked)[0].shape[0]
    return capacity


def _check_unchanged(before: PyTree, after: PyTree) -> None:
    """A loop can only carry a state whose structure, shapes and types a step leaves alone."""
    old, new = described(before), described(after)
    for path in [*old, *(new.keys() - old.keys())]:
        if old.get(path) != new.get(path):
            raise ConfigError(
                f"a step changed the state's {path} from {old.get(path, 'nothing')} to "
                f"{new.get(path, 'nothing')}; shapes and types must stay as they were created"
            )
