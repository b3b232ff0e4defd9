"""Proof of exact resumption: a program run straight, and again in pieces that are interrupted.

Each piece is a process, `python -m loopax.verification PLAN PROGRAM...`, which puts a watch around
`loopax.loop.steps` and then runs the program as Python would. So the loop has no hook for this and
a program needs no change. What a trial ends with is written to plain files, and compared by a
process that never touches a device: that is left to the pieces.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from loopax import loop
from loopax.checkpoint import CheckpointStore
from loopax.data.batches import Batches, Feed, Items, as_batches
from loopax.durable import storing
from loopax.errors import ConfigError, LoopaxError, ProgramError, Stopped
from loopax.moments import Hook
from loopax.paths import form_of, leaf_path
from loopax.retention import Checkpoints
from loopax.run import Run
from loopax.rundir import RunDir
from loopax.weights import read_weights, save_weights
from loopax.writers import JsonLines, read_json_lines

STEPS = 200
SAVES = 8
"""Checkpoints in a trial: enough of them that a piece which was killed seldom begins anew."""
GROUPS = ("parameters", "optimiser state", "keys", "other state")
ARRAYS_SHOWN = 3

K = TypeVar("K", bound=Hashable)

ALWAYS = """\
It differs without any interruption too: the program does not do the same each time. Look for a
random call outside of `rngs` (random, numpy.random), for a clock, and for data that is made or
shuffled without a seed."""
INTERRUPTED = """\
It differs only when it is interrupted: something is kept outside of the state. Look for a global
counter, a random generator of the program's own, and data that is not the same each time it is
begun."""


class Interruption(NamedTuple):
    """A signal, by its name, that a process sends to itself when `step` steps have been made."""

    step: int
    signal: str


@dataclass(frozen=True)
class Comparison:
    """How many of the things of one kind were compared, how many differ, and the first of these."""

    what: str
    unit: str
    compared: int
    differing: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """Whether a program that is interrupted ends, bit for bit, as it does when it is not.

    Attributes:
        steps: how many were made in each trial.
        seed: gives the same interruptions again.
        deterministic: whether two trials without interruption were equal; None when that was not
            tried, because nothing differed.
    """

    steps: int
    seed: int
    interruptions: tuple[Interruption, ...]
    comparisons: tuple[Comparison, ...]
    deterministic: bool | None

    @property
    def exact(self) -> bool:
        """Whether nothing differs."""
        return not any(comparison.differing for comparison in self.comparisons)

    def lines(self) -> list[str]:
        """The verdict for a terminal: a table, what differs first, and where to look."""
        lines = []
        for each in self.comparisons:
            result = f"{each.differing:,} differ" if each.differing else "equal"
            lines.append(f"{each.what:<17}{each.compared:>7,} {each.unit:<8}{result}")
            lines += [f"    {example}" for example in each.examples]
        at = ", ".join(f"{step:,} ({name})" for step, name in self.interruptions)
        judgement = "exact" if self.exact else "NOT exact"
        lines.append(f"{judgement}: {self.steps:,} steps, interrupted at {at}; seed {self.seed}")
        if not self.exact:
            lines += (INTERRUPTED if self.deterministic else ALWAYS).splitlines()
        return lines

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain JSON values."""
        interruptions = [interruption._asdict() for interruption in self.interruptions]
        return {"exact": self.exact, **dataclasses.asdict(self), "interruptions": interruptions}


def verify(
    command: Sequence[str],
    *,
    steps: int | None = None,
    interruptions: int = 3,
    seed: int | None = None,
    directory: Path | None = None,
    say: Callable[[str], None] = print,
) -> Verdict:
    """Runs a program straight and in interrupted pieces, up to the end of its first training.

    Args:
        command: what would follow `python`: a script, or `-m` and a module, and their words.
        steps: train for at most so many.
        interruptions: at random steps, by SIGKILL and SIGTERM in turn.
        seed: of these steps; a new one each time when left out.
        directory: a new or empty one where everything is kept; by default a temporary one.
        say: is told what is run.

    Raises:
        ConfigError: an argument cannot work, or the program does not train for two steps.
        ProgramError: the program failed, or was not interrupted where it should have been.
    """
    command, limit = [os.fspath(word) for word in command], STEPS if steps is None else steps
    if command in ([], ["-m"]):
        raise ConfigError("there is no program to verify; name a script, or -m and a module")
    if command[0] != "-m" and not Path(command[0]).exists():
        raise ConfigError(f"{command[0]}: there is no such program")
    for name, value, least in (("steps", limit, 2), ("interruptions", interruptions, 1)):
        if value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")
    seed = random.SystemRandom().getrandbits(32) if seed is None else seed
    with ExitStack() as resources:
        if directory is None:
            temporary = tempfile.TemporaryDirectory(
                prefix="loopax-verify-", ignore_cleanup_errors=True
            )
            directory = Path(resources.enter_context(temporary))
        elif directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ConfigError(f"{directory}: is not an empty directory; name a new one")
        trial = functools.partial(_trial, command, limit, say)
        straight = trial(directory / "straight", ())
        planned = _planned(straight.steps, interruptions, seed)
        comparisons = _compare(straight, trial(directory / "interrupted", planned))
        deterministic = None
        if any(comparison.differing for comparison in comparisons):
            again = _compare(straight, trial(directory / "straight-again", ()))
            deterministic = not any(comparison.differing for comparison in again)
    return Verdict(straight.steps, seed, planned, comparisons, deterministic)


