"""Mistakes in a loss that are made again and again: how each is known, and its cure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import flax.errors
import flax.linen as nn

from loopax.randomness import Rngs

Given = Mapping[str, Any]
"""What the loss was given, by name: `params` or `model`, `batch`, `rngs`, `model_state`."""


def cure_of(error: Exception, given: Given) -> str | None:
    """What is wrong and what would be right, in a line; None where that is not known."""
    cures = (explain(error, given) for explain in EXPLANATIONS)
    return next((cure for cure in cures if cure is not None), None)


def _module_without_parameters(error: Exception, given: Given) -> str | None:
    if not isinstance(error, AttributeError) and "Unbound" not in type(error).__name__:
        return None
    frame = error.__traceback__
    while frame is not None:
        module = frame.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and module.scope is None:
            return (
                f"the loss called the Flax module {type(module).__name__} itself; a module holds "
                "no parameters: call model.apply(params, ...), or model.bind(params) first"
            )
        frame = frame.tb_next
    return None


def _parameters_as_model(error: Exception, given: Given) -> str | None:
    kind = type(given.get("params")).__name__
    if isinstance(error, TypeError) and str(error) == f"'{kind}' object is not callable":
        return "the loss called what it is given, the parameters; call model.apply(params, ...)"
    return None


def _model_as_parameters(error: Exception, given: Given) -> str | None:
    if not isinstance(error, AttributeError) or error.name not in ("apply", "init"):
        return None
    model = given.get("model")
    if model is None or not isinstance(error.obj, type(model)):
        return None
    return (
        f"the loss is given the {type(model).__name__} itself, with its parameters; call model(...)"
    )


def _model_of_outside(error: Exception, given: Given) -> str | None:
    if type(error).__name__ != "TraceContextError" or "model" not in given:
        return None
    return (
        f"the loss changes a module that was made outside of it ({str(error).split(' (')[0]}); use "
        "the model that it is given"
    )


def _unnamed_axis(error: Exception, given: Given) -> str | None:
    found = re.search(r"unbound axis name: (\w+)", str(error))
    if found is None:
        return None
    return (
        f"the model takes means over the axis {found[1]!r}, which the loss does not name: "
        f"jax.vmap(model, ..., axis_name={found[1]!r})"
    )


def _streams_as_key(error: Exception, given: Given) -> str | None:
    of_rngs = isinstance(error, AttributeError) and isinstance(error.obj, Rngs)
    if of_rngs or f"{Rngs.__module__}.{Rngs.__name__}" in str(error):
        return "rngs holds a key for each stream, by name; take one of them: rngs['dropout']"
    return None


def _absent_name(error: Exception, given: Given) -> str | None:
    batch, params = given["batch"], given.get("params")
    if type(error) is not KeyError or not isinstance(batch, Mapping):
        return None
    others = f", the parameters {_keys(params)}" if isinstance(params, Mapping) else ""
    return f"the loss looked for {error.args[0]!r}: the batch has {_keys(batch)}{others}"


def _name_in_a_tuple(error: Exception, given: Given) -> str | None:
    batch = given["batch"]
    if not isinstance(error, TypeError) or "indices must be integers" not in str(error):
        return None
    if not isinstance(batch, (tuple, list)):
        return None
    return (
        f"the loss looked into a {type(batch).__name__} of {len(batch)} by a name; a batch has "
        "names when its source gives dictionaries"
    )


def _absent_collection(error: Exception, given: Given) -> str | None:
    kinds = (
        flax.errors.ScopeCollectionNotFound,
        flax.errors.ModifyScopeVariableError,
        flax.errors.ScopeVariableNotFoundError,
    )
    if not isinstance(error, kinds):
        return None
    cure = (
        "call model.apply({**params, **model_state}, ..., mutable=list(model_state))"
        if given.get("model_state") is not None
        else "give it to TrainState.create as model_state, or create the state from the model"
    )
    return (
        f"the model wants a collection beside its parameters ({str(error).split(' (')[0]}); {cure}"
    )


def _keys(tree: Mapping[str, Any]) -> str:
    shown = ", ".join(map(str, list(tree)[:8]))
    return f"{shown}, ..." if len(tree) > 8 else shown or "nothing"


EXPLANATIONS = (
    _module_without_parameters,
    _parameters_as_model,
    _model_as_parameters,
    _model_of_outside,
    _unnamed_axis,
    _streams_as_key,
    _absent_name,
    _name_in_a_tuple,
    _absent_collection,
)
