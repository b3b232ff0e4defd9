"""What people bring: a model, an example and an optimiser, of the kinds that are understood."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key

from loopax.compiled import executed
from loopax.compute.libraries import library_of
from loopax.compute.libraries.base import FUNCTIONS, Parts
from loopax.compute.updates import SlowParams, settled, states_of, with_slow_params
from loopax.compute.windows import can_be_weighed, opened, weighed
from loopax.errors import ConfigError
from loopax.lora import LoRA
from loopax.paths import (
    PyTree,
    form_of,
    is_array,
    is_number,
    leaf_path,
    partition,
    path_mask,
)
from loopax.placement import Placement


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
    library = library_of(model)
    if _is_optimiser(example):
        found = "; these two are swapped" if tx is not None else ""
        order = "tx=..." if library and library.HOLDS_PARAMS else "example, tx"
        raise ConfigError(
            f"TrainState.create: example is an optimiser{found}: create(model, {order})"
        )
    if _is_optimiser(model):
        raise ConfigError(
            "TrainState.create: model is an optimiser; the order is model, example, tx"
        )
    if library is None and model is not None and params is None:
        raise ConfigError(
            f"TrainState.create: model is {_name(model)}, and no model of Flax, Equinox or Haiku; "
            f"{_advice(model)}"
        )
    if library_of(params) is not None:
        raise ConfigError(
            f"TrainState.create: params is the model {type(params).__name__} itself; give it "
            "first, as the model"
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


def check_patterns(frozen: Any) -> None:
    """Makes sure that `frozen` is a tuple of path patterns.

    Raises:
        ConfigError: it is something else, such as a mask.
    """
    if isinstance(frozen, str):
        raise ConfigError(f"frozen is {frozen!r}; it must be a tuple of patterns: ({frozen!r},)")
    patterns = frozen if isinstance(frozen, (tuple, list)) else (frozen,)
    for pattern in patterns:
        if pattern is frozen or not isinstance(pattern, str):
            raise ConfigError(
                f"frozen has {_name(pattern)}; it must be a tuple of patterns of paths, which are "
                "texts such as 'encoder/**'"
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
    elif library_of(tx) is not None:
        cure = "the order is model, example, tx"
    elif isinstance(getattr(tx, "tx", None), optax.GradientTransformation):
        cure = "give it what it was made of, its .tx"  # nnx.Optimizer
    elif callable(tx):
        cure = "a schedule is the learning rate of an optimiser: optax.adamw(schedule)"
    elif all(callable(getattr(tx, part, None)) for part in ("init", "update")):
        return optax.GradientTransformation(tx.init, tx.update)
    else:
        cure = "give it one, such as optax.adamw(1e-3)"
    raise ConfigError(f"TrainState.create: tx is {_name(tx)}, not an Optax transformation; {cure}")


def started(
    tx: optax.GradientTransformation, params: PyTree
) -> tuple[optax.GradientTransformation, PyTree]:
    """A transformation as the step calls it, with its first state.

    Raises:
        ConfigError: it wants what no step can give it, or does not fit the parameters.
    """
    try:
        opt_state = _first_state(tx, params)
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"tx: it cannot begin with these parameters: {said[:300]}") from error
    _check_arrays("tx: the state of the optimiser", opt_state)
    # Optax has it since 0.2.7.
    if hasattr(optax, "MonitorState") and any(states_of(opt_state, optax.MonitorState)):
        tx = settled(tx)
        opt_state = _first_state(tx, params)
    _check_gets_what_it_wants(opt_state)
    if can_be_weighed(tx, opt_state):
        return weighed(tx), opened(opt_state, params)
    if any(states_of(opt_state, optax.LookaheadState)):
        return with_slow_params(tx), SlowParams(params, opt_state)
    return tx, opt_state


def _first_state(tx: optax.GradientTransformation, params: PyTree) -> PyTree:
    """`tx.init(params)` as one program, where JAX would compile one for each shape in it."""

    def init(params: PyTree) -> PyTree:
        return tx.init(params)

    if Placement.of(params).mesh is None:  # on which zeros lie as what they are like
        with suppress(Exception):  # It may look at numbers, or keep what is no array.
            return executed(init, params)
    return tx.init(params)


def _check_gets_what_it_wants(opt_state: PyTree) -> None:
    if any(states_of(opt_state, optax.contrib.DifferentiallyPrivateAggregateState)):
        raise ConfigError(
            "tx: differentially_private_aggregate, which is in dpsgd, takes the gradient of each "
            "example, and that of a loss is the mean over its batch; write the step: fit(step=...)"
        )
    inner = (state for outer in states_of(opt_state, optax.MaskedState) for state in outer)
    if any(any(states_of(state, optax.LookaheadState)) for state in inner):
        raise ConfigError(
            "tx: optax.lookahead inside of optax.masked or partition is given the parameters of "
            "the others too; put it around the whole optimiser"
        )
    searches = (optax.ScaleByBacktrackingLinesearchState, optax.ScaleByZoomLinesearchState)
    for outer, reason in (
        (optax.MultiStepsState, "optax.MultiSteps would go by the last batch of a window only"),
        (optax.MaskedState, "optax.masked or partition is given the loss of all parameters"),
    ):
        if any(any(states_of(tuple(state), searches)) for state in states_of(opt_state, outer)):
            raise ConfigError(
                f"tx: a line search inside of {reason}; put it around the whole optimiser, and "
                "make batches larger or freeze parameters instead"
            )


def root_key(seed: Any) -> Key[Array, ""]:
    """The key of a number of 32 bits, or the key that was given.

    Raises:
        ConfigError: it is neither.
    """
    if jnp.issubdtype(getattr(seed, "dtype", np.int32), jax.dtypes.prng_key) and seed.shape == ():
        return seed
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < 2**32:
        shown = form_of(seed) if isinstance(seed, jax.Array) else repr(seed)
        raise ConfigError(
            f"seed is {shown}; it must be a whole number from 0 to 2**32 - 1, or a key such as "
            "jax.random.key(0)"
        )
    return jax.random.key(int(seed))


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
    if isinstance(value, (optax.GradientTransformation, optax.MultiSteps)):
        return True
    # A mapping of streams, such as nnx.Rngs, has an attribute of every name; its class has not.
    kind = value if isinstance(value, type) else type(value)
    return isinstance(value, Description) and hasattr(kind, "transformation")


def _is_parameter(leaf: Any) -> bool:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return False
    return is_array(leaf) or isinstance(leaf, (bool, int, float, complex))


def _name(value: Any) -> str:
    """A value as a message can hold it: `the function f`, `a dict`, `the class M`."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value) or (callable(value) and hasattr(value, "__name__")):
        return f"the function {getattr(value, '__name__', '')}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return type(value).__name__


