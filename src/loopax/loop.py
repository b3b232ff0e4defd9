"""The loop: chunks of compiled steps, and what happens between them.

Between two moments that the host cares about, the device runs alone. One turn of the loop is

    take the next items -> dispatch a chunk -> read the chunk before -> evaluate, call hooks, save

and its order is a contract. The rows of a chunk are read after the next chunk was dispatched, so
that the device does not wait for the host. Where something is due, everything up to there is read
first: a state is saved only after its losses were seen to be finite. Evaluations and hooks see the
state as it is after their step and cannot change it. Saving comes last, so that all rows up to a
checkpoint's step are written before it exists.
"""

from __future__ import annotations

import functools
import math
import os
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from loopax.account import Account, summary
from loopax.accumulation import check_accumulation
from loopax.arguments import check_state, directory, kind_of, positive_seconds, whole
from loopax.batches.base import Batches
from loopax.batches.iterable import as_batches
from loopax.batches.loader import Loader
from loopax.checkpoint import CheckpointStore
from loopax.chunks import Chunk, Chunks, carry, close_abandoned, run_name
from loopax.configuration import as_mapping
from loopax.diagnose.frozen import warn_of_frozen_gradients
from loopax.diagnose.replay import Replay
from loopax.environment import changes, check_fork, numerics
from loopax.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LoopaxError,
    NonFiniteError,
    RunDirError,
    Stopped,
)
from loopax.evaluation import as_evaluation
from loopax.history import Extent, History
from loopax.hooks import Hook, as_hooks, evaluate_every
from loopax.lock import RunLock
from loopax.memory import explaining_memory
from loopax.moments import HookError, Moment, calling, evaluations
from loopax.program import TrainProgram, guarding_transfers, probe_program
from loopax.progress import Display, Silent, display, tell
from loopax.randomness import key_words, stream
from loopax.recorder import Recorder, Tail
from loopax.retention import Checkpoints, ranking
from loopax.rows import LEARNING_RATE, Rows
from loopax.run import STOPPED, Past, Run
from loopax.rundir import RunDir
from loopax.saving import Saving
from loopax.signals import PoliteStop, is_interactive
from loopax.soundness import check_sound, flags_of
from loopax.state import TrainState
from loopax.step import LossFn
from loopax.turns import Clock, Plan
from loopax.writers.base import Guarded, Writer, as_writers, name_of
from loopax.writers.files import RunFiles, TensorBoard

CHUNK_STEPS_LIMIT = 1000
NONFINITE = ("stop", "skip", "rollback")
ROLLBACKS = 3
JUMP = 0.5
"""A learning rate that differs by more than this share from that of the step before."""
LEFT = "left.json"
"""Of the run directory: the last chunk that was given to a loop which was left by its caller."""


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
        loss_fn: `(params, batch, rngs) -> loss` or `-> (loss, metrics)`, a pure function; with
            a fourth argument `mutable` it is also given the state's collections and returns
            them as a third value. `rngs` holds the keys of this step by stream name, and
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
    session = _Session(
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
    )
    return Chunks(run, _trained(session))


def _trained(session: _Session) -> Generator[Chunk, None, Run]:
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


def _attempts(session: _Session) -> Generator[Chunk, None, None]:
    """Trains to the end, and again from the newest checkpoint where that is wanted."""
    run = session.run
    while True:
        try:
            yield from _chunks(session)
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


@dataclass(kw_only=True)
class _Session:
    """What stays the same while a run is trained, also when it goes back and tries again."""

    run: Run
    run_dir: Path | None
    config: dict[str, Any]
    checkpoints: Checkpoints
    initial: TrainState
    loss_fn: LossFn
    batches: Batches
    total: int
    evaluation: Any
    hooks: Sequence[Hook]
    writers: Sequence[Writer]
    nonfinite: str
    began: float
    max_seconds: float
    log_every: int
    probe_every: int | None
    chunk_steps: int | None
    progress: bool
    account: Account
    train: TrainProgram
    probe: Callable[..., Any]
    shown: Display = field(default_factory=Silent)
    store: CheckpointStore | None = None
    lock: RunLock | None = None
    stop: PoliteStop | None = None
    begun: bool = False
    before: dict[str, float] = field(default_factory=dict)
    left: Chunk | None = None


