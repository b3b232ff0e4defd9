"""Hooks: functions that are called between chunks, with the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from loopax.arguments import kind_of, whole
from loopax.batches.base import Batches
from loopax.errors import ConfigError
from loopax.evaluation import Evaluation
from loopax.run.run import Run
from loopax.run.stopping import EarlyStopping


@dataclass(frozen=True)
class Hook:
    """Calls `function(run)` each time `every` steps have been made, and at the end.

    It may draw, print, save, measure, or end the run by `run.stop("reason")`; numbers that it
    returns by name are logged. Whatever it does, the trained parameters stay the same. What it
    raises ends the run, whose state is saved.
    """

    function: Callable[[Run], Mapping[str, float] | None]
    every: int

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ConfigError(
                f"hook.function is {self.function!r}; it must be a function that is given the run"
            )
        object.__setattr__(self, "every", whole("hook.every", self.every))


def evaluate_every(evaluation: Evaluation | None, batches: Batches) -> int | None:
    """Steps between two evaluations: an epoch where nothing is said; None where there are none."""
    if evaluation is None:
        return None
    return evaluation.every or batches.steps_per_epoch


def as_hooks(hooks: Any, log_every: int, evaluate_every: int | None) -> tuple[Hook, ...]:
    """What `fit` was given as hooks; a function alone is called whenever a row is logged.

    `EarlyStopping` is called after each evaluation.

    Raises:
        ConfigError: something else is among them.
    """
    if hooks is None:
        return ()
    several = isinstance(hooks, Iterable) and not isinstance(hooks, str | Mapping)
    given = tuple(hooks) if several and not callable(hooks) else (hooks,)
    for hook in given:
        if not isinstance(hook, Hook) and not callable(hook):
            raise ConfigError(
                f"hooks holds {kind_of(hook)}; give functions that are called with the run, or "
                "loopax.Hook(function, every=100)"
            )
    return tuple(_as_hook(hook, log_every, evaluate_every) for hook in given)


def _as_hook(hook: Any, log_every: int, evaluate_every: int | None) -> Hook:
    if isinstance(hook, Hook):
        return hook
    if not isinstance(hook, EarlyStopping):
        return Hook(hook, log_every)
    every = hook.every or evaluate_every
    if every is None:
        raise ConfigError(
            f"EarlyStopping looks at {hook.metric!r}; say how often that is measured, by the "
            "evaluation of fit (loopax.Evaluation(data, every=100)) or EarlyStopping(every=100)"
        )
    return Hook(dataclasses.replace(hook, every=every), every)
