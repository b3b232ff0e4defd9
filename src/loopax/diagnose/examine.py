"""One training step looked at closely: its norms, what is not finite in it, and why."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from loopax.compute.losses import Batch, LossFn, call_loss
from loopax.compute.soundness import Flags, sound_leaves
from loopax.compute.state import TrainState
from loopax.compute.step import OwnStep, differentiate, extra_args_of, train_step
from loopax.compute.updates import update
from loopax.diagnose.origins import NonFiniteOrigin, find_origin
from loopax.jsonlines import as_json
from loopax.paths import PyTree, is_number, leaf_path

PARTS = ("batch", "state", "loss", "gradients", "updated_state")
"""Of a step, in its order."""


@dataclass(frozen=True)
class StepReport:
    """One step looked at closely.

    Attributes:
        step: how many updates had been made before it.
        metrics: the loss and the metrics of this batch.
        grad_norms, update_norms, param_norms: the global norm of each leaf by its path; of a step
            of one's own, whose gradients nobody else sees, there are none.
        non_finite: the leaves that are not finite, by what they belong to: `batch`, `state`,
            `loss`, `gradients`, `updated_state`; none of them where all is well.
        origin: what was bad first, when the loss, the gradients or the updated state are.
    """

    step: int
    metrics: dict[str, float]
    grad_norms: dict[str, float]
    update_norms: dict[str, float]
    param_norms: dict[str, float]
    non_finite: dict[str, tuple[str, ...]]
    origin: NonFiniteOrigin | None

    def to_json(self) -> dict[str, Any]:
        """The report as JSON can hold it: NaN and infinities become strings."""
        report: dict[str, Any] = as_json(dataclasses.asdict(self))
        return report

    def lines(self, limit: int = 10) -> list[str]:
        """The report for people; of the norms those that are not finite, then the largest."""
        metrics = sorted(self.metrics.items(), key=lambda pair: pair[0] != "loss")
        values = ", ".join(f"{name} {value:.6g}" for name, value in metrics)
        lines = [f"step {self.step}: {values}"]
        if self.origin is not None:
            lines.append(str(self.origin))
        elif any(self.non_finite[part] for part in PARTS[2:]):
            lines.append("one operation at a time the step is finite; only compiled it is not")
        for part, paths in self.non_finite.items():
            if paths:
                more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
                first = ", ".join(paths[:3])
                lines.append(f"not finite: {part.replace('_', ' ')}: {first}{more}")
        if self.grad_norms:
            lines.append(f"{'gradient':>12} {'update':>12} {'parameter':>12}")
        for path in sorted(self.grad_norms, key=self._rank)[:limit]:
            norms = (self.grad_norms[path], self.update_norms[path], self.param_norms[path])
            lines.append(" ".join(f"{norm:12.4g}" for norm in norms) + f"  {path}")
        if len(self.grad_norms) > limit:
            lines.append(f"and {len(self.grad_norms) - limit} more with smaller gradients")
        return lines

    def _rank(self, path: str) -> tuple[bool, float]:
        norm = self.grad_norms[path]
        bad = not math.isfinite(norm + self.update_norms[path])
        return (False, 0.0) if bad else (True, -norm)


def examine(loss_fn: LossFn | OwnStep, state: Any, batch: Batch) -> StepReport:
    """What the step that `state` is about to make with `batch` does, and what goes wrong in it.

    Nothing is trained: the state stays as it is.

    Args:
        loss_fn: as for `fit`.
        state: before the step.
        batch: what the loss sees.
    """
    with jax.debug_nans(False), jax.debug_infs(False):
        measure = jax.jit(functools.partial(_measure, loss_fn))
        measured, sound = jax.device_get(measure(state, batch))
        non_finite = {
            part: tuple(sorted(path for path, good in sound[part].items() if not good))
            for part in PARTS
        }
        bad = next((part for part in PARTS[2:] if non_finite[part]), None)
        find = _own_origin if isinstance(loss_fn, OwnStep) else _origin
        origin = None if bad is None else find(loss_fn, state, batch, bad)
    numbers = {
        kind: {path: float(value) for path, value in values.items()}
        for kind, values in measured.items()
    }
    return StepReport(step=int(state.step), non_finite=non_finite, origin=origin, **numbers)


def _measure(
    loss_fn: LossFn | OwnStep, state: Any, batch: Batch
) -> tuple[dict[str, dict[str, Array]], dict[str, Flags]]:
    """The numbers of a step, and what is finite in each of its parts."""
    grads: PyTree = {}
    updates: PyTree = {}
    params: PyTree = {}
    if isinstance(loss_fn, OwnStep):
        after, metrics = loss_fn(state, batch)
    else:
        params = state.params
        metrics, model_state, grads = differentiate(loss_fn, state, batch)
        extra_args = extra_args_of(loss_fn, state, batch, metrics, grads)
        updates, _ = update(state.tx, grads, state.opt_state, state.trainable, extra_args)
        after = state.apply_gradients(grads=grads, extra_args=extra_args, model_state=model_state)
    measured = {
        "metrics": metrics,
        "grad_norms": _norms(grads),
        "update_norms": _norms(updates),
        "param_norms": _norms(params),
    }
    sound = {
        "batch": _finite(batch),
        "state": sound_leaves(state),
        "loss": _finite({name: metrics[name] for name in metrics if name == "loss"}),
        "gradients": _finite(grads),
        "updated_state": sound_leaves(after),
    }
    return measured, sound


def _norms(tree: PyTree) -> dict[str, Float[Array, ""]]:
    return {
        leaf_path(path): jnp.linalg.norm(jnp.abs(leaf).astype(jnp.float32).ravel())
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if is_number(leaf)
    }


def _finite(tree: PyTree) -> Flags:
    return {
        leaf_path(path) or "all of it": jnp.isfinite(leaf).all()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }


def _own_origin(step: Any, state: Any, batch: Batch, bad: str) -> NonFiniteOrigin | None:
    """The origin of what is bad in a step of one's own: its loss comes first."""
    del bad

    def made(state: Any, batch: Batch) -> Any:
        after, metrics = step(state, batch)
        return [metrics.get("loss", 0.0), *filter(is_number, jax.tree.leaves(after))]

    return find_origin(made, state, batch)


