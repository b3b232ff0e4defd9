"""Training a recipe: its data is compared, the run is trained or continued, and what is finished is
measured, results last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loopax import processes
from loopax.data import absolute
from loopax.deadline import check_time, seconds_left, time_limit
from loopax.extras import require
from loopax.fitting import fit
from loopax.recipe.base import Recipe
from loopax.recipe.model_file import MODEL_FILE, check_data, write_noted
from loopax.recipe.problem import Problem, places
from loopax.run.checkpoint import CheckpointStore
from loopax.run.directory import RunDir, read_config
from loopax.run.retention import Checkpoints
from loopax.run.run import Run
from loopax.run.writers import Writer

RESULTS_FILE = "results.json"
"""Of a run directory: what was measured at the end; where it is, all else is too."""


def train(
    recipe: Recipe,
    config: Any,
    run_dir: str | Path,
    *,
    steps: int | None = None,
    checkpoints: Checkpoints | None = None,
    writers: Sequence[Writer] = (),
    mesh: str | None = None,
    max_seconds: float | None = None,
    profile: str | None = None,
    progress: bool = True,
) -> Any:
    """Trains what `config` states, or continues the run in `run_dir`; measures what is finished.

    Args:
        recipe: what is trained.
        config: how.
        run_dir: where everything goes.
        steps: stop here, before the end that `config` states.
        checkpoints, writers, mesh, profile, progress: as for `fit`.
        max_seconds: for all of it. What is not done by then is done when this is called again.

    Returns:
        What the recipe's `load` gives.

    Raises:
        LoopaxError: the data, the configuration or the run directory cannot be used.
    """
    progress = progress and processes.is_writer()
    say = print if progress else _silent

    def over() -> None:
        say(f"{run_dir}: time is up; the same command does what is left")

    with time_limit(max_seconds, over):
        problem = recipe.problem(located(config), say)
        require("recipe", f"the recipe {recipe.name}", "pydantic")  # which reads its config
        if problem.description:
            say(problem.description)
        check_data(run_dir, problem.config, problem.noted.get("data_sha256"))
        run = _fit(recipe, problem, run_dir, steps, checkpoints, writers, mesh, profile, progress)

        def finish() -> None:
            write_noted(run, problem)  # of a finished run that has lost it
            is_finished = run.stopped is not None or run.step >= problem.steps
            if not is_finished or (Path(run_dir) / RESULTS_FILE).exists():
                return
            with time_limit(seconds_left(), over):
                trained = recipe.load(run_dir, problem=problem, say=_silent)
                check_time()
                results = recipe.finish(trained, problem, say, progress)
                RunDir(run_dir).write_json(RESULTS_FILE, results)

        # To measure and to draw takes as long as it takes.
        processes.by_one("what follows the training", finish, patience=math.inf)
    return recipe.load(run_dir, problem=problem, say=_silent)


def _fit(
    recipe: Recipe,
    problem: Problem,
    run_dir: str | Path,
    steps: int | None,
    checkpoints: Checkpoints | None,
    writers: Sequence[Writer],
    mesh: str | None,
    profile: str | None,
    progress: bool,
) -> Run:
    """The training itself, or what is left of it."""
    config, saving = problem.config, checkpoints or Checkpoints()
    if saving.best == Checkpoints.best:
        best, mode = problem.ranking
        saving = replace(saving, best=best, mode=mode)
    given = {
        name: getattr(config, name) for name in ("nonfinite", "log_every") if hasattr(config, name)
    }
    begun = bool(CheckpointStore(Path(run_dir) / "checkpoints").steps)
    return fit(
        problem.state(resumed=begun),
        problem.loss_fn,
        problem.batches,
        steps=problem.steps if steps is None else min(steps, problem.steps),
        run_dir=run_dir,
        evaluation=problem.evaluation,
        hooks=[lambda run: write_noted(run, problem), *recipe.hooks(problem)],
        checkpoints=saving,
        writers=writers,
        mesh=mesh,
        max_seconds=seconds_left(),
        profile=profile,
        progress=progress,
        config=recipe.as_json(_as_begun(config, run_dir)),
        **given,
    )


def located(config: Any) -> Any:
    """A configuration whose data is found from any folder.

    A name that is no path stays as it is, and so does the recipe's own data, whatever lies here.
    """
    given = {name: getattr(config, name) for name in places(config)}
    own = {getattr(type(config), name) for name in given}
    return replace(config, **{n: absolute(at) for n, at in given.items() if at not in own})


def _as_begun(config: Any, run_dir: str | Path) -> Any:
    """The configuration as the run has it: its data, which is the same, may have moved."""
    run = RunDir(run_dir)
    if not (run.path / MODEL_FILE).exists():
        return config
    stored = read_config(type(config), run.config)
    return replace(config, **{name: getattr(stored, name) for name in places(config)})


def _silent(message: str) -> None:
    """Where nobody looks on."""
