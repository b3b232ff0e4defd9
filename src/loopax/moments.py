"""What happens between chunks: evaluations, hooks, saves, and when each of them is due."""

from __future__ import annotations

import dataclasses
import itertools
import math
import numbers as numbers_abc
import reprlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax

from loopax.account import Account
from loopax.arguments import kind_of, whole
from loopax.checkpoint import CheckpointStore, checkpoint_meta
from loopax.data.batches import Batches
from loopax.errors import (
    ConfigError,
    LoopaxError,
    NonFiniteError,
    RunInUseError,
    StorageError,
)
from loopax.evaluation import as_evaluation, evaluator
from loopax.recorder import Recorder
from loopax.rows import check_names
from loopax.run import Run
from loopax.soundness import check_sound, flags_of
from loopax.step import LossFn
from loopax.writers import Row, values_of

FIRST_SAVE_SECONDS = 2.0


@dataclass(frozen=True)
class Hook:
    """Calls `function(run)` each time `every` steps have been made, and at the end.

    It may draw, print, save or measure; numbers that it returns by name are logged. Whatever it
    does, the trained parameters stay the same. What it raises ends the run, whose state is saved.
    """

    function: Callable[[Run], Mapping[str, float] | None]
    every: int

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ConfigError(
                f"hook.function is {self.function!r}; it must be a function that is given the run"
            )
        object.__setattr__(self, "every", whole("hook.every", self.every))


