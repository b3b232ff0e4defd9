"""Flax Linen: a module is a description, which a loss calls with parameters by `model.apply`."""

from __future__ import annotations

import inspect
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Key

from loopax.compute.libraries.base import (
    FUNCTIONS,
    Parts,
    call_arguments,
    with_collections,
    without_flags,
)
from loopax.paths import PyTree
from loopax.randomness import Rngs, stream

MODEL = nn.Module
HOLDS_PARAMS = False


def parts_of(model: nn.Module, example: Any, key: Key[Array, ""], model_state: PyTree) -> Parts:
    """The parameters in the form that `model.apply` takes, and the other collections."""
    kind = type(model)
    parameters = list(inspect.signature(kind.__call__).parameters.values())[1:]
    args, kwargs = call_arguments(f"{kind.__name__}.__call__", parameters, example)
    rngs = dict(Rngs(stream(key, "init"), 0))
    variables = without_flags(model.init, (rngs, *args), kwargs)
    params = {"params": variables.get("params", {})}
    collections = {name: tree for name, tree in variables.items() if name != "params"}
    return Parts(params, with_collections(collections, model_state), FUNCTIONS)
