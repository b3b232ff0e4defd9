"""What a run is made of and how it is trained: the arguments of `fit`, each checked at the door."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from loopax.arguments import (
    as_state,
    directory,
    kind_of,
    positive_seconds,
    trained_by,
    whole,
)
from loopax.batches.base import Batches
from loopax.batches.iterable import IterableBatches, as_batches
from loopax.compute.losses import LossFn
from loopax.compute.state import TrainState
from loopax.compute.step import OwnStep
from loopax.environment import check_fork
from loopax.errors import ConfigError, DataError
from loopax.evaluation import Evaluation, as_evaluation
from loopax.placement import Placement, placement
from loopax.run.configuration import as_mapping
from loopax.run.hooks import Hook, as_hooks, evaluate_every
from loopax.run.profiling import Steps
from loopax.run.retention import Checkpoints, ranking
from loopax.run.writers import Writer, as_writers

NONFINITE = ("stop", "skip")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of `fit`, in the form in which the loop uses them.

    Attributes:
        total: steps of the run in all.
        began: when `fit` was called, by `time.monotonic`; `max_seconds` counts from there.
        checkpoints: whose `best` names a metric of this run, or is None.
    """

    state: Any
    loss_fn: LossFn | OwnStep
    batches: Batches
    placement: Placement
    total: int
    run_dir: Path | None
    config: Mapping[str, Any]
    checkpoints: Checkpoints
    evaluation: Evaluation | None
    hooks: Sequence[Hook]
    writers: Sequence[Writer]
    nonfinite: str
    began: float
    max_seconds: float
    log_every: int
    probe_every: int | None
    chunk_steps: int | None
    signals: bool | None
    progress: bool
    profile: Steps | None

    @classmethod
    def of(
        cls,
        state: Any,
        loss_fn: LossFn | None,
        data: Any,
        *,
        step: Callable[..., Any] | None,
        steps: int | None,
        epochs: int | None,
        run_dir: str | os.PathLike[str] | None,
        evaluation: Any,
        hooks: Sequence[Hook | Callable[..., Any]] | Hook | Callable[..., Any],
        writers: Sequence[Writer],
        checkpoints: Checkpoints | None,
        nonfinite: str,
        max_seconds: float | None,
        log_every: int,
        probe_every: int | None,
        chunk_steps: int | None,
        mesh: Any,
        sharding: Mapping[str, Any] | None,
        signals: bool | None,
        progress: bool,
        profile: Any,
        config: Any,
    ) -> Self:
        """The settings that these arguments of `fit` make.

        Raises:
            ConfigError: one of them cannot work.
            DataError: there is no data.
        """
        began = time.monotonic()
        check_fork()
        trained = trained_by(loss_fn, step)
        state = as_state(state, trained, data, own=step is not None)
        batches, evaluation = as_batches(data), as_evaluation(evaluation)
        _check_apart(batches, evaluation)
        if step is not None and evaluation is not None and evaluation.loss_fn is None:
            raise ConfigError(
                "evaluation: a step says nothing of how to measure; give "
                "loopax.Evaluation(data, loss_fn=...)"
            )
        log_every = whole("log_every", log_every)
        if nonfinite not in NONFINITE:
            raise ConfigError(f"nonfinite is {nonfinite!r}; it must be {' or '.join(NONFINITE)}")
        if not isinstance(checkpoints, Checkpoints | None):
            raise ConfigError(
                f"checkpoints is {kind_of(checkpoints)}; it must be loopax.Checkpoints(every=100), "
                "which says when to save"
            )
        saving, place = checkpoints or Checkpoints(), None
        if saving.best == "auto" and not isinstance(state, TrainState):
            # What a state of one's own is measured by need not be called loss.
            saving = dataclasses.replace(saving, best=None)
        if run_dir is not None:
            place = directory("run_dir", run_dir)
            saving = ranking(saving, [] if evaluation is None else [*evaluation.parts], bool(hooks))
        return cls(
            state=state,
            loss_fn=trained,
            batches=batches,
            placement=placement(mesh, getattr(batches, "batch_size", None), sharding, state),
            total=_total_steps(steps, epochs, batches),
            run_dir=place,
            config={} if place is None else as_mapping(config),
            checkpoints=saving,
            evaluation=evaluation,
            hooks=as_hooks(hooks, log_every, evaluate_every(evaluation, batches)),
            writers=as_writers(writers),
            nonfinite=nonfinite,
            began=began,
            max_seconds=_seconds(max_seconds),
            log_every=log_every,
            probe_every=None
            if probe_every is None or step is not None
            else whole("probe_every", probe_every),
            chunk_steps=None if chunk_steps is None else whole("chunk_steps", chunk_steps),
            signals=signals,
            progress=bool(progress),
            profile=Steps.of(profile),
        )


def _check_apart(batches: Batches, evaluation: Evaluation | None) -> None:
    """Whether what is evaluated leaves the position of what is trained on alone.

    Raises:
        ConfigError: both are one object that keeps its position itself.
    """
    if evaluation is None or not isinstance(batches, IterableBatches):
        return
    for name, data in evaluation.parts.items():
        is_same = isinstance(data, IterableBatches) and data.source is batches.source
        if is_same and batches.keeps_position:
            raise ConfigError(
                f"the evaluation {name!r} reads the very {type(batches.source).__name__} that is "
                "trained on, whose position it would lose; make a second one"
            )


def _seconds(max_seconds: float | None) -> float:
    return math.inf if max_seconds is None else positive_seconds("max_seconds", max_seconds)


def _total_steps(steps: int | None, epochs: int | None, batches: Batches) -> int:
    """How many steps the run has in all.

    Raises:
        ConfigError: not exactly one of `steps` and `epochs` is a whole number of at least 1.
    """
    if (steps is None) == (epochs is None):
        raise ConfigError("give either steps or epochs, and not both")
    if steps is not None:
        return whole("steps", steps)
    epochs = whole("epochs", epochs, "; for a part of an epoch give steps")
    if batches.steps_per_epoch is None:
        raise ConfigError("epochs needs data whose length is known, and this iterable has no len()")
    if batches.steps_per_epoch == 0:
        raise DataError("there is no batch to train on; the data is empty")
    return epochs * batches.steps_per_epoch
