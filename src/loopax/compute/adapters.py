"""What people bring: a model, an example and an optimiser, of the kinds that are understood."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key

from loopax.errors import ConfigError
from loopax.paths import (
    PyTree,
    differing,
    form_of,
    forms,
    is_number,
    leaf_path,
    merge,
    partition,
    path_mask,
)
from loopax.randomness import Rngs, stream

ELSEWHERE = {
    "flax.nnx": "graphdef, params = nnx.split(model); pass params=params, and call "
    "nnx.merge(graphdef, params) in the loss",
    "equinox": "params, static = eqx.partition(model, eqx.is_inexact_array); pass params=params, "
    "and call eqx.combine(params, static) in the loss",
    "haiku": "pass params=model.init(key, ...), and call model.apply in the loss",
    "torch": "loopax trains JAX models",
}
"""How a model of another library is trained."""


@runtime_checkable
class Description(Protocol):
    """An optimiser that is built when the length of the run is known, as `loopax.Optimizer` is."""

    @property
    def freeze(self) -> tuple[str, ...]:
        """Patterns of parameters that do not train."""

    @property
    def params_ema(self) -> float | None:
        """The decay of an average of the parameters."""

    def transformation(self, total_steps: int | None = None) -> optax.GradientTransformation:
        """What updates the other parameters, in a run of that many batches."""


def check_arguments(model: Any, example: Any, tx: Any, params: PyTree) -> None:
    """Makes sure that each argument of `TrainState.create` is where it belongs.

    Raises:
        ConfigError: one is another one's, or of a kind that cannot be used.
    """
    if _is_optimiser(example):
        found = "; these two are swapped" if tx is not None else ""
        raise ConfigError(
            f"TrainState.create: example is an optimiser{found}: create(model, example, tx)"
        )
    if _is_optimiser(model):
        raise ConfigError(
            "TrainState.create: model is an optimiser; the order is model, example, tx"
        )
    if model is not None and not isinstance(model, nn.Module) and params is None:
        raise ConfigError(
            f"TrainState.create: model is {_name(model)}, not a Flax module; {_advice(model)}"
        )
    if isinstance(params, nn.Module):
        raise ConfigError(
            f"TrainState.create: params is the Flax module {type(params).__name__} itself; give it "
            "first, as the model, with an example"
        )
    if isinstance(example, (str, bytes)) or inspect.isroutine(example):
        raise ConfigError(
            f"TrainState.create: example is {_name(example)}; it must be a dataset, a batch, an "
            "array or a tuple of arguments"
        )
    if hasattr(example, "train") and not isinstance(example, Mapping):
        raise ConfigError(
            f"TrainState.create: example is {_name(example)}, which has several parts; give it one "
            "of them, such as data.train"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not _is_array(leaf):
            raise ConfigError(
                f"params: {leaf_path(path) or 'all of it'} is {_name(leaf)}; parameters are "
                f"arrays and numbers{_hint(params)}"
            )


def as_transformation(tx: Any) -> optax.GradientTransformation:
    """What was given as `tx`, as an Optax transformation.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(tx, optax.GradientTransformation):
        return tx
    if hasattr(tx, "gradient_transformation") and not isinstance(tx, type):
        return tx.gradient_transformation()  # optax.MultiSteps
    if tx is None:
        raise ConfigError("TrainState.create: tx is missing; give it an Optax transformation")
    name = getattr(tx, "__name__", "")
    if isinstance(tx, type) and isinstance(tx, Description):
        cure = f"make one: {name}(...)"
    elif name and getattr(optax, name, None) is tx:
        cure = f"call it: optax.{name}(...)"
    elif isinstance(tx, nn.Module):
        cure = "the order is model, example, tx"
    elif callable(tx):
        cure = "a schedule is the learning rate of an optimiser: optax.adamw(schedule)"
    elif all(callable(getattr(tx, part, None)) for part in ("init", "update")):
        return optax.GradientTransformation(tx.init, tx.update)
    else:
        cure = "give it one, such as optax.adamw(1e-3)"
    raise ConfigError(f"TrainState.create: tx is {_name(tx)}, not an Optax transformation; {cure}")


def checked_seed(seed: Any) -> int:
    """`seed` as a number of 32 bits."""
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {seed!r}; it must be a whole number from 0 to 2**32 - 1")
    return int(seed)


def described(
    optimizer: Description,
    frozen: tuple[str, ...],
    ema_decay: float | None,
    total_steps: int | None,
) -> tuple[optax.GradientTransformation, tuple[str, ...], float | None]:
    """A description as a transformation, and what it says that a transformation cannot."""
    for name, here, there in (
        ("frozen", frozen, optimizer.freeze),
        ("ema_decay", ema_decay, optimizer.params_ema),
    ):
        if here and there and here != there:
            raise ConfigError(
                f"{name} is {here!r}, and the Optimizer says {there!r}; say it in one place"
            )
    if optimizer.params_ema is not None:
        ema_decay = optimizer.params_ema
    return optimizer.transformation(total_steps), frozen or optimizer.freeze, ema_decay


def _is_optimiser(value: Any) -> bool:
    return isinstance(value, (optax.GradientTransformation, Description, optax.MultiSteps))


