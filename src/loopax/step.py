"""From a plain loss function to pure steps: train, evaluate, probe.

Only what trains is differentiated: frozen parameters reach the loss but no gradient of theirs is
ever formed, so nothing chained in front of the optimiser can make the step pay for them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int32, Num

from loopax.errors import ConfigError
from loopax.paths import PyTree, merge
from loopax.purity import calling_purely
from loopax.randomness import Rngs, stream
from loopax.rows import LEARNING_RATE, SKIPPED, WEIGHT, check_names
from loopax.soundness import is_sound
from loopax.state import TrainState
from loopax.updates import update

Batch = PyTree
Metrics = dict[str, Num[Array, ""]]
LossFn = Callable[..., Any]
"""`(params, batch, rngs) -> loss` or `-> (loss, metrics)`.

`rngs.training` is True where it is differentiated and False where it is evaluated. A metric
`weight` says how many things (examples, tokens) the loss and the other metrics are means over, and
weighs them in every mean. In an evaluation, metrics may be arrays, which are added up.

Of a state with a `model_state` it is `(params, batch, rngs, model_state) -> (loss, metrics,
model_state)`.
"""


def train_step(loss_fn: LossFn) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The pure function that makes one update: state and batch to state and metrics."""

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        metrics, model_state, grads = differentiate(loss_fn, state, batch)
        extra_args = extra_args_of(loss_fn, state, batch, metrics, grads)
        state = state.apply_gradients(grads=grads, extra_args=extra_args, model_state=model_state)
        metrics |= _learning_rates(state.opt_state)
        return state.observe(metrics["loss"], metrics), metrics

    return step


