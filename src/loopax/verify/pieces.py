"""Proof of exact resumption: a program run straight, and again in pieces that are interrupted.

Each piece is a process of its own, see `trial`. This process only starts them and compares what
they leave; it never touches a device.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from loopax.errors import ConfigError, ProgramError
from loopax.files import storing
from loopax.jsonlines import read_json_lines
from loopax.run.directory import RunDir
from loopax.verify.compare import KINDS, Comparison, Outcome, compare
from loopax.weights import read_weights

STEPS = 200

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

    def __str__(self) -> str:
        return f"{self.signal} at step {self.step:,}"

    def send(self, run: Any) -> None:
        """A hook: sends it to this process."""
        del run
        os.kill(os.getpid(), signal.Signals[self.signal])


class Plan(NamedTuple):
    """What one process is to do, and where it leaves what it saw.

    Its own files are `seen.jsonl`, the data and the metrics of each step; `errors.txt`, what the
    program wrote to standard error; and `failure.txt`, an exception in one line.
    """

    directory: str
    piece: int
    limit: int
    interruption: Interruption | None

    @classmethod
    def read(cls, text: str) -> Plan:
        """What `json.dumps` made of a plan."""
        directory, piece, limit, interruption = json.loads(text)
        return cls(directory, piece, limit, interruption and Interruption(*interruption))

    @property
    def run(self) -> RunDir:
        """Where all pieces of the trial train."""
        return RunDir(Path(self.directory, "run"))

    @property
    def final(self) -> Path:
        """The state of the last checkpoint; its presence says that the training came to an end."""
        return Path(self.directory, "final.safetensors")

    def file(self, name: str) -> Path:
        """A file of this piece's own."""
        return Path(self.directory, f"{self.piece}-{name}")


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
        comparisons = compare(straight, trial(directory / "interrupted", planned))
        deterministic = None
        if any(comparison.differing for comparison in comparisons):
            again = compare(straight, trial(directory / "straight-again", ()))
            deterministic = not any(comparison.differing for comparison in again)
    return Verdict(straight.steps, seed, planned, comparisons, deterministic)


def _planned(steps: int, count: int, seed: int) -> tuple[Interruption, ...]:
    if steps < 2:
        raise ConfigError(f"the program trains for {steps} step; 2 are needed to interrupt it")
    places = random.Random(seed).sample(range(1, steps), min(count, steps - 1))
    return tuple(map(Interruption, sorted(places), itertools.cycle(("SIGKILL", "SIGTERM"))))


def _trial(
    command: Sequence[str],
    limit: int,
    say: Callable[[str], None],
    directory: Path,
    interruptions: Sequence[Interruption],
) -> Outcome:
    """Runs the program to its end, anew after each interruption."""
    with storing(directory):
        directory.mkdir(parents=True)
    plans = [
        Plan(str(directory.absolute()), piece, limit, interruption)
        for piece, interruption in enumerate([*interruptions, None])
    ]
    for plan in plans:
        say(f"{directory.name}: {plan.interruption or 'to the end'}")
        _run(command, plan)
    parts: dict[str, dict[Any, Any]] = {name: {} for name in KINDS}
    for path, array in read_weights(plan.final).items():
        group, _, rest = path.partition("/")
        parts[group][rest or group] = array
    steps = int(parts["other state"]["step"])
    for row in (row for plan in plans for row in read_json_lines(plan.file("seen.jsonl"))):
        # Data is taken ahead of the steps, and a loop that is left early never comes to the last of
        # it. What a later piece saw at a step replaces what one that was killed had seen there.
        if row["step"] < steps:
            parts[row["source"]][row["step"]] = json.dumps(row)
    parts["logged rows"] |= enumerate(plan.run.metrics_file.read_text().splitlines(), 1)
    return Outcome(steps, parts)


def _run(command: Sequence[str], plan: Plan) -> None:
    """Runs one process, and makes sure that it ended as was planned."""
    # A cache of their own lets pieces start fast, and leaves it to each trial to compile: where
    # that gives other machine code each time, as on GPUs, it must not go unseen.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(Path(plan.directory, "compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    with plan.file("errors.txt").open("wb") as stderr:
        # Safe path: the program's own folder is put there later, and this module is not shadowed.
        status = subprocess.run(
            [sys.executable, "-P", "-m", "loopax.verify.trial", json.dumps(plan), *command],
            env={**cache, **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
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
                f"{name}: ended without a call of loopax.fit or loopax.training that came to its "
                "end; there is nothing to verify"
            )
        return
    failure, errors = plan.file("failure.txt"), plan.file("errors.txt")
    source = failure if failure.exists() else errors
    lines = source.read_text(errors="replace").strip().splitlines()
    reason = lines[-1].removeprefix("loopax: ") if lines else f"ended with status {status}"
    raise ProgramError(f"{name}: {reason}", exit_code=status if status > 0 else 128 - status)
