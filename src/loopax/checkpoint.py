"""Checkpoints: saved in the background, whole or not at all, and never restored unverified.

A step is saved by Orbax beside the others, digests of all its files are added, everything is put
on the disk itself, and only then it is renamed to its number. So what carries a number was whole
once, and what differs from its digests was damaged later.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from loopax import digests
from loopax.durable import OpenFolder, remove, storing, sync
from loopax.errors import CheckpointError, ConfigError, LoopaxError, StorageError
from loopax.paths import PyTree, differing, form_of, forms, leaf_path, merge, partition
from loopax.retention import Checkpoints, Rank, best_step, checked_rank, ranking
from loopax.state import TrainState
from loopax.updates import eval_params, typed

T = TypeVar("T")

FORMAT = 4
OLDER = {
    2: ", in which averages of parameters, identities of batches and rows meant something else",
    3: ", whose meta was in one piece",
}
SAVING, DELETING, DAMAGED = ".saving", ".deleting", "damaged"

# Orbax keeps parts of what it is doing in globals, and two calls at a time may mix them up. Only
# what is done at once is locked: the background parts of several saves overlap.
_ORBAX = threading.RLock()
# Its limits of time go by the wall clock, which jumps when a machine sleeps, and would end the run.
# With the folders made at once, nothing waits for a signal with a limit that cannot be set either.
_ASYNC = ocp.AsyncOptions(timeout_secs=10**9, create_directories_asynchronously=False)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Orbax prints a traceback for each failed save; what a user must know, we say ourselves.

    Nor does it wait for all parts of a save when one has failed: asyncio complains of these.
    """
    if record.exc_info is None or record.levelno < logging.ERROR:
        return True
    if record.name == "absl":
        return "orbax" not in record.pathname
    trace = record.exc_info[2]
    while trace is not None:
        if "orbax" in trace.tb_frame.f_code.co_filename:
            return False
        trace = trace.tb_next
    return True


