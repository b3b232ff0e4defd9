"""One start of a run: what is open while it is trained, and the order in which it is closed."""

from __future__ import annotations

import os
import platform
from contextlib import ExitStack
from typing import Any

from loopax import processes
from loopax.account import Account, summary, waiting
from loopax.compute.accumulation import check_accumulation
from loopax.compute.memory import nbytes
from loopax.compute.soundness import check_sound, flags_of
from loopax.environment import numerics, versions
from loopax.errors import ConfigError
from loopax.paths import forms
from loopax.placement import Placement
from loopax.randomness import key_words
from loopax.run.checkpoint import CheckpointStore
from loopax.run.chunks import Chunk
from loopax.run.directory import RunDir
from loopax.run.display import Display, Quiet, display, tell
from loopax.run.fingerprint import fingerprint
from loopax.run.history import History
from loopax.run.lock import RunLock
from loopax.run.logs import RunFiles, TensorBoard
from loopax.run.recorder import Recorder
from loopax.run.resumption import LEFT, learning_rates, left_chunk, restore
from loopax.run.run import Run
from loopax.run.saving import Saving
from loopax.run.settings import Settings
from loopax.run.signals import PoliteStop
from loopax.run.turns import Clock
from loopax.run.writers import Guarded, Writer, name_of

WHOLE_SHARE = 0.1
"""Of a state that is to be divided; where more is left whole on each device, that is said."""


class Attempt:
    """A start of a run, entered where its newest checkpoint is restored.

    Entering opens the display, the signals, the lock of the run directory and its checkpoints;
    `begin` opens the log files and the other writers, and what saves. They are closed in the
    reverse order, after `leave` has kept what was reached.

    Attributes:
        run: what is trained.
        left: the chunk at which an earlier start was left, where this one begins with its step.
        given: the chunk that the caller of the loop has now; None while the loop itself works.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.run, self.account = settings, Run(settings.state), Account()
        self.shown = Display()
        self.stop = PoliteStop(lambda message: self.shown.say(message), settings.signals)
        self.store: CheckpointStore | None = None
        self.lock: RunLock | None = None
        self.keeper: Saving | None = None
        self.left: Chunk | None = None
        self.given: Chunk | None = None
        self._opened, self._process = ExitStack(), os.getpid()
        self._is_begun = self._is_finished = False

    def __enter__(self) -> Attempt:
        settings, run = self.settings, self.run
        with ExitStack() as opened:
            if not processes.is_writer():
                self.shown = Quiet()
            elif settings.progress:
                self.shown = display(settings.total)
            opened.callback(self.shown.close)
            say = self.shown.say
            opened.enter_context(self.stop)
            processes.begin()
            if processes.count() > 1:
                processes.same(_of_all(settings))
            if settings.run_dir is not None:
                _check_together(settings.run_dir)
                run.dir = RunDir(settings.run_dir)
                processes.by_one("opening", lambda: self._claim(opened))
                processes.by_all("seen", run.dir.check_seen)
                store = CheckpointStore(run.dir.checkpoints, settings.checkpoints, say)
                self.store = opened.enter_context(store)
            self._tail = restore(run, self.store, settings, self.shown)
            self.left = left_chunk(run, say)
            self._opened = opened.pop_all()
        return self

    def _claim(self, opened: ExitStack) -> None:
        """Makes the run directory this run's; in one process."""
        settings, say = self.settings, self.shown.say
        directory = RunDir.create(str(settings.run_dir), say)
        directory.check(settings.config)  # what is refused is not even locked
        self.lock = opened.enter_context(RunLock(directory.path, say))
        directory.claim(settings.config)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._process == os.getpid():  # and not in a forked child, which owns nothing
            self._opened.__exit__(kind, error, trace)

    def begin(self) -> None:
        """Opens what only a run that goes on needs: its log, the other writers, its saves.

        Raises:
            ConfigError: some parameters would end without a single update.
            StorageError: the log cannot be written.
        """
        settings, run = self.settings, self.run
        unused = check_accumulation(run.state, settings.total - run.step)
        if run.step:
            self.shown.say(f"{run.name}: continuing at step {run.step:,} of {settings.total:,}")
        if devices := settings.placement.told():
            self.shown.say(f"{run.name}: {devices}")
        if whole := _left_whole(settings.placement, run.state):
            tell(self.shown, f"{run.name}: {whole}")
        if unused is not None:
            tell(self.shown, unused)
        self.shown.begin(run.step)
        self.first, self.rates = run.step, learning_rates(run, self._tail)
        if self._tail.rows:
            # The row of an interval that was cut short makes place for the whole one.
            short = {"step": run.step, "source": "train"}
            kept = [row for row in run.history.rows if not short.items() <= row.items()]
            run.history = History(kept, run.history.past)
        self.clock = Clock(
            settings.began,
            settings.max_seconds,
            settings.chunk_steps,
            self.store,
            self.lock,
            self.stop,
        )
        per_epoch = settings.batches.steps_per_epoch
        self.recorder = Recorder(
            run.history, self.shown, self.account, self.clock, settings.log_every, per_epoch
        )
        self.recorder.resume(run.step, self._tail)
        processes.by_one("log", self._open_writers)
        if self.store is not None:
            self.keeper = Saving(
                run,
                self.store,
                self.recorder,
                settings.batches,
                settings.total,
                self.clock,
                self._check_lock,
            )
        self._opened.enter_context(self.account.section("host"))
        self._is_begun = True

    def _check_lock(self) -> None:
        """Makes sure that the run directory is still this run's; it is held by one process."""
        if self.lock is not None:
            self.lock.check()

    def _open_writers(self) -> None:
        """Notes this start in the run directory and opens its files at the step it begins with."""
        run, settings, warn = self.run, self.settings, self.recorder.warn
        writers: list[Writer] = [Guarded(writer, warn) for writer in settings.writers]
        if run.dir is not None:
            run.dir.note_start(
                run.step,
                self.shown.say,
                key=key_words(run.state.key),
                data=dict(settings.batches.identity),
                total=settings.total,
                nonfinite=settings.nonfinite,
                log_every=settings.log_every,
                probe_every=settings.probe_every,
                writers=[name_of(writer) for writer in settings.writers],
                numerics=numerics(str(settings.placement)),
            )
            writers = [RunFiles(self.shown.say), Guarded(TensorBoard(), warn), *writers]
        for writer in writers:
            writer.open(run, run.step)
            self._opened.callback(writer.close)
            self.recorder.writers.append(writer)

    def finish(self) -> None:
        """Reads, saves and tells what was reached when the loop came to its end, or was stopped.

        Raises:
            NonFiniteError: the newest numbers are bad.
            StorageError: they cannot be written.
        """
        run, total, say = self.run, self.settings.total, self.shown.say
        self.recorder.finish(run.step)
        with self.account.section("checkpoint"):
            if self.keeper is not None:
                self.keeper.finish()
            else:
                check_sound(flags_of(run.state), run.step)
        self._is_finished = True
        run.account = self.account.report()
        if run.dir is not None:
            directory = run.dir
            processes.by_one("end", lambda: directory.write_json("account.json", run.account))
        say(summary(run.account))
        if waited := waiting(run.account):
            say(f"{run.name}: {waited}")
        if run.stopped is not None:
            say(f"ended at step {run.step:,} of {total:,}: {run.stopped}")
        elif run.step < total:
            kept = f"; the same command continues {run.name}" if self.keeper is not None else ""
            say(f"stopped at step {run.step:,} of {total:,}{kept}")
        if self.first + 1 == run.step < total and (over := self.clock.seconds_over()) > 0:
            tell(
                self.shown,
                f"max_seconds = {self.settings.max_seconds:g} is too short for a step and a save; "
                f"one step was made, and it ended {over:.1f} s later",
            )

    def leave(self, error: BaseException | None) -> None:
        """Keeps what was reached when the loop ended early: by its caller, or by an error.

        The chunk at which its caller left is kept too, for the next start to give it again.

        Raises:
            NonFiniteError: the newest numbers are bad, and nothing else had ended the loop.
            StorageError: they cannot be written, and nothing else had ended the loop.
        """
        forked = self._process != os.getpid()
        if forked or not self._is_begun or self._is_finished or self.keeper is None:
            return
        if error is not None and processes.count() > 1:
            return  # The others may be elsewhere, and a save is made by all.
        self.keeper.leave(error)
        if self.given is not None and self.run.dir is not None and processes.is_writer():
            self.run.dir.write_json(LEFT, self.given.to_json())