@dataclass(frozen=True)
class _Trial:
    """What a program that was run to the end left behind."""

    steps: int
    arrays: dict[str, np.ndarray]
    data: dict[int, str]
    metrics: dict[int, str]
    rows: dict[int, str]


@dataclass(frozen=True)
class _Plan:
    """What one process is to do, and where it leaves what it saw."""

    directory: Path
    piece: int
    limit: int
    interruption: Interruption | None

    @classmethod
    def read(cls, text: str) -> _Plan:
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


def _planned(steps: int, count: int, seed: int) -> tuple[Interruption, ...]:
    if steps < 2:
        raise ConfigError(f"the program trains for {steps} step; 2 are needed to interrupt it")
    chosen = random.Random(seed).sample(range(1, steps), min(count, steps - 1))
    names = ("SIGKILL", "SIGTERM")
    return tuple(Interruption(step, names[i % 2]) for i, step in enumerate(sorted(chosen)))


def _trial(
    command: Sequence[str],
    limit: int,
    say: Callable[[str], None],
    directory: Path,
    interruptions: Sequence[Interruption],
) -> _Trial:
    """Runs the program to its end, anew after each interruption."""
    with storing(directory):
        directory.mkdir(parents=True)
    plans = [
        _Plan(directory.absolute(), piece, limit, interruption)
        for piece, interruption in enumerate([*interruptions, None])
    ]
    for plan in plans:
        signalled = plan.interruption
        end = f"{signalled.signal} at step {signalled.step:,}" if signalled else "to the end"
        say(f"{directory.name}: {end}")
        _run(command, plan)
    arrays = read_weights(plan.final)
    steps = int(arrays["other state/step"])
    # Data is taken ahead of the steps, and a loop that is left early never comes to the last of it.
    taken = [row for plan in plans for row in read_json_lines(plan.seen)]
    seen = [row for row in taken if row["step"] < steps]
    return _Trial(
        steps,
        arrays,
        # What a later piece saw at a step replaces what one that was killed had seen there.
        {row["step"]: json.dumps(row) for row in seen if row["source"] == "data"},
        {row["step"]: json.dumps(row) for row in seen if row["source"] == "train"},
        dict(enumerate(plan.run.metrics_file.read_text().splitlines(), 1)),
    )


