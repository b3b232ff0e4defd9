"""What an Optax transformation is given, and what its state tells of the parameters.

Some optimisers train one set of parameters and mean another one to be used, some keep gradients
for a while and move nothing. Both are found in the state, however deep it is nested.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from loopax.compute.rows import WEIGHT
from loopax.errors import ConfigError
from loopax.paths import PyTree, is_number

Leaves = dict[str, Any]


def named(tree: PyTree) -> Leaves:
    """The leaves of a tree by their whole paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def overlaid(tree: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    """The tree with other leaves at some paths, in the types of those that were there."""

    def chosen(path: Any, leaf: Any) -> Any:
        other = leaves.get(jax.tree_util.keystr(path, simple=True, separator="/"))
        return leaf if other is None else other.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(chosen, tree)


def states_of(opt_state: PyTree, kind: Any) -> Iterator[Any]:
    """Every state of a kind in that of an optimiser, an outer one before those inside of it."""
    for node in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind)):
        if isinstance(node, kind):
            yield node
            yield from states_of(tuple(node), kind)


# --- The update -------------------------------------------------------------------------------


ASKED_FOR = ("grad_fn", "obj_fn")
"""What a transformation gets only when it asks for it, because line searches refuse it."""


def update(
    tx: optax.GradientTransformation,
    grads: PyTree,
    opt_state: PyTree,
    params: PyTree,
    extra_args: Mapping[str, Any],
) -> tuple[PyTree, PyTree]:
    """The updates and the new state; `extra_args` is for the transformations that want more.

    By Optax's protocol they pass over what they do not know, but not all of them do: what they
    refuse is left out, and what they miss is given to them.

    Raises:
        ConfigError: a part of the transformation wants more, and what is around it hands it none.
    """
    given = {name: value for name, value in extra_args.items() if name not in ASKED_FOR}
    hands_on = inspect.Parameter.VAR_KEYWORD in _kinds(tx.update)  # such as that of MultiSteps
    call = tx.update if hands_on else optax.with_extra_args_support(tx).update
    refused: set[str] = set()
    while True:
        try:
            return call(grads, opt_state, params, **given)
        except (TypeError, ValueError) as error:
            wanted = _found(r"(\w+) must be provided|missing .* argument: '(\w+)'", error)
            unwanted = _found(r"unexpected keyword argument '(\w+)'", error)
            refused.add(unwanted)
            if unwanted in given.keys() - {WEIGHT}:  # without which windows would be wrong
                del given[unwanted]
            elif wanted in extra_args.keys() - given.keys() - refused:
                given[wanted] = extra_args[wanted]
            elif (name := wanted or unwanted) in extra_args:
                reason = (
                    "another part refuses it"
                    if name in refused
                    else "a transformation around it does not hand it on; behind others in a "
                    "chain, optax.MultiSteps is one: put it around the whole chain"
                )
                raise ConfigError(
                    f"tx: a part of the optimiser wants {name}, and {reason}"
                ) from error
            else:
                raise


def _found(pattern: str, error: Exception) -> str:
    """The name that an error is about, by the first of the groups that is there."""
    found = re.search(pattern, str(error))
    return next(filter(None, found.groups())) if found else ""


def stand_ins(grads: PyTree, params: PyTree) -> dict[str, Any]:
    """`extra_args` of a made-up loss, for those who only look at the form of an update."""

    def value_fn(params: PyTree) -> Float[Array, ""]:
        return sum(
            (jnp.abs(leaf).sum().astype(jnp.float32) for leaf in jax.tree.leaves(params)),
            jnp.float32(0),
        )

    def grad_fn(params: PyTree, index: Any = None) -> PyTree:
        del index
        return jax.grad(value_fn)(params)

    functions = {"value_fn": value_fn, "obj_fn": value_fn, "grad_fn": grad_fn}
    return {"value": value_fn(params), "grad": grads, **functions}


