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
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from loopax.account import Account, summary
from loopax.checkpoint import Checkpoints, CheckpointStore
from loopax.data.batches import Batches, as_batches
from loopax.data.loader import Loader
from loopax.errors import CheckpointError, ConfigError, DataError
from loopax.moments import Hook, Moment, Saving, calling, evaluations
from loopax.program import Rows, TrainProgram, probe_program
from loopax.progress import Silent, display
from loopax.recorder import Recorder
from loopax.run import Run
from loopax.rundir import RunDir, as_mapping
from loopax.state import TrainState
from loopax.step import LossFn
from loopax.writers import JsonLines, TensorBoard, read_json_lines

CHUNK_SECONDS = 1.0
CHUNK_STEPS_LIMIT = 1000
P = ParamSpec("P")


@dataclass(frozen=True)
class Chunk:
    """The steps from `start` up to `stop`, just dispatched; `run.state` comes after."""

    run: Run
    start: int
    stop: int
    names: tuple[str, ...]
    rows: Rows

    @property
    def metrics(self) -> dict[str, Float[np.ndarray, " steps"]]:
        """Every metric of each of these steps. Reading them waits for the device."""
        rows = jax.device_get(self.rows)[: self.stop - self.start]
        return dict(zip(self.names, rows.T, strict=True))


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
    batches = as_batches(data)
    total = _total_steps(steps, epochs, batches)
    log_every = _whole("log_every", log_every)
    probe_every = None if probe_every is None else _whole("probe_every", probe_every)
    chunk_steps = None if chunk_steps is None else _whole("chunk_steps", chunk_steps)
    account = Account()
    # Each chunk reuses the memory of the state it is given; the caller's state must stay whole.
    run = Run(jax.tree.map(jnp.copy, state))
    saving = checkpoints or Checkpoints()
    with ExitStack() as resources:
        store, tail = None, {}
        if run_dir is not None:
            run.dir = RunDir.create(run_dir)
            run.dir.claim(as_mapping(config))
            store = resources.enter_context(CheckpointStore(run.dir.checkpoints, saving))
            tail = _resume(run, store, batches)
        shown = display(total, run.step) if progress else Silent()
        resources.callback(shown.close)
        if run.step >= total:
            shown.say(f"{run_dir or 'the run'}: finished, {run.step:,} of {total:,} steps are done")
            return run
        if run.step:
            shown.say(f"{run_dir}: continuing at step {run.step:,} of {total:,}")
        recorder = Recorder(run.history, shown, account, log_every, batches.steps_per_epoch)
        recorder.resume(run.step, tail)
        _open_writers(run, recorder, batches, resources)
        moments: list[Moment | Saving] = [
            *evaluations(run, evaluation, loss_fn, recorder, batches, account),
            *(Moment(calling(hook, run, recorder), hook.every) for hook in hooks),
        ]
        if store is not None:
            keeper = Saving(run, store, recorder, batches, saving)
            resources.push(keeper.keep_what_was_reached)
            moments.append(keeper)
        marks = [log_every, probe_every, *(moment.every for moment in moments)]
        shortest = min(mark for mark in marks if mark)
        capacity = chunk_steps or min(shortest, CHUNK_STEPS_LIMIT)
        train = TrainProgram(loss_fn, batches, account)
        probe = probe_program(loss_fn, batches, account)
        feed = batches.feed(_key_words(run.state), run.step, capacity)
        loader = resources.enter_context(Loader(feed))

        step, state = run.step, run.state

        def plan() -> int:
            ends = [total, *((step // mark + 1) * mark for mark in marks if mark)]
            limit = chunk_steps or min(capacity, recorder.chunk_limit(CHUNK_SECONDS))
            return min(*(end - step for end in ends), limit)

        resources.enter_context(account.section("host"))
        loader.request(plan())
        while step < total:
            with account.section("data"):
                items, count = loader.take()
            with account.section("compute"), jax.transfer_guard("disallow"):
                due = probe_every is not None and step % probe_every == 0
                norms = probe(state, items) if due else None
                state, rows = train(state, items)
            start, step = step, step + count
            loader.request(plan())
            recorder.settle()
            recorder.add(start, count, train.names, rows, norms)
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
                yield Chunk(run, start, step, train.names, rows)
        if store is not None:
            with account.section("checkpoint"):
                store.wait()
        run.account = account.report()
        if run.dir is not None:
            run.dir.write_json("account.json", run.account)
        shown.say(summary(run.account))
    return run


def _drained(steps: Callable[P, Generator[Chunk, None, Run]]) -> Callable[P, Run]:
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
            chunk_steps: steps in one dispatch; by default as many as take about a second. The
                result does not depend on it.
            progress: show the run on standard error.
            config: a dataclass or a mapping to keep with the run; a run that was made with
                another one is not continued.

        Raises:
            ConfigError: an argument cannot work, or the run was made with another `config`.
            DataError: the data ended, or is not made of numbers.
            NonFiniteError: the loss became NaN or infinite; it names the step.
            CheckpointError: the checkpoint to continue from does not fit the state or the data.
            RunDirError: the run directory cannot be used.
        """
        chunks = steps(*args, **kwargs)
        while True:
            try:
                next(chunks)
            except StopIteration as end:
                return end.value

    fit.__name__ = fit.__qualname__ = "fit"
    return fit


fit = _drained(steps)


def _resume(run: Run, store: CheckpointStore, batches: Batches) -> dict[str, Any]:
    """Puts the newest checkpoint's state and rows into `run`; returns its unlogged rows.

    Raises:
        CheckpointError: it was made with other data, batches or seed.
    """
    if not store.steps or run.dir is None:
        return {}
    seed = _key_words(run.state)
    run.state, meta = store.restore(run.state)
    there = {**meta["data"], "seed": _key_words(run.state)}
    here = {**batches.identity, "seed": seed}
    for name in [*there, *here]:
        if there.get(name) != here.get(name):
            raise CheckpointError(
                f"{store.directory}: made with {name} {there.get(name)}, and now it is "
                f"{here.get(name)}; give the same to continue, or name another run directory"
            )
    run.step = int(meta["step"])
    run.history[:] = [row for row in run.dir.metrics if row["step"] <= run.step]
    return dict(meta["tail"])


def _open_writers(run: Run, recorder: Recorder, batches: Batches, resources: ExitStack) -> None:
    """Notes this start in the run directory and opens its files at the step it begins with."""
    if run.dir is None:
        return
    run.dir.note_start(run.step, _key_words(run.state), batches.identity)
    timing = [row for row in read_json_lines(run.dir.timing_file) if row["step"] <= run.step]
    lines = JsonLines(run.dir.metrics_file, kept=run.history)
    board = TensorBoard(run.dir.tensorboard, run.step)
    recorder.writers = [lines, board]
    recorder.timing = [JsonLines(run.dir.timing_file, kept=timing), board]
    for writer in {*recorder.writers, *recorder.timing}:
        resources.callback(writer.close)


def _total_steps(steps: int | None, epochs: int | None, batches: Batches) -> int:
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


def _key_words(state: TrainState) -> list[int]:
    """The words of the root key: the seed of the data's order, and a seed one can compare."""
    return [int(word) for word in jax.device_get(jax.random.key_data(state.key)).ravel()]