def _run(command: Sequence[str], plan: _Plan) -> None:
    """Runs one process, and makes sure that it ended as was planned."""
    # A cache of their own lets pieces start fast, and leaves it to each trial to compile: where
    # that gives other machine code each time, as on GPUs, it must not go unseen.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(plan.directory / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    with plan.errors.open("wb") as errors:
        # Safe path: the program's own folder is put there later, and this module is not shadowed.
        status = subprocess.run(
            [sys.executable, "-P", "-m", "loopax.verification", str(plan), *command],
            env={**cache, **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        ).returncode
    name = command[command[0] == "-m"]
    if plan.interruption is not None:
        number = signal.Signals[plan.interruption.signal]
        if status in (-number, 128 + number):
            return
        if status == 0:
            raise ProgramError(
                f"{name}: did not come to step {plan.interruption.step}, where it was to be "
                "interrupted, though it had come further without interruption",
                exit_code=1,
            )
    elif status == 0:
        if not plan.final.exists():
            raise ConfigError(
                f"{name}: ended without a call of loopax.fit or loopax.steps that came to its end; "
                "there is nothing to verify"
            )
        return
    told = plan.failure if plan.failure.exists() else plan.errors
    said = told.read_text(errors="replace").strip().splitlines()
    reason = said[-1].removeprefix("loopax: ") if said else f"ended with status {status}"
    raise ProgramError(f"{name}: {reason}", exit_code=status if status > 0 else 128 - status)


def _compare(straight: _Trial, other: _Trial) -> tuple[Comparison, ...]:
    def group(trial: _Trial, name: str) -> dict[str, np.ndarray]:
        split = ((path.partition("/"), array) for path, array in trial.arrays.items())
        return {rest or first: array for (first, _, rest), array in split if first == name}

    return (
        *(_compared(g, "arrays", "{}", group(straight, g), group(other, g)) for g in GROUPS),
        _compared("data order", "steps", "first at step {}", straight.data, other.data),
        _compared("metrics", "steps", "first at step {}", straight.metrics, other.metrics),
        _compared("logged rows", "rows", "first in line {}", straight.rows, other.rows),
    )


def _compared(
    what: str, unit: str, place: str, straight: Mapping[K, Any], other: Mapping[K, Any]
) -> Comparison:
    keys = [*straight, *(key for key in other if key not in straight)]
    differing = [key for key in keys if _bits(straight.get(key)) != _bits(other.get(key))]
    examples = tuple(
        f"{place.format(key)}: {_difference(straight.get(key), other.get(key))}"
        for key in differing[: ARRAYS_SHOWN if unit == "arrays" else 1]
    )
    return Comparison(what, unit, len(keys), len(differing), examples)


def _bits(value: np.ndarray | str | None) -> Hashable:
    """What is the same for values that are, NaN and the sign of a zero included."""
    if isinstance(value, np.ndarray):
        return value.dtype.name, value.shape, value.tobytes()
    return value


def _difference(one: Any, two: Any) -> str:
    """How two arrays differ, or two mappings written as JSON: `loss 0.5 and 0.6`."""
    if one is None or two is None:
        return "only with interruption" if one is None else "only without interruption"
    if not isinstance(one, np.ndarray):
        before, after = json.loads(one), json.loads(two)
        names = [*before, *(name for name in after if name not in before)]
        pairs = [(name, repr(before.get(name)), repr(after.get(name))) for name in names]
        return ", ".join(f"{name} {a} and {b}" for name, a, b in pairs if a != b)
    if (one.dtype, one.shape) != (two.dtype, two.shape):
        return f"{form_of(one)} and {form_of(two)}"
    wide = np.complex128 if one.dtype.kind == "c" else np.float64
    with np.errstate(invalid="ignore"):
        distance = np.abs(one.astype(wide) - two.astype(wide))
    count = np.count_nonzero(_each(one) != _each(two))
    most = f"by up to {distance.max():.3g}" if distance.any() else "in the sign of zeros"
    return f"{count:,} of {one.size:,} numbers, {most}"


def _each(array: np.ndarray) -> np.ndarray:
    """The bits of each number, as something that can only be compared."""
    return np.frombuffer(array.tobytes(), f"V{array.itemsize}")


def _watched(steps: Callable[..., Generator[loop.Chunk, None, Run]], plan: _Plan) -> Any:
    """`loopax.loop.steps` as planned: in the trial's directory, recorded, interrupted, once."""

    @functools.wraps(steps)
    def watched(*args: Any, **kwargs: Any) -> Generator[loop.Chunk, None, None]:
        if plan.final.exists():
            _leave(0)
        call = inspect.signature(steps).bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        batches = as_batches(given["data"])
        total = min(plan.limit, loop.total_steps(given["steps"], given["epochs"], batches))
        saving = given["checkpoints"] or Checkpoints()
        seen = JsonLines(plan.seen)
        given |= {
            "data": _recorded(batches, seen),
            "steps": total,
            "epochs": None,
            "run_dir": plan.run.path,
            "checkpoints": dataclasses.replace(saving, every=-(-total // SAVES), seconds=None),
            "hooks": [*given["hooks"], *_interrupting(plan)],
            "max_seconds": None,
            "progress": False,
        }
        try:
            with _telling(plan), closing(steps(*call.args, **call.kwargs)) as chunks:
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
            return
        _keep_final(plan)
        _leave(0)

    return watched


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


def _interrupting(plan: _Plan) -> list[Hook]:
    if plan.interruption is None:
        return []
    step, name = plan.interruption
    return [Hook(lambda run: os.kill(os.getpid(), signal.Signals[name]), every=step)]


def _keep_final(plan: _Plan) -> None:
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
def _telling(plan: _Plan) -> Iterator[None]:
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
    plan = _Plan.read(text)
    steps = _watched(loop.steps, plan)
    vars(loop).update(steps=steps, fit=loop.drained(steps))
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