def skipping_step(loss_fn: LossFn) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`train_step` that leaves the state as it was where a number became bad.

    Only the step is counted, so that data and keys move on; `skipped` is 1 then.
    """
    step = train_step(loss_fn)

    def guarded(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        after, metrics = step(state, batch)
        good = jnp.isfinite(metrics["loss"]) & is_sound(after)
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, state)
        return kept.replace(step=after.step), {**metrics, SKIPPED: _number(~good)}

    return guarded


def eval_step(loss_fn: LossFn) -> Callable[[TrainState, Batch, Array], Metrics]:
    """The pure function that measures one batch, with the moving averages where there are any.

    Its noise depends on the seed and the batch's index only: two evaluations differ by the
    parameters and by nothing else.
    """

    def step(state: TrainState, batch: Batch, index: Array) -> Metrics:
        rngs = evaluation_rngs(state, index)
        return call_loss(loss_fn, state.eval_params, batch, rngs, state.eval_model_state)[0]

    return step


def evaluation_rngs(state: TrainState, index: Int32[ArrayLike, ""]) -> Rngs:
    """The keys with which an evaluation measures its batch of that index."""
    return Rngs(stream(state.key, "evaluation"), index, step=state.step, training=False)


def probe_step(loss_fn: LossFn) -> Callable[[TrainState, Batch], Metrics]:
    """The global norms of the gradient and of the update that the next step makes, and its rate.

    They are measured beside the training loop and not inside it: a norm keeps every gradient
    alive until it is added up, which at small batches costs the loop a third of its speed.
    """

    def step(state: TrainState, batch: Batch) -> Metrics:
        metrics, _, grads = differentiate(loss_fn, state, batch)
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
            rates["/".join([LEARNING_RATE, *labels])] = _number(rate)
    return rates


def differentiate(
    loss_fn: LossFn, state: TrainState, batch: Batch
) -> tuple[Metrics, PyTree, PyTree]:
    """Metrics, collections and gradient of one batch; frozen leaves of the gradient are None.

    The gradient of a complex leaf is the direction of steepest ascent, of which JAX gives the
    conjugate.
    """
    objective = _objective(loss_fn, state, batch)
    grads, (metrics, model_state) = jax.grad(objective, has_aux=True)(state.trainable)
    return metrics, model_state, jax.tree.map(_ascent, grads)


def extra_args_of(
    loss_fn: LossFn, state: TrainState, batch: Batch, metrics: Metrics, grads: PyTree
) -> dict[str, Any]:
    """What some transformations want beside the gradient: the loss, and the loss as a function.

    The function is that of this batch and these keys. Of what is not asked for nothing is traced.
    """
    objective = _objective(loss_fn, state, batch)

    def value_fn(trainable: PyTree) -> Float[Array, ""]:
        return objective(trainable)[0]

    def grad_fn(trainable: PyTree, index: Any = None) -> PyTree:
        del index
        return jax.tree.map(_ascent, jax.grad(value_fn)(trainable))

    return {
        "value": metrics["loss"],
        "grad": grads,
        "value_fn": value_fn,
        "grad_fn": grad_fn,
        "obj_fn": value_fn,
    }


def _objective(loss_fn: LossFn, state: TrainState, batch: Batch) -> Callable[..., Any]:
    def objective(trainable: PyTree) -> tuple[Float[Array, ""], tuple[Metrics, PyTree]]:
        params = merge(trainable, state.frozen)
        metrics, model_state = call_loss(loss_fn, params, batch, state.rngs, state.model_state)
        return metrics["loss"], (metrics, model_state)

    return objective


def _ascent(grad: Array) -> Array:
    return jnp.conj(grad) if jnp.issubdtype(grad.dtype, jnp.complexfloating) else grad


def call_loss(
    loss_fn: LossFn, params: PyTree, batch: Batch, rngs: Rngs, model_state: PyTree
) -> tuple[Metrics, PyTree]:
    """Calls the user's loss and checks what comes back: all metrics, the loss among them."""
    has_model_state = bool(jax.tree.leaves(model_state))
    args = {"params": params, "batch": batch, "rngs": rngs}
    result = _result(loss_fn, args | ({"model_state": model_state} if has_model_state else {}))
    parts = result if isinstance(result, tuple) else (result,)
    wanted = (3,) if has_model_state else (1, 2)
    if len(parts) not in wanted or (len(parts) > 1 and not isinstance(parts[1], Mapping)):
        form = "(loss, metrics, model_state)" if has_model_state else "loss or (loss, metrics)"
        kinds = ("array" if hasattr(part, "shape") else type(part).__name__ for part in parts)
        raise ConfigError(
            f"the loss must return {form} with metrics a dict; it gave {len(parts)} "
            f"value{'s' if len(parts) > 1 else ''}: {', '.join(kinds)}"
        )
    metrics = {"loss": parts[0], **(parts[1] if len(parts) > 1 else {})}
    if len(parts) > 1:
        check_names(parts[1], "the loss")
    training = getattr(rngs, "training", True)
    return (
        {name: _measured(name, value, training) for name, value in metrics.items()},
        parts[2] if has_model_state else model_state,
    )


def _result(loss_fn: LossFn, args: Mapping[str, Any]) -> Any:
    """What the user's loss returns; what goes wrong in it is explained where it can be.

    Raises:
        ConfigError: it cannot be called so, it returns nothing, or it looks for what is not there.
    """
    if not callable(loss_fn):
        raise ConfigError(f"the loss is {type(loss_fn).__name__}; it must be a function")
    _check_takes(loss_fn, args)
    try:
        cure = "draw with jax.random from the keys it is given: rngs['noise']"
        result = calling_purely("the loss", cure, loss_fn, *args.values())
    except Exception as error:
        reason = _explained(error, **args)
        if reason is None:
            raise
        raise ConfigError(reason) from error
    if result is None:
        raise ConfigError("the loss returned nothing; did you forget `return`?")
    return result


def _check_takes(loss_fn: LossFn, args: Mapping[str, Any]) -> None:
    """Makes sure that a loss can be called with these arguments, by position.

    Raises:
        ConfigError: it takes others.
    """
    try:
        signature = inspect.signature(loss_fn)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args.values())
    except TypeError as error:
        cure = (
            "; the state has a model_state, which a loss takes as its fourth argument and gives "
            "back: return loss, metrics, model_state"
            if "model_state" in args
            else ""
        )
        raise ConfigError(
            f"the loss takes ({', '.join(signature.parameters)}), and is called with "
            f"({', '.join(args)}): {error}{cure}"
        ) from error


