"""From a plain loss function to pure steps: train, evaluate, probe; or a step of one's own.

Only what trains is differentiated: frozen parameters reach the loss but no gradient of theirs is
ever formed, so nothing chained in front of the optimiser can make the step pay for them.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int32

from loopax import jaxprs
from loopax.compute.losses import (
    Batch,
    LossFn,
    Metrics,
    call_loss,
    check_takes,
    measured,
    number_of,
)
from loopax.compute.remat import rematerialised
from loopax.compute.rows import LEARNING_RATE, SKIPPED, WEIGHT, check_names
from loopax.compute.soundness import is_sound
from loopax.compute.state import STEP, TrainState
from loopax.compute.updates import update
from loopax.compute.windows import unweighed, weighs
from loopax.errors import ConfigError
from loopax.lora import merged
from loopax.paths import PyTree, leaf_path, merge
from loopax.purity import calling_purely
from loopax.randomness import Rngs, stream

Step = Callable[[Any, Batch], tuple[Any, Metrics]]
OWN_NAMES = ("loss", LEARNING_RATE, "grad_norm", "update_norm")
"""What the log keeps for itself where it measures it, and a step of one's own may return."""


Gradient = Callable[[TrainState, Batch], tuple[Metrics, PyTree, PyTree]]
"""Metrics, collections and gradient of one batch, as `differentiate` gives them for a loss."""


def train_step(loss_fn: LossFn) -> Step:
    """The pure function `(state, batch) -> (state, metrics)` that makes one update.

    It is the step that `fit` makes, for a program of one's own:

        step = jax.jit(loopax.train_step(loss_fn))
        for batch in batches:
            state, metrics = step(state, batch)

    It may stand in any transformation: `jax.lax.scan(step, state, stacked)` makes as many steps
    as the leading axis of `stacked` is long.

    Args:
        loss_fn: as for `fit`.

    Returns:
        A function of a `TrainState` and what the loss takes as its batch. The state that it gives
        has the shapes and types of the one it is given; `metrics` holds the loss, what the loss
        returned beside it and the learning rates that the optimiser shows, scalars all.
    """
    return updating(loss_fn, gradient_of(loss_fn))


def updating(loss_fn: LossFn, gradient: Gradient) -> Step:
    """The step that makes one update by the gradient of a loss."""

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        metrics, model_state, grads = gradient(state, batch)
        extra_args = extra_args_of(loss_fn, state, batch, metrics, grads)
        if WEIGHT in metrics and (line := unweighed(state.opt_state)):
            warnings.warn(f"loopax: {line}", stacklevel=2)
        state = state.apply_gradients(grads=grads, extra_args=extra_args, model_state=model_state)
        metrics |= _learning_rates(state.opt_state)
        return state.observe(metrics["loss"], metrics), metrics

    return step


@dataclass(frozen=True)
class OwnStep:
    """A whole step of one's own, `(state, batch, rngs) -> (state, metrics)`, in a loss's place.

    The state is any registered PyTree with the fields `step` and `key`.
    """

    function: Callable[[Any, Batch, Rngs], tuple[Any, Mapping[str, Any]]]

    def __call__(self, state: Any, batch: Batch) -> tuple[Any, Metrics]:
        """The step, called and checked.

        Raises:
            ConfigError: it cannot be called so, or returns something else.
        """
        rngs = Rngs(state.key, state.step)
        check_takes("the step", self.function, {"state": state, "batch": batch, "rngs": rngs})
        cure = "draw with jax.random from the keys it is given: rngs['noise']"
        result = calling_purely("the step", cure, self.function, state, batch, rngs)
        match result:
            case (after, Mapping() as metrics) if type(after) is type(state):
                check_names((name for name in metrics if name not in OWN_NAMES), "the step")
                return after, {name: measured(name, metrics[name], True) for name in metrics}
        parts = result if isinstance(result, tuple) else (result,)
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise ConfigError(
            f"the step must return (state, metrics), a {type(state).__name__} and a dict; it "
            f"gave {kinds}"
        )

    def check(self, state: Any, batch: Batch) -> None:
        """Makes sure that the step counts itself; of the batch only its form matters.

        Raises:
            ConfigError: its `step` is not one more afterwards.
        """
        program = jax.make_jaxpr(lambda state, batch: self(state, batch)[0].step)(state, batch)
        counting, used = jaxprs.needed(program, [True])
        leaves = jax.tree_util.tree_leaves_with_path((state, batch))
        needs = [path[1:] for (path, _), use in zip(leaves, used, strict=True) if use]
        if needs == [STEP]:
            (after,) = jaxprs.as_function(counting)(state.step)
            if int(after) == int(state.step) + 1:
                return
            gives = f"it goes from {int(state.step)} to {int(after)}"
        else:
            others = [leaf_path(path) for path in needs if path != STEP]
            gives = f"it depends on {others[0]}" if others else "it stays the same number"
        raise ConfigError(f"the step must give the state with step + 1: {gives}")


def skipping(step: Step) -> Step:
    """A step that leaves the state as it was where a number became bad.

    Only the step is counted, so that data and keys move on; `skipped` is 1 then.
    """

    def guarded(state: Any, batch: Batch) -> tuple[Any, Metrics]:
        after, metrics = step(state, batch)
        good = jnp.isfinite(metrics.get("loss", 0.0)) & is_sound(after)
        kept = jax.tree_util.tree_map_with_path(
            lambda path, new, old: new if path == STEP else jnp.where(good, new, old), after, state
        )
        return kept, {**metrics, SKIPPED: number_of(~good)}

    return guarded


