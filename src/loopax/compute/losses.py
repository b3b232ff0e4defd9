"""Calling a user's loss: with what it takes, and what it gives checked and explained."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from loopax.compute.libraries.base import FUNCTIONS, Structure
from loopax.compute.mistakes import cure_of
from loopax.compute.precision import Precision, narrow, typed_like
from loopax.compute.rows import WEIGHT, check_names
from loopax.errors import ConfigError
from loopax.paths import PyTree, leaf_path
from loopax.purity import calling_purely
from loopax.randomness import Rngs

Batch = PyTree
Metrics = dict[str, Num[Array, ""]]
LossFn = Callable[..., Any]
"""`(params, batch, rngs) -> loss` or `-> (loss, metrics)`.

For Flax NNX and Equinox the first argument is the model itself, made of the parameters.

`rngs.training` is True where it is differentiated and False where it is evaluated. A metric
`weight` says how many things (examples, tokens) the loss and the other metrics are means over. It
weighs them in every mean, and the gradients in a window of accumulated ones. In an evaluation,
metrics may be arrays, which are added up.

Of a state with a `model_state` it is `(params, batch, rngs, model_state) -> (loss, metrics,
model_state)`; a module of NNX holds its own.
"""


def call_loss(
    loss_fn: LossFn,
    params: PyTree,
    batch: Batch,
    rngs: Rngs,
    model_state: PyTree,
    structure: Structure = FUNCTIONS,
    precision: Precision | None = None,
) -> tuple[Metrics, PyTree]:
    """Calls the user's loss and checks what comes back: all metrics, the loss among them.

    With a `precision` it is computed in that type; metrics and model state keep theirs. A model is
    merged here, inside of every trace that differentiates it: NNX lets nobody change what was made
    outside, and a state of Equinox is used once.
    """
    if precision is not None:
        params, batch = precision.cast_params(params), precision.cast_batch(batch)
    given = jax.tree.map(lambda leaf: leaf, model_state)
    model = structure.model(params, given, rngs)
    has_model_state = bool(jax.tree.leaves(given)) and not structure.holds_state
    name = "params" if structure == FUNCTIONS else "model"
    args = {name: model, "batch": batch, "rngs": rngs}
    result = _result(loss_fn, args | ({"model_state": given} if has_model_state else {}))
    training = getattr(rngs, "training", True)
    if isinstance(result, Mapping) and not has_model_state and not training:
        check_names((name for name in result if name != "loss"), "the loss")
        return {name: measured(name, value, training) for name, value in result.items()}, None
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
    if precision is not None and (few := narrow(metrics)):
        warnings.warn(
            f"the loss gives {', '.join(few)} in {metrics[few[0]].dtype}, which holds three "
            "digits; compute them from the model's output in float32: output.astype(jnp.float32)",
            stacklevel=2,
        )
    after = model_state
    if has_model_state or structure.holds_state:
        after = parts[2] if has_model_state else structure.changed(model)
        if training and structure.holds_state and not _replaced(given, after):
            _refuse_hidden_changes(loss_fn, params, batch, rngs, given, structure)
        after = typed_like(after, model_state) if precision is not None else after
    return {name: measured(name, value, training) for name, value in metrics.items()}, after


def _result(loss_fn: LossFn, args: Mapping[str, Any]) -> Any:
    """What the user's loss returns; what goes wrong in it is explained where it can be.

    Raises:
        ConfigError: it cannot be called so, it returns nothing, or it looks for what is not there.
    """
    if not callable(loss_fn):
        raise ConfigError(f"the loss is {type(loss_fn).__name__}; it must be a function")
    check_takes("the loss", loss_fn, args)
    try:
        cure = "draw with jax.random from the keys it is given: rngs['noise']"
        result = calling_purely("the loss", cure, loss_fn, *args.values())
    except Exception as error:
        reason = cure_of(error, args)
        if reason is None:
            raise
        raise ConfigError(reason) from error
    if result is None:
        raise ConfigError("the loss returned nothing; did you forget `return`?")
    return result


def _refuse_hidden_changes(
    loss_fn: LossFn,
    params: PyTree,
    batch: Batch,
    rngs: Rngs,
    model_state: PyTree,
    structure: Structure,
) -> None:
    """JAX's own transformations call a loss with a copy of a module, and drop what it changes.

    Raises:
        ConfigError: without them it would change something.
    """
    plain = inspect.unwrap(loss_fn)
    made_in = getattr(loss_fn, "__globals__", {}).get("__name__", type(loss_fn).__module__)
    if plain is loss_fn or made_in.partition(".")[0] not in ("jax", "jaxlib"):
        return
    hidden: list[str] = []

    def call() -> None:
        model = structure.model(params, model_state, rngs)
        plain(model, batch, rngs)
        hidden.extend(_replaced(model_state, structure.changed(model)))

    jax.eval_shape(call)
    if hidden:
        raise ConfigError(
            f"the loss changes {', '.join(hidden)} of the model, and jax.checkpoint or jax.jit "
            "around it drops that; give the loss itself, and TrainState.create(..., remat='dots') "
            "or nnx.remat for the memory"
        )


def _replaced(before: PyTree, after: PyTree) -> list[str]:
    """The paths of arrays that are not those that were there."""
    leaves = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    return [leaf_path(path) for (path, old), new in leaves if old is not new]


def check_takes(what: str, function: Callable[..., Any], args: Mapping[str, Any]) -> None:
    """Makes sure that a function can be called with these arguments, by position.

    Raises:
        ConfigError: it takes others.
    """
    try:
        signature = inspect.signature(function)
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
            f"{what} takes ({', '.join(signature.parameters)}), and is called with "
            f"({', '.join(args)}): {error}{cure}"
        ) from error


def measured(name: str, value: Any, training: bool) -> Num[Array, ...]:
    """A metric as an array; only an evaluation may have one that is no scalar."""
    try:
        number = jnp.asarray(value.item() if isinstance(value, np.generic) else value)
    except (TypeError, ValueError, OverflowError) as error:
        # What holds numbers of the step would show how JAX writes tracers.
        shown = repr(value) if "Trace" not in repr(value) else f"of type {type(value).__name__}"
        raise ConfigError(
            f"the metric {name!r} is {shown[:60]}; the loss and its metrics are numbers"
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
    number = number_of(number)
    return number.astype(jnp.float32) if name == "loss" and number.dtype.kind != "f" else number


def number_of(value: Array) -> Num[Array, ...]:
    """Numbers in a type that holds them exactly: int32 for small integers, float32 for booleans."""
    kind = value.dtype
    if jnp.issubdtype(kind, jnp.integer):
        return value.astype(jnp.int32) if kind.itemsize < 4 else value.astype(kind)
    if kind == jnp.bool_ and value.shape != ():
        return value.astype(jnp.int32)
    return value.astype(kind if kind in (jnp.float32, jnp.float64) else jnp.float32)