class HookError(Exception):
    """Carries what a hook raised out of the loop's generators, which would change some of it.

    A generator makes a `RuntimeError` of `StopIteration`, and takes `GeneratorExit` for its end.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


@dataclass(frozen=True)
class Moment:
    """Something to do each time `every` steps have been made, and at the end."""

    act: Callable[[], None]
    every: int | None
    section: str = "hooks"

    def is_due(self, step: int, total: int) -> bool:
        return step == total or bool(self.every and step % self.every == 0)


class Saving:
    """Saves by steps, by time, at each new best, and at the end; never a state gone bad."""

    section = "checkpoint"

    def __init__(
        self,
        run: Run,
        store: CheckpointStore,
        recorder: Recorder,
        batches: Batches,
        total: int,
        check: Callable[[], None],
    ) -> None:
        """`check` is called before each save; it raises when the directory is another's by now."""
        assert store.settings is not None, "opened for reading"
        self.every = store.settings.every
        self._run, self._store, self._recorder = run, store, recorder
        self._identity, self._settings = dict(batches.identity), store.settings
        self._total, self._check = total, check
        self._lenient = store.settings.on_failure == "go_on"
        self._saved_step = run.step if run.step in store.steps else None
        self._begun = self._saved_at = math.nan
        self._best = math.inf
        for row in run.history.of((self._settings.best or "/").rpartition("/")[0]):
            self._improves(row)

    def is_due(self, step: int, total: int) -> bool:
        if math.isnan(self._begun):  # So that compiling the first chunk does not count.
            self._begun = self._saved_at = time.perf_counter()
        if self._store.has_settled:
            self._settle()
        improved = any(self._improves(row) for row in self._measured())
        return (
            step == total
            or improved
            or bool(self.every and step % self.every == 0)
            or self._is_late()
        )

    def act(self) -> None:
        self._check()
        self._settle()
        step, flags = self._run.step, flags_of(self._run.state)
        meta = checkpoint_meta(
            step,
            self._identity,
            self._recorder.tail,
            len(self._run.history),
            self._run.rollbacks,
        )
        metrics = {
            f"{row['source']}/{name}": value
            for row in self._measured()
            for name, value in values_of(row).items()
        }

        def check() -> None:
            self._check()  # again: Orbax makes the folders of a run that was moved away anew
            check_sound(flags, step)

        # What a checkpoint says was logged must outlast a power cut as the checkpoint does.
        self._recorder.sync()
        with self._failing():
            self._store.save(self._run.state, meta, metrics, check)
            self._saved_step = self._run.step
        self._saved_at = time.perf_counter()

    def finish(self) -> None:
        """Saves what was reached and returns when it is on the disk, and found whole there."""
        self._settle()
        self._lenient = False
        if self._saved_step != self._run.step:
            self.act()
        self._store.wait()
        self._store.verify(self._run.step)

    def keep_what_was_reached(self, kind: type[BaseException] | None, *_: object) -> None:
        """Saves when the loop ends early: left by its caller, interrupted, or because of an error.

        Not where the numbers are bad or nothing can be written. An interrupt can strike while the
        state is being handed to a chunk; then it is gone, and the checkpoint before is what there
        is.
        """
        if kind is None or issubclass(kind, NonFiniteError | StorageError | RunInUseError):
            return
        whole = self._recorder.step == self._run.step and not any(
            leaf.is_deleted() for leaf in jax.tree.leaves(self._run.state)
        )
        if not whole:
            return
        try:
            self._recorder.finish(self._run.step)
            self.finish()
        except LoopaxError as failure:
            if kind is GeneratorExit:
                raise
            # What ended the run is what its caller must hear of.
            self._store.say(str(failure))

    def _is_late(self) -> bool:
        """Saves come after 2, 4, 8 seconds and so on, up to as far apart as they may be."""
        if self._settings.seconds is None:
            return False
        patience = max(FIRST_SAVE_SECONDS, self._saved_at - self._begun)
        waited = time.perf_counter() - self._saved_at
        return waited >= min(self._settings.seconds, patience)

    def _settle(self) -> None:
        with self._failing():
            self._store.wait()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Goes on after a save that failed, if that is wanted and another one will come."""
        try:
            yield
        except StorageError as error:
            self._saved_step = None
            if not self._lenient or self._run.step >= self._total:
                raise
            self._store.say(f"{error}; going on without it")

    def _measured(self) -> list[Row]:
        """The rows of this very step; they are the last ones of the history."""
        rows = itertools.takewhile(
            lambda row: row["step"] == self._run.step, reversed(self._run.history)
        )
        return [row for row in rows if row["source"] not in ("train", "probe")]

    def _improves(self, row: Row) -> bool:
        source, _, name = (self._settings.best or "/").rpartition("/")
        value = row.get(name) if row["source"] == source else None
        if not isinstance(value, float) or not math.isfinite(value):
            return False
        rank = value if self._settings.mode == "min" else -value
        improved, self._best = rank < self._best, min(rank, self._best)
        return improved


def evaluations(
    run: Run,
    evaluation: Any,
    loss_fn: LossFn,
    recorder: Recorder,
    batches: Batches,
    account: Account,
) -> list[Moment]:
    """A moment for each part of the evaluation data."""
    evaluation = as_evaluation(evaluation)
    if evaluation is None:
        return []

    def measuring(name: str, data: Batches) -> Callable[[], None]:
        def warn(message: str) -> None:
            recorder.warn(f"evaluation {name!r}: {message}")

        measure = evaluator(evaluation.loss_fn or loss_fn, data, account, warn)
        return lambda: recorder.log(run.step, name, measure(run.state))

    every = evaluation.every or batches.steps_per_epoch
    return [
        Moment(measuring(name, data), every, "evaluation")
        for name, data in evaluation.parts.items()
    ]


def as_hooks(hooks: Any, log_every: int) -> tuple[Hook, ...]:
    """What `fit` was given as hooks; a function alone is called whenever a row is logged.

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
    return tuple(hook if isinstance(hook, Hook) else Hook(hook, log_every) for hook in given)


def calling(hook: Hook, run: Run, recorder: Recorder) -> Callable[[], None]:
    """Calls a hook and logs the numbers that it returns.

    Raises:
        HookError: the hook raised something.
        ConfigError: it returned something else than numbers by name.
    """

    def call() -> None:
        # A tree of its own: whatever the hook does to it, the run keeps what was trained.
        shown = dataclasses.replace(run, state=jax.tree.map(lambda leaf: leaf, run.state))
        try:
            values = hook.function(shown)
        except BaseException as error:
            raise HookError(error) from None
        if values is not None and (logged := _logged(hook, values)):
            recorder.log(run.step, "hook", logged)

    return call


def _logged(hook: Hook, values: Any) -> dict[str, float]:
    """The numbers that a hook returned, by name."""
    called = f"the hook {getattr(hook.function, '__name__', kind_of(hook.function))}"
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
