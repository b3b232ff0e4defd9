"""The checkpoints of a run as they lie there: which are whole, which is meant, what they hold.

Each step is a folder with its number for a name; the parameters that do not train lie beside them,
once. All are under digests (`loopax.digests`), and nothing is used before they were checked.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from loopax import digests
from loopax.compute.state import TrainState
from loopax.compute.updates import eval_params, typed
from loopax.errors import CheckpointError, ConfigError
from loopax.lora import merged, scales
from loopax.paths import leaf_path, merge
from loopax.run import serialization
from loopax.run.retention import best_step, checked_rank
from loopax.run.serialization import meta_of, reason_of

T = TypeVar("T")

FORMAT = 5
FROZEN, DAMAGED = "frozen", "damaged"
PRECISION, REMAT = "compute_dtype", "remat"


def computing(state: Any) -> dict[str, str | None]:
    """How the loss of a state is computed, for the meta of its checkpoints."""
    if not isinstance(state, TrainState):
        return {PRECISION: None, REMAT: None}
    precision = None if state.precision is None else str(state.precision)
    return {PRECISION: precision, REMAT: state.remat}


def to_stderr(message: str) -> None:
    """What a store says where nobody else listens."""
    print(f"loopax: {message}", file=sys.stderr)


class CheckpointReader:
    """Reads the checkpoints of a run, also while it is trained, and changes nothing.

    A step is `<directory>/<step>/state` and `.../meta`, plain Orbax; parameters that do not train
    are `<directory>/frozen/state`.

    Attributes:
        directory: where they lie.
        say: what is told of damage that was passed over.

    Raises:
        CheckpointError: a step is missing, damaged, or does not fit the state.
    """

    def __init__(self, directory: str | Path, say: Callable[[str], None] = to_stderr) -> None:
        self.directory, self.say = Path(directory).expanduser().absolute(), say
        # The meta of what is known to be whole, as long as its stamp holds, by name.
        self._metas: dict[str, dict[str, Any]] = {}
        self._stamps: dict[str, Any] = {}

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

        When the latest is damaged it is the one before.

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
            best = self._best(sorted(filter(self._is_whole, reversed(steps))))
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
        if wrong := self._damage(str(which)):
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

    def believe(self, step: int) -> None:
        """Takes a step for whole that another process has just checked."""
        path = self.directory / str(step)
        self._metas[str(step)], self._stamps[str(step)] = meta_of(path), digests.stamp(path)

    def verify(self, step: int) -> None:
        """Reads a step again from the disk; raises if it is not as it was saved."""
        for name in (str(step), FROZEN):
            self._metas.pop(name, None)
        self._frozen_of(self.step_of(step))

    def restore(self, state: TrainState, which: str | int = "latest") -> tuple[TrainState, Any]:
        """A checkpoint in the form of `state`, whose values do not matter, and its meta."""
        return self._at(which, lambda step: self._restored(state, step))

    def read(self, which: str | int = "latest") -> tuple[dict[str, Any], Any]:
        """A checkpoint as a plain tree of dictionaries, and its meta: no state is needed.

        All parameters are in `params`, those that train and those that do not.
        """
        tree, meta = self._at(which, self._parts)
        if tree.keys() >= {"trainable", "frozen", "opt_state"}:
            tree["params"] = merge(tree.pop("trainable"), tree.pop("frozen"))
        return tree, meta

    def weights(
        self, which: str | int = "latest", *, trained_only: bool = False
    ) -> dict[str, np.ndarray]:
        """The parameters to use a step with, by their paths: those it is evaluated with.

        With `trained_only` those that were trained: under LoRA the adapters, which are otherwise
        added to the parameters that they adapt.
        """
        tree, _ = self._at(which, self._parts)
        if "trainable" not in tree:
            raise ConfigError(f"{self.directory}: is of a state of one's own, which has no params")
        params = eval_params(tree["trainable"], tree.get("ema"), typed(tree["opt_state"]))
        if not trained_only:
            params = merged(merge(params, tree["frozen"]))
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
        path, frozen = self.directory / str(step), self._frozen_of(step)
        meta, here = meta_of(path), computing(state)[PRECISION]
        if (there := meta.get(PRECISION)) != here:
            raise CheckpointError(
                f"{path}: made with compute_dtype {there}, and now it is {here}; give the same to "
                "continue, or begin a new run"
            )
        if frozen is None:
            return serialization.restore(path, state), meta
        restored = serialization.restore(path, state.replace(frozen=None))
        rest = serialization.restore(frozen, {"frozen": state.frozen})
        then, now = scales(rest["frozen"]), scales(state.frozen)
        if now and then != now:
            raise CheckpointError(
                f"{frozen}: made with LoRA's alpha / rank {then}, and now it is {now}; give the "
                "same alpha to continue, or begin a new run"
            )
        return restored.replace(**rest), meta

    def _parts(self, step: int) -> tuple[dict[str, Any], Any]:
        path, frozen = self.directory / str(step), self._frozen_of(step)
        tree = serialization.read(path)
        if frozen is not None:
            tree |= serialization.read(frozen)
        return tree, meta_of(path)

    def _frozen_of(self, step: int) -> Path | None:
        """Where the frozen parameters lie that a step refers to; None if it has its own.

        Raises:
            CheckpointError: they are not as they were saved.
        """
        path, expected = self.directory / FROZEN, meta_of(self.directory / str(step))["frozen"]
        if not expected:
            return None
        wrong = self._damage(FROZEN) if os.path.lexists(path) else "is missing"
        if not wrong and self._metas[FROZEN]["frozen"] != expected:
            wrong = "holds other parameters"
        if wrong:
            raise CheckpointError(
                f"{path}: {wrong}; the checkpoint of step {step} needs it: bring it back from a "
                "copy, or begin a new run"
            )
        return path

    def _is_whole(self, step: int) -> bool:
        """Whether a step is as it was saved; if not, it is said why."""
        name = str(step)
        wrong = self._damage(name)
        if wrong and not os.path.lexists(self.directory / name):
            self._metas.pop(name, None)  # A trainer has deleted it meanwhile: that is no damage.
        elif wrong:
            self.say(f"{self.directory / name}: {wrong}; {self._passed_over(name)}")
        return not wrong

    def _passed_over(self, name: str) -> str:
        """What becomes of a damaged step, in words."""
        return "passed over"

    def _damage(self, name: str) -> str:
        """What is wrong with a folder, in one line that names its first file; empty if nothing."""
        path = self.directory / name
        stamp = digests.stamp(path)
        if name in self._metas and self._stamps.get(name) == stamp:
            return ""
        if wrong := digests.damage(path):
            return wrong[0] + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else "")
        try:
            meta = meta_of(path)
            if meta["format"] != FORMAT:
                raise CheckpointError(
                    f"{path}: is of format {meta['format']}, and this loopax reads {FORMAT}; use "
                    "the version of loopax that made it, or begin a new run"
                )
            if name not in (FROZEN, str(meta["step"])):
                return f"it is the checkpoint of step {meta['step']}"
            meta |= {"rank": checked_rank(meta["rank"]), "frozen": str(meta["frozen"])}
            self._metas[name], self._stamps[name] = meta, stamp
        except CheckpointError:
            raise
        except Exception as error:
            return f"its meta cannot be read: {reason_of(error)}"
        return ""

    def _best(self, steps: list[int]) -> int | None:
        """The best of steps that are known to be whole; None if nothing ranked them."""
        return best_step(steps, {step: self._metas[str(step)]["rank"] for step in steps})