def eval_step(loss_fn: LossFn) -> Callable[..., Metrics]:
    """The pure function `(state, batch, index=0) -> metrics` that measures one batch.

    It measures with the moving averages where there are any, and `rngs.training` is False. Its
    noise depends on the seed and the batch's index only: two evaluations differ by the parameters
    and by nothing else.

    Args:
        loss_fn: as for `fit`; of a state of one's own `(state, batch, rngs) -> metrics`.

    Returns:
        A function of a state, what the loss takes as its batch, and the index of that batch, to be
        jitted. Metrics are scalars, or arrays that are to be added up.
    """

    def step(state: Any, batch: Batch, index: Int32[ArrayLike, ""] = 0) -> Metrics:
        return evaluated(loss_fn, state, batch, evaluation_rngs(state, index))

    return step


def evaluated(loss_fn: LossFn, state: Any, batch: Batch, rngs: Rngs) -> Metrics:
    """What a loss gives for the parameters that are meant, or for a state of one's own itself."""
    if not isinstance(state, TrainState):
        return call_loss(loss_fn, state, batch, rngs, None)[0]
    params = state.placement.gathered(state.eval_params)
    model_state = state.eval_model_state
    how = (state.structure, state.precision)
    return call_loss(loss_fn, params, batch, rngs, model_state, *how)[0]


def evaluation_rngs(state: Any, index: Int32[ArrayLike, ""]) -> Rngs:
    """The keys with which an evaluation measures its batch of that index."""
    return Rngs(stream(state.key, "evaluation"), index, step=state.step, training=False)


def probe_step(loss_fn: LossFn, gradient: Gradient) -> Callable[[TrainState, Batch], Metrics]:
    """The global norms of the gradient and of the update that the next step makes, and its rate.

    They are measured beside the training loop and not inside it: a norm keeps every gradient
    alive until it is added up, which at small batches costs the loop a third of its speed.
    """

    def step(state: TrainState, batch: Batch) -> Metrics:
        metrics, _, grads = gradient(state, batch)
        extra_args = extra_args_of(loss_fn, state, batch, metrics, grads)
        updates, opt_state = update(state.tx, grads, state.opt_state, state.trainable, extra_args)
        norms = {"grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
        return norms | _learning_rates(opt_state)

    return step


def _learning_rates(opt_state: PyTree) -> Metrics:
    """The rates that the optimiser's state shows: Optax's `inject_hyperparams`, or ours.

    One of several groups is called `learning_rate/<label of the group>`.
    """
    found = optax.tree_utils.tree_get_all_with_path(opt_state, LEARNING_RATE)
    rates = {}
    for path, rate in found:
        labels = [
            str(key.key)
            for key in path
            if isinstance(key, jax.tree_util.DictKey) and key.key not in (LEARNING_RATE, "")
        ]
        if getattr(rate, "shape", None) == ():
            rates["/".join([LEARNING_RATE, *labels])] = number_of(rate)
    return rates


def gradient_of(loss_fn: LossFn) -> Gradient:
    """`differentiate` of one loss, traced once for all steps that are made with it."""
    return jaxprs.traced_once(functools.partial(differentiate, loss_fn))


def differentiate(
    loss_fn: LossFn, state: TrainState, batch: Batch
) -> tuple[Metrics, PyTree, PyTree]:
    """Metrics, collections and gradient of one batch; frozen leaves of the gradient are None.

    The gradient of a complex leaf is the direction of steepest ascent, of which JAX gives the
    conjugate.

    Raises:
        ConfigError: the loss depends on nothing that trains.
    """
    objective = _objective(loss_fn, state, batch)

    def checked(trainable: PyTree) -> tuple[Float[Array, ""], tuple[Metrics, PyTree]]:
        loss, others = objective(trainable)
        if not jaxprs.depends(loss, trainable):
            raise ConfigError(
                "the loss has no gradient: it depends on no parameter that trains; use the "
                "parameters or the model that it is given, not others from outside"
            )
        return loss, others

    grads, (metrics, model_state) = jax.grad(checked, has_aux=True)(state.trainable)
    return metrics, model_state, jax.tree.map(_ascent, grads)


def extra_args_of(
    loss_fn: LossFn, state: TrainState, batch: Batch, metrics: Metrics, grads: PyTree
) -> dict[str, Any]:
    """What some transformations want beside the gradient: the loss, and the loss as a function.

    The function is that of this batch and these keys. Of what is not asked for nothing is traced.
    """
    objective = _objective(loss_fn, state, batch)

    def value_fn(trainable: PyTree, weight: Any = None) -> Float[Array, ""]:
        del weight  # Line searches refuse what the function does not take.
        return objective(trainable)[0]

    def grad_fn(trainable: PyTree, index: Any = None) -> PyTree:
        del index
        return jax.tree.map(_ascent, jax.grad(value_fn)(trainable))

    return {
        **({WEIGHT: metrics[WEIGHT]} if WEIGHT in metrics and weighs(state.opt_state) else {}),
        "value": metrics["loss"],
        "grad": grads,
        "value_fn": value_fn,
        "grad_fn": grad_fn,
        "obj_fn": value_fn,
    }


def _objective(loss_fn: LossFn, state: TrainState, batch: Batch) -> Callable[..., Any]:
    def objective(trainable: PyTree) -> tuple[Float[Array, ""], tuple[Metrics, PyTree]]:
        params = merged(state.placement.gathered(merge(trainable, state.frozen)))
        metrics, model_state = call_loss(
            loss_fn,
            params,
            batch,
            state.rngs,
            state.model_state,
            state.structure,
            state.precision,
        )
        return metrics["loss"], (metrics, model_state)

    return rematerialised(objective, state.remat)


def _ascent(grad: Array) -> Array:
    return jnp.conj(grad) if jnp.issubdtype(grad.dtype, jnp.complexfloating) else grad
