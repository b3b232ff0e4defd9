"""Arguments of the wrong kind, told at the door: what was given, and what would be right."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.training import train_state

from loopax.compute.libraries import library_of
from loopax.compute.losses import LossFn
from loopax.compute.state import TrainState, from_flax, strongly_typed
from loopax.compute.step import OwnStep
from loopax.errors import ConfigError


def whole(name: str, value: Any, advice: str = "") -> int:
    """`value` as a count; 2.0 will do, True and "2" will not.

    Raises:
        ConfigError: it is not a whole number of at least 1.
    """
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value != int(value) or value < 1:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1{advice}")
    return int(value)


def positive_seconds(name: str, value: Any) -> float:
    """`value` as a duration.

    Raises:
        ConfigError: it is not a number above 0; infinity will do.
    """
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not value > 0:
        raise ConfigError(f"{name} is {value!r}; it must be a number of seconds above 0")
    return float(value)


def directory(name: str, value: Any) -> Path:
    """`value` as a path that stays where it is when the working directory changes.

    A leading `~` is the home directory.

    Raises:
        ConfigError: it is no path.
    """
    if not isinstance(value, str | bytes | os.PathLike):
        raise ConfigError(f"{name} is {kind_of(value)}; it must be a path, such as 'runs/first'")
    text = os.fsdecode(value)
    if not text or "\0" in text:
        raise ConfigError(f"{name} is {text!r}; it must be a path, such as 'runs/first'")
    try:
        path = Path(text).expanduser().absolute()
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{name} is {text!a}, which the {error.encoding} of this system cannot write; set "
            "LC_ALL=C.UTF-8 or PYTHONUTF8=1"
        ) from error
    except (RuntimeError, FileNotFoundError) as error:
        raise ConfigError(f"{name} is {text!r}, which leads nowhere: {error}") from error
    return path


def kind_of(value: Any) -> str:
    """What a value is, for a line that says that it should be something else."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value) if len(repr(value)) < 60 else f"a long {type(value).__name__}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeio' else 'a'} {name}"


def trained_by(loss_fn: LossFn | None, step: Callable[..., Any] | None) -> LossFn | OwnStep:
    """What a run is trained by: a loss, or a whole step of one's own.

    Raises:
        ConfigError: both or none are given, or the step cannot be called.
    """
    if step is None:
        # It may still be None here; `as_state`, which comes next, says what is wrong with it.
        return loss_fn  # type: ignore[return-value]
    if loss_fn is not None:
        raise ConfigError("give either loss_fn or step, and not both")
    if not callable(step):
        raise ConfigError(
            f"step is {kind_of(step)}; it must be a function (state, batch, rngs) -> "
            "(state, metrics)"
        )
    return OwnStep(step)


def as_state(state: Any, loss_fn: Any, data: Any = None, *, own: bool = False) -> Any:
    """A state that was given with a loss, made sure that both are what they should be, in place.

    Flax's own `TrainState` will do; where `own` is true, any PyTree with a step and a key.

    Raises:
        ConfigError: one of them is something else; it says what would be right.
    """
    given = {"state": state, "loss_fn": loss_fn, "data": data}
    kinds = (TrainState, train_state.TrainState)
    if own and hasattr(state, "step") and hasattr(state, "key") and not isinstance(state, kinds):
        return _own_state(state)
    if not isinstance(state, kinds):
        other = next((name for name, value in given.items() if isinstance(value, kinds)), None)
        if other is not None:
            raise ConfigError(
                f"state and {other} are swapped: state is {kind_of(state)}, and {other} is the "
                "state; the order is state, loss_fn, data"
            )
        raise ConfigError(f"state is {kind_of(state)}; {_made_of(state)}")
    if not callable(loss_fn):
        swapped = callable(data) and not hasattr(data, "__iter__")
        raise ConfigError(
            "loss_fn and data are swapped; the order is state, loss_fn, data"
            if swapped
            else f"loss_fn is {kind_of(loss_fn)}; it must be a function (params, batch, rngs) -> "
            "loss, or -> (loss, metrics)"
        )
    return from_flax(state) if isinstance(state, train_state.TrainState) else state


def _own_state(state: Any) -> Any:
    """A state of a user's own class, whose types a compiled loop can carry.

    Raises:
        ConfigError: JAX does not see its step and its key, or these are of another type.
    """
    state = jax.tree.map(strongly_typed, state)
    leaves = dict(jax.tree_util.tree_leaves_with_path(state))
    step, key = (leaves.get((jax.tree_util.GetAttrKey(name),)) for name in ("step", "key"))
    right = {
        "step": ("jnp.int32(0)", step is not None and step.shape == () and step.dtype == jnp.int32),
        "key": (
            "jax.random.key(seed)",
            key is not None and jnp.issubdtype(key.dtype, jax.dtypes.prng_key),
        ),
    }
    for name, (example, is_right) in right.items():
        if not is_right:
            raise ConfigError(
                f"state.{name} of {kind_of(state)} is {kind_of(getattr(state, name))}; it must be "
                f"a field like {example} of a class that JAX knows by jax.tree_util."
                "register_dataclass"
            )
    return state


def _made_of(state: Any) -> str:
    """How a state is made of what was given in its place."""
    library = library_of(state)
    if library is not None and library.HOLDS_PARAMS:
        return "make one of it: loopax.TrainState.create(model, tx=...)"
    if hasattr(state, "apply") or hasattr(state, "init"):
        return "make one of it: loopax.TrainState.create(model, example, tx)"
    leaves = jax.tree.leaves(state)
    if leaves and all(hasattr(leaf, "shape") for leaf in leaves):
        return "make one of these parameters: loopax.TrainState.create(params=..., tx=...)"
    return "it must be a loopax.TrainState, from TrainState.create(model, example, tx)"