def _without_late_news(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """TensorStore tells Orbax's event loop what else failed of a save, when that is closed."""

    def quiet(unraisable: Any) -> None:
        if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    return quiet


@functools.cache
def _say_failures_once() -> None:
    """From the first save of the process on: what else fails of a save may come at any time."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_not_of_orbax)
    sys.unraisablehook = _without_late_news(sys.unraisablehook)


def _to_stderr(message: str) -> None:
    print(f"loopax: {message}", file=sys.stderr)


class CheckpointStore:
    """The checkpoints of one run, plain Orbax inside: `<directory>/<step>/state` and `.../meta`.

    Use it as a context: leaving it waits until what was being saved is on disk.

    Attributes:
        settings: when to save and what to keep; None where it is opened for reading only.
        say: what is told of damage that was passed over.
        seconds: how long the slowest save took until it was on the disk.

    Raises:
        CheckpointError: a step is missing, damaged, or does not fit the state.
        StorageError: a step could not be saved; those before it are intact.
    """

    def __init__(
        self,
        directory: str | Path,
        settings: Checkpoints | None = None,
        say: Callable[[str], None] = _to_stderr,
    ) -> None:
        """`settings` None opens the checkpoints for reading only; `say` is told what was wrong."""
        self.directory = Path(directory).expanduser().absolute()
        self.settings, self.say = settings, say
        # A step with a rank, which may be empty, is known to be whole, as long as its stamp holds.
        self._ranks: dict[int, Rank] = {}
        self._stamps: dict[int, Any] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="loopax-checkpoint")
        self._saving: tuple[int, Future[None]] | None = None
        self._frozen = ""
        self.seconds = 0.0
        if settings is not None:
            with storing(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
            for name in (SAVING, DELETING):  # of a save or a deletion that was cut short
                remove(self.directory / name)

    def __enter__(self) -> CheckpointStore:
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

    @property
    def steps(self) -> list[int]:
        """The steps that lie there, in order."""
        if not self.directory.is_dir():
            return []
        names = [path.name for path in self.directory.iterdir()]
        return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]{0,17}", name))

    @property
    def damaged(self) -> list[str]:
        """The names of the steps that were set aside."""
        names = (path.name for path in self.directory.glob(f"{DAMAGED}-*"))
        return sorted(name for name in names if re.fullmatch(rf"{DAMAGED}-\d+(-\d+)?", name))

    def step_of(self, which: str | int = "latest") -> int:
        """The step that `latest`, `best` or a number names, known to be whole.

        When the latest is damaged it is the one before; a store that is open for writing sets
        damaged ones aside as `damaged-<step>`.

        Raises:
            CheckpointError: there is none, or for `best`: no step was ranked.
        """
        steps = self.steps
        if which in ("latest", "best"):
            newest = self.newest()
            if newest is None:
                left = f"; {', '.join(self.damaged)} cannot be trusted" if self.damaged else ""
                raise CheckpointError(f"{self.directory}: there is no checkpoint here{left}")
            if which == "latest":
                return newest
            best = best_step(sorted(filter(self._is_whole, reversed(steps))), self._ranks)
            if best is None:
                raise CheckpointError(
                    f"{self.directory}: there is no best checkpoint, because nothing was ranked: "
                    "it takes an evaluation and Checkpoints(best=...); name 'latest' or a step"
                )
            return best
        if str(which) not in map(str, steps):
            raise CheckpointError(
                f"{self.directory}: there is no checkpoint of step {which!r}; there are "
                f"{', '.join(map(str, steps)) or 'none'}, latest and best"
            )
        if wrong := self._damage(int(which)):
            raise CheckpointError(f"{self.directory / str(which)}: {wrong}; name another step")
        return int(which)

    def chosen(self, which: str | int = "best") -> int:
        """The step to use a run at: as `step_of`, where the best is the latest if none was ranked.

        `say` is told which it is.
        """
        try:
            step = self.step_of(which)
        except CheckpointError:
            newest = self.newest()
            if which != "best" or newest is None:
                raise
            step, which = newest, "latest (none was ranked)"
        named = "" if str(which) == str(step) else f", the {which}"
        self.say(f"{self.directory.parent}: checkpoint of step {step:,}{named}")
        return step

    def newest(self, limit: float = math.inf) -> int | None:
        """The newest whole step that is not after `limit`, or None."""
        steps = (step for step in reversed(self.steps) if step <= limit)
        return next(filter(self._is_whole, steps), None)

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
        check_leaves(state)
        self.wait()
        step, best = int(meta["step"]), self.settings.best
        if best == "auto":
            best = ranking(self.settings, [name.rpartition("/")[0] for name in metrics]).best
        rank: Rank = {}
        if best is not None and math.isfinite(metrics.get(best, math.nan)):
            rank = {"metric": best, "mode": self.settings.mode, "value": metrics[best]}
        plain = {**meta, "format": FORMAT, "step": step, "rank": rank, "frozen": ""}
        if state.frozen and not self.settings.self_contained:
            # They never change, so that one look at them serves all the saves of a run.
            self._frozen = plain["frozen"] = self._frozen or _digest_of(state.frozen_params)
            state = state.without_frozen()
        _say_failures_once()
        begun = time.monotonic()
        try:
            # Not with the folders above it, which may be those of a run that was removed.
            folder = OpenFolder(self.directory / SAVING)
        except OSError as error:
            raise self._failure(step, error) from error
        try:
            orbax = _saving(folder.inside / str(step), state, plain)
        except Exception as error:
            folder.remove(failed=True)
            raise self._failure(step, error) from error
        future = self._worker.submit(self._commit, orbax, folder, step, rank, check, begun)
        self._saving = step, future

    @property
    def is_saving(self) -> bool:
        """Whether a save is still going on."""
        return self._saving is not None and not self._saving[1].done()

    @property
    def has_settled(self) -> bool:
        """Whether the last save has come to an end, good or bad; `wait` tells which."""
        return self._saving is not None and self._saving[1].done()

    def wait(self) -> None:
        """Returns when what was being saved is on disk; raises if that failed."""
        if self._saving is None:
            return
        step, future = self._saving
        self._saving = None
        try:
            future.result()
        except LoopaxError:
            raise
        except Exception as error:
            raise self._failure(step, error) from error

    def verify(self, step: int) -> None:
        """Reads a step again from the disk; raises if it is not as it was saved."""
        self._ranks.pop(step, None)
        self.step_of(step)

    def restore(self, state: TrainState, which: str | int = "latest") -> tuple[TrainState, Any]:
        """A checkpoint in the form of `state`, and the meta saved with it.

        What a checkpoint does not contain, frozen parameters that it only refers to, is taken from
        `state`, if it is what the checkpoint was made with.
        """
        return self._at(which, lambda step: self._restored(state, step))

    def read(self, which: str | int = "latest") -> tuple[dict[str, Any], Any]:
        """A checkpoint as a plain tree of dictionaries, and its meta: no state is needed."""
        return self._at(which, lambda step: self._restore(step, ocp.args.StandardRestore()))

    def weights(self, which: str | int = "latest") -> dict[str, np.ndarray]:
        """The parameters to use a step with, by their paths: those it is evaluated with.

        Of a checkpoint that only refers to its frozen parameters, those that train.
        """
        tree, _ = self.read(which)
        params = eval_params(tree["params"], tree.get("ema"), typed(tree["opt_state"]))
        named = {leaf_path(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(params)}
        for name, leaf in named.items():
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                raise ConfigError(f"{name} is a random key, and weights are numbers")
        return {name: np.asarray(leaf) for name, leaf in named.items()}

    def _at(self, which: str | int, read: Callable[[int], T]) -> T:
        """What is read of a step; of the next one that is meant where it was deleted meanwhile."""
        while True:
            step = self.step_of(which)
            try:
                return read(step)
            except (CheckpointError, OSError):
                if which not in ("latest", "best") or (self.directory / str(step)).exists():
                    raise

    def _restored(self, state: TrainState, step: int) -> tuple[TrainState, Any]:
        frozen = self._frozen_of(step)
        stored, empty = _parted(state.without_frozen() if frozen else state)
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, stored)
        self._check_fits(step, target)
        if frozen:
            self._check_frozen(step, frozen, state)
        restored, meta = self._restore(step, ocp.args.StandardRestore(target))
        restored = merge(restored, empty)
        if frozen:
            restored = restored.with_frozen(state.frozen_params)
        return restored, meta

    def _frozen_of(self, step: int) -> str:
        """The digest of the frozen parameters that a step refers to; empty if it has its own."""
        return str(_meta_of(self.directory / str(step)).get("frozen", ""))

    def _check_frozen(self, step: int, frozen: str, state: TrainState) -> None:
        path = self.directory / str(step)
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state.params)):
            raise CheckpointError(
                f"{path}: refers to frozen parameters that it does not contain; restore it into a "
                "state that has them"
            )
        if (here := _digest_of(state.frozen_params)) != frozen:
            raise CheckpointError(
                f"{path}: was made with frozen parameters of digest {frozen[:12]}, and these have "
                f"{here[:12]}; begin with the same pretrained weights to restore it"
            )

    def _is_whole(self, step: int) -> bool:
        """Whether a step is as it was saved; if not, it is said why and set aside."""
        wrong = self._damage(step)
        if wrong and not os.path.lexists(self.directory / str(step)):
            self._ranks.pop(step, None)  # A trainer has deleted it meanwhile: that is no damage.
        elif wrong:
            kept = "passed over" if self.settings is None else f"kept as {self._aside(step)}"
            self.say(f"{self.directory / str(step)}: {wrong}; {kept}")
        return not wrong

    def _damage(self, step: int) -> str:
        """What is wrong with a step, in one line that names its first file; empty if nothing."""
        path = self.directory / str(step)
        stamp = digests.stamp(path)
        if step in self._ranks and self._stamps.get(step) == stamp:
            return ""
        if wrong := digests.damage(path):
            return wrong[0] + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else "")
        try:
            meta = _meta_of(path)
            if meta["format"] != FORMAT:
                raise CheckpointError(
                    f"{path}: is of format {meta['format']}{OLDER.get(meta['format'], '')}, and "
                    f"this loopax reads {FORMAT}; use the version of loopax that made it, or begin "
                    "a new run"
                )
            if meta["step"] != step:
                return f"it is the checkpoint of step {meta['step']}"
            self._ranks[step], self._stamps[step] = checked_rank(meta["rank"]), stamp
        except CheckpointError:
            raise
        except Exception as error:
            return f"its meta cannot be read: {_reason(error)}"
        return ""

    def _aside(self, step: int) -> str:
        """Moves a step out of the way, where it is neither used nor deleted."""
        self._ranks.pop(step, None)
        names = (f"{DAMAGED}-{step}{end}" for end in ("", *(f"-{n}" for n in range(2, 1000))))
        name = next(name for name in names if not (self.directory / name).exists())
        (self.directory / str(step)).rename(self.directory / name)
        return name

    def _commit(
        self,
        orbax: ocp.AsyncCheckpointer,
        folder: OpenFolder,
        step: int,
        rank: Rank,
        check: Callable[[], None],
        begun: float,
    ) -> None:
        """Runs in the background: completes a save, gives it its number, deletes what is old."""
        try:
            orbax.wait_until_finished()
            check()
            path, target = folder.path / str(step), self.directory / str(step)
            digests.seal(path)
            if target.exists() or target.is_symlink():
                self._aside(step)
            path.rename(target)
            sync(self.directory)
        except BaseException:
            folder.remove(failed=True)
            raise
        folder.remove(failed=False)
        self._ranks[step], self._stamps[step] = rank, digests.stamp(target)
        try:
            self._prune()
        except OSError as error:
            self.say(f"{self.directory}: old steps cannot be deleted ({_reason(error)})")
        self.seconds = max(self.seconds, time.monotonic() - begun)

    def _prune(self) -> None:
        assert self.settings is not None
        if gone := sorted(self._ranks.keys() - set(self.steps)):
            self.say(
                f"{self.directory}: the checkpoint of step {', '.join(map(str, gone))} was deleted "
                "or moved by another program"
            )
            for step in gone:
                del self._ranks[step]
        steps = list(filter(self._is_whole, self.steps))
        kept = {*steps[-self.settings.keep :], best_step(steps, self._ranks)}
        for step in steps:
            if step not in kept:
                # A rename first: what is half deleted has no number any more.
                doomed = self.directory / DELETING / str(step)
                doomed.parent.mkdir(exist_ok=True)
                remove(doomed)
                (self.directory / str(step)).rename(doomed)
                del self._ranks[step]
        remove(self.directory / DELETING)

    def _failure(self, step: int, error: BaseException) -> StorageError:
        return StorageError(
            f"{self.directory}: the checkpoint of step {step} could not be saved: "
            f"{_reason(error)}; those before it are intact"
        )

    def _restore(self, step: int, form: ocp.args.StandardRestore) -> tuple[Any, Any]:
        path = self.directory / str(step)
        try:
            with _ORBAX:
                state = ocp.StandardCheckpointHandler().restore(path / "state", args=form)
            return state, _meta_of(path)
        except Exception as error:
            raise CheckpointError(f"{path}: cannot be restored: {_reason(error)}") from error

    def _check_fits(self, step: int, target: PyTree) -> None:
        """Compares leaf by leaf first: Orbax would cast another type without a word."""
        path = self.directory / str(step)
        try:
            with _ORBAX:
                stored = ocp.StandardCheckpointHandler().metadata(path / "state")
        except Exception as error:
            raise CheckpointError(f"{path}: cannot be restored: {_reason(error)}") from error
        old, new = forms(getattr(stored, "tree", stored)), forms(target)
        if differences := differing(old, new):
            raise CheckpointError(f"{path}: of another model or optimiser: {differences}")


def _saving(path: Path, state: TrainState, meta: Mapping[str, Any]) -> ocp.AsyncCheckpointer:
    """Starts to save: returns when the state was copied, and ends in the background.

    Each save has an Orbax of its own: one that failed keeps what else failed for the next one.
    """
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(async_options=_ASYNC),
        state=ocp.StandardCheckpointHandler(),
        meta=ocp.JsonCheckpointHandler(),
    )
    orbax = ocp.AsyncCheckpointer(handler, async_options=_ASYNC)
    stored, _ = _parted(state)
    args = ocp.args.Composite(state=ocp.args.StandardSave(stored), meta=ocp.args.JsonSave(meta))
    with _ORBAX:
        orbax.save(path, args=args)
    return orbax


def _parted(state: TrainState) -> tuple[Any, Any]:
    """A state without arrays of no elements, which Orbax cannot store, and these."""
    return partition(state, jax.tree.map(lambda leaf: leaf.size > 0, state))


def check_leaves(state: TrainState) -> None:
    """Makes sure that each leaf of a state has a name of its own, in files and in patterns.

    Raises:
        ConfigError: two have the same; Orbax would write the one over the other.
    """
    for separator in "./":
        names: dict[str, str] = {}
        for path, _ in jax.tree_util.tree_leaves_with_path(state):
            name = jax.tree_util.keystr(path, simple=True, separator=separator)
            other = names.setdefault(name, jax.tree_util.keystr(path))
            if other != jax.tree_util.keystr(path):
                raise ConfigError(
                    f"the state's {other} and {jax.tree_util.keystr(path)} would both be stored as "
                    f"{name!r}; rename one of them"
                )


def _meta_of(path: Path) -> dict[str, Any]:
    """The meta of a step, as Orbax writes it."""
    meta: dict[str, Any] = json.loads((path / "meta" / "metadata").read_text())
    return meta


def _digest_of(params: PyTree) -> str:
    """SHA-256 over the paths, forms and bytes of parameters."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{leaf_path(path)}:{form_of(leaf)};".encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _reason(error: BaseException) -> str:
    """What the system said at the root of an error, or else the first line of its message."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        if number := re.search(r"os_error_code='(\d+)'", str(cause)):
            return os.strerror(int(number[1]))
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__