def _origin(loss_fn: LossFn, state: TrainState, batch: Batch, bad: str) -> NonFiniteOrigin | None:
    """The origin of what is bad in a part of a step, all parts before which are good."""
    state = state.replace(remat=None)  # What is computed again is on no line of the program.

    def loss(params: PyTree, model_state: PyTree, batch: Batch) -> Any:
        how = (state.structure, state.precision)
        return call_loss(loss_fn, params, batch, state.rngs, model_state, *how)[0]["loss"]

    def gradients(params: PyTree, model_state: PyTree, batch: Batch) -> Any:
        before = state.replace(params=params, model_state=model_state)
        return differentiate(loss_fn, before, batch)[2]

    def updated(
        params: PyTree, model_state: PyTree, batch: Batch, opt_state: PyTree, ema: PyTree
    ) -> Any:
        before = state.replace(params=params, model_state=model_state, opt_state=opt_state, ema=ema)
        after = train_step(loss_fn)(before, batch)[0]
        leaves = jax.tree.leaves((after.params, after.opt_state, after.model_state, after.ema))
        # A scalar of the optimiser may be infinite by right: look at it when nothing else is bad.
        return sorted(leaves, key=lambda leaf: leaf.ndim == 0)

    arguments = (state.params, state.model_state, batch)
    if bad == "loss":
        return find_origin(loss, *arguments)
    if bad == "gradients":
        origin = find_origin(gradients, *arguments)
        return origin and dataclasses.replace(origin, pass_="backward")
    origin = find_origin(updated, *arguments, state.opt_state, state.ema)
    return origin if origin is None or origin.layer else dataclasses.replace(origin, pass_="update")
