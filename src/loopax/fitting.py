"""`fit` and `training`: a run is opened, trained and left; what failed is explained.

The loop itself is in `loop`; this stands above it, and above what looks at a step that failed.
"""

from __future__ import annotations

import functools
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from typing import Any, Literal

import jax

from loopax import processes
from loopax.compute.losses import LossFn
from loopax.diagnose.frozen import warn_of_frozen_gradients
from loopax.diagnose.replay import Replay
from loopax.errors import ConfigError, LoopaxError, NonFiniteError, Stopped
from loopax.loop import trained
from loopax.placement import Placement
from loopax.run.attempt import Attempt
from loopax.run.directory import RunDir
from loopax.run.display import tell
from loopax.run.hooks import Hook
from loopax.run.retention import Checkpoints
from loopax.run.run import Run
from loopax.run.settings import Settings
from loopax.run.signals import is_interactive
from loopax.run.writers import Writer


def fit(
    state: Any,
    loss_fn: LossFn | None = None,
    data: Any = None,
    *,
    step: Callable[..., Any] | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    evaluation: Any = None,
    hooks: Sequence[Hook | Callable[[Run], Any]] | Hook | Callable[[Run], Any] = (),
    writers: Sequence[Writer] = (),
    checkpoints: Checkpoints | None = None,
    nonfinite: Literal["stop", "skip"] = "stop",
    max_seconds: float | None = None,
    log_every: int = 100,
    probe_every: int | None = 500,
    chunk_steps: int | None = None,
    mesh: Any = None,
    sharding: Mapping[str, Any] | None = None,
    signals: bool | None = None,
    progress: bool = True,
    profile: str | tuple[int, int] | None = None,
    config: Any = None,
) -> Run:
    """Trains `state` on `data` until `steps` or `epochs` are done, and returns the run.

    Args:
        state: where to begin; it is copied and stays usable. A `TrainState`, or with `step` any
            registered PyTree that has the fields `step` (`jnp.int32(0)`) and `key`.
        loss_fn: `(params, batch, rngs) -> loss` or `-> (loss, metrics)`, a pure function. Of a
            state with a `model_state` it is `(params, batch, rngs, model_state) -> (loss,
            metrics, model_state)`. `rngs` holds the keys of this step by stream name, and
            `rngs.training` is False in an evaluation. A metric `weight` says how many things the
            loss and the metrics of a batch are means over, and weighs them in what is logged.
        data: `dataset.batches(n)`, or any iterable of batches.
        step: instead of `loss_fn` a whole step of one's own, a pure function
            `(state, batch, rngs) -> (state, metrics)`; it must give `step + 1`. A metric called
            `loss` is looked at for bad numbers. An evaluation then needs its own `loss_fn`.
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
            source `probe`, each of which costs about two more steps. None leaves them out; a `step`
            of one's own returns its norms among its metrics.
        nonfinite: what to do when the loss, or the state after an update, is not finite:
            `stop` with the step and an account of where the first such value came from, or
            `skip` the update, count it, and go on with the next batch (the loop then checks
            every update, which slows small steps down).
        max_seconds: save and return when this long has passed since the call, or so much
            that another turn and a save would not fit.
        chunk_steps: steps in one dispatch; by default as many as take about a second, so
            that a run can be stopped within that time. The result does not depend on it.
        profile: the steps that JAX's profiler traces, such as `"100:110"`: those made after 100
            others, up to 110 in all. TensorBoard and Perfetto open the trace, which lies in
            `profile` in the run directory.
        mesh: the devices that train: sizes by axis, such as `"data=2,fsdp=4"`, or a
            `jax.sharding.Mesh`. Batches are shared by both axes; parameters, averages and the
            optimiser's state are spread over `fsdp`. By default as many devices as share a batch
            evenly have the axis `data`; a state that lies on a mesh already stays there.
        sharding: how arrays of the state are spread otherwise, such as
            `{"**/mlp/kernel": jax.sharding.PartitionSpec(None, "tensor")}`, by patterns of paths as
            in `frozen`. What an optimiser keeps for a parameter follows it.
        signals: whether a first SIGINT, SIGTERM or SIGHUP lets the chunk end, saves, and raises
            `Stopped`. By default it does in the main thread of a program and not in a notebook,
            where Ctrl-C raises KeyboardInterrupt as usual; what was reached is saved then too.
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
    with _opening(Settings.of(**locals())) as run:
        try:
            for _ in run:
                pass
        except RuntimeError as error:
            # What a generator makes of a StopIteration that a hook or the data raised (PEP 479).
            if isinstance(error.__cause__, StopIteration):
                raise error.__cause__ from None
            raise
    return run


def training(
    state: Any,
    loss_fn: LossFn | None = None,
    data: Any = None,
    *,
    step: Callable[..., Any] | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    evaluation: Any = None,
    hooks: Sequence[Hook | Callable[[Run], Any]] | Hook | Callable[[Run], Any] = (),
    writers: Sequence[Writer] = (),
    checkpoints: Checkpoints | None = None,
    nonfinite: Literal["stop", "skip"] = "stop",
    max_seconds: float | None = None,
    log_every: int = 100,
    probe_every: int | None = 500,
    chunk_steps: int | None = None,
    mesh: Any = None,
    sharding: Mapping[str, Any] | None = None,
    signals: bool | None = None,
    progress: bool = True,
    profile: str | tuple[int, int] | None = None,
    config: Any = None,
) -> AbstractContextManager[Run]:
    """As `fit`, for those who want to own the loop: iterating over the run trains it.

        with loopax.training(state, loss_fn, data, epochs=10, run_dir="runs/mine") as run:
            for chunk in run:
                if chunk.metrics["accuracy"].mean() > 0.97:
                    break

    Each `Chunk` is given when it was dispatched, and everything that `fit` does is done between
    two of them. However the block is left, by `break`, by an exception or by Ctrl-C, the state is
    saved and the run directory is free afterwards; an exception brings the run along as `run`.

    The chunk at which it was left is saved too: when the same program is started again it is given
    that chunk first, so that what made it leave makes it leave again, and a program that was only
    interrupted goes on from there.

    Arguments and errors are those of `fit`; arguments are checked at the call.
    """
    return _opening(Settings.of(**locals()))


@contextmanager
def opened(settings: Settings) -> Iterator[Run]:
    """The run that these settings make or continue; iterating over it trains."""
    attempt = Attempt(settings)
    run, stop = attempt.run, attempt.stop
    try:
        with attempt:
            try:
                try:
                    with closing(trained(attempt, warn_of_frozen_gradients)) as run.chunks:
                        yield run
                except BaseException as error:
                    attempt.leave(error)
                    raise
                attempt.leave(None)
            except NonFiniteError as error:
                if getattr(error, "run", None) is None:  # as it is not inside of another run
                    _explain(attempt, error)
                raise
        if stop.received == signal.SIGINT and is_interactive():
            tell(attempt.shown, f"{run.name}: interrupted; it is saved at step {run.step:,}")
        elif stop.received is not None:
            raise Stopped(stop.received, run.step)
    except BaseException as error:
        if getattr(error, "run", None) is None:
            # No exception declares this attribute, and some cannot be given one.
            with suppress(Exception):
                error.run = run  # type: ignore[attr-defined]
        if not isinstance(error, Stopped):
            processes.failed(error)
        raise


Opening = Callable[[Settings], AbstractContextManager[Run]]
_opening: Opening = opened


def observe(observer: Callable[[Opening, Settings], AbstractContextManager[Run]]) -> None:
    """From now on `observer` opens every run of this process: how `loopax verify` watches it.

    It is given `opened` and the settings of the run, which it may change.
    """
    global _opening
    _opening = functools.partial(observer, opened)


def _explain(attempt: Attempt, error: NonFiniteError) -> None:
    """Adds to the error where the first bad number came from, found by executing it again."""
    run, settings, say = attempt.run, attempt.settings, attempt.shown.say
    if attempt.store is None or run.dir is None:
        return
    with suppress(LoopaxError):  # What is just being saved may be as bad.
        attempt.store.wait()
    say(f"{error}; looking for where it came from")
    directory = run.dir
    try:
        lines = processes.by_one("autopsy", lambda: _autopsy(directory, settings, error.step))
    except Exception as failure:
        say(f"that could not be found out: {failure}")
        return
    for line in lines[1:]:
        say(line)
    error.add_note(lines[0])


def _autopsy(directory: RunDir, settings: Settings, step: int) -> list[str]:
    """Leaves `autopsy.json`; what it says in a line, and then in more."""
    if processes.is_alone() and Placement.of(settings.state).mesh is not None:
        raise ConfigError("the state was given in parts; `loopax replay` looks for it in a process")
    with jax.debug_nans(False), jax.debug_infs(False), warnings.catch_warnings():
        if processes.is_alone():  # and so has fewer devices, which changes the last bits
            warnings.simplefilter("ignore")
        replay = Replay(directory, settings.state, settings.loss_fn, settings.batches)
        report = replay.step(replay.culprit(step)).report
    directory.write_json("autopsy.json", report.to_json())
    short = f"step {report.step}: {report.origin}; see {directory.path / 'autopsy.json'}"
    return [short, *report.lines()]
