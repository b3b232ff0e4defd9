"""Commands on how a run came about: prove that it resumes, execute a step again, branch it."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

import loopax
from loopax.cli.parsing import parse, target_of
from loopax.errors import ConfigError
from loopax.recipe import find, is_recipe, recipe_of


@dataclass(frozen=True)
class Replay:
    """Execute one step of a run again, from the nearest checkpoint, and look at it closely."""

    run: Positional[Path]
    """The run directory."""
    step: int
    """How many updates had been made before it: the first step of a run is 0."""
    out: Path | None = None
    """A folder for report.json and batch.npz; RUN/replay/STEP when left out."""


@dataclass(frozen=True)
class Rewind:
    """Branch a new run from a step of another; `loopax resume` trains it on."""

    run: Positional[Path]
    """The run to branch from; it stays as it is."""
    step: int
    """How many updates the branch begins with."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A setting that is different from there on: --set optimizer.learning-rate=1e-4."""
    out: Path | None = None
    """The new run's directory; RUN-at-STEP when left out."""


@dataclass(frozen=True)
class Verify:
    """Prove that a program resumes bit for bit: run it whole and in pieces, and compare.

    WHAT is a recipe with the options of its training (`vae --epochs 1`), the directory of a run,
    or a Python program that calls `loopax.fit`, with its arguments. The options of this command
    come before it.
    """

    steps: int | None = None
    """How many steps to make; at most 200 when left out."""
    interruptions: int = 3
    """How often the pieces are interrupted: killed, or stopped politely."""
    seed: int | None = None
    """Of the places where; another one each time when left out."""


def verify(words: list[str]) -> int:
    """`loopax verify [OPTIONS] WHAT ...`."""
    first = target_of(words)
    given = len(words) if first is None else words.index(first)
    command = parse(Verify, words[:given], "loopax verify")
    if given == len(words):
        raise ConfigError("say what to verify: a recipe, the directory of a run, or a program")
    import loopax

    target = words[given:]
    if is_recipe(target[0]):
        find(target[0])
        target = ["-m", "loopax", "train", *target]
    elif Path(target[0]).is_dir():
        recipe_of(Path(target[0]))
        target = ["-m", "loopax", "resume", *target]
    verdict = loopax.verify.verify(
        target, steps=command.steps, interruptions=command.interruptions, seed=command.seed
    )
    print("\n".join(verdict.lines()))
    return 0 if verdict.exact else 1


def replay(words: list[str]) -> int:
    """`loopax replay RUN --step N`."""
    command = parse(Replay, words, "loopax replay")
    loopax.caches.keep_compiled()
    recipe = recipe_of(command.run)
    run = loopax.run.RunDir.open(command.run)
    problem = recipe.problem(recipe.config_of(command.run))
    past = loopax.diagnose.Replay(run, problem.state(), problem.loss_fn, problem.batches)
    replayed = past.step(command.step)
    print("\n".join(replayed.lines()))
    out = command.out or run.path / "replay" / str(command.step)
    replayed.save(out)
    print(f"{out}: report.json, batch.npz")
    return 0


def rewind(words: list[str]) -> int:
    """`loopax rewind RUN --step N --set name=value`."""
    command = parse(Rewind, words, "loopax rewind")
    loopax.caches.keep_compiled()
    recipe = recipe_of(command.run)
    run, old = loopax.run.RunDir.open(command.run), recipe.config_of(command.run)
    new = parse(type(old), _as_options(command.set), "loopax rewind --set", old)
    before, after = recipe.problem(old), recipe.problem(new)
    here = Path(os.path.abspath(run.path))  # `.` has no name that another could be made of.
    out = command.out or here.with_name(f"{here.name}-at-{command.step}")
    loopax.diagnose.Replay(run, before.state(), before.loss_fn, before.batches).branch(
        command.step, out, state=after.state(), data=after.batches, config=recipe.as_json(new)
    )
    print(f"{out}: begins at step {command.step:,} of {run.path}; loopax resume {out} goes on")
    return 0


def _as_options(settings: tuple[str, ...]) -> list[str]:
    """`optimizer.learning-rate=1e-4` as the words that set it on a command line."""
    words = []
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            values = shlex.split(value)
        except ValueError as error:
            raise ConfigError(f"--set {setting!r}: {error}") from error
        if not name or not values:
            raise ConfigError(f"--set {setting!r}: write it as name=value")
        words += [f"--{name.lstrip('-')}", *values]
    return words
