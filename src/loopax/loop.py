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
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Num

from loopax.account import Account, summary
from loopax.checkpoint import CheckpointStore
from loopax.cost import explaining_memory
from loopax.data.batches import Batches, as_batches
from loopax.data.loader import Loader
from loopax.environment import changes, numerics
from loopax.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LoopaxError,
    NonFiniteError,
    Stopped,
)
from loopax.freezing import warn_of_frozen_gradients
from loopax.lock import RunLock
from loopax.moments import Hook, Moment, Saving, calling, evaluations
from loopax.program import TrainProgram, probe_program
from loopax.progress import Display, Silent, display
from loopax.randomness import key_words, stream
from loopax.recorder import Recorder
from loopax.replay import Replay
from loopax.retention import Checkpoints
from loopax.rows import Rows
from loopax.run import Run
from loopax.rundir import RunDir, as_mapping
from loopax.signals import PoliteStop
from loopax.soundness import check_sound, flags_of
from loopax.state import TrainState
from loopax.step import LossFn
from loopax.writers import JsonLines, TensorBoard, read_json_lines

CHUNK_SECONDS = 1.0
CHUNK_STEPS_LIMIT = 1000
NONFINITE = ("stop", "skip", "rollback")
ROLLBACKS = 3
P = ParamSpec("P")


@dataclass(frozen=True)
class Chunk:
    """The steps from `start` up to `stop`, just dispatched; `run.state` comes after."""

    run: Run
    start: int
    stop: int
    rows: Rows

    @property
    def metrics(self) -> dict[str, Num[np.ndarray, " steps"]]:
        """Every metric of each of these steps. Reading them waits for the device."""
        return self.rows.columns(self.stop - self.start)


def steps(
    state: TrainState,
    loss_fn: LossFn,
    data: Any,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    run_dir: str | Path | None = None,
    evaluation: Any = None,
    hooks: Sequence[Hook] = (),
    checkpoints: Checkpoints | None = None,
    nonfinite: Literal["stop", "skip", "rollback"] = "stop",
    max_seconds: float | None = None,
    log_every: int = 100,
    probe_every: int | None = 500,
    chunk_steps: int | None = None,
    progress: bool = True,
    config: Any = None,
) -> Generator[Chunk, None, Run]:
    """As `fit`, for those who want to own the loop: yields each chunk when it was dispatched.

    Everything that `fit` does is done here, between the chunks; `break` leaves it properly, with
    the state saved. Arguments, errors and the run that is returned at the end are those of `fit`.
    """
    deadline = None if max_seconds is None else time.monotonic() + max_seconds
    batches, account = as_batches(data), Account()
    total = total_steps(steps, epochs, batches)
    log_every = _whole("log_every", log_every)
    probe_every = None if probe_every is None else _whole("probe_every", probe_every)
    chunk_steps = None if chunk_steps is None else _whole("chunk_steps", chunk_steps)
    if nonfinite not in NONFINITE:
        raise ConfigError(f"nonfinite is {nonfinite!r}; it must be one of {', '.join(NONFINITE)}")
    if nonfinite == "rollback" and run_dir is None:
        raise ConfigError("nonfinite='rollback' goes back to a checkpoint: give a run_dir")
    with ExitStack() as resources:
        shown = display(total) if progress else Silent()
        resources.callback(shown.close)
        run, store, lock, stop = Run(state), None, None, None
        if run_dir is not None:
            stop = resources.enter_context(PoliteStop(shown.say))
            run.dir = RunDir.create(run_dir)
            run.dir.check(as_mapping(config))  # so that what is refused is not even locked
            lock = resources.enter_context(RunLock(run.dir.path, shown.say))
            run.dir.claim(as_mapping(config))
            settings = checkpoints or Checkpoints()
            store = CheckpointStore(run.dir.checkpoints, settings, shown.say)
            resources.enter_context(store)
        session = _Session(
            run=run,
            initial=state,
            loss_fn=loss_fn,
            batches=batches,
            total=total,
            evaluation=evaluation,
            hooks=hooks,
            store=store,
            nonfinite=nonfinite,
            lock=lock,
            stop=stop,
            deadline=deadline,
            log_every=log_every,
            probe_every=probe_every,
            chunk_steps=chunk_steps,
            shown=shown,
            account=account,
            train=TrainProgram(loss_fn, batches, account, skip=nonfinite == "skip"),
            probe=probe_program(loss_fn, batches, account),
        )
        going = True
        while going:
            try:
                yield from _chunks(session)
                going = False
            except NonFiniteError as error:
                if store is not None:
                    with suppress(LoopaxError):  # What is just being saved may be as bad.
                        store.wait()
                if nonfinite != "rollback" or run.rollbacks == ROLLBACKS:
                    _explain(session, error)
                    raise
                if isinstance(error.__context__, GeneratorExit):
                    return run  # The caller has left; the next start goes back by itself.
                run.rollbacks += 1
                shown.say(f"{error}; going back, time {run.rollbacks} of {ROLLBACKS}")
    if stop is not None and stop.received is not None:
        raise Stopped(stop.received, run.step)
    return run


