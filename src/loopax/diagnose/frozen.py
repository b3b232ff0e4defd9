"""Whether an optimiser that freezes by itself makes the step pay for gradients that nobody uses.

`TrainState.create(frozen=...)` never does: frozen parameters are not differentiated. With
`optax.multi_transform` and `optax.set_to_zero` the compiler drops the backward pass of what is
frozen only if nothing else in the chain looks at its gradients, as a global norm does, a check for
finite numbers, or an accumulator. That shows in the structure of the update: it is told here
when the first step was made, with what it costs.
"""

from __future__ import annotations

import itertools
import operator
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from loopax import jaxprs
from loopax.compute.losses import Batch, LossFn
from loopax.compute.state import TrainState
from loopax.compute.step import differentiate
from loopax.compute.updates import stand_ins, update
from loopax.diagnose.cost import flops
from loopax.paths import PyTree, leaf_paths, map_with_path, merge, partition

ZERO = "zero"
LIKE_THEIR_INPUT = ("broadcast_in_dim", "convert_element_type", "copy", "neg", "reshape", "squeeze")
"""Primitives that give zeros for zeros, whatever else they do."""


class Frozen(NamedTuple):
    """Parameters that an optimiser leaves as they are, or moves by their gradient, by path.

    Attributes:
        paid: their update is zero, and something else uses their gradient.
        raw: their update is the gradient itself, which goes uphill.
    """

    paid: tuple[str, ...]
    raw: tuple[str, ...]


def warn_of_frozen_gradients(loss_fn: LossFn, state: TrainState, batch: Batch) -> None:
    """Warns, once, of frozen parameters whose gradients are computed all the same.

    Args:
        loss_fn, state: what is trained.
        batch: the shapes of one batch.
    """
    frozen = frozen_by(state)
    if frozen.raw:
        warnings.warn(
            f"the optimiser moves {_named(frozen.raw)} by the gradient itself, which goes uphill; "
            "optax.masked leaves out what it does not transform: to freeze, give frozen=... to "
            "TrainState.create, or use optax.multi_transform with optax.set_to_zero",
            stacklevel=2,
        )
    if frozen.paid:
        warnings.warn(_cost(loss_fn, state, batch, frozen.paid), stacklevel=2)


def frozen_by(state: TrainState) -> Frozen:
    """What the optimiser of a state freezes, read from the structure of its update."""
    trainable = state.trainable

    def updated(grads: PyTree, opt_state: PyTree, params: PyTree) -> Any:
        return update(state.tx, grads, opt_state, params, stand_ins(grads, params))

    program = jax.make_jaxpr(updated)(trainable, state.opt_state, trainable)
    paths = leaf_paths(trainable)
    inputs = [f"input {index}" for index in range(len(program.in_avals))]
    results = jaxprs.evaluate(program, inputs, _results, _content)
    updates, others = results[: len(paths)], results[len(paths) :]
    zero = [content == ZERO for content in updates]
    _, used = jaxprs.needed(program, [not each for each in zero] + [True] * len(others))
    return Frozen(
        paid=tuple(itertools.compress(paths, map(operator.and_, zero, used))),
        raw=tuple(itertools.compress(paths, map(operator.eq, updates, inputs))),
    )


def _cost(loss_fn: LossFn, state: TrainState, batch: Batch, paths: tuple[str, ...]) -> str:
    sizes = [leaf.size for leaf in jax.tree.leaves(state.trainable)]
    size_of = dict(zip(leaf_paths(state.trainable), sizes, strict=True))

    def gradients(state: TrainState, batch: Batch) -> PyTree:
        return differentiate(loss_fn, state, batch)[2]

    now = flops(gradients, state, batch)
    trains = map_with_path(lambda path, _: path not in paths, state.trainable)
    trainable, frozen = partition(state.trainable, trains)
    freed = state.replace(trainable=trainable, frozen=merge(frozen, state.frozen))
    free = flops(gradients, freed, batch)
    numbers = ""
    if now is not None and free is not None:
        numbers = f": {now / 1e9:,.3g} GFLOP a step instead of {free / 1e9:,.3g}"
    return (
        f"the optimiser freezes {sum(size_of[path] for path in paths):,} parameters "
        f"({_named(paths)}), but something in it uses their gradients, such as a norm over all, a "
        f"check for finite numbers or an accumulator, so each step computes them{numbers}; give "
        "frozen=... to TrainState.create, or put that part inside the transformation of what trains"
    )


def _named(paths: tuple[str, ...]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def _results(equation: jaxprs.Equation, operands: list[str]) -> list[str]:
    """What the results of an equation are: zero, one of the inputs as it is, or not known."""
    name = equation.primitive.name
    if name in ("cond", "jit", "pjit"):
        arguments = operands[1:] if name == "cond" else operands
        branches = [
            jaxprs.evaluate(program, arguments, _results, _content)
            for program in jaxprs.inner(equation)
        ]
        return [each[0] if len(set(each)) == 1 else "" for each in zip(*branches, strict=True)]
    zero = [operand == ZERO for operand in operands]
    is_zero = (
        (name == "mul" and any(zero))
        or (name in ("add", "sub", *LIKE_THEIR_INPUT) and all(zero))
        or (name == "select_n" and all(zero[1:]))
    )
    return [ZERO if is_zero else ""] * len(equation.outvars)


def _content(value: Any) -> str:
    """Whether a number is 0; of larger constants nobody asks."""
    number = jnp.issubdtype(getattr(value, "dtype", np.float32), np.number)
    return ZERO if number and np.ndim(value) == 0 and bool(value == 0) else ""
