"""What a start finds of the starts before it: the newest checkpoint, and how the run was left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from loopax import processes
from loopax.batches.base import Batches
from loopax.compute.rows import LEARNING_RATE, Rows
from loopax.compute.updates import hyperparameters
from loopax.environment import changes, numerics
from loopax.errors import CheckpointError, RunDirError
from loopax.randomness import key_words
from loopax.run.checkpoint import CheckpointStore
from loopax.run.checkpoint_reader import REMAT, computing
from loopax.run.chunks import Chunk
from loopax.run.display import Display, tell
from loopax.run.history import History
from loopax.run.recorder import Tail
from loopax.run.run import STOPPED, Run
from loopax.run.settings import Settings

LEFT = "left.json"
"""Of the run directory: the last chunk that was given to a loop which was left by its caller."""
JUMP = 0.5
"""A learning rate that differs by more than this share from that of the step before."""

Say = Callable[[str], None]
T = TypeVar("T")


def restore(run: Run, store: CheckpointStore | None, settings: Settings, shown: Display) -> Tail:
    """Puts the newest checkpoint's state and rows into the run; returns its unlogged rows.

    Raises:
        CheckpointError: there were checkpoints and none is whole, or it was made with other data,
            batches or seed.
    """
    say = shown.say
    run.state, run.step = settings.placement.put_state(settings.state), 0
    tail, logged = Tail(settings.log_every), 0
    if store is not None and (step := store.agreed()) is not None:
        run.state, meta = store.restore(run.state, step)
        run.step = int(meta["step"])
        try:
            tail, logged = Tail(**meta["recorder"]), int(meta["run"]["rows"])
            data, before = dict(meta["data"]), dict(meta["numerics"])
            run.position = meta.get("position")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{store.directory / str(run.step)}: was saved by no run, which would have left "
                f"what it goes on from ({type(error).__name__}: {error}); begin a new run"
            ) from error
        _check_same(store, settings.batches, data, (run.state.key, settings.state.key))
        now = numerics(str(settings.placement))
        if before:
            before[REMAT], now[REMAT] = meta.get(REMAT), computing(run.state)[REMAT]
        if kept := _kept_by_the_optimiser(settings.state, run.state):
            tell(
                shown,
                f"{run.name}: goes on with {kept}: optax.inject_hyperparams keeps such numbers in "
                "the state; for others begin a new run, or give a schedule",
            )
        if changed := changes(before, now):
            say(
                f"{run.name}: {'; '.join(changed)}; from here on, results may differ in the last "
                "bits from those of an undisturbed run"
            )
    if run.dir is not None:
        run.history = History.up_to(run.step, run.dir.metrics_file)
        if len(run.history) < logged:
            say(
                f"{run.dir.metrics_file}: has {len(run.history)} of the {logged} rows "
                f"logged up to step {run.step:,}; the others are lost"
            )
            run.history = History(run.history)  # the file is made anew, of whole lines
    return tail


def _kept_by_the_optimiser(given: Any, restored: Any) -> str:
    """The constants of the optimiser that are other ones in a checkpoint than now, in words."""
    now, then = (hyperparameters(getattr(state, "opt_state", ())) for state in (given, restored))
    return ", ".join(
        f"the {name} {old:.4g} of the checkpoint and not {new:.4g}"
        for (name, old), (_, new) in zip(then, now, strict=True)
        if old != new
    )


def _check_same(
    store: CheckpointStore, batches: Batches, data: Mapping[str, Any], keys: tuple[Any, Any]
) -> None:
    """Whether data and root key, then and now, are the same."""
    there, here = (
        {**of_data, "seed": key_words(key), "random numbers of": str(jax.random.key_impl(key))}
        for of_data, key in zip((data, batches.identity), keys, strict=True)
    )
    wrong = [
        f"{name} {there.get(name, 'absent')}, and now it is {here.get(name, 'absent')}"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]
    if wrong:
        advice = batches.advice if there.get("data") != here.get("data") else ""
        raise CheckpointError(
            f"{store.directory}: made with {'; made with '.join(wrong)}; give the same to "
            f"continue, or name another run directory{advice}"
        )


def left_chunk(run: Run, say: Say) -> Chunk | None:
    """The chunk at which the loop was left, where its step is the one that was restored."""
    chunk = _kept(run, LEFT, say, lambda stored: Chunk.from_json(run, stored))
    return chunk if chunk is not None and chunk.stop == run.step else None


def reason_to_stop(run: Run, say: Say) -> str | None:
    """Why the run was stopped at the step that was restored; None where it was not."""
    found = _kept(run, STOPPED, say, lambda stored: (stored["step"], str(stored["reason"])))
    reason = found[1] if found is not None and found[0] == run.step else None
    return processes.agree("stopped", reason)


def _kept(run: Run, name: str, say: Say, read: Callable[[Any], T]) -> T | None:
    """What a file of the run directory holds, if it is there and can be read."""
    if run.dir is None or not (run.dir.path / name).exists():
        return None
    try:
        return read(run.dir.read_json(name))
    except (RunDirError, ValueError, TypeError, KeyError, AttributeError):
        say(f"{run.dir.path / name}: cannot be read; passed over")
        return None


def learning_rates(run: Run, tail: Tail) -> dict[str, float]:
    """The learning rates of the last step that was made."""
    rows = tail.rows or [run.latest("train")]
    return {name: rate for name, rate in rows[-1].items() if name.startswith(LEARNING_RATE)}


def horizon(
    run: Run, step: int, total: int, before: Mapping[str, float], first: Rows
) -> tuple[str, bool]:
    """What to say where a run goes on to another end than before, or its learning rate jumps.

    Args:
        run: the run.
        step: where it was resumed.
        total: where it ends now.
        before: the learning rates of the last step before the resumption.
        first: the metrics of the first steps after it.

    Returns:
        One line, or an empty one, and whether it must not go unheard.
    """
    starts = [] if run.dir is None else run.dir.starts[:-1]
    goal = starts[-1].get("total", total) if starts else total
    jumps = [
        f"{name} was {old:.4g} at step {step:,} and is {new:.4g} after it"
        for name, column in first.columns(1).items()
        if (old := before.get(name)) is not None
        if abs(old - (new := float(column[0]))) > JUMP * max(abs(old), abs(new))
    ]
    longer = [] if goal == total else [f"begun for {goal:,} steps and now for {total:,}"]
    if jumps:
        jumps.append("schedules follow the number of steps they are made for")
    said = "; ".join([*longer, *jumps])
    return (f"{run.name}: {said}" if said else ""), bool(jumps)
