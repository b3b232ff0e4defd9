"""Checkpoints: saved in the background, whole or not at all, and never restored unverified.

A step is saved by Orbax beside the others, digests of all its files are added, everything is put
on the disk itself, and only then it is renamed to its number. So what carries a number was whole
once, and what differs from its digests was damaged later. Parameters that do not train are saved
in the same way, once, and the steps refer to them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopax import digests, processes
from loopax.compute.state import TrainState
from loopax.errors import LoopaxError, StorageError
from loopax.files import OpenFolder, free_name, remove, storing, sync
from loopax.run import serialization
from loopax.run.checkpoint_reader import (
    DAMAGED,
    FORMAT,
    FROZEN,
    CheckpointReader,
    computing,
    to_stderr,
)
from loopax.run.fingerprint import fingerprint
from loopax.run.retention import Checkpoints, Rank, ranking
from loopax.run.serialization import reason_of

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

SAVING, DELETING = ".saving", ".deleting"
_failed: list[ExitStack] = []
"""What stays quiet where a save failed: TensorStore may tell of the rest of it much later."""


class CheckpointStore(CheckpointReader):
    """Reads the checkpoints of a run and, with `settings`, writes them.

    Use it as a context: leaving it waits until what was being saved is on disk. A damaged step is
    set aside as `damaged-<step>`.

    Attributes:
        directory: where they lie.
        settings: when to save and what to keep; None where it is opened for reading only.
        say: what is told of damage that was passed over.
        seconds: how long the slowest save of a step alone took until it was on the disk.

    Raises:
        CheckpointError: a step is missing, damaged, or does not fit the state.
        StorageError: a step could not be saved; those before it are intact.
    """

    def __init__(
        self,
        directory: str | Path,
        settings: Checkpoints | None = None,
        say: Callable[[str], None] = to_stderr,
    ) -> None:
        """`settings` None opens the checkpoints for reading only; `say` is told what was wrong."""
        super().__init__(directory, say)
        self.settings, self.seconds = settings, 0.0
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="loopax-checkpoint")
        self._saving: Future[None] | None = None
        self._folder: OpenFolder | None = None
        self._quiet, self._has_failed = ExitStack(), False
        if settings is not None:
            processes.by_one("checkpoints", self._prepare)

    def __enter__(self) -> CheckpointStore:
        if self.settings is not None:
            self._quiet.enter_context(serialization.quiet())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except LoopaxError as error:
            if kind is None:
                raise
            self.say(str(error))
        finally:
            self._worker.shutdown()
            if self._has_failed:
                _failed.append(self._quiet.pop_all())
            self._quiet.close()

    def _prepare(self) -> None:
        with storing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        for name in (SAVING, DELETING):  # of a save or a deletion that was cut short
            remove(self.directory / name)

    def agreed(self) -> int | None:
        """The newest whole step, which one process has checked for all; None where there is none.

        Raises:
            CheckpointError: there were some, and none is whole.
        """
        some = bool(self.steps or self.damaged)
        step = processes.by_one("step", lambda: self.step_of() if some else None)
        if step is not None and not processes.is_writer():
            self.believe(step)
        return step

    def save(
        self,
        state: TrainState,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts to save `state`; only copying it holds the caller up, or a save still going on.

        Args:
            state: what to save.
            meta: what belongs to this step and is not in the state, `step` at least.
            metrics: by these the best is found.
            check: called in the background; what it raises, `wait` raises, and nothing is saved.

        Raises:
            ConfigError: two leaves would be stored under the same name.
            StorageError: it could not be saved, or the one before.
        """
        assert self.settings is not None, "opened for reading"
        serialization.check_leaves(state)
        self.wait()
        step, best = int(meta["step"]), self.settings.best
        if best == "auto":
            best = ranking(self.settings, [name.rpartition("/")[0] for name in metrics]).best
        rank: Rank = {}
        if best is not None and math.isfinite(metrics.get(best, math.nan)):
            rank = {"metric": best, "mode": self.settings.mode, "value": metrics[best]}
        own = {"format": FORMAT, "step": step, "rank": rank, "frozen": "", **computing(state)}
        contents = self._parted(state, {**meta, **own})
        begun = time.monotonic()
        processes.by_one("folder", lambda: self._open_folder(step))
        # Several processes can meet in a folder only by its name.
        inside = self.directory / SAVING
        if self._folder is not None and processes.count() == 1:
            inside = self._folder.inside
        try:
            writing = [
                serialization.begin(inside / name, tree, meta)
                for name, (tree, meta) in contents.items()
            ]
        except Exception as error:
            self._remove_folder(failed=True)
            raise self._failure(step, error) from error
        metas = {name: meta for name, (_, meta) in contents.items()}
        self._saving = self._worker.submit(self._commit, step, writing, metas, check, begun)

    def _open_folder(self, step: int) -> None:
        with self._failing(step):
            # Not with the folders above it, which may be those of a run that was removed.
            self._folder = OpenFolder(self.directory / SAVING)

    def _remove_folder(self, *, failed: bool) -> None:
        self._has_failed |= failed
        if self._folder is not None:
            self._folder.remove(failed=failed)

    def _parted(self, state: TrainState, meta: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """What is to be written, by name, with its meta: a step, and before it what it refers to.

        Where other frozen parameters lie there than those of `state`, the step has its own.
        """
        step, frozen = str(meta["step"]), {}
        if isinstance(state, TrainState):
            frozen = {"frozen": state.frozen}
        if serialization.is_empty(frozen):
            return {step: (state, meta)}
        lean = state.replace(frozen=None), {**meta, "frozen": fingerprint(frozen)}
        there = processes.by_one("frozen", self._frozen_there)
        if there is not None:
            return {step: lean if there == lean[1]["frozen"] else (state, meta)}
        return {FROZEN: (frozen, {**lean[1], "rank": {}}), step: lean}

    def _frozen_there(self) -> str | None:
        """The fingerprint of the frozen parameters that lie there; None if not whole."""
        if not os.path.lexists(self.directory / FROZEN):
            return None
        if wrong := self._damage(FROZEN):
            self.say(f"{self.directory / FROZEN}: {wrong}; saved again")
            return None
        return str(self._metas[FROZEN]["frozen"])

    @property
    def is_saving(self) -> bool:
        """Whether a save is still going on."""
        return self._saving is not None and not self._saving.done()

    @property
    def has_settled(self) -> bool:
        """Whether the last save has come to an end, good or bad; `wait` tells which."""
        return self._saving is not None and self._saving.done()

    def wait(self) -> None:
        """Returns when what was being saved is on disk; raises if that failed."""
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        saving.result()

    def _commit(
        self,
        step: int,
        writing: list[ocp.AsyncCheckpointer],
        metas: Mapping[str, dict[str, Any]],
        check: Callable[[], None],
        begun: float,
    ) -> None:
        """Runs in the background: completes a save, names what it made, deletes what is old."""

        def complete() -> None:
            with self._failing(step):
                for orbax in writing:
                    orbax.wait_until_finished()
                check()

        def seal() -> None:
            with self._failing(step):
                self._seal(metas)

        try:
            processes.by_all("written", complete)
            processes.by_one("sealed", seal)
        except BaseException:
            self._remove_folder(failed=True)
            raise
        self._remove_folder(failed=False)
        if FROZEN not in metas:  # which happens once
            self.seconds = max(self.seconds, time.monotonic() - begun)

    def _seal(self, metas: Mapping[str, dict[str, Any]]) -> None:
        """Names what was written and deletes what is old; in one process."""
        for name, meta in metas.items():  # a step after what it refers to
            path, target = self.directory / SAVING / name, self.directory / name
            digests.seal(path)
            stamp = digests.stamp(path)
            if target.exists() or target.is_symlink():
                self._aside(name)
            path.rename(target)
            sync(self.directory)
            self._metas[name], self._stamps[name] = meta, stamp
        try:
            self._prune()
        except OSError as error:
            self.say(f"{self.directory}: old steps cannot be deleted ({reason_of(error)})")

    def _prune(self) -> None:
        assert self.settings is not None
        steps = list(filter(self._is_whole, self.steps))
        kept = {*steps[-self.settings.keep :], self._best(steps)}
        for name in [str(step) for step in steps if step not in kept]:
            # A rename first: what is half deleted has no number any more.
            doomed = self.directory / DELETING / name
            doomed.parent.mkdir(exist_ok=True)
            remove(doomed)
            (self.directory / name).rename(doomed)
            del self._metas[name]
        remove(self.directory / DELETING)

    def _passed_over(self, name: str) -> str:
        if self.settings is None:
            return super()._passed_over(name)
        return f"kept as {self._aside(name)}"

    def _aside(self, name: str) -> str:
        """Moves a folder out of the way, where it is neither used nor deleted."""
        self._metas.pop(name, None)
        aside = free_name(self.directory / f"{DAMAGED}-{name}")
        (self.directory / name).rename(aside)
        return aside.name

    @contextmanager
    def _failing(self, step: int) -> Iterator[None]:
        """What goes wrong is told of the step that is being saved."""
        try:
            yield
        except LoopaxError:
            raise
        except Exception as error:
            raise self._failure(step, error) from error

    def _failure(self, step: int, error: BaseException) -> StorageError:
        return StorageError(
            f"{self.directory}: the checkpoint of step {step} could not be saved: "
            f"{reason_of(error)}; those before it are intact"
        )
