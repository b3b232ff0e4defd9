"""One process of a trial of `loopax verify`: runs a program with a watch around its training.

`python -m loopax.verify.trial PLAN PROGRAM...` puts the watch around `loopax.loop.begin` and then
runs the program as Python would. So the loop has no hook for this and a program needs no change.
What a trial ends with is written to plain files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import runpy
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from loopax import loop
from loopax.arguments import whole
from loopax.batches.base import Batches, Feed, Items
from loopax.batches.iterable import as_batches
from loopax.checkpoint import CheckpointStore
from loopax.errors import LoopaxError, Stopped
from loopax.evaluation import as_evaluation
from loopax.moments import Hook, as_hooks, evaluate_every
from loopax.paths import leaf_path
from loopax.retention import Checkpoints
from loopax.run import Run
from loopax.rundir import RunDir
from loopax.weights import save_weights
from loopax.writers import JsonLines

SAVES = 8
"""Checkpoints in a trial: enough of them that a piece which was killed seldom begins anew."""
GROUPS = ("parameters", "optimiser state", "keys", "other state")


class Interruption(NamedTuple):
    """A signal, by its name, that a process sends to itself when `step` steps have been made."""

    step: int
    signal: str


@dataclass(frozen=True)
class Plan:
    """What one process is to do, and where it leaves what it saw."""

    directory: Path
    piece: int
    limit: int
    interruption: Interruption | None

    @classmethod
    def read(cls, text: str) -> Plan:
        directory, piece, limit, interruption = json.loads(text)
        return cls(Path(directory), piece, limit, interruption and Interruption(*interruption))

    def __str__(self) -> str:
        return json.dumps([str(self.directory), self.piece, self.limit, self.interruption])

    @property
    def run(self) -> RunDir:
        return RunDir(self.directory / "run")

    @property
    def seen(self) -> Path:
        """The data and the metrics of each step."""
        return self.directory / f"seen-{self.piece}.jsonl"

    @property
    def errors(self) -> Path:
        """What the program wrote to standard error."""
        return self.directory / f"errors-{self.piece}.txt"

    @property
    def failure(self) -> Path:
        """What went wrong, in one line, where it was an exception."""
        return self.directory / f"failure-{self.piece}.txt"

    @property
    def final(self) -> Path:
        """The state of the last checkpoint; its presence says that the training came to an end."""
        return self.directory / "final.safetensors"


def _watched(begin: Callable[[dict[str, Any]], loop.Chunks], plan: Plan) -> Any:
    """`loopax.loop.begin` as planned: in the trial's directory, recorded, interrupted, once."""

    def watched(arguments: dict[str, Any]) -> loop.Chunks:
        if plan.final.exists():
            _leave(0)
        batches = as_batches(arguments["data"])
        total = loop.total_steps(arguments["steps"], arguments["epochs"], batches)
        total = min(plan.limit, total)
        saving = arguments["checkpoints"] or Checkpoints()
        seen = JsonLines(plan.seen)
        every = evaluate_every(as_evaluation(arguments["evaluation"]), batches)
        hooks = as_hooks(arguments["hooks"], whole("log_every", arguments["log_every"]), every)
        planned = arguments | {
            "data": _recorded(batches, seen),
            "steps": total,
            "epochs": None,
            "run_dir": plan.run.path,
            "checkpoints": dataclasses.replace(saving, every=-(-total // SAVES), seconds=None),
            "hooks": [*hooks, *_interrupting(plan)],
            "max_seconds": None,
            "progress": False,
        }
        chunks = begin(planned)
        return loop.Chunks(chunks.run, _recorded_chunks(chunks, seen, plan))

    return watched


def _recorded_chunks(
    chunks: loop.Chunks, seen: JsonLines, plan: Plan
) -> Generator[loop.Chunk, None, Run]:
    """The chunks, whose metrics are noted; the process ends with the training."""
    try:
        with _telling(plan), closing(chunks):
            for chunk in chunks:
                for index, step in enumerate(range(chunk.start, chunk.stop)):
                    values = {name: float(row[index]) for name, row in chunk.metrics.items()}
                    seen.write({"step": step, "source": "train", **values})
                yield chunk
    except Stopped as stopped:
        _leave(stopped.code)
    except GeneratorExit:
        # Whether by `break` or by an exception cannot be told here: the program goes on.
        _keep_final(plan)
        return chunks.run
    _keep_final(plan)
    _leave(0)


def _recorded(batches: Batches, seen: JsonLines) -> Batches:
    """The same batches, which note a digest of what each step is given."""
    begin = batches.feed

    def feed(seed: Sequence[int], start: int, capacity: int) -> Feed:
        return _RecordedFeed(begin(seed, start, capacity), start, batches.identity, seen)

    batches.feed = feed  # type: ignore[method-assign]
    return batches


class _RecordedFeed:
    def __init__(self, feed: Feed, start: int, identity: Mapping[str, Any], seen: JsonLines):
        self._feed, self._step, self._seen = feed, start, seen
        # An item may be no more than indices into the data that this names.
        self._identity = repr(dict(identity)).encode()

    def take(self, n: int) -> Items:
        items = self._feed.take(n)
        leaves = jax.tree_util.tree_leaves_with_path(items.stacked)
        for index in range(items.length):
            digest = hashlib.sha256(self._identity)
            for path, leaf in leaves:
                digest.update(f"{leaf_path(path)} {leaf.dtype} {leaf.shape[1:]}".encode())
                digest.update(leaf[index].tobytes())
            self._seen.write(
                {"step": self._step, "source": "data", "digest": digest.hexdigest()[:16]}
            )
            self._step += 1
        return items


def _interrupting(plan: Plan) -> list[Hook]:
    if plan.interruption is None:
        return []
    step, name = plan.interruption
    return [Hook(lambda run: os.kill(os.getpid(), signal.Signals[name]), every=step)]


def _keep_final(plan: Plan) -> None:
    """Writes the last checkpoint in groups that can be compared without JAX."""
    with CheckpointStore(plan.run.checkpoints) as store:
        tree, _ = store.read()
    parts = (tree.pop("params"), tree.pop("opt_state"), tree.pop("key"), tree)
    save_weights(plan.final, jax.tree.map(_words, dict(zip(GROUPS, parts, strict=True))))


def _words(leaf: Any) -> Any:
    """A random key as the numbers that it is made of."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


@contextmanager
def _telling(plan: Plan) -> Iterator[None]:
    """Notes an exception where it comes from: a program may catch it, or say more after it."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, LoopaxError) else f"{type(error).__name__}: "
        plan.failure.write_text(f"{kind}{error}".splitlines()[0])
        raise


def _leave(status: Any) -> NoReturn:
    """Ends the process whatever the program would do next, or catches."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _main() -> None:
    _, text, *command = sys.argv
    plan = Plan.read(text)
    vars(loop).update(begin=_watched(loop.begin, plan))
    with _telling(plan):
        _as_python(command)


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
    _main()
