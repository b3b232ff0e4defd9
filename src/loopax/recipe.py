"""What a recipe is, and what happens around every one of them.

A recipe turns a configuration into a problem that `fit` can train, and a trained model into
measures and a report. All between the two is here once: the data is said and compared, the run is
trained or continued, and what is finished is measured, results last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

from loopax.checkpoint import CheckpointStore
from loopax.data import absolute
from loopax.deadline import check_time, seconds_left, time_limit
from loopax.errors import DataError, RunDirError
from loopax.evaluation import Evaluation
from loopax.fitting import fit
from loopax.hooks import Hook
from loopax.retention import Checkpoints
from loopax.run import Run
from loopax.rundir import RunDir, read_config
from loopax.state import TrainState
from loopax.writers.base import Writer

MODEL_FILE = "model.json"
"""Of a run directory: what its model is made of, and which data it was trained on."""


class Problem(Protocol):
    """What a configuration says is to be trained, in the terms of `fit`.

    Attributes:
        config: the configuration, a dataclass. Its fields are the options of the command line;
            `seed`, `preset`, `nonfinite` and `log_every` are among them. `PLACES` names those that
            say where data is, and `to_json` is what `config.json` keeps.
        description: what the data is, and what was chosen because of it, in lines.
        noted: what `model.json` keeps; `data_sha256` tells other data from the same.
        batches, loss_fn, evaluation: as `fit` takes them.
        steps: how many the whole training has, if nothing ends it early.
        ranking: the metric that the best checkpoint is best in, None where none is chosen, and
            whether that is best at its lowest or its highest.
    """

    @property
    def config(self) -> Any: ...
    @property
    def description(self) -> str: ...
    @property
    def noted(self) -> Mapping[str, Any]: ...
    @property
    def batches(self) -> Any: ...
    @property
    def loss_fn(self) -> Callable[..., Any]: ...
    @property
    def evaluation(self) -> Evaluation: ...
    @property
    def steps(self) -> int: ...
    @property
    def ranking(self) -> tuple[str | None, Literal["min", "max"]]: ...

    def state(self, *, resumed: bool = False) -> TrainState:
        """The state that training begins with; of a run that is `resumed` its form is enough."""


class Recipe(Protocol):
    """What a recipe is: a module, or an object, that has these names.

    For the command line it also has `PRESETS` (configurations by name, the first is the default),
    `stored_config`, `costs`, `evaluate`, `tables` and `export`.
    """

    # A class, which a protocol can only state as a property that is called so.
    @property
    def Problem(self) -> Any:  # noqa: N802
        """Its `of(config, say)` is the problem of a configuration; `say` hears what takes long."""

    def hooks_of(self, problem: Any) -> Sequence[Hook | Callable[[Run], Any]]:
        """What is called along the way."""

    def load(self, run: str | Path, *, problem: Any, say: Callable[[str], None]) -> Any:
        """What a run has come to, at its best checkpoint; with `dir` and `results_file`."""

    def finish(
        self, trained: Any, problem: Any, say: Callable[[str], None], progress: bool
    ) -> Mapping[str, Any]:
        """Measures, draws and reports; returns the results, which are kept last."""


def train(
    recipe: Recipe,
    config: Any,
    run_dir: str | Path,
    *,
    steps: int | None = None,
    checkpoints: Checkpoints | None = None,
    writers: Sequence[Writer] = (),
    max_seconds: float | None = None,
    progress: bool = True,
) -> Any:
    """Trains what `config` states, or continues the run in `run_dir`; measures what is finished.

    Args:
        recipe: what is trained.
        config: how.
        run_dir: where everything goes.
        steps: stop here, before the end that `config` states.
        checkpoints, writers, progress: as for `fit`.
        max_seconds: for all of it. What is not done by then is done when this is called again.

    Raises:
        LoopaxError: the data, the configuration or the run directory cannot be used.
    """
    say = print if progress else _silent

    def over() -> None:
        say(f"{run_dir}: time is up; the same command does what is left")

    with time_limit(max_seconds, over):
        problem: Problem = recipe.Problem.of(located(config), say)
        say(problem.description)
        check_data(run_dir, problem.config, problem.noted["data_sha256"])
        run = _fit(recipe, problem, run_dir, steps, checkpoints, writers, progress)
        note_model(run, problem)  # of a finished run that has lost it
        trained = recipe.load(run_dir, problem=problem, say=_silent)
        is_finished = run.stopped is not None or run.step >= problem.steps
        if is_finished and not trained.results_file.exists():
            check_time()
            results = recipe.finish(trained, problem, say, progress)
            trained.dir.write_json("results.json", results)  # last: it says that all is there
    return recipe.load(run_dir, problem=problem, say=_silent)


def _fit(
    recipe: Recipe,
    problem: Problem,
    run_dir: str | Path,
    steps: int | None,
    checkpoints: Checkpoints | None,
    writers: Sequence[Writer],
    progress: bool,
) -> Run:
    """The training itself, or what is left of it."""
    config, saving = problem.config, checkpoints or Checkpoints()
    if saving.best == Checkpoints.best:
        best, mode = problem.ranking
        saving = replace(saving, best=best, mode=mode)
    begun = bool(CheckpointStore(Path(run_dir) / "checkpoints").steps)
    return fit(
        problem.state(resumed=begun),
        problem.loss_fn,
        problem.batches,
        steps=problem.steps if steps is None else min(steps, problem.steps),
        run_dir=run_dir,
        evaluation=problem.evaluation,
        hooks=[lambda run: note_model(run, problem), *recipe.hooks_of(problem)],
        checkpoints=saving,
        writers=writers,
        nonfinite=config.nonfinite,
        max_seconds=seconds_left(),
        log_every=config.log_every,
        progress=progress,
        config=_as_begun(config, run_dir).to_json(),
    )


def located(config: Any) -> Any:
    """A configuration whose data is found from any folder.

    A name that is no path stays as it is, and so does the recipe's own data, whatever lies here.
    """
    given = {name: getattr(config, name) for name in config.PLACES}
    own = {getattr(type(config), name) for name in config.PLACES}
    return replace(config, **{n: absolute(at) for n, at in given.items() if at not in own})


def _as_begun(config: Any, run_dir: str | Path) -> Any:
    """The configuration as the run has it: its data, which is the same, may have moved."""
    run = RunDir(run_dir)
    if not (run.path / MODEL_FILE).exists():
        return config
    stored = read_config(type(config), run.config)
    return replace(config, **{name: getattr(stored, name) for name in config.PLACES})


def stored_config(name: str, kind: type[Any], run: str | Path) -> Any:
    """What the run in this directory was configured with, as a `kind`.

    Raises:
        RunDirError: `run` is not the directory of a run of the recipe `name`.
    """
    directory = RunDir.open(run)
    recipe = directory.config.get("recipe")
    if recipe != name:
        holds = recipe or "a program"
        raise RunDirError(f"{run}: holds a run of {holds}, not of the {name} recipe")
    config = read_config(kind, directory.config)
    directory.check(config.to_json())
    return config


def note_model(run: Run, problem: Problem) -> None:
    """Keeps in a run's directory what its model is made of, and of which data."""
    if run.dir is not None and not (run.dir.path / MODEL_FILE).exists():
        run.dir.write_json(MODEL_FILE, dict(problem.noted))


