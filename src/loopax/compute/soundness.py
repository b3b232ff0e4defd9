"""Whether the numbers of a state are still numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from loopax.compute.state import TrainState
from loopax.compute.updates import named
from loopax.errors import NonFiniteError
from loopax.paths import PyTree, leaf_path

LENIENT = ("model_state", "ema_model_state", "state")
"""Parts in which a number may be infinite by right, such as a mask or the best so far."""
Flags = dict[str, Bool[Array, ""]]


def sound_leaves(state: Any) -> Flags:
    """For each leaf that training writes, whether it is sound; traceable.

    It must be finite. Only a scalar of the optimiser, such as the best value so far, what is in
    the model state, such as a mask, and what a state of one's own holds may be infinite, and must
    not be NaN.
    """
    return _flags(_parts(state))


def _parts(state: Any) -> dict[str, PyTree]:
    if not isinstance(state, TrainState):
        return {"state": named(state)}
    return {
        "params": state.trainable,
        "opt_state": state.opt_state,
        "model_state": state.model_state,
        "ema": state.ema,
        "ema_model_state": state.ema_model_state,
    }


def _flags(parts: dict[str, PyTree]) -> Flags:
    flags = {}
    for part, tree in parts.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                lenient = part in LENIENT or (part == "opt_state" and not leaf.ndim)
                sound = ~jnp.isnan(leaf) if lenient else jnp.isfinite(leaf)
                flags[f"{part}/{leaf_path(path)}"] = sound.all()
    return flags


def is_sound(state: Any) -> Bool[Array, ""]:
    """Whether every leaf is sound; traceable."""
    return jnp.stack([jnp.bool_(True), *sound_leaves(state).values()]).all()


def flags_of(state: Any) -> Flags:
    """`sound_leaves`, begun on the device; reading them waits for it."""
    return _compiled_flags(_parts(state))


# Of the arrays and not of the state, whose optimiser is another object in each run of a process.
_compiled_flags = jax.jit(_flags)


def unsound(flags: Flags) -> list[str]:
    """The paths of the leaves that are not sound, such as `params/Dense_0/kernel`."""
    return sorted(path for path, sound in jax.device_get(flags).items() if not sound)


def check_sound(flags: Flags, step: int) -> None:
    """Makes sure that the numbers of the state after `step` steps are still numbers.

    Raises:
        NonFiniteError: one of its leaves is not finite.
    """
    bad = unsound(flags)
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise NonFiniteError(
            f"the state is not finite after {step} steps ({bad[0]}{more}), though the loss still "
            "was; try a lower learning rate or clipping",
            step=step,
            metric=bad[0],
        )
