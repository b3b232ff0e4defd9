"""`fit` and `steps`: arguments are checked, the run is opened and left, failures are explained.

The loop itself is in `loop`; this stands above it, and above what looks at a step that failed.
"""

from __future__ import annotations

import functools
import math
import os
import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Literal

import jax

from loopax.account import Account
from loopax.arguments import check_state, directory, kind_of, positive_seconds, whole
from loopax.batches.base import Batches
from loopax.batches.iterable import as_batches
from loopax.checkpoint import CheckpointStore
from loopax.chunks import Chunk, Chunks, carry, close_abandoned, run_name
from loopax.configuration import as_mapping
from loopax.diagnose.frozen import warn_of_frozen_gradients
from loopax.diagnose.replay import Replay
from loopax.environment import check_fork
from loopax.errors import (
    ConfigError,
    DataError,
    LoopaxError,
    NonFiniteError,
    Stopped,
)
from loopax.evaluation import as_evaluation
from loopax.hooks import Hook, as_hooks, evaluate_every
from loopax.lock import RunLock
from loopax.loop import Session, trained_chunks
from loopax.moments import HookError
from loopax.program import TrainProgram, probe_program
from loopax.progress import Silent, display, tell
from loopax.retention import Checkpoints, ranking
from loopax.run import Run
from loopax.rundir import RunDir
from loopax.signals import PoliteStop, is_interactive
from loopax.state import TrainState
from loopax.step import LossFn
from loopax.writers.base import Writer, as_writers

NONFINITE = ("stop", "skip", "rollback")
ROLLBACKS = 3


def fit(
    state: TrainState,
    loss_fn: LossFn,
    data: Any,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    evaluation: Any = None,
    hooks: Sequence[Hook | Callable[[Run], Any]] | Hook | Callable[[Run], Any] = (),
    writers: Sequence[Writer] = (),
    checkpoints: Checkpoints | None = None,
    nonfinite: Literal["stop", "skip", "rollback"] = "stop",
    max_seconds: float | None = None,
    log_every: int = 100,
    probe_every: int | None = 500,
    chunk_steps: int | None = None,
    progress: bool = True,
    config: Any = None,
) -> Run:
    """Trains `state` on `data` until `steps` or `epochs` are done, and returns the run.

    Args:
        state: where to begin; it is copied and stays usable.
        loss_fn: `(params, batch, rngs) -> loss` or `-> (loss, metrics)`, a pure function. Of a
            state with a `model_state` it is `(params, batch, rngs, model_state) -> (loss,
            metrics, model_state)`. `rngs` holds the keys of this step by stream name, and
            `rngs.training` is False in an evaluation. A metric `weight` says how many things the
            loss and the metrics of a batch are means over, and weighs them in what is logged.
        data: `dataset.batches(n)`, or any iterable of batches.
        steps: train until this many steps have been made in all, those of a resumed run
            included.
        epochs: the same as a whole number of passes over the data.
        run_dir: where metrics, checkpoints and provenance go; a run found there is continued,
            exactly. None keeps everything in memory.
        evaluation: an `Evaluation`, or just its data: batches, or batches by name.
        hooks: functions to call between chunks.
        writers: where logged rows go beside the run directory, such as `loopax.writers.CSV()`.
            One that fails is told of, and the run goes on.
        checkpoints: when to save and what to keep, in `run_dir`.
        log_every: steps between logged rows; a row holds the means over these steps.
        probe_every: steps between measurements of `grad_norm` and `update_norm`, in rows of
            source `probe`, each of which costs about two more steps. None leaves them out.
        nonfinite: what to do when the loss, or the state after an update, is not finite:
            `stop` with the step and an account of where the first such value came from;
            `skip` the update, count it, and go on with the next batch (the loop then checks
            every update, which slows small steps down); `rollback` to the newest checkpoint
            and go on with another order of the data and other random keys, three times.
        max_seconds: save and return when this long has passed since the call, or so much
            that another turn and a save would not fit.
        chunk_steps: steps in one dispatch; by default as many as take about a second, so
            that a run can be stopped within that time. The result does not depend on it.
        progress: show the run on standard error.
        config: a dataclass or a mapping to keep with the run; a run that was made with
            another one is not continued.

    Raises:
        ConfigError: an argument cannot work, or the run was made with another `config`.
        DataError: the data ended, or is not made of numbers.
        NonFiniteError: the loss or the state became NaN or infinite; it names the step.
        DeviceMemoryError: the step needs more memory than there is.
        CheckpointError: the checkpoint to continue from does not fit the state or the data.
        RunDirError: the directory is not a run's.
        RunInUseError: another process trains in it.
        StorageError: something could not be written; older checkpoints are intact.
        Stopped: SIGINT, SIGTERM or SIGHUP came; the chunk was finished and everything is saved. It
            is a `SystemExit`, so a program ends with status 130, 143 or 129. A second signal ends
            it at once.
    """
    return begin(locals()).drain()


