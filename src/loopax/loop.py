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
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from loopax.account import Account, summary
from loopax.accumulation import check_accumulation
from loopax.batches.base import Batches
from loopax.batches.loader import Loader
from loopax.checkpoint import CheckpointStore
from loopax.chunks import Chunk, run_name
from loopax.environment import changes, numerics
from loopax.errors import (
    CheckpointError,
    RunDirError,
)
from loopax.history import Extent, History
from loopax.hooks import Hook
from loopax.lock import RunLock
from loopax.memory import explaining_memory
from loopax.moments import Moment, calling, evaluations
from loopax.program import TrainProgram, guarding_transfers
from loopax.progress import Display, Silent, tell
from loopax.randomness import key_words, stream
from loopax.recorder import Recorder, Tail
from loopax.retention import Checkpoints
from loopax.rows import LEARNING_RATE, Rows
from loopax.run import STOPPED, Past, Run
from loopax.saving import Saving
from loopax.signals import PoliteStop
from loopax.soundness import check_sound, flags_of
from loopax.state import TrainState
from loopax.step import LossFn
from loopax.turns import Clock, Plan
from loopax.writers.base import Guarded, Writer, name_of
from loopax.writers.files import RunFiles, TensorBoard

CHUNK_STEPS_LIMIT = 1000
JUMP = 0.5
"""A learning rate that differs by more than this share from that of the step before."""
LEFT = "left.json"
"""Of the run directory: the last chunk that was given to a loop which was left by its caller."""


@dataclass(kw_only=True)
class Session:
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
    look_at: Callable[[TrainState, Any], None]
    shown: Display = field(default_factory=Silent)
    store: CheckpointStore | None = None
    lock: RunLock | None = None
    stop: PoliteStop | None = None
    begun: bool = False
    before: dict[str, float] = field(default_factory=dict)
    left: Chunk | None = None


def trained_chunks(session: Session) -> Generator[Chunk, None, None]:
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
    session: Session, clock: Clock, recorder: Recorder, moments: Sequence[Moment | Saving]
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
                    session.look_at(state, session.train.batch(state, items))
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


def _rates(tail: Tail, run: Run) -> dict[str, float]:
    """The learning rates of the last step that was made."""
    rows = tail.rows or [run.latest("train")]
    return {name: rate for name, rate in rows[-1].items() if name.startswith(LEARNING_RATE)}


def _tell_of_the_horizon(session: Session, step: int, rows: Rows) -> None:
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


def _leave(session: Session, keeper: Saving, kind: type[BaseException] | None, *_: object) -> None:
    """Keeps what was reached when the loop ends early, and the chunk at which its caller left."""
    keeper.keep_what_was_reached(kind)
    if session.left is not None and session.run.dir is not None:
        session.run.dir.write_json(LEFT, session.left.to_json())


def _left(session: Session) -> Chunk | None:
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


def _reason_to_stop(session: Session) -> str | None:
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


def _resume(session: Session) -> Tail:
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
    session: Session, data: Mapping[str, Any], past: Past, before: Mapping[str, Any]
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


def _open_writers(session: Session, recorder: Recorder, resources: ExitStack) -> None:
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
