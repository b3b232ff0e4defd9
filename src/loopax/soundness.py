"""Whether the numbers of a state are still numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from loopax.paths import leaf_path
from loopax.state import TrainState

Flags = dict[str, Bool[Array, ""]]


def sound_leaves(state: TrainState) -> Flags:
    """For each leaf that training writes, whether it is sound; traceable.

    It must be finite. Only a scalar of the optimiser, such as the best value so far, may be
    infinite, and must not be NaN.
    """
    parts = {
        "params": state.trainable,
        "opt_state": state.opt_state,
        "mutable": state.mutable,
        "ema": state.ema,
    }
    flags = {}
    for part, tree in parts.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                lenient = part == "opt_state" and not leaf.ndim
                sound = ~jnp.isnan(leaf) if lenient else jnp.isfinite(leaf).all()
                flags[f"{part}/{leaf_path(path)}"] = sound
    return flags


def is_sound(state: TrainState) -> Bool[Array, ""]:
    """Whether every leaf is sound; traceable."""
    return jnp.stack([jnp.bool_(True), *sound_leaves(state).values()]).all()


@jax.jit
def _flags(state: TrainState) -> Flags:
    return sound_leaves(state)


def unsound(state: TrainState) -> list[str]:
    """The paths of the leaves that are not sound, such as `opt_state/0/mu/Dense_0/kernel`."""
    return sorted(path for path, sound in jax.device_get(_flags(state)).items() if not sound)
