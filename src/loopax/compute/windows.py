"""Accumulation that is exact: the batches of a window count as much as they weigh.

`optax.MultiSteps` takes the mean of the gradients of its batches, each counted once. Where a loss
is a mean over tokens, that is not the gradient of all tokens of the window.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from loopax.compute.updates import states_of
from loopax.errors import ConfigError
from loopax.paths import PyTree, leaf_paths


class Weighed(NamedTuple):
    """The state of `optax.MultiSteps`, and what its open window weighs and measured so far."""

    weight: Float[Array, ""]
    value: Float[Array, ""]
    window: optax.MultiStepsState


def weighed(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`optax.MultiSteps` that counts each batch as often as the extra argument `weight` says.

    Without one each counts once, as by itself. The transformation inside is handed the mean
    `value` of the window, and its whole `weight` where it has windows of its own.
    A `should_skip_update_fn` sees the gradients as they go into the mean.

    Raises:
        ConfigError: from `init`; its sums cannot hold the gradients.
    """

    def init(params: PyTree) -> Weighed:
        return opened(tx.init(params), params)

    def update(
        grads: PyTree, state: Weighed, params: PyTree = None, *, weight: Any = None, **extra: Any
    ) -> tuple[PyTree, Weighed]:
        before = state.window
        batch = jnp.asarray(1 if weight is None else weight, jnp.float32)
        total, value = state.weight + batch, state.value
        whole = jnp.where(total > 0, total, 1.0)
        if weight is not None:
            # Optax gives a batch the same share as each of those before it.
            factor = batch * (before.mini_step + 1) / whole
            grads = jax.tree.map(
                lambda grad, mean: _weighed(grad, mean, batch, factor), grads, before.acc_grads
            )
        if "value" in extra:
            moved = value + batch / whole * (extra["value"] - value)
            extra["value"] = value = jnp.where(batch > 0, moved, value)
        if weighs(before.inner_opt_state):
            extra["weight"] = total
        updates, after = tx.update(grads, before, params, **extra)
        made = after.gradient_step != before.gradient_step
        skipped = ~made & (after.mini_step == before.mini_step)
        zero = jnp.zeros((), jnp.float32)
        total, value = (
            jnp.where(skipped, old, jnp.where(made, zero, new))
            for old, new in ((state.weight, total), (state.value, value))
        )
        return updates, Weighed(total, value, after)

    return optax.GradientTransformationExtraArgs(init, update)


def _weighed(grad: Array, mean: Array, weight: Array, factor: Array) -> Array:
    """What moves the mean by the batch's share of the weight; of equal weights the gradient."""
    moved = grad + (grad - mean) * (factor - 1)
    return jnp.where(weight > 0, jnp.where(factor == 1, grad, moved), mean).astype(grad.dtype)


def opened(window: optax.MultiStepsState, params: PyTree) -> Weighed:
    """The state of a window before its first batch.

    Raises:
        ConfigError: its sums cannot hold the gradients.
    """
    for path, leaf, mean in zip(
        leaf_paths(params), *map(jax.tree.leaves, (params, window.acc_grads)), strict=True
    ):
        if jnp.iscomplexobj(leaf) and not jnp.iscomplexobj(mean):
            raise ConfigError(
                f"tx: optax.MultiSteps keeps gradients as {mean.dtype}, and {path or 'it'} is "
                f"{leaf.dtype}; put optax.contrib.split_real_and_imaginary around it"
            )
    zero = jnp.zeros((), jnp.float32)
    return Weighed(zero, zero, window)


def weighs(opt_state: PyTree) -> bool:
    """Whether an optimiser has a window that wants to know what a batch weighs."""
    return any(states_of(opt_state, Weighed))


def can_be_weighed(tx: optax.GradientTransformation, opt_state: PyTree) -> bool:
    """Whether it is `optax.MultiSteps` itself, and takes means and not sums."""
    owner = getattr(tx.update, "__self__", None)  # where alone Optax keeps which of them
    return isinstance(opt_state, optax.MultiStepsState) and getattr(owner, "_use_grad_mean", False)


def unweighed(opt_state: PyTree) -> str | None:
    """What to say of windows that do not know of weights; None where there are none."""
    known = {id(state.window) for state in states_of(opt_state, Weighed)}
    windows = states_of(opt_state, optax.MultiStepsState)
    blind = next((window for window in windows if id(window) not in known), None)
    if blind is None:
        return None
    paths = leaf_paths(blind.acc_grads)
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return (
        f"the loss returns 'weight', and the gradients of {paths[0] or 'all of it'}{more} are "
        "accumulated without it, each batch counted once: only an optax.MultiSteps around the "
        "whole optimiser, or that of loopax.Optimizer, knows of weights"
    )
