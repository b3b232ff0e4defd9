"""One process of a trial of `loopax verify`: runs a program with a watch around its training.

`python -m loopax.verify.trial PLAN PROGRAM...` observes what `loopax.fit` opens and then runs the
program as Python would, which needs no change for it. What a trial ends with is written to plain
files.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import math
import os
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from loopax import fitting
from loopax.batches.base import Batches, Feed, Items
from loopax.errors import LoopaxError, Stopped
from loopax.jsonlines import JsonLines
from loopax.paths import forms
from loopax.run.checkpoint import CheckpointStore
from loopax.run.chunks import Chunk
from loopax.run.hooks import Hook
from loopax.run.retention import ranking
from loopax.run.run import Run
from loopax.run.settings import Settings
from loopax.verify.compare import GROUPS
from loopax.verify.pieces import Plan
from loopax.weights import save_weights

SAVES = 8
"""Checkpoints in a trial: enough of them that a piece which was killed seldom begins anew."""


@contextmanager
def _watched(plan: Plan, opened: fitting.Opening, settings: Settings) -> Iterator[Run]:
    """A run as planned: in the trial's directory, recorded, interrupted; it ends the process."""
    if plan.final.exists():
        _leave(0)
    record = JsonLines(plan.file("seen.jsonl"))
    total = min(plan.limit, settings.total)
    parts = [] if settings.evaluation is None else [*settings.evaluation.parts]
    saving = ranking(settings.checkpoints, parts, bool(settings.hooks))
    interrupting = [Hook(it.send, every=it.step)] if (it := plan.interruption) else []
    planned = dataclasses.replace(
        settings,
        batches=_recorded_batches(settings.batches, record),
        total=total,
        run_dir=plan.run.path,
        checkpoints=dataclasses.replace(saving, every=-(-total // SAVES), seconds=None),
        hooks=[*settings.hooks, *interrupting],
        writers=(),
        max_seconds=math.inf,
        signals=True,
        progress=False,
    )
    try:
        with _telling(plan), opened(planned) as run:
            run.chunks = _recorded(run.chunks, record)
            yield run
    except Stopped as stopped:
        _leave(stopped.code)
    _keep_final(plan)
    if run.step >= total or run.stopped is not None:
        _leave(0)  # Where its loop was left by `break`, the program goes on.


def _recorded(chunks: Iterator[Chunk], record: JsonLines) -> Iterator[Chunk]:
    """The chunks, whose metrics are noted."""
    for chunk in chunks:
        for index, step in enumerate(range(chunk.start, chunk.stop)):
            values = {name: float(row[index]) for name, row in chunk.metrics.items()}
            record.write({"step": step, "source": "metrics", **values})
        yield chunk


def _recorded_batches(batches: Batches, record: JsonLines) -> Batches:
    """The same batches, which note a digest of what each step is given."""

    def feed(seed: Sequence[int], start: int, capacity: int, position: Any = None) -> Feed:
        feed = batches.feed_from(seed, start, capacity, position)
        return _RecordedFeed(feed, start, batches.identity, record)

    recorded = copy.copy(batches)
    # Of this copy alone: a source of any class stays what it is, with one method that notes.
    recorded.feed_from = feed  # type: ignore[method-assign]
    return recorded


class _RecordedFeed:
    def __init__(self, feed: Feed, start: int, identity: Mapping[str, Any], record: JsonLines):
        # An item may be no more than indices into the data that the identity names.
        self._feed, self._step, self._identity, self._record = feed, start, dict(identity), record

    def take(self, n: int) -> Items:
        items = self._feed.take(n)
        for index in range(items.length):
            # The function is called here, before the index changes.
            item = jax.tree.map(lambda leaf: leaf[index], items.stacked)  # noqa: B023
            digest = hashlib.sha256(f"{self._identity} {forms(item)}".encode())
            for leaf in jax.tree.leaves(item):
                digest.update(np.asarray(leaf).tobytes())
            short = digest.hexdigest()[:16]
            self._record.write(
                {"step": self._step + index, "source": "data order", "digest": short}
            )
        self._step += items.length
        return items


def _keep_final(plan: Plan) -> None:
    """Writes the last checkpoint in groups that can be compared without JAX."""

    def words(leaf: Any) -> Any:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    with CheckpointStore(plan.run.checkpoints) as store:
        tree, _ = store.read()
    named = (tree.pop("params", {}), tree.pop("opt_state", {}), tree.pop("key"))
    parts = (*named, tree)  # what a state of somebody's own calls otherwise is in the last
    save_weights(plan.final, jax.tree.map(words, dict(zip(GROUPS, parts, strict=True))))


@contextmanager
def _telling(plan: Plan) -> Iterator[None]:
    """Notes an exception where it comes from: a program may catch it, or say more after it."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, LoopaxError) else f"{type(error).__name__}: "
        plan.file("failure.txt").write_text(f"{kind}{error}".splitlines()[0])
        raise


def _leave(status: Any) -> NoReturn:
    """Ends the process whatever the program would do next, or catches."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _as_python(command: list[str]) -> None:
    """Runs what would follow `python`."""
    match command:
        case ["-m", module, *_]:
            sys.argv = command[1:]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case _:
            sys.argv = command
            sys.path.insert(0, str(Path(command[0]).absolute().parent))
            runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    plan = Plan.read(sys.argv[1])
    fitting.observe(functools.partial(_watched, plan))
    with _telling(plan):
        _as_python(sys.argv[2:])