def steps(
    state: TrainState,
    loss_fn: LossFn,
    data: Any,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    evaluation: Any = None,
    hooks: Sequence[Hook | Callable[[Run], Any]] | Hook | Callable[[Run], Any] = (),
    writers: Sequence[Writer] = (),
    checkpoints: Checkpoints | None = None,
    nonfinite: Literal["stop", "skip", "rollback"] = "stop",
    max_seconds: float | None = None,
    log_every: int = 100,
    probe_every: int | None = 500,
    chunk_steps: int | None = None,
    progress: bool = True,
    config: Any = None,
) -> Chunks:
    """As `fit`, for those who want to own the loop: gives each chunk when it was dispatched.

    Everything that `fit` does is done here, between the chunks; `break` leaves it properly, with
    the state saved. The chunk at which it was left is saved too: when the same program is started
    again it is given that chunk first, so that what made it leave makes it leave again, and a
    program that was only interrupted goes on from there.

    Arguments and errors are those of `fit`; arguments are checked at the call, and the run
    directory is opened with the first chunk. `with loopax.steps(...) as chunks` also saves when the
    body raises. `chunks.run` is the run, also when all is done already.
    """
    return begin(locals())


def begin(arguments: dict[str, Any]) -> Chunks:
    """The chunks of a run that is about to begin; `arguments` are those of `fit`, by name.

    Raises:
        ConfigError: one of them cannot work.
        DataError: there is no data.
    """
    check_fork()
    given = dict(arguments)
    check_state(given["state"], given["loss_fn"], given["data"])
    began, seconds = time.monotonic(), given["max_seconds"]
    seconds = math.inf if seconds is None else positive_seconds("max_seconds", seconds)
    batches, account = as_batches(given["data"]), Account()
    evaluation = as_evaluation(given["evaluation"])
    total = total_steps(given["steps"], given["epochs"], batches)
    log_every = whole("log_every", given["log_every"])
    probe_every, chunk_steps = (
        None if given[name] is None else whole(name, given[name])
        for name in ("probe_every", "chunk_steps")
    )
    nonfinite, checkpoints = given["nonfinite"], given["checkpoints"]
    if nonfinite not in NONFINITE:
        raise ConfigError(f"nonfinite is {nonfinite!r}; it must be one of {', '.join(NONFINITE)}")
    if not isinstance(checkpoints, Checkpoints | None):
        raise ConfigError(
            f"checkpoints is {kind_of(checkpoints)}; it must be loopax.Checkpoints(every=100), "
            "which says when to save"
        )
    run_dir = None if given["run_dir"] is None else directory("run_dir", given["run_dir"])
    if nonfinite == "rollback" and run_dir is None:
        raise ConfigError("nonfinite='rollback' goes back to a checkpoint: give a run_dir")
    settings = checkpoints or Checkpoints()
    if run_dir is not None:
        names = [] if evaluation is None else [*evaluation.parts]
        settings = ranking(settings, names, bool(given["hooks"]))
    run = Run(given["state"])
    session = Session(
        run=run,
        run_dir=run_dir,
        config={} if run_dir is None else as_mapping(given["config"]),
        checkpoints=settings,
        initial=given["state"],
        loss_fn=given["loss_fn"],
        batches=batches,
        total=total,
        evaluation=evaluation,
        hooks=as_hooks(given["hooks"], log_every, evaluate_every(evaluation, batches)),
        writers=as_writers(given["writers"]),
        nonfinite=nonfinite,
        began=began,
        max_seconds=seconds,
        log_every=log_every,
        progress=bool(given["progress"]),
        account=account,
        train=TrainProgram(given["loss_fn"], batches, account, skip=nonfinite == "skip"),
        probe=probe_program(given["loss_fn"], batches, account),
        probe_every=probe_every,
        chunk_steps=chunk_steps,
        look_at=functools.partial(warn_of_frozen_gradients, given["loss_fn"]),
    )
    return Chunks(run, _trained(session))


