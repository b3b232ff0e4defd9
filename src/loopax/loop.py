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
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from typing import Any

import jax

from loopax import processes
from loopax.batches.loader import Loader
from loopax.compute.losses import LossFn
from loopax.compute.memory import explaining_memory
from loopax.compute.program import TrainProgram, guarding_transfers
from loopax.compute.rows import Rows
from loopax.compute.state import TrainState
from loopax.compute.step import OwnStep
from loopax.randomness import key_words
from loopax.run.attempt import Attempt
from loopax.run.chunks import Chunk
from loopax.run.display import tell
from loopax.run.moments import Moment, calling, check_not_set, evaluations
from loopax.run.profiling import Profile
from loopax.run.resumption import horizon, reason_to_stop
from loopax.run.run import STOPPED
from loopax.run.saving import Saving
from loopax.run.turns import Plan

CHUNK_STEPS_LIMIT = 1000

Look = Callable[[LossFn, TrainState, Any], None]
"""Is shown the loss, the state and the form of the first batch, when a first step was made."""


def trained(attempt: Attempt, look: Look) -> Generator[Chunk, None, None]:
    """Trains from where the attempt begins until all is done, or a signal or the time ends it."""
    run, say = attempt.run, attempt.shown.say
    if (left := attempt.left) is not None:
        say(f"{run.name}: was left at step {run.step:,}; the same chunk is given again")
        yield left
    if _is_done(attempt):
        return
    attempt.begin()
    yield from _turns(attempt, look)
    attempt.finish()


def _is_done(attempt: Attempt) -> bool:
    """Whether nothing is left to train, which is said."""
    run, total, say = attempt.run, attempt.settings.total, attempt.shown.say
    if (reason := reason_to_stop(run, say)) is not None:
        run.stopped = reason
        say(
            f"{run.name}: ended at step {run.step:,} of {total:,}: {reason} (without "
            f"{STOPPED} it would go on)"
        )
        return True
    done = f"{run.name}: finished, {run.step:,} of {total:,} steps are done"
    if run.step == total:
        say(done)
    elif run.step > total:
        tell(attempt.shown, f"{done}; nothing is taken back, this is the run as it was at its end")
    return run.step >= total


def _turns(attempt: Attempt, look: Look) -> Generator[Chunk, None, None]:
    """Chunk after chunk, and between them what is due."""
    run, settings, account = attempt.run, attempt.settings, attempt.account
    clock, recorder, placement = attempt.clock, attempt.recorder, settings.placement
    loss_fn, batches, total = settings.loss_fn, settings.batches, settings.total
    train = TrainProgram(loss_fn, batches, account, placement, skip=settings.nonfinite == "skip")
    profile = Profile(run, settings.profile, attempt.shown.say)
    moments: list[Moment | Saving | Profile] = [
        *evaluations(run, settings.evaluation, loss_fn, recorder, batches, account, placement),
        *(Moment(calling(hook, run, recorder), hook.every) for hook in settings.hooks),
        *([] if attempt.keeper is None else [attempt.keeper]),
        profile,
    ]
    plan = _planned(attempt, moments, profile.steps)
    first = step = run.step
    state, items = run.state, None
    opening: Rows | None = None

    feed = batches.feed_from(key_words(state.key), step, plan.capacity, run.position)
    loader = Loader(feed, placement, steps=total - step, threaded=batches.threaded)
    with loader, profile:

        def explaining() -> Any:
            return explaining_memory(train, lambda: (run.state, items))

        with account.section("setup"):
            loader.request(plan.length(step, clock.limit()))
        while step < total and run.stopped is None:
            turn = clock.decide()
            if turn.stop:
                break
            with explaining():
                # What the first batches take says nothing of those after them.
                with account.section("data" if step > first else "setup"):
                    try:
                        items, count = loader.take()
                    except Exception:
                        # A signal to all, as Ctrl-C is, has ended the processes that read, too.
                        if attempt.stop.received is None or processes.count() > 1:
                            raise
                        break
                    items.check_same("steps", step, count)
                if step == first and isinstance(loss_fn, OwnStep):
                    with account.section("setup"):
                        loss_fn.check(state, train.batch(state, items))
                with account.section("compute"), guarding_transfers():
                    norms = train.probe(state, items) if plan.is_probed(step) else None
                    state, rows = train(state, items)
            start, step = step, step + count
            examples = functools.partial(train.examples, items)
            recorder.add(start, count, rows, norms, examples)
            # What others are shown is a tree of its own, so that no change to it reaches the loop.
            shown = jax.tree.map(lambda leaf: leaf, state)
            run.step, run.state, run.measured = step, shown, {}
            run.position = items.position
            with account.section("data"):
                loader.request(plan.length(step, turn.limit))
            with explaining():
                recorder.settle(but=1)
            if opening is not None:
                _tell_of_the_horizon(attempt, opening)
            opening = rows if start == first and first else None
            if step == total:
                recorder.finish(total)
            for moment in moments:
                if moment.is_due(step, total, turn):
                    recorder.settle()
                    hooks = moment.section == "hooks"
                    with account.section(moment.section), nullcontext() if hooks else explaining():
                        moment.act()
            attempt.given = Chunk(run, start, step, functools.partial(rows.columns, count))
            with account.section("hooks"):
                yield attempt.given
            attempt.given = None
            check_not_set(run, shown, "the program")
            # Not before whoever looks at the first step has seen it: that would wait for all this.
            if start == first:
                if plan.has_probe_after(start):
                    train.prepare_probe(state, items)
                if not isinstance(loss_fn, OwnStep):
                    look(loss_fn, state, train.batch(state, items))


def _planned(
    attempt: Attempt, moments: Sequence[Moment | Saving | Profile], stops: Sequence[int]
) -> Plan:
    """Where chunks end: wherever a moment may be due; rows are logged in the midst of a chunk."""
    settings = attempt.settings
    marks = [moment.every for moment in moments if moment.every]
    shortest = min(*marks, settings.probe_every or math.inf, CHUNK_STEPS_LIMIT)
    capacity = settings.chunk_steps or int(shortest)
    return Plan(settings.total, marks, settings.probe_every, capacity, stops)


def _tell_of_the_horizon(attempt: Attempt, opening: Rows) -> None:
    """Says when a run goes on to another end than before, and when its learning rate jumps."""
    total = attempt.settings.total
    said, is_loud = horizon(attempt.run, attempt.first, total, attempt.rates, opening)
    if is_loud:
        tell(attempt.shown, said)
    elif said:
        attempt.shown.say(said)
