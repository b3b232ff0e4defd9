"""One process of a trial of `loopax verify`: runs a program with a watch around its training.

`python -m loopax.verify.trial PLAN PROGRAM...` puts the watch around `loopax.fitting.begin` and
then runs the program as Python would. So the loop has no hook for this and a program needs no
change. What a trial ends with is written to plain files.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import runpy
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from loopax import fitting
from loopax.arguments import whole
from loopax.batches.base import Batches, Feed, Items
from loopax.batches.iterable import as_batches
from loopax.checkpoint import CheckpointStore
from loopax.chunks import Chunk, Chunks
from loopax.errors import LoopaxError, Stopped
from loopax.evaluation import as_evaluation
from loopax.hooks import Hook, as_hooks, evaluate_every
from loopax.jsonlines import JsonLines
from loopax.paths import forms
from loopax.retention import Checkpoints
from loopax.run import Run
from loopax.verify.compare import GROUPS
from loopax.verify.pieces import Plan
from loopax.weights import save_weights

SAVES = 8
"""Checkpoints in a trial: enough of them that a piece which was killed seldom begins anew."""


def _begun(
    begin: Callable[[dict[str, Any]], Chunks], plan: Plan, arguments: dict[str, Any]
) -> Chunks:
    """`loopax.fitting.begin` as planned: in the trial's directory, recorded, interrupted, once."""
    if plan.final.exists():
        _leave(0)
    batches = as_batches(arguments["data"])
    total = fitting.total_steps(arguments["steps"], arguments["epochs"], batches)
    total = min(plan.limit, total)
    saving = arguments["checkpoints"] or Checkpoints()
    record = JsonLines(plan.file("seen.jsonl"))
    interrupting = [Hook(it.send, every=it.step)] if (it := plan.interruption) else []
    every = evaluate_every(as_evaluation(arguments["evaluation"]), batches)
    hooks = as_hooks(arguments["hooks"], whole("log_every", arguments["log_every"]), every)
    planned = arguments | {
        "data": _RecordedBatches(batches, record),
        "steps": total,
        "epochs": None,
        "run_dir": plan.run.path,
        "checkpoints": dataclasses.replace(saving, every=-(-total // SAVES), seconds=None),
        "hooks": [*hooks, *interrupting],
        "writers": (),
        "max_seconds": None,
        "progress": False,
    }
    chunks = begin(planned)
    return Chunks(chunks.run, _recorded_chunks(chunks, record, plan))


def _recorded_chunks(chunks: Chunks, record: JsonLines, plan: Plan) -> Generator[Chunk, None, Run]:
    """The chunks, whose metrics are noted; the process ends with the training."""
    try:
        with _telling(plan), closing(chunks):
            for chunk in chunks:
                for index, step in enumerate(range(chunk.start, chunk.stop)):
                    values = {name: float(row[index]) for name, row in chunk.metrics.items()}
                    record.write({"step": step, "source": "metrics", **values})
                yield chunk
    except Stopped as stopped:
        _leave(stopped.code)
    except GeneratorExit:
        # Whether by `break` or by an exception cannot be told here: the program goes on.
        _keep_final(plan)
        return chunks.run
    _keep_final(plan)
    _leave(0)


class _RecordedBatches(Batches):
    """The same batches, which note a digest of what each step is given."""

    def __init__(self, batches: Batches, record: JsonLines) -> None:
        self._batches, self._record = batches, record
        self.steps_per_epoch, self.resident = batches.steps_per_epoch, batches.resident
        self.advice = batches.advice

    @property
    def identity(self) -> Mapping[str, Any]:
        return self._batches.identity

    def feed(self, seed: Sequence[int], start: int, capacity: int) -> Feed:
        feed = self._batches.feed(seed, start, capacity)
        return _RecordedFeed(feed, start, self.identity, self._record)

    def once(self, capacity: int) -> Iterator[Items]:
        return self._batches.once(capacity)

    def gather(self, resident: Any, item: Any) -> Any:
        return self._batches.gather(resident, item)

    def prepare(self, examples: Any, rngs: Any) -> Any:
        return self._batches.prepare(examples, rngs)

    def assemble(self, resident: Any, item: Any, rngs: Any) -> Any:
        return self._batches.assemble(resident, item, rngs)


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
                digest.update(leaf.tobytes())
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
    parts = (tree.pop("params"), tree.pop("opt_state"), tree.pop("key"), tree)
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
    vars(fitting).update(begin=functools.partial(_begun, fitting.begin, plan))
    with _telling(plan):
        _as_python(sys.argv[2:])
