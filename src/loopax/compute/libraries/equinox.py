"""Equinox: the loss is given the module itself, its arrays merged with all else that it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Key

from loopax.compute.libraries.base import Parts
from loopax.errors import ConfigError
from loopax.paths import PyTree, is_array, leaf_path
from loopax.randomness import Rngs

MODEL = eqx.Module
HOLDS_PARAMS = True


def parts_of(model: eqx.Module, example: Any, key: Key[Array, ""], model_state: PyTree) -> Parts:
    """The arrays of a module, and the state of its layers where they still hold it.

    Raises:
        ConfigError: a state is missing or given twice, or a leaf can be neither trained nor kept.
    """
    del example, key
    inits = [index.init for index in _indices(model)]
    holds = bool(jax.tree.leaves(inits))
    if holds and model_state is None:
        model, model_state = eqx.nn.make_with_state(lambda: model)()
    elif holds or (inits and model_state is None):
        cure = "leave model_state out" if holds else "give it as model_state="
        raise ConfigError(
            f"TrainState.create: the state of {type(model).__name__}'s layers is "
            f"{'held by them' if holds else 'what eqx.nn.make_with_state gave beside it'}; {cure}"
        )
    if inits and not isinstance(model_state, eqx.nn.State):
        raise ConfigError(
            f"TrainState.create: model_state is {type(model_state).__name__}; "
            f"{type(model).__name__} takes an eqx.nn.State, as eqx.nn.make_with_state gives it"
        )
    params, static = eqx.partition(model, is_array)
    leaves, form = jax.tree.flatten(static)
    for path, leaf in jax.tree_util.tree_leaves_with_path(static):
        _check_static(leaf_path(path), leaf)
    return Parts(params, {} if model_state is None else model_state, Static(tuple(leaves), form))


@dataclass(frozen=True, repr=False)
class Static:
    """All leaves of a module that are no arrays, such as functions, numbers and texts."""

    leaves: tuple[Any, ...]
    form: Any
    holds_state: bool = False

    def model(self, params: PyTree, model_state: PyTree, rngs: Rngs) -> eqx.Module:
        """The module with these arrays, in inference mode where nothing trains."""
        del model_state
        static = jax.tree.unflatten(self.form, self.leaves)
        model: eqx.Module = eqx.combine(params, static)
        return model if rngs.training else eqx.nn.inference_mode(model)

    def changed(self, model: eqx.Module) -> PyTree:
        """Nothing: a module of Equinox cannot be changed."""
        raise NotImplementedError


def _indices(model: eqx.Module) -> list[eqx.nn.StateIndex]:
    def is_index(node: Any) -> bool:
        return isinstance(node, eqx.nn.StateIndex)

    return [node for node in jax.tree.leaves(model, is_leaf=is_index) if is_index(node)]


def _check_static(path: str, leaf: Any) -> None:
    try:
        hash(leaf)
    except TypeError as error:
        raise ConfigError(
            f"TrainState.create: the model's {path} is {type(leaf).__name__}, which is neither an "
            "array nor a constant that can be hashed; make it one of these"
        ) from error