def _advice(model: Any) -> str:
    """What to do with something that is no model."""
    if isinstance(model, type):
        return f"make one: {model.__name__}(...)"
    if any(kind.__module__.startswith("torch.") for kind in type(model).__mro__):
        return "loopax trains JAX models"
    parts = model if isinstance(model, tuple) else ()
    if len(parts) > 1 and all(library_of(part) is not None for part in parts):
        return "of a model in parts give the whole: eqx.combine(*parts)"
    if parts and library_of(parts[0]) is not None:
        return "of a model and its state give the second as model_state="
    arrays = jax.tree.leaves(model)
    if arrays and all(map(_is_parameter, arrays)):
        return "if these are parameters, pass them as params="
    return "for anything else pass its parameters as params="


def taken_apart(
    model: Any, example: Any, key: Key[Array, ""], params: PyTree, model_state: PyTree
) -> Parts:
    """What was brought to be trained, as arrays and structure.

    Raises:
        ConfigError: there is nothing, or what there is does not fit together.
    """
    library = library_of(model)
    if params is None and library is not None:
        parts = library.parts_of(model, example, key, model_state)
    elif params is None:
        raise ConfigError(
            "TrainState.create: there is no model; give it one, or parameters as params="
        )
    elif isinstance(params, Mapping) and {"params", "batch_stats"} <= {*params}:
        raise ConfigError(
            "TrainState.create: params has batch_stats beside 'params', and all of it would be "
            "trained; give it params={'params': ...} and model_state={'batch_stats': ...}"
        )
    elif library is None or not library.HOLDS_PARAMS:
        parts = Parts(params, {} if model_state is None else model_state, FUNCTIONS)
    else:
        raise ConfigError(
            f"TrainState.create: {type(model).__name__} holds its parameters; leave params out, or "
            "replace them afterwards by state.with_params(params)"
        )
    _check_arrays("params", parts.params)
    _check_arrays("model_state", parts.model_state)
    return parts


def _check_arrays(name: str, tree: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not _is_parameter(leaf):
            raise ConfigError(
                f"{name}: {leaf_path(path) or 'all of it'} is {_name(leaf)}; what a run keeps are "
                "arrays and numbers"
            )


def split_params(
    params: PyTree, frozen: tuple[str, ...], lora: LoRA | None, key: Key[Array, ""]
) -> tuple[PyTree, PyTree]:
    """The parameters that train and those that do not; says which do not though nobody froze them.

    Raises:
        ConfigError: none train, a pattern matches nothing, or two arguments say what trains.
    """
    if lora is not None:
        if frozen:
            raise ConfigError(
                f"frozen is {frozen!r}, and with lora all is frozen but adapters and what its "
                "train names; leave frozen out"
            )
        return lora.split(params, key)
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