def _trained(session: Session) -> Generator[Chunk, None, Run]:
    """The whole run, from opening its directory to leaving it."""
    run = session.run
    try:
        with ExitStack() as resources:
            session.shown = display(session.total) if session.progress else Silent()
            resources.callback(session.shown.close)
            say = session.shown.say
            session.stop = resources.enter_context(PoliteStop(say))
            if session.run_dir is not None:
                close_abandoned(session.run_dir)
                run.dir = RunDir.create(session.run_dir, say)
                run.dir.check(session.config)  # what is refused is not even locked
                session.lock = resources.enter_context(RunLock(run.dir.path, say))
                run.dir.claim(session.config)
                store = CheckpointStore(run.dir.checkpoints, session.checkpoints, say)
                session.store = resources.enter_context(store)
            yield from _attempts(session)
        if session.stop.received is not None:
            if session.stop.received != signal.SIGINT or not is_interactive():
                raise Stopped(session.stop.received, run.step)
            tell(
                session.shown,
                f"{run_name(run)}: interrupted; returned as it is at step {run.step:,}",
            )
    except GeneratorExit:
        if session.stop is not None:
            session.stop.pass_on()  # The caller, who left, has not seen it and would go on.
        raise
    except BaseException as error:
        carry(error.error if isinstance(error, HookError) else error, run)
        raise
    return run


def _attempts(session: Session) -> Generator[Chunk, None, None]:
    """Trains to the end, and again from the newest checkpoint where that is wanted."""
    run = session.run
    while True:
        try:
            yield from trained_chunks(session)
        except NonFiniteError as error:
            if session.store is not None:
                with suppress(LoopaxError):  # What is just being saved may be as bad.
                    session.store.wait()
            if session.nonfinite != "rollback" or run.rollbacks == ROLLBACKS:
                _explain(session, error)
                raise
            if isinstance(error.__context__, GeneratorExit):
                return  # The caller has left; the next start goes back by itself.
            run.rollbacks += 1
            session.shown.say(f"{error}; going back, time {run.rollbacks} of {ROLLBACKS}")
        else:
            return


def _explain(session: Session, error: NonFiniteError) -> None:
    """Adds to the error where the first bad number came from, found by executing it again."""
    run = session.run
    if run.dir is None:
        return
    session.shown.say(f"{error}; looking for where it came from")
    try:
        with jax.debug_nans(False), jax.debug_infs(False):
            replay = Replay(run.dir, session.initial, session.loss_fn, session.batches)
            report = replay.step(replay.culprit(error.step)).report
        run.dir.write_json("autopsy.json", report.to_json())
    except Exception as failure:
        session.shown.say(f"that could not be found out: {failure}")
    else:
        for line in report.lines():
            session.shown.say(line)
        error.add_note(f"step {report.step}: {report.origin}; see {run.dir.path / 'autopsy.json'}")


def total_steps(steps: int | None, epochs: int | None, batches: Batches) -> int:
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