def _chunks(session: _Session) -> Generator[Chunk, None, None]:
    """Trains from the newest checkpoint until all is done, or a signal or the time ends it."""
    run, batches, total = session.run, session.batches, session.total
    store, account, shown = session.store, session.account, session.shown
    tail = _resume(session)
    if (left := _left(session)) is not None:
        shown.say(f"{run_name(run)}: was left at step {run.step:,}; the same chunk is given again")
        yield left
    if (reason := _reason_to_stop(session)) is not None:
        run.stopped = reason
        shown.say(
            f"{run_name(run)}: ended at step {run.step:,} of {total:,}: {reason} (without "
            f"{STOPPED} it would go on)"
        )
        return
    if run.step >= total:
        done = f"{run_name(run)}: finished, {run.step:,} of {total:,} steps are done"
        if run.step == total:
            shown.say(done)
        else:
            tell(shown, f"{done}; nothing is taken back, this is the run as it was at its end")
        return
    unused = check_accumulation(run.state, total - run.step)
    if run.step:
        shown.say(f"{run_name(run)}: continuing at step {run.step:,} of {total:,}")
    if unused is not None:
        tell(shown, unused)
    shown.begin(run.step)
    if run.dir is not None:
        # The shorter row of an interval makes place for the whole one.
        run.history = run.history.cut(without="train" if tail.rows else "")
    with ExitStack() as resources:
        assert session.stop is not None, "it is entered before"
        clock = Clock(
            session.began,
            session.max_seconds,
            session.chunk_steps,
            store,
            session.lock,
            session.stop,
        )
        per_epoch = batches.steps_per_epoch
        recorder = Recorder(run.history, shown, account, clock, session.log_every, per_epoch)
        recorder.resume(run.step, tail)
        _open_writers(session, recorder, resources)
        moments: list[Moment | Saving] = [
            *evaluations(run, session.evaluation, session.loss_fn, recorder, batches, account),
            *(Moment(calling(hook, run, recorder), hook.every) for hook in session.hooks),
        ]
        session.before = _rates(tail, run)
        keeper, session.begun = None, True
        if store is not None and session.lock is not None:
            keeper = Saving(run, store, recorder, batches, total, clock, session.lock.check)
            resources.push(keeper.keep_the_best)
            resources.push(functools.partial(_leave, session, keeper))
            moments.append(keeper)
        resources.enter_context(account.section("host"))
        first = run.step
        yield from _turns(session, clock, recorder, moments)
        recorder.finish(run.step)
        with account.section("checkpoint"):
            if keeper is not None:
                keeper.finish()
            else:
                check_sound(flags_of(run.state), run.step)
        run.account = account.report()
        if run.dir is not None:
            run.dir.write_json("account.json", run.account)
        shown.say(summary(run.account))
        if run.stopped is not None:
            shown.say(f"ended at step {run.step:,} of {total:,}: {run.stopped}")
        elif run.step < total:
            kept = f"; the same command continues {run_name(run)}" if store is not None else ""
            shown.say(f"stopped at step {run.step:,} of {total:,}{kept}")
        if first + 1 == run.step < total and (over := clock.seconds_over()) > 0:
            tell(
                shown,
                f"max_seconds = {session.max_seconds:g} is too short for a step and a save; one "
                f"step was made, and it ended {over:.1f} s later",
            )


