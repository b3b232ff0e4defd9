"""Flax NNX: the loss is given the module itself, merged inside the trace, and may change it.

Parameters and other variables are kept as plain trees of arrays, by the names of the attributes.
The keys of random streams are no state: in each step they come from its `rngs`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Key

from loopax import jaxprs
from loopax.compute.libraries.base import Parts
from loopax.errors import ConfigError
from loopax.paths import PyTree
from loopax.randomness import Rngs

MODEL = nnx.Module
HOLDS_PARAMS = True
PASSING = nnx.Any(nnx.RngState, nnx.Intermediate)
"""What is of one step only."""

Path = tuple[Any, ...]


def parts_of(model: nnx.Module, example: Any, key: Key[Array, ""], model_state: PyTree) -> Parts:
    """The values of the parameters and of the other variables; it is initialised already.

    Raises:
        ConfigError: a model state is given beside it, or an attribute cannot be kept.
    """
    del example, key
    if model_state is not None:
        raise ConfigError(
            f"TrainState.create: {type(model).__name__} holds its variables; leave model_state out"
        )
    model = nnx.clone(model)
    nnx.pop(model, nnx.Intermediate)
    graph, trained, seeded, rest = _split(model, nnx.Param, nnx.RngState, ...)
    streams = tuple(
        (path, each.tag, isinstance(each, nnx.RngKey), each.shape)
        for path, each in nnx.to_flat_state(seeded)
    )
    params, state = _flat(trained), _flat(rest)
    return Parts(_tree(params), _tree(state), Module(graph, (*params,), (*state,), streams))


@dataclass(frozen=True, repr=False)
class Module:
    """A module without its arrays; the paths are those of NNX, which may hold whole numbers."""

    graph: nnx.GraphDef[Any]
    params: tuple[Path, ...]
    state: tuple[Path, ...]
    streams: tuple[tuple[Path, str, bool, tuple[int, ...]], ...]
    holds_state: bool = True

    def model(self, params: PyTree, model_state: PyTree, rngs: Rngs) -> nnx.Module:
        """The module with these values, and with streams of its own for each of its layers."""
        leaves = {path: _at(params, path) for path in self.params}
        leaves |= {path: _at(model_state, path) for path in self.state}
        for path, name, is_key, shape in self.streams:
            leaves[path] = jnp.broadcast_to(rngs[name] if is_key else jnp.uint32(0), shape)
        model: nnx.Module = nnx.merge(self.graph, nnx.from_flat_state(leaves))
        # Layers that share the name of a stream get keys of their own here.
        keys = {name: rngs[name] for _, name, _, _ in self.streams}
        nnx.reseed(model, policy="match_shape", **keys)
        if not rngs.training:
            model.eval()
        elif jaxprs.is_traced(params):
            _watch(model)
        return model

    def changed(self, model: nnx.Module) -> PyTree:
        """The variables of a module that was called."""
        _, params, _, rest = _split(model, nnx.Param, PASSING, ...)
        state = _flat(rest)
        for path in {*_flat(params), *state} - {*self.params, *self.state}:
            raise ConfigError(
                f"the loss added {'/'.join(map(str, path))} to the model; what lasts from step to "
                "step must be there when the state is created, or else be an nnx.Intermediate"
            )
        return _tree(state)


def _watch(model: nnx.Module) -> None:
    """Has each parameter tell when something is assigned to it: nothing reads it back."""
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Param):
            hooks = node.get_metadata().get("on_set_value", ())
            told = _Told("/".join(map(str, path)))
            node.set_metadata(on_set_value=(*hooks, told))


@dataclass(frozen=True)
class _Told:
    """A hook of a variable, equal to those of the same path, as `nnx.jit` wants metadata."""

    path: str

    def __call__(self, variable: nnx.Variable[Any], value: Any) -> Any:
        del variable
        warnings.warn(
            f"the loss assigns to the nnx.Param {self.path}, which holds for this step alone: "
            "parameters are changed by the optimiser, other variables also by the loss",
            stacklevel=2,
        )
        return value


def _split(model: nnx.Module, *filters: Any) -> tuple[Any, ...]:
    return nnx.split(model, *filters)


def _flat(state: nnx.State) -> dict[Path, Any]:
    """The values of variables, and bare arrays, by path."""
    return {
        path: leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
        for path, leaf in nnx.to_flat_state(state)
    }


def _tree(flat: Mapping[Path, Any]) -> PyTree:
    # Orbax makes strings of whole numbers, and files have names.
    return unflatten_dict({tuple(map(str, path)): leaf for path, leaf in flat.items()})


def _at(tree: PyTree, path: Path) -> Any:
    for key in path:
        tree = tree[str(key)]
    return tree
