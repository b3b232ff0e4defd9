"""Whether accumulated gradients ever become an update: counted ahead, before the first step.

The counters of `optax.MultiSteps` depend on the number of steps alone, or on what its schedule
makes of it. So the optimiser's own update is run over the steps to come, without all that the
counters do not need.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32

from loopax import jaxprs
from loopax.compute.state import TrainState
from loopax.compute.updates import stand_ins, states_of, update
from loopax.errors import ConfigError
from loopax.paths import PyTree, leaf_paths


def check_accumulation(state: Any, steps_left: int) -> str | None:
    """What to say about batches at the end of a run that make no update; None if there are none.

    Args:
        state: before the next step, of a new run or a resumed one.
        steps_left: how many steps are still to be made.

    Raises:
        ConfigError: some parameters would end without a single update.
    """
    if not isinstance(state, TrainState):
        return None
    windows = list(states_of(state.opt_state, optax.MultiStepsState))
    if not windows or steps_left < 1:
        return None
    updates, latest = jax.device_get(_counted(state, steps_left))
    for window, count in zip(windows, updates, strict=True):
        if not count:
            paths = leaf_paths(window.acc_grads)
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            raise ConfigError(
                f"the optimiser accumulates gradients over more batches than the {steps_left:,} of "
                f"this run, so that {paths[0] or 'all of it'}{more} would never be updated; "
                "accumulate over fewer, or train for more steps"
            )
    unused = steps_left - int(min(latest))
    if unused <= 0:
        return None
    last = "last batch of this run makes" if unused == 1 else f"last {unused:,} batches make"
    return f"the {last} no update: too few are left for another window of accumulated gradients"


class _Counters(NamedTuple):
    """Where in the leaves of an optimiser's state the counters of a window are."""

    mini_step: int
    gradient_step: int


def _counted(state: TrainState, steps: int) -> tuple[list[Array], list[Array]]:
    """Of each window the updates in the end, and after which of the steps the latest one was."""
    leaves, structure = jax.tree.flatten(state.opt_state)
    indices = jax.tree.unflatten(structure, range(len(leaves)))
    windows = [
        _Counters(window.mini_step, window.gradient_step)
        for window in states_of(indices, optax.MultiStepsState)
    ]
    needed, program, inputs = _only(state, {index for pair in windows for index in pair})

    def body(step: Int32[Array, ""], carry: Any) -> Any:
        values, latest = carry
        known = dict(zip(needed, values, strict=True))
        given = [
            known[index] if index in known else jnp.zeros(shape.shape, shape.dtype)
            for index, shape in inputs
        ]
        after = jaxprs.as_function(program)(*given)
        new = dict(zip(needed, after, strict=True))
        return after, [
            jnp.where(new[at.gradient_step] != known[at.gradient_step], step + 1, before)
            for at, before in zip(windows, latest, strict=True)
        ]

    def count(values: list[Array], steps: Int32[Array, ""]) -> Any:
        known = dict(zip(needed, values, strict=True))
        latest = [-known[at.mini_step] for at in windows]
        values, latest = jax.lax.fori_loop(0, steps, body, (values, latest))
        known = dict(zip(needed, values, strict=True))
        return [known[at.gradient_step] for at in windows], latest

    return jax.jit(count)([leaves[index] for index in needed], jnp.int32(steps))


def _only(
    state: TrainState, wanted: set[int]
) -> tuple[list[int], jaxprs.Program, list[tuple[int, Any]]]:
    """The update cut down to some leaves of the optimiser's state, and what these depend on.

    Returns:
        The leaves that it computes by their numbers, the program, and the inputs that it has
        left: the number of a leaf (-1 for gradients and parameters), its form.
    """
    trainable, opt_state = state.trainable, state.opt_state

    def updated(grads: PyTree, params: PyTree, opt_state: PyTree) -> list[Any]:
        extra_args = stand_ins(grads, params)
        return jax.tree.leaves(update(state.tx, grads, opt_state, params, extra_args)[1])

    shapes = jax.eval_shape(lambda *trees: trees, trainable, trainable, opt_state)
    whole = jax.make_jaxpr(updated)(*shapes)
    forms = jax.tree.leaves(shapes)
    first = len(forms) - len(jax.tree.leaves(opt_state))
    numbers = [max(-1, index - first) for index in range(len(forms))]
    needed: set[int] = set()
    while not wanted <= needed:
        needed |= wanted
        live = [index in needed for index in range(len(whole.out_avals))]
        program, used = jaxprs.needed(whole, live)
        inputs = [
            each for each, use in zip(zip(numbers, forms, strict=True), used, strict=True) if use
        ]
        wanted = {number for number, _ in inputs if number >= 0}
    return sorted(needed), program, inputs
