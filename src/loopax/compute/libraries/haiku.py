"""Haiku: a transformed function, which a loss calls with parameters by `model.apply`."""

from __future__ import annotations

import inspect
from typing import Any

import haiku as hk
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

MODEL = (hk.Transformed, hk.TransformedWithState)
HOLDS_PARAMS = False


def parts_of(
    model: hk.Transformed | hk.TransformedWithState,
    example: Any,
    key: Key[Array, ""],
    model_state: PyTree,
) -> Parts:
    """The parameters by module and name, and the state where the function has one."""
    parameters = list(inspect.signature(model.init).parameters.values())[1:]
    args, kwargs = call_arguments("the Haiku function", parameters, example)
    key = Rngs(stream(key, "init"), 0)["params"]
    made = without_flags(model.init, (key, *args), kwargs)
    params, state = made if isinstance(model, hk.TransformedWithState) else (made, {})
    return Parts(params, with_collections(state, model_state), FUNCTIONS)