def _turns(
    session: _Session, clock: Clock, recorder: Recorder, moments: Sequence[Moment | Saving]
) -> Generator[Chunk, None, None]:
    """The loop itself: chunk after chunk, and between them what is due."""
    run, batches, total, account = session.run, session.batches, session.total, session.account
    marks = [session.log_every, *(moment.every for moment in moments if moment.every)]
    shortest = min([*marks, session.probe_every or math.inf, CHUNK_STEPS_LIMIT])
    capacity = session.chunk_steps or int(shortest)
    first = step = run.step
    state, items, second = run.state, None, None

    plan = Plan(total, marks, session.probe_every, capacity)

    with (
        Loader(batches.feed(key_words(state.key), step, capacity)) as loader,
        explaining_memory(session.train, lambda: (run.state, items)),
    ):
        loader.request(plan.length(step, clock.limit()))
        while step < total and run.stopped is None:
            turn = clock.decide()
            if turn.stop:
                break
            with account.section("data"):
                items, count = loader.take()
            if step == first:
                with account.section("setup"):
                    warn_of_frozen_gradients(
                        session.loss_fn, state, session.train.batch(state, items)
                    )
            with account.section("compute"), guarding_transfers():
                due = session.probe_every is not None and (step + 1) % session.probe_every == 0
                norms = session.probe(state, items) if due else None
                state, rows = session.train(state, items)
            start, step = step, step + count
            loader.request(plan.length(step, turn.limit))
            recorder.settle()
            if second:
                _tell_of_the_horizon(session, first, second)
            second = rows if start == first and first else None
            examples = functools.partial(session.train.examples, items)
            recorder.add(start, count, rows, norms, examples)
            # What others are shown is a tree of its own, so that no change to it reaches the loop.
            run.step, run.state = step, jax.tree.map(lambda leaf: leaf, state)
            if step == total:
                recorder.finish(total)
            for moment in moments:
                if moment.is_due(step, total, turn):
                    recorder.settle()
                    with account.section(moment.section):
                        moment.act()
            chunk = Chunk(run, start, step, functools.partial(rows.columns, count))
            with account.section("hooks"):
                try:
                    yield chunk
                except GeneratorExit:
                    session.left = chunk
                    raise


def _explain(session: _Session, error: NonFiniteError) -> None:
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


def _rates(tail: Tail, run: Run) -> dict[str, float]:
    """The learning rates of the last step that was made."""
    rows = tail.rows or [run.latest("train")]
    return {name: rate for name, rate in rows[-1].items() if name.startswith(LEARNING_RATE)}


def _tell_of_the_horizon(session: _Session, step: int, rows: Rows) -> None:
    """Says when a run goes on to another end than before, and when its learning rate jumps."""
    run, total = session.run, session.total
    starts = [] if run.dir is None else run.dir.starts[:-1]
    before = starts[-1].get("total", total) if starts else total
    jumps = [
        f"{name} was {old:.4g} at step {step:,} and is {new:.4g} after it"
        for name, column in rows.columns(1).items()
        if (old := session.before.get(name)) is not None
        if abs(old - (new := float(column[0]))) > JUMP * max(abs(old), abs(new))
    ]
    longer = [] if before == total else [f"begun for {before:,} steps and now for {total:,}"]
    if jumps:
        told = "; ".join([*longer, *jumps])
        tell(
            session.shown,
            f"{run_name(run)}: {told}; schedules follow the number of steps they are made for",
        )
    elif longer:
        session.shown.say(f"{run_name(run)}: {longer[0]}")


def _leave(session: _Session, keeper: Saving, kind: type[BaseException] | None, *_: object) -> None:
    """Keeps what was reached when the loop ends early, and the chunk at which its caller left."""
    keeper.keep_what_was_reached(kind)
    if session.left is not None and session.run.dir is not None:
        session.run.dir.write_json(LEFT, session.left.to_json())


def _left(session: _Session) -> Chunk | None:
    """The chunk at which the loop was left, where its step is the one that was restored."""
    run = session.run
    if session.begun or run.dir is None or not (run.dir.path / LEFT).exists():
        return None
    try:
        chunk = Chunk.from_json(run, run.dir.read_json(LEFT))
    except (RunDirError, ValueError, TypeError, KeyError, AttributeError):
        session.shown.say(f"{run.dir.path / LEFT}: cannot be read; passed over")
        return None
    return chunk if chunk.stop == run.step else None