def noted(directory: RunDir, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """What `note_model` has kept, with these fields; `(str,)` is a list of that type.

    Raises:
        RunDirError: the file is missing or damaged.
    """
    file = directory.path / MODEL_FILE
    if not file.exists():
        raise RunDirError(
            f"{directory.path}: has no {MODEL_FILE}; `loopax resume {directory.path}` writes it"
        )
    kept = directory.read_json(MODEL_FILE)
    if not isinstance(kept, dict) or not all(_is_of(kept.get(n), kinds[n]) for n in kinds):
        raise RunDirError(
            f"{file}: is damaged; remove it, and the same training command writes it anew"
        )
    return kept


def _is_of(value: Any, kind: Any) -> bool:
    if isinstance(kind, type):
        return isinstance(value, kind)
    return isinstance(value, list) and all(type(each) is kind[0] for each in value)


def check_data(run: str | Path, config: Any, data_sha256: str) -> None:
    """Makes sure that a run that is there, finished or not, was trained on this data.

    Raises:
        DataError: it was trained on other data.
    """
    directory = RunDir(run)
    if not (directory.path / MODEL_FILE).exists():
        return
    if noted(directory, {"data_sha256": str})["data_sha256"] != data_sha256:
        now = " and ".join(filter(None, (getattr(config, name) for name in config.PLACES)))
        then = " and ".join(filter(None, map(directory.config.get, config.PLACES)))
        raise DataError(
            f"{now}: is not the data that {run} was trained on, which was in {then}; give it as "
            "it was, name another run directory, or begin anew with --fresh"
        )


def _silent(message: str) -> None:
    """Where nobody looks on."""
