"""What loopax asks of a model library."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
from jaxtyping import Array, Key

from loopax.compiled import executed
from loopax.errors import ConfigError
from loopax.paths import PyTree, differing, forms, merge, partition
from loopax.randomness import Rngs


class Structure(Protocol):
    """What a model is beside its arrays: a part of the state that is compiled in.

    Two of the same model are equal, so that a program is compiled once for both.
    """

    @property
    def holds_state(self) -> bool:
        """Whether the model state lives in the model, and is not handed to the loss beside it."""

    def model(self, params: PyTree, model_state: PyTree, rngs: Rngs) -> Any:
        """What the loss is given first; ready to be evaluated where `rngs.training` is False."""

    def changed(self, model: Any) -> PyTree:
        """The model state after the loss was called, where the model holds it.

        Raises:
            ConfigError: the loss added something to the model.
        """


class Parts(NamedTuple):
    """A model, taken apart."""

    params: PyTree
    model_state: PyTree
    structure: Structure


class Library(Protocol):
    """A module of `loopax.compute.libraries`."""

    MODEL: type | tuple[type, ...]
    """The type of its models."""

    HOLDS_PARAMS: bool
    """Whether a model holds its parameters, so that the loss is given the model itself."""

    def parts_of(self, model: Any, example: Any, key: Key[Array, ""], model_state: PyTree) -> Parts:
        """A model taken apart; initialised with `example` and `key` where it is not yet.

        Raises:
            ConfigError: the example is missing or does not fit, or a part cannot be used.
        """


class Functions(NamedTuple):
    """The structure of parameters that a function is called with, as in Linen and Haiku."""

    holds_state: bool = False

    def model(self, params: PyTree, model_state: PyTree, rngs: Rngs) -> PyTree:
        """The parameters themselves."""
        del model_state, rngs
        return params

    def changed(self, model: PyTree) -> PyTree:
        raise NotImplementedError


FUNCTIONS = Functions()


def with_collections(made: PyTree, given: PyTree) -> PyTree:
    """The collections that a model was initialised with, and in their place those given.

    Raises:
        ConfigError: one is of another form.
    """
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


def without_flags(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`function(*args, **kwargs)` compiled: flags such as `train=True` are for Python to see."""
    is_array = jax.tree.map(lambda leaf: not isinstance(leaf, (bool, str)), (args, kwargs))
    arrays, flags = partition((args, kwargs), is_array)

    def call(arrays: PyTree) -> Any:
        args, kwargs = merge(arrays, flags)
        return function(*args, **kwargs)

    return executed(call, arrays)


def call_arguments(
    name: str, parameters: Iterable[inspect.Parameter], example: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example as the arguments of a call: by name from a mapping, else by position.

    Args:
        name: of what is called, for messages.
        parameters: those of the call.
        example: a dataset, a batch, an array or a tuple of arguments.

    Raises:
        ConfigError: there is no example, or it lacks an argument.
    """
    if example is None:
        raise ConfigError(
            f"TrainState.create: {name.partition('.')[0]} needs an example to be initialised with: "
            "a dataset, a batch, an array or a tuple of arguments"
        )
    example = getattr(example, "example", example)
    if isinstance(example, tuple):
        return example, {}
    if not isinstance(example, Mapping):
        return (example,), {}
    wanted = list(parameters)
    if any(parameter.name == "batch" for parameter in wanted):
        return (), {"batch": example}
    if any(parameter.kind == parameter.VAR_POSITIONAL for parameter in wanted):
        raise ConfigError(
            f"{name} names no arguments that the columns {', '.join(example)} could be given to; "
            "pass an array or a tuple as the example"
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
            f"{name} takes {', '.join(p.name for p in wanted)}, and the example has "
            f"{', '.join(example)}: {missing[0]!r} is missing; rename the argument or pass the "
            "example as a tuple, in the order of the call"
        )
    return (), {p.name: example[p.name] for p in wanted if p.name in example}