def _reason_to_stop(session: _Session) -> str | None:
    """Why the run was stopped at the step that was restored; None where it was not."""
    run = session.run
    if run.dir is None or not (run.dir.path / STOPPED).exists():
        return None
    try:
        stored = run.dir.read_json(STOPPED)
        return str(stored["reason"]) if stored["step"] == run.step else None
    except (RunDirError, TypeError, KeyError):
        session.shown.say(f"{run.dir.path / STOPPED}: cannot be read; passed over")
        return None


def _resume(session: _Session) -> Tail:
    """Puts the newest checkpoint's state and rows into the run; returns its unlogged rows.

    Raises:
        CheckpointError: there were checkpoints and none is whole, or it was made with other data,
            batches or seed.
    """
    run, store = session.run, session.store
    # Each chunk reuses the memory of the state it is given; the caller's state must stay whole.
    run.state, run.step = jax.tree.map(jnp.copy, session.initial), 0
    tail, past = Tail(session.log_every), Past()
    if store is not None and (store.steps or store.damaged):
        run.state, meta = store.restore(run.state)
        run.step = int(meta["step"])
        try:
            tail, past = Tail.from_json(meta["recorder"]), Past.from_json(meta["run"])
            data, before = dict(meta["data"]), dict(meta["numerics"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{store.directory / str(run.step)}: was saved by no run, which would have left "
                f"what it goes on from ({type(error).__name__}: {error}); begin a new run"
            ) from error
        _check_same(session, data, past, before)
    if run.rollbacks > past.rollbacks:
        run.state = run.state.replace(key=_root_key(session.initial, run.rollbacks))
    run.rollbacks = max(run.rollbacks, past.rollbacks)
    if run.dir is not None:
        run.history = History(extent := Extent.of(run.dir.metrics_file, run.step))
        if extent.other:
            session.shown.say(f"{extent.path}: passed over what is no row (lines: {extent.other})")
        if len(run.history) < past.rows:
            session.shown.say(
                f"{run.dir.metrics_file}: has {len(run.history)} of the {past.rows} rows "
                f"logged up to step {run.step:,}; the others are lost"
            )
    return tail


def _check_same(
    session: _Session, data: Mapping[str, Any], past: Past, before: Mapping[str, Any]
) -> None:
    """Whether what the run depends on is as it was when the checkpoint was made."""
    run, store = session.run, session.store
    assert store is not None
    expected = _root_key(session.initial, past.rollbacks)
    there = {**data, "seed": key_words(run.state.key)}
    here = {**session.batches.identity, "seed": key_words(expected)}
    wrong = [
        f"{name} {there.get(name, 'absent')}, and now it is {here.get(name, 'absent')}"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]
    if wrong:
        advice = session.batches.advice if there.get("data") != here.get("data") else ""
        raise CheckpointError(
            f"{store.directory}: made with {'; made with '.join(wrong)}; give the same to "
            f"continue, or name another run directory{advice}"
        )
    if changed := changes(before, numerics()):
        session.shown.say(
            f"{run_name(run)}: {'; '.join(changed)}; from here on, results may differ in the last "
            "bits from those of an undisturbed run"
        )


def _root_key(initial: TrainState, rollbacks: int) -> Any:
    """The root of randomness and of the data's order, another one after each rollback."""
    return stream(initial.key, f"rollback {rollbacks}") if rollbacks else initial.key


def _open_writers(session: _Session, recorder: Recorder, resources: ExitStack) -> None:
    """Notes this start in the run directory and opens its files at the step it begins with."""
    run, warn = session.run, recorder.warn
    writers: list[Writer] = [Guarded(writer, warn) for writer in session.writers]
    if run.dir is not None:
        run.dir.note_start(
            run.step,
            session.shown.say,
            key=key_words(run.state.key),
            data=dict(session.batches.identity),
            total=session.total,
            nonfinite=session.nonfinite,
            log_every=session.log_every,
            probe_every=session.probe_every,
            rollbacks=run.rollbacks,
            writers=[name_of(writer) for writer in session.writers],
        )
        writers = [RunFiles(session.shown.say), Guarded(TensorBoard(), warn), *writers]
    for writer in writers:
        writer.open(run, run.step)
        resources.callback(writer.close)
    recorder.writers = writers


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
