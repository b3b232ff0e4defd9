"""What happens between chunks, evaluations and hooks, and when each of them is due."""

from __future__ import annotations

import dataclasses
import numbers as numbers_abc
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from loopax import processes
from loopax.account import Account
from loopax.arguments import kind_of
from loopax.batches.base import Batches
from loopax.compute.losses import LossFn
from loopax.compute.rows import check_names
from loopax.errors import ConfigError
from loopax.evaluation import as_evaluation, evaluator
from loopax.placement import Placement
from loopax.run.hooks import Hook, evaluate_every
from loopax.run.recorder import Recorder
from loopax.run.run import Run
from loopax.run.turns import Turn


@dataclass(frozen=True)
class Moment:
    """Something to do each time `every` steps have been made, and at the end."""

    act: Callable[[], None]
    every: int | None
    section: str = "hooks"

    def is_due(self, step: int, total: int, turn: Turn) -> bool:
        del turn
        return step == total or bool(self.every and step % self.every == 0)


def evaluations(
    run: Run,
    evaluation: Any,
    loss_fn: LossFn,
    recorder: Recorder,
    batches: Batches,
    account: Account,
    placement: Placement,
) -> list[Moment]:
    """A moment for each part of the evaluation data."""
    evaluation = as_evaluation(evaluation)
    if evaluation is None:
        return []

    def measuring(name: str, data: Batches) -> Callable[[], None]:
        def warn(message: str) -> None:
            recorder.warn(f"evaluation {name!r}: {message}")

        measure = evaluator(evaluation.loss_fn or loss_fn, data, account, warn, placement)

        def act() -> None:
            run.measured[name] = measure(run.state)
            recorder.log(run.step, name, run.measured[name])

        return act

    every = evaluate_every(evaluation, batches)
    return [
        Moment(measuring(name, data), every, "evaluation")
        for name, data in evaluation.parts.items()
    ]


def calling(hook: Hook, run: Run, recorder: Recorder) -> Callable[[], None]:
    """Calls a hook and logs the numbers that it returns.

    Raises:
        ConfigError: it returned something else than numbers by name, or set the state.
    """
    called = f"the hook {getattr(hook.function, '__name__', kind_of(hook.function))}"

    def call() -> None:
        # A tree of its own: whatever the hook does to it, the run keeps what was trained.
        state = jax.tree.map(lambda leaf: leaf, run.state)
        shown = dataclasses.replace(run, state=state)
        values = hook.function(shown)
        check_not_set(shown, state, called)
        logged = {} if values is None else _logged(called, values)
        # A hook may look at a clock or a file, which differ between processes.
        logged, run.stopped = processes.agree("hook", (logged, shown.stopped))
        if logged:
            run.measured["hook"] = run.measured.get("hook", {}) | logged
            recorder.log(run.step, "hook", logged)

    return call


def check_not_set(run: Run, state: Any, called: str) -> None:
    """Makes sure that nobody has put another state in the place of the one that was shown.

    Raises:
        ConfigError: it is another one.
    """
    if run.state is not state:
        raise ConfigError(
            f"{called} set run.state, which changes nothing of what is trained; give fit the "
            "changed state, or change it in a step of one's own: fit(step=...)"
        )


def _logged(called: str, values: Any) -> dict[str, float]:
    """The numbers that a hook returned, by name."""
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{called} returned {_shown(values)}; return numbers by name, "
            "such as {'norm': 3.0}, or nothing"
        )
    check_names(values, called)
    numbers = {}
    for name, value in values.items():
        number = value.item() if getattr(value, "size", None) == 1 else value
        if not isinstance(number, numbers_abc.Real):
            raise ConfigError(
                f"{called} returned {name} = {_shown(value)}; what is logged is a number, or an "
                "array of one"
            )
        numbers[name] = number if isinstance(number, bool | int) else float(number)
    return numbers


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"an array of shape {shape}" if shape else reprlib.repr(value).replace("\n", " ")
