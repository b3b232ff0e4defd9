"""The compiled chunk: many steps in one dispatch, through one loop body whatever their number.

A single step or a remainder runs through the same compiled body as a full chunk, because another
program for the same mathematics need not give the same bits. The number of steps is a run-time
value, so one compilation serves every length. Each turn hands the next examples on to the following
one, so that the step is compiled by itself: fused with how they are gathered, its bits would depend
on where the data lies.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Int32

from loopax.account import Account
from loopax.batches.base import Batches, Items
from loopax.compute.convolution import with_ordered_convolutions
from loopax.compute.losses import LossFn, Metrics
from loopax.compute.rows import Rows, Sums, no_sums, with_arrays
from loopax.compute.state import TrainState
from loopax.compute.step import (
    OwnStep,
    eval_step,
    evaluation_rngs,
    probe_step,
    skipping,
    step_of,
)
from loopax.errors import ConfigError, NonFiniteError
from loopax.paths import PyTree, leaf_path
from loopax.placement import ONE, Placement
from loopax.randomness import Rngs


def is_debugging() -> bool:
    """Whether one of JAX's switches is on that execute a program again, by its operations.

    Then its arguments must be there still, and its constants be transferred.
    """
    switches = ("jax_debug_nans", "jax_debug_infs", "jax_disable_jit")
    return any(getattr(jax.config, switch) for switch in switches)


def guarding_transfers() -> AbstractContextManager[Any]:
    """Nothing is transferred by accident inside, unless somebody debugs."""
    return nullcontext() if is_debugging() else jax.transfer_guard("disallow")


class Program:
    """A jitted function that notes each compilation and what had changed to make it necessary."""

    def __init__(
        self, name: str, function: Callable[..., Any], account: Account, *, donate: tuple[int, ...]
    ) -> None:
        self._name, self._account = name, account
        self._signatures: list[dict[str, str]] = []
        self._arguments = list(inspect.signature(function).parameters)

        def traced(*args: Any) -> Any:
            self._signatures.append(_signature(dict(zip(self._arguments, args, strict=True))))
            return function(*args)

        self._traced, self._donate = traced, donate
        self._jit: Any = None

    def _jitted(self, args: tuple[Any, ...]) -> Any:
        """The function jitted; the first result lies where the argument lay that it replaces."""
        if self._jit is None:
            self._jit = jax.jit(
                self._traced,
                donate_argnums=() if is_debugging() else self._donate,
                out_shardings=(_shardings(args[0]), None) if self._donate else None,
            )
        return self._jit

    def __call__(self, *args: Any) -> Any:
        seen, start = len(self._signatures), time.perf_counter()
        result = self._jitted(args)(*args)
        if len(self._signatures) > seen:
            reason = _difference(self._signatures[-2:])
            self._account.compiled(self._name, reason, time.perf_counter() - start)
        return result

    @property
    def is_compiled(self) -> bool:
        """Whether it was compiled already, for whatever arguments."""
        return bool(self._signatures)

    def compiled(self, *args: Any) -> jax.stages.Compiled:
        """The machine code for `args`, of which only shapes and types count; shared with calls."""
        return self._jitted(args).lower(*args).compile()


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
        self._step = with_ordered_convolutions(
            skipping(step_of(loss_fn)) if skip else step_of(loss_fn)
        )
        self._program = Program("train", self._chunk, account, donate=(0,))

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

    def compiled(self, state: TrainState, items: Items) -> jax.stages.Compiled:
        """The chunk that a call with these arguments runs, to ask what it needs."""
        return self._program.compiled(state, self._resident, items.stacked, items.length)

    def examples(self, items: Items, index: int) -> PyTree:
        """The examples of one of these items, as they are stored."""
        with jax.transfer_guard("allow"):
            item = jax.tree.map(lambda leaf: jax.device_get(leaf)[index], items.stacked)
            return jax.jit(self._batches.gather)(self._resident, item)

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

        def step(state: TrainState, examples: PyTree) -> tuple[TrainState, Metrics]:
            return self._step(state, self._batches.prepare(examples, Rngs(state.key, state.step)))

        first = gathered(jnp.int32(0))
        after, metrics = jax.eval_shape(step, state, first)
        _check_unchanged(state, after)

        def body(carry: Any) -> Any:
            index, _, state, examples, rows = carry
            state, metrics = step(state, examples)
            good = self._skip | jnp.isfinite(metrics.get("loss", 0.0))
            return index + 1, good, state, gathered(index + 1), rows.with_row(index, metrics)

        start = (jnp.int32(0), True, state, first, Rows.empty(metrics, _capacity(stacked)))
        end = jax.lax.while_loop(lambda carry: carry[1] & (carry[0] < count), body, start)
        _, _, state, _, rows = end
        return state, rows


class EvalProgram:
    """Measures batches without training, many in a dispatch."""

    def __init__(
        self, loss_fn: LossFn, batches: Batches, account: Account, placement: Placement = ONE
    ) -> None:
        self._batches, self._placement = batches, placement
        self._resident = batches.resident(placement)
        self._step = with_ordered_convolutions(eval_step(loss_fn))
        self._program = Program("evaluate", self._chunk, account, donate=())

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
        def one(index: Int32[Array, ""]) -> Metrics:
            rngs = evaluation_rngs(state, first + index)
            examples = self._batches.gather(resident, _item(stacked, index))
            batch = self._batches.prepare(self._placement.spread(examples), rngs)
            return self._step(state, batch, first + index)

        def body(index: Int32[Array, ""], measured: tuple[Rows, Sums]) -> tuple[Rows, Sums]:
            rows, sums = measured
            metrics = one(index)
            return rows.with_row(index, metrics), with_arrays(sums, metrics)

        metrics = jax.eval_shape(one, jnp.int32(0))
        scalars = {name: value for name, value in metrics.items() if value.shape == ()}
        arrays = {name: value for name, value in metrics.items() if value.shape != ()}
        nothing = (Rows.empty(scalars, _capacity(stacked)), no_sums(arrays))
        return jax.lax.fori_loop(0, count, body, nothing)


def probe_program(
    loss_fn: LossFn, batches: Batches, account: Account, placement: Placement = ONE
) -> Callable[..., Metrics]:
    """Measures the norms of the step that is about to be made with the first of the items."""
    step = probe_step(loss_fn)

    def probe(state: TrainState, resident: PyTree, stacked: PyTree) -> Metrics:
        examples = placement.spread(batches.gather(resident, _item(stacked, jnp.int32(0))))
        return step(state, batches.prepare(examples, Rngs(state.key, state.step)))

    program, columns = Program("probe", probe, account, donate=()), batches.resident(placement)
    return lambda state, items: program(state, columns, items.stacked)


def _shardings(tree: PyTree) -> PyTree:
    """Where each array of a tree was put; None where that was left to JAX."""
    return jax.tree.map(lambda leaf: leaf.sharding if leaf.committed else None, tree)


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
    old, new = _signature(before), _signature(after)
    for path in [*old, *(new.keys() - old.keys())]:
        if old.get(path) != new.get(path):
            raise ConfigError(
                f"a step changed the state's {path} from {old.get(path, 'nothing')} to "
                f"{new.get(path, 'nothing')}; shapes and types must stay as they were created"
            )


def _signature(tree: PyTree) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        leaf_path(path): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for path, leaf in leaves
    }


def _difference(signatures: list[dict[str, str]]) -> str:
    if len(signatures) < 2:
        return "first use"
    old, new = signatures
    changed = [
        f"{path}: {old.get(path, 'absent')} -> {new.get(path, 'absent')}"
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    ]
    return "; ".join(changed[:3]) or "other devices or layouts"