@dataclass(frozen=True, kw_only=True)
class _Session:
    """What stays the same while a run is trained, also when it goes back and tries again."""

    run: Run
    initial: TrainState
    loss_fn: LossFn
    batches: Batches
    total: int
    evaluation: Any
    hooks: Sequence[Hook]
    store: CheckpointStore | None
    nonfinite: str
    lock: RunLock | None
    stop: PoliteStop | None
    deadline: float | None
    log_every: int
    probe_every: int | None
    chunk_steps: int | None
    shown: Display
    account: Account
    train: TrainProgram
    probe: Callable[..., Any]

    def is_over(self, turn_seconds: float) -> bool:
        """Whether a signal asks to stop, or the time left is too short for a turn and a save.

        Raises:
            RunInUseError: another process has taken the run directory over.
        """
        if self.lock is not None:
            self.lock.check()
        if self.stop is not None and self.stop.received is not None:
            return True
        save_seconds = 0.0 if self.store is None else 2 * self.store.seconds
        end = time.monotonic() + turn_seconds + save_seconds
        return self.deadline is not None and end >= self.deadline


def _chunks(session: _Session) -> Generator[Chunk, None, None]:
    """Trains from the newest checkpoint until all is done, or a signal or the time ends it."""
    run, batches, total = session.run, session.batches, session.total
    store, account, shown = session.store, session.account, session.shown
    tail = _resume(session)
    if run.step >= total:
        shown.say(f"{_name(run)}: finished, {run.step:,} of {total:,} steps are done")
        return
    if run.step:
        shown.say(f"{_name(run)}: continuing at step {run.step:,} of {total:,}")
    shown.begin(run.step)
    with ExitStack() as resources:
        recorder = Recorder(run.history, shown, account, session.log_every, batches.steps_per_epoch)
        recorder.resume(run.step, tail)
        _open_writers(session, recorder, resources)
        moments: list[Moment | Saving] = [
            *evaluations(run, session.evaluation, session.loss_fn, recorder, batches, account),
            *(Moment(calling(hook, run, recorder), hook.every) for hook in session.hooks),
        ]
        keeper = None
        if store is not None and session.lock is not None:
            keeper = Saving(run, store, recorder, batches, total, session.lock.check)
            resources.push(keeper.keep_what_was_reached)
            moments.append(keeper)
        resources.enter_context(account.section("host"))
        yield from _turns(session, recorder, moments)
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
        if run.step < total:
            kept = f"; the same command continues {_name(run)}" if store is not None else ""
            shown.say(f"stopped at step {run.step:,} of {total:,}{kept}")


