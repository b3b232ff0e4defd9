"""Checkpoints: save in the background, keep the latest and the best, restore into a state."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from loopax.errors import CheckpointError, ConfigError
from loopax.paths import PyTree, leaf_path
from loopax.state import TrainState

# Orbax reports each save on its own; what a user must know, this module says itself.
logging.getLogger("absl").setLevel(logging.ERROR)


Rank = dict[str, Any]
"""`{"metric": "test/loss", "mode": "min", "value": 14.1}`; empty where nothing was measured."""


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When to save and what to keep.

    Attributes:
        every: save each time this many steps have been made; None leaves it to `seconds`.
        seconds: save when this long has passed since the last save; None leaves it to `every`.
            The end of a run and each evaluation that sets a new best are always saved.
        keep: how many of the latest steps to keep.
        best: the evaluation metric, such as `test/loss`, whose best step is kept too.
        mode: whether the best is the lowest or the highest.
    """

    every: int | None = None
    seconds: float | None = 30.0
    keep: int = 2
    best: str | None = "test/loss"
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("seconds", 0), ("keep", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"checkpoints.{name} is {value}; it must be at least {least}")
        if self.mode not in ("min", "max"):
            raise ConfigError(f"checkpoints.mode is {self.mode!r}; it must be min or max")


@dataclass(frozen=True)
class _KeepLatestAndBest(checkpoint_managers.PreservationPolicy):
    """The latest steps and the best one, by the ranks that the store keeps up to date."""

    keep: int
    ranks: Mapping[int, Rank]

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> Sequence[bool]:
        del context
        steps = [info.step for info in checkpoints]
        kept = {*steps[-self.keep :], best_step(steps, self.ranks)}
        return [step in kept for step in steps]


class CheckpointStore:
    """The checkpoints of one run, plain Orbax inside: `<directory>/<step>/state` and `.../meta`.

    Use it as a context: leaving it waits until what was being saved is on disk.

    Raises:
        CheckpointError: a step is missing, unreadable, or does not fit the state.
    """

    def __init__(self, directory: Path, settings: Checkpoints | None = None) -> None:
        """`settings` None opens the checkpoints for reading only."""
        self.directory = directory
        self._settings = settings or Checkpoints()
        self._ranks: dict[int, Rank] = {}
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
                preservation_policy=_KeepLatestAndBest(self._settings.keep, self._ranks),
                # Deleting begins with a rename: a half-deleted step is never listed.
                todelete_subdir=".trash" if settings else None,
                cleanup_tmp_directories=settings is not None,
                read_only=settings is None,
            ),
        )
        for step in self.steps:
            self._ranks[step] = self._rank(step)

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def steps(self) -> list[int]:
        """The steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    def step_of(self, which: str | int = "latest") -> int:
        """The step that `latest`, `best` or a number names."""
        steps = self.steps
        if not steps:
            raise CheckpointError(f"{self.directory}: there is no checkpoint here")
        if which == "latest":
            return steps[-1]
        if which == "best":
            best = best_step(steps, self._ranks)
            return steps[-1] if best is None else best
        if str(which) not in map(str, steps):
            raise CheckpointError(
                f"{self.directory}: there is no checkpoint of step {which!r}; there are "
                f"{', '.join(map(str, steps))}, latest and best"
            )
        return int(which)

    def save(
        self, state: TrainState, meta: Mapping[str, Any], metrics: Mapping[str, float]
    ) -> None:
        """Starts to save `state`; only copying it holds the caller up.

        `meta` is what belongs to this step and is not in the state; `metrics` rank the best.
        """
        step, best = int(meta["step"]), self._settings.best
        rank: Rank = {}
        if best is not None and math.isfinite(metrics.get(best, math.nan)):
            rank = {"metric": best, "mode": self._settings.mode, "value": metrics[best]}
        self._ranks[step] = rank
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                meta=ocp.args.JsonSave({**meta, "rank": rank}),
            ),
        )

    def restore(self, state: TrainState, which: str | int = "latest") -> tuple[TrainState, Any]:
        """A checkpoint in the form of `state`, and the meta saved with it."""
        step = self.step_of(which)
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        self._check_fits(step, target)
        return self._restore(step, ocp.args.StandardRestore(target))

    def read(self, which: str | int = "latest") -> tuple[dict[str, Any], Any]:
        """A checkpoint as a plain tree of dictionaries, and its meta: no state is needed."""
        return self._restore(self.step_of(which), ocp.args.StandardRestore())

    def _restore(self, step: int, form: ocp.args.StandardRestore) -> tuple[Any, Any]:
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=form, meta=ocp.args.JsonRestore())
            )
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{self.directory / str(step)}: cannot be restored: {reason}"
            ) from error
        return restored["state"], restored["meta"]

    def _rank(self, step: int) -> Rank:
        form = ocp.args.Composite(meta=ocp.args.JsonRestore())
        try:
            return self._manager.restore(step, args=form)["meta"]["rank"]
        except Exception:
            # A damaged step has no rank; what is wrong with it is said when it is to be restored.
            return {}

    def _check_fits(self, step: int, target: PyTree) -> None:
        """Compares leaf by leaf first: Orbax would cast another type without a word."""
        stored = self._manager.item_metadata(step)["state"]
        if stored is None:
            raise CheckpointError(f"{self.directory / str(step)}: holds no state")
        old, new = _leaves(getattr(stored, "tree", stored)), _leaves(target)
        differing = [
            f"{path} is {old.get(path, 'absent')} there and {new.get(path, 'absent')} here"
            for path in sorted(old.keys() | new.keys())
            if old.get(path) != new.get(path)
        ]
        if differing:
            more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
            raise CheckpointError(
                f"{self.directory / str(step)}: of another model or optimiser: "
                f"{'; '.join(differing[:3])}{more}"
            )

    def wait(self) -> None:
        """Returns when everything saved so far is on disk; raises if a save failed."""
        self._manager.wait_until_finished()


def best_step(steps: Sequence[int], ranks: Mapping[int, Rank]) -> int | None:
    """The step with the best value of the metric that ranks the newest one, or None."""
    ranked = [step for step in steps if ranks.get(step)]
    if not ranked:
        return None
    newest = ranks[ranked[-1]]
    alike = [step for step in ranked if ranks[step]["metric"] == newest["metric"]]
    choose = min if newest["mode"] == "min" else max
    return choose(alike, key=lambda step: ranks[step]["value"])


def _leaves(tree: PyTree) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        leaf_path(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }
