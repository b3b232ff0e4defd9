"""What is made of examples inside the compiled step: bytes scaled, and the user's transforms."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loopax.errors import ConfigError
from loopax.paths import PyTree
from loopax.purity import calling_purely

Transform = Callable[..., PyTree]


def scaled_columns(
    columns: Mapping[str, np.ndarray], scale: Sequence[str] | None, owner: str
) -> tuple[str, ...]:
    """The columns to scale, of which None means the one called `image`, where it is of bytes.

    Args:
        columns: those there are.
        scale: their names as the user gave them.
        owner: whose columns they are, for errors.

    Raises:
        ConfigError: a name is not that of a `uint8` column, or nothing says whether a column of
            bytes that could be images is to be scaled.
    """
    kinds = {name: column.dtype for name, column in columns.items()}
    if scale is None:
        for name, column in columns.items():
            if name != "image" and column.dtype == np.uint8 and column.ndim > 2:
                raise ConfigError(
                    f"{owner}: the column {name!r} is uint8 {column.shape}; say "
                    f"scale=({name!r},) where these are images, to become float32 in [0, 1], or "
                    "scale=() to keep bytes"
                )
        return tuple(name for name in kinds if name == "image" and kinds[name] == np.uint8)
    if isinstance(scale, str) or not isinstance(scale, Sequence):
        raise ConfigError(f"scale is {scale!r}; it must be a tuple of columns: scale=('image',)")
    for name in scale:
        if name not in kinds:
            raise ConfigError(f"scale names {name!r}; {owner} has {', '.join(kinds)}")
        if kinds[name] != np.uint8:
            raise ConfigError(
                f"scale names {name!r}, which is {kinds[name]}; only uint8 is divided by 255, "
                "anything else can be brought to scale by a transform"
            )
    return tuple(scale)


def scaled(examples: PyTree, names: Sequence[str]) -> dict[str, jax.Array]:
    """The examples with the columns of these names as `float32` in [0, 1]; traced."""
    return {
        name: column.astype(jnp.float32) / 255 if name in names else column
        for name, column in examples.items()
    }


def transformed(transform: Transform, batch: PyTree, rngs: Any) -> PyTree:
    """What a transform makes of a batch: with keys in training only, without them always."""
    takes_rngs = len(_required(transform)) == 2
    if takes_rngs and not rngs.training:
        return batch
    cure = "take the step's keys, transform(batch, rngs), and draw with jax.random"
    args = (batch, rngs) if takes_rngs else (batch,)
    result = calling_purely("the transform", cure, transform, *args, traces=2)
    if result is None:
        raise ConfigError("the transform returned None; it must return the batch")
    return result


def checked_transforms(transform: Any) -> tuple[Transform, ...]:
    """One transform, several or None as a tuple.

    Raises:
        ConfigError: one is no function of `(batch)` or `(batch, rngs)`.
    """
    given = tuple(transform) if isinstance(transform, list | tuple) else (transform,)
    transforms = tuple(one for one in given if one is not None)
    for one in transforms:
        if not callable(one):
            raise ConfigError(f"transform is {one!r}; it must be a function of a batch")
        if not 1 <= len(names := _required(one)) <= 2 or names[1:] not in ([], ["rngs"]):
            raise ConfigError(
                f"transform takes ({', '.join(names)}); it must take (batch) or (batch, rngs)"
            )
    return transforms


def _required(function: Transform) -> list[str]:
    """The arguments that a call by position must give, and `rngs` where it may be given."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ["batch"]
    return [
        each.name
        for each in parameters
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        and (each.default is each.empty or each.name == "rngs")
    ] or ["batch"]