def _turns(
    session: _Session, recorder: Recorder, moments: Sequence[Moment | Saving]
) -> Generator[Chunk, None, None]:
    """The loop itself: chunk after chunk, and between them what is due."""
    run, batches, total, account = session.run, session.batches, session.total, session.account
    marks = [session.log_every, session.probe_every, *(moment.every for moment in moments)]
    shortest = min(mark for mark in marks if mark)
    capacity = session.chunk_steps or min(shortest, CHUNK_STEPS_LIMIT)
    first = step = run.step
    state, items, slowest = run.state, None, CHUNK_SECONDS

    def plan() -> int:
        ends = [total, *((step // mark + 1) * mark for mark in marks if mark)]
        limit = session.chunk_steps or min(capacity, recorder.chunk_limit(CHUNK_SECONDS))
        return min(*(end - step for end in ends), limit)

    with (
        Loader(batches.feed(key_words(state.key), step, capacity)) as loader,
        explaining_memory(session.train, lambda: (run.state, items)),
    ):
        loader.request(plan())
        while step < total and not session.is_over(slowest):
            began = time.monotonic()
            with account.section("data"):
                items, count = loader.take()
            if step == first:
                with account.section("setup"):
                    warn_of_frozen_gradients(
                        session.loss_fn, state, session.train.batch(state, items)
                    )
            with account.section("compute"), jax.transfer_guard("disallow"):
                due = session.probe_every is not None and step % session.probe_every == 0
                norms = session.probe(state, items) if due else None
                state, rows = session.train(state, items)
            start, step = step, step + count
            loader.request(plan())
            recorder.settle()
            recorder.add(start, count, rows, norms)
            # What others are shown is a tree of its own, so that no change to it reaches the loop.
            run.step, run.state = step, jax.tree.map(lambda leaf: leaf, state)
            if step == total:
                recorder.finish(total)
            for moment in moments:
                if moment.is_due(step, total):
                    recorder.settle()
                    with account.section(moment.section):
                        moment.act()
            with account.section("hooks"):
                yield Chunk(run, start, step, rows)
            if start != first:  # which was slow because it was compiled
                slowest = max(slowest, time.monotonic() - began)


def drained(steps: Callable[P, Generator[Chunk, None, Run]]) -> Callable[P, Run]:
    """`fit` is `steps` with nobody looking on."""

    @functools.wraps(steps, assigned=("__module__", "__annotations__"))
    def fit(*args: P.args, **kwargs: P.kwargs) -> Run:
        """Trains `state` on `data` until `steps` or `epochs` are done, and returns the run.

        Args:
            state: where to begin; it is copied and stays usable.
            loss_fn: `(params, batch, rngs) -> loss` or `-> (loss, metrics)`, a pure function; with
                a fourth argument `mutable` it is also given the state's collections and returns
                them as a third value. `rngs` holds the keys of this step by stream name.
            data: `dataset.batches(n)`, or any iterable of batches.
            steps: train until this many steps have been made in all, those of a resumed run
                included.
            epochs: the same as a whole number of passes over the data.
            run_dir: where metrics, checkpoints and provenance go; a run found there is continued,
                exactly. None keeps everything in memory.
            evaluation: an `Evaluation`, or just its data: batches, or batches by name.
            hooks: functions to call between chunks.
            checkpoints: when to save and what to keep, in `run_dir`.
            log_every: steps between logged rows; a row holds the means over these steps.
            probe_every: steps between measurements of `grad_norm` and `update_norm`, each of
                which costs about two more steps. None leaves them out.
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
            Stopped: SIGINT or SIGTERM came; the chunk was finished and everything is saved. It is
                a `SystemExit`, so a program ends with status 130 or 143. A second signal ends it
                at once.
        """
        chunks = steps(*args, **kwargs)
        while True:
            try:
                next(chunks)
            except StopIteration as end:
                return end.value

    fit.__name__ = fit.__qualname__ = "fit"
    return fit


fit = drained(steps)


def _explain(session: _Session, error: NonFiniteError) -> None:
    """Adds to the error where the first bad number came from, found by executing it again."""
    run = session.run
    if run.dir is None:
        return
    session.shown.say(f"{error}; looking for where it came from")
    try:
        replay = Replay(run.dir, session.initial, session.loss_fn, session.batches)
        report = replay.step(replay.culprit(error.step)).report
        run.dir.write_json("autopsy.json", report.to_json())
    except Exception as failure:
        session.shown.say(f"that could not be found out: {failure}")
    else:
        for line in report.lines():
            session.shown.say(line)
        error.add_note(f"step {report.step}: {report.origin}; see {run.dir.path / 'autopsy.json'}")


def _resume(session: _Session) -> dict[str, Any]:
    """Puts the newest checkpoint's state and rows into the run; returns its unlogged rows.

    Raises:
        CheckpointError: there were checkpoints and none is whole, or it was made with other data,
            batches or seed.
    """
    run, store = session.run, session.store
    # Each chunk reuses the memory of the state it is given; the caller's state must stay whole.
    run.state, run.step = jax.tree.map(jnp.copy, session.initial), 0
    meta: dict[str, Any] = {}
    if store is not None and (store.steps or store.damaged):
        run.state, meta = store.restore(run.state)
        _check_same(session, meta)
        run.step = int(meta["step"])
    if run.rollbacks > meta.get("rollbacks", 0):
        run.state = run.state.replace(key=_root_key(session.initial, run.rollbacks))
    run.rollbacks = max(run.rollbacks, meta.get("rollbacks", 0))
    if run.dir is not None:
        run.history[:] = [row for row in run.dir.metrics if row["step"] <= run.step]
        if len(run.history) < meta.get("rows", 0):
            session.shown.say(
                f"{run.dir.metrics_file}: has {len(run.history)} of the {meta['rows']} rows "
                f"logged up to step {run.step:,}; the others are lost"
            )
    return dict(meta.get("tail", {}))


def _check_same(session: _Session, meta: dict[str, Any]) -> None:
    """Whether what the run depends on is as it was when the checkpoint was made."""
    run, store = session.run, session.store
    assert store is not None
    expected = _root_key(session.initial, meta["rollbacks"])
    there = {**meta["data"], "seed": key_words(run.state.key)}
    here = {**session.batches.identity, "seed": key_words(expected)}
    for name in [*there, *here]:
        if there.get(name) != here.get(name):
            raise CheckpointError(
                f"{store.directory}: made with {name} {there.get(name)}, and now it is "
                f"{here.get(name)}; give the same to continue, or name another run directory"
            )
    if changed := changes(meta["numerics"], numerics()):
        session.shown.say(
            f"{_name(run)}: {'; '.join(changed)}; from here on, results may differ in the last "
            "bits from those of an undisturbed run"
        )


def _root_key(initial: TrainState, rollbacks: int) -> Any:
    """The root of randomness and of the data's order, another one after each rollback."""
    return stream(initial.key, f"rollback {rollbacks}") if rollbacks else initial.key


def _open_writers(session: _Session, recorder: Recorder, resources: ExitStack) -> None:
    """Notes this start in the run directory and opens its files at the step it begins with."""
    run = session.run
    if run.dir is None:
        return
    run.dir.note_start(
        run.step,
        key=key_words(run.state.key),
        data=dict(session.batches.identity),
        nonfinite=session.nonfinite,
        log_every=session.log_every,
        probe_every=session.probe_every,
        rollbacks=run.rollbacks,
    )
    timing = [row for row in read_json_lines(run.dir.timing_file) if row["step"] <= run.step]
    lines = JsonLines(run.dir.metrics_file, kept=run.history)
    board = TensorBoard(run.dir.tensorboard, run.step)
    recorder.writers = [lines, board]
    recorder.timing = [JsonLines(run.dir.timing_file, kept=timing), board]
    for writer in {*recorder.writers, *recorder.timing}:
        resources.callback(writer.close)


def total_steps(steps: int | None, epochs: int | None, batches: Batches) -> int:
    """How many steps the run has in all.

    Raises:
        ConfigError: not exactly one of `steps` and `epochs` is a whole number of at least 1.
    """
    if (steps is None) == (epochs is None):
        raise ConfigError("give either steps or epochs, and not both")
    if steps is not None:
        return _whole("steps", steps)
    epochs = _whole("epochs", epochs, "; for a part of an epoch give steps")
    if batches.steps_per_epoch is None:
        raise ConfigError("epochs needs data whose length is known, and this iterable has no len()")
    if batches.steps_per_epoch == 0:
        raise DataError("there is no batch to train on; the data is empty")
    return epochs * batches.steps_per_epoch


def _whole(name: str, value: Any, advice: str = "") -> int:
    """`value` as a count; 2.0 will do, True and "2" will not."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value != int(value) or value < 1:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1{advice}")
    return int(value)


def _name(run: Run) -> str:
    return str(run.dir.path) if run.dir is not None else "the run"