def _check_together(run_dir: Any) -> None:
    """Whether what is trained can be saved: Orbax refuses what one of several processes has alone.

    Raises:
        ConfigError: the others are not here.
    """
    if processes.is_alone():
        raise ConfigError(
            f"run_dir is {run_dir}, and process 0 trains by itself while the others wait, of which "
            "nothing can be saved; leave run_dir out"
        )


def _left_whole(placement: Placement, state: Any) -> str:
    """What of a state each device holds whole although it is to be divided, where that is much."""
    whole = placement.left_whole(state)
    share = nbytes(whole) / max(1, nbytes(state))
    if share < WHOLE_SHARE:
        return ""
    path = max(whole, key=lambda path: whole[path].nbytes)
    return (
        f"mesh is {placement}, and fsdp divides no axis of {path} {whole[path].shape}; each device "
        f"holds {share:.0%} of the state whole"
    )


def _of_all(settings: Settings) -> dict[str, Any]:
    """What must be the same in all processes of a run, or they would wait for each other."""
    evaluation = settings.evaluation
    measured = {} if evaluation is None else evaluation.parts
    parts = {name: dict(batches.content) for name, batches in measured.items()}
    return {
        "the Python": platform.python_version(),
        "the versions": versions(),
        "the run directory": settings.run_dir,
        "config": dict(settings.config),
        "mesh": settings.placement,
        "the seed": key_words(settings.state.key),
        "the state": forms(settings.state),
        "the values of the state": fingerprint(settings.state)[:16],
        "the data": dict(settings.batches.content),
        "the length of the run": settings.total,
        "log_every": settings.log_every,
        "probe_every": settings.probe_every,
        "nonfinite": settings.nonfinite,
        "checkpoints": settings.checkpoints,
        "evaluation": None if evaluation is None else (parts, evaluation.every),
        "the hooks": [hook.every for hook in settings.hooks],
    }