def _is_array(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return isinstance(leaf, (bool, int, float, complex))
    return (
        jnp.issubdtype(dtype, jax.dtypes.prng_key)
        or jnp.issubdtype(dtype, np.number)
        or (dtype == np.bool_)
    )


def _name(value: Any) -> str:
    """A value as a message can hold it: `the function f`, `a dict`, `the class M`."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value) or (callable(value) and hasattr(value, "__name__")):
        return f"the function {getattr(value, '__name__', '')}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return type(value).__name__


def _hint(model: Any) -> str:
    homes = [kind.__module__ for kind in type(model).__mro__]
    cure = next(
        (cure for home, cure in ELSEWHERE.items() if any(at.startswith(home) for at in homes)), ""
    )
    return f": {cure}" if cure else ""


def _advice(model: Any) -> str:
    """What to do with something that is no Flax module."""
    if isinstance(model, type) and issubclass(model, nn.Module):
        return f"make one: {model.__name__}(...)"
    arrays = jax.tree.leaves(model)
    if not _hint(model) and arrays and all(map(_is_array, arrays)):
        return "if these are parameters, pass them as params="
    return "for anything else pass its parameters as params=" + _hint(model)


def initialise(model: nn.Module | None, example: Any, key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
    """The parameters of a Flax module in the form `model.apply` takes, and its other collections.

    Raises:
        ConfigError: there is no model or no example, or it lacks an argument of the module.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"TrainState.create: model is {_name(model)}, not a Flax module; {_advice(model)}"
        )
    if example is None:
        raise ConfigError(
            f"TrainState.create: {type(model).__name__} needs an example to be initialised with: "
            "a dataset, a batch, an array or a tuple of arguments"
        )
    args, kwargs = _call_arguments(model, example)
    rngs = dict(Rngs(stream(key, "init"), 0))
    # A flag such as `train=True` is for Python to decide by.
    is_array = jax.tree.map(lambda leaf: not isinstance(leaf, (bool, str)), (args, kwargs))
    arrays, flags = partition((args, kwargs), is_array)

    @jax.jit
    def init(rngs: dict[str, Any], arrays: PyTree) -> Any:
        args, kwargs = merge(arrays, flags)
        return model.init(rngs, *args, **kwargs)

    variables = init(rngs, arrays)
    params = {"params": variables.get("params", {})}
    return params, {name: tree for name, tree in variables.items() if name != "params"}


def _call_arguments(model: nn.Module, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example as the arguments of `model.__call__`: by name from a mapping, else by position."""
    example = getattr(example, "example", example)
    if isinstance(example, tuple):
        return example, {}
    if not isinstance(example, Mapping):
        return (example,), {}
    parameters = inspect.signature(type(model).__call__).parameters
    wanted = list(parameters.values())[1:]
    if any(parameter.name == "batch" for parameter in wanted):
        return (), {"batch": example}
    if any(parameter.kind == parameter.VAR_POSITIONAL for parameter in wanted):
        raise ConfigError(
            f"{type(model).__name__}.__call__ names no arguments that the columns "
            f"{', '.join(example)} could be given to; pass an array or a tuple as the example"
        )
    missing = [
        parameter.name
        for parameter in wanted
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in example
    ]
    if missing:
        raise ConfigError(
            f"{type(model).__name__}.__call__ takes {', '.join(p.name for p in wanted)}, and the "
            f"example has {', '.join(example)}: {missing[0]!r} is missing; rename the argument or "
            "pass the example as a tuple, in the order of the call"
        )
    return (), {p.name: example[p.name] for p in wanted if p.name in example}


def with_collections(made: PyTree, given: PyTree) -> PyTree:
    """The collections that a module was initialised with, and in their place those given."""
    wrong = {
        name: differing(forms(made[name]), forms(given[name]))
        for name in given or ()
        if name in made
    }
    for name, difference in wrong.items():
        if difference:
            raise ConfigError(
                f"model_state: {name!r} is not of the form that the model has: {difference}"
            )
    return {**made, **(given or {})}


def split_params(params: PyTree, frozen: tuple[str, ...]) -> tuple[PyTree, PyTree]:
    """The parameters that train and those that do not; says which do not though nobody froze them.

    Raises:
        ConfigError: none train, or a pattern matches nothing.
    """
    named_so = path_mask(params, frozen, purpose="frozen")
    trains = jax.tree.map(lambda leaf, picked: is_number(leaf) and not picked, params, named_so)
    if not any(jax.tree.leaves(trains)):
        reason = f"frozen={frozen!r} matches every one of them" if frozen else "there are none"
        raise ConfigError(f"TrainState.create: no parameters are left to train: {reason}")
    meant = jax.tree.map(lambda leaf, picked: is_number(leaf) or picked, params, named_so)
    fixed = {
        leaf_path(path): form_of(jnp.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(partition(params, meant)[1])
    }
    if fixed:
        shown = ", ".join(f"{path} ({form})" for path, form in fixed.items())
        warnings.warn(
            f"these parameters are not of a type that can be trained and stay as they are: {shown}"
            f"; frozen={tuple(fixed)!r} says that this is meant",
            stacklevel=3,
        )
    return partition(params, trains)
