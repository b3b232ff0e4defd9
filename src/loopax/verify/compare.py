"""Proof of exact resumption: a program run straight, and again in pieces that are interrupted.

Each piece is a process of its own, see `trial`. What they leave is compared here by a process that
never touches a device: that is left to the pieces.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from loopax.durable import storing
from loopax.errors import ConfigError, ProgramError
from loopax.paths import form_of
from loopax.verify.trial import GROUPS, Interruption, Plan
from loopax.weights import read_weights
from loopax.writers import read_json_lines

STEPS = 200
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
        Plan(directory.absolute(), piece, limit, interruption)
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


def _run(command: Sequence[str], plan: Plan) -> None:
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
            [sys.executable, "-P", "-m", "loopax.verify.trial", str(plan), *command],
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