def _explained(
    error: Exception, params: PyTree, batch: Batch, rngs: Rngs, model_state: PyTree = None
) -> str | None:
    """The cure of a mistake in a loss, for those that are made again and again."""
    module = _unbound_module(error)
    if module is not None:
        return (
            f"the loss called the Flax module {module} itself; a module holds no parameters: "
            "call model.apply(params, ...), or model.bind(params) first"
        )
    if type(error) is KeyError and isinstance(batch, Mapping):
        others = f", the parameters {_keys(params)}" if isinstance(params, Mapping) else ""
        return f"the loss looked for {error.args[0]!r}: the batch has {_keys(batch)}{others}"
    if isinstance(error, TypeError) and "indices must be integers" in str(error):
        return (
            f"the loss looked into a {type(batch).__name__} of {len(batch)} by a name; a batch has "
            "names when its source gives dictionaries"
            if isinstance(batch, (tuple, list))
            else None
        )
    collections = (
        flax.errors.ScopeCollectionNotFound,
        flax.errors.ModifyScopeVariableError,
        flax.errors.ScopeVariableNotFoundError,
    )
    if isinstance(error, collections):
        cure = (
            "call model.apply({**params, **model_state}, ..., mutable=list(model_state))"
            if model_state is not None
            else "give it to TrainState.create as model_state, or create the state from the model"
        )
        return (
            f"the model wants a collection beside its parameters ({str(error).split(' (')[0]}); "
            f"{cure}"
        )
    return None


def _keys(tree: Mapping[str, Any]) -> str:
    shown = ", ".join(map(str, list(tree)[:8]))
    return f"{shown}, ..." if len(tree) > 8 else shown or "nothing"


def _measured(name: str, value: Any, training: bool) -> Num[Array, ...]:
    """A metric as an array; only an evaluation may have one that is no scalar."""
    try:
        number = jnp.asarray(value.item() if isinstance(value, np.generic) else value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"the metric {name!r} is {value!r}; the loss and its metrics are numbers"
        ) from error
    real = any(
        jnp.issubdtype(number.dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)
    )
    if not real:
        raise ConfigError(
            f"the metric {name!r} is of type {number.dtype}; the loss and its metrics are real "
            "numbers"
        )
    if number.shape != () and (training or name in ("loss", WEIGHT)):
        summed = (
            ""
            if name in ("loss", WEIGHT)
            else (
                "; what is to be added up over an evaluation, as a confusion matrix, is returned "
                "only there: if not rngs.training:"
            )
        )
        raise ConfigError(
            f"the metric {name!r} has shape {number.shape}; the loss and its metrics are "
            f"scalars, for example means over the batch{summed}"
        )
    number = _number(number)
    return number.astype(jnp.float32) if name == "loss" and number.dtype.kind != "f" else number


def _number(value: Array) -> Num[Array, ...]:
    """Numbers in a type that holds them exactly: int32 for small integers, float32 for booleans."""
    kind = value.dtype
    if jnp.issubdtype(kind, jnp.integer):
        return value.astype(jnp.int32) if kind.itemsize < 4 else value.astype(kind)
    if kind == jnp.bool_ and value.shape != ():
        return value.astype(jnp.int32)
    return value.astype(kind if kind in (jnp.float32, jnp.float64) else jnp.float32)


def _unbound_module(error: Exception) -> str | None:
    """The class of the Flax module that was called without parameters, if that is what failed."""
    if not isinstance(error, AttributeError) and "Unbound" not in type(error).__name__:
        return None
    frame = error.__traceback__
    while frame is not None:
        module = frame.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and module.scope is None:
            return type(module).__name__
        frame = frame.tb_next
    return None