def settled(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation whose first state has the form of every later one.

    That of `optax.monitor` lacks what is measured first; there are zeros then.
    """

    def init(params: PyTree) -> PyTree:
        first = tx.init(params)
        known = named(first)
        _, later = jax.eval_shape(
            lambda grads: update(tx, grads, first, grads, stand_ins(grads, grads)), params
        )

        def filled(path: Any, form: Any) -> Array:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return known[name] if name in known else jnp.zeros(form.shape, form.dtype)

        return jax.tree_util.tree_map_with_path(filled, later)

    return tx._replace(init=init)


def _kinds(function: Callable[..., Any]) -> set[Any]:
    return {parameter.kind for parameter in inspect.signature(function).parameters.values()}


# --- Two iterates -----------------------------------------------------------------------------


class SlowParams(NamedTuple):
    """The state of `optax.lookahead` with the slow parameters, which Optax keeps elsewhere."""

    slow: PyTree
    inner: PyTree


def with_slow_params(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optax.lookahead` as a transformation of the fast parameters alone."""

    def init(params: PyTree) -> SlowParams:
        return SlowParams(params, tx.init(params))

    def both_updates(
        grads: PyTree, state: SlowParams, params: PyTree, **extra_args: Any
    ) -> tuple[PyTree, SlowParams]:
        both = optax.LookaheadParams(fast=params, slow=state.slow)
        updates, inner = update(tx, grads, state.inner, both, extra_args)
        if not isinstance(updates, optax.LookaheadParams):
            raise ConfigError("tx: optax.lookahead must be the outermost, or the last of a chain")
        return updates.fast, SlowParams(optax.apply_updates(state.slow, updates.slow), inner)

    return optax.GradientTransformationExtraArgs(init, both_updates)


def iterate(params: Leaves, opt_state: PyTree) -> Leaves:
    """The parameters to use, where the optimiser means others than those it trains.

    These are the averages of `schedule_free`, the slow parameters of `lookahead`, and those that
    `sam` goes away from and comes back to.
    """
    schedule_free, sam = optax.contrib.ScheduleFreeState, optax.contrib.SAMState
    found: Leaves = {}
    for state in states_of(opt_state, (schedule_free, sam, SlowParams)):
        if isinstance(state, schedule_free):
            z = named(state.z)
            y = {path: params[path] for path in z if path in params}
            here = optax.contrib.schedule_free_eval_params(state._replace(z=z), y) if y else {}
        elif isinstance(state, sam):
            away = state.steps_since_sync > 0
            here = {
                path: jnp.where(away, leaf, params[path])
                for path, leaf in named(state.cache).items()
                if path in params
            }
        else:
            here = named(state.slow)
        found |= here
    return found


def eval_params(params: PyTree, ema: PyTree, opt_state: PyTree) -> PyTree:
    """The parameters to evaluate with: the averages where there are any, else the iterate."""
    means = named(ema) or iterate(named(params), opt_state)
    return overlaid(params, means) if means else params


def typed(opt_state: PyTree) -> PyTree:
    """A state that was read as plain dictionaries, with those of two iterates as they were."""
    kinds = (optax.contrib.ScheduleFreeState, optax.contrib.SAMState, SlowParams)
    if isinstance(opt_state, Mapping):
        inner = {name: typed(node) for name, node in opt_state.items()}
        kind = next((kind for kind in kinds if set(inner) == set(kind._fields)), None)
        return inner if kind is None else kind(**inner)
    return [typed(node) for node in opt_state] if isinstance(opt_state, list) else opt_state


# --- Numbers that the state keeps ---------------------------------------------------------------


def hyperparameters(opt_state: PyTree) -> list[tuple[str, float]]:
    """The constants that `optax.inject_hyperparams` keeps in its state, with their names."""
    return [
        (name, float(value))
        for state in states_of(opt_state, optax.InjectStatefulHyperparamsState)
        for name, value in sorted(state.hyperparams.items())
        if name not in state.hyperparams_states and jnp.shape(value) == ()
    ]


# --- Averages ---------------------------------------------------------------------------------


def update_counts(opt_state: PyTree, params: PyTree, steps: Any) -> Leaves:
    """How many updates each parameter has had: the steps, but for those that accumulated."""
    counts = dict.fromkeys(named(params), steps)
    for state in states_of(opt_state, optax.MultiStepsState):
        paths = named(state.acc_grads)
        known = paths if paths.keys() <= counts.keys() else counts
        counts |= dict.fromkeys(known, state.gradient_step)
    return counts


def kept(decay: float, before: Any, after: Any) -> Float[Array, ""]:
    """What an average keeps of itself at an update: little at first, at most `decay`.

    While gradients accumulate nothing moves, and the average must not either.
    """
    count = jnp.asarray(after, jnp.float32)
    keep = jnp.minimum(jnp.float32(decay), (1 + count) / (10 + count))
    return jnp.where(after == before, jnp.float32(1), keep)


def averages(tree: PyTree) -> PyTree:
    """Where averages of a tree begin; None for what is no number. Half a float would not move."""

    def start(leaf: Any) -> Any:
        if not is_number(leaf):
            return None
        leaf = jnp.asarray(leaf)
        return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))

    return jax.tree.map(start, tree)


def averaged(tree: PyTree, new: Leaves, keep: Callable[[str], Float[Array, ""]]) -> PyTree:
    """Averages after another value of each leaf; what is infinite by right is taken over."""

    def moved(path: Any, old: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        value, share = new.get(name, old).astype(old.dtype), keep(name)
        mean = share * old + (1 - share) * value
        return jnp.where(jnp.isfinite(mean), mean, value)

    return jax.tree_util.tree_map_with_path(moved, tree)
