"""Commands that train: begin a run, continue it, or say what its steps will cost."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar

from tyro.conf import Positional, arg

from loopax import Checkpoints
from loopax.cli.parsing import HELP, parse, seconds, value_of
from loopax.errors import LoopaxError, RunDirError
from loopax.recipe import SHIPPED, Recipe, find, known, recipe_of
from loopax.terminal import output_optional, show_tables

if TYPE_CHECKING:
    from loopax.writers import Writer

C = TypeVar("C")

Log = Literal["csv", "mlflow", "trackio", "wandb"]

LEFT = ("report.html", "pictures/", "results.json", "metrics.jsonl", "checkpoints/")
"""What to look at in a run directory, where it is there."""

STARTED = time.monotonic()
"""When this process began, nearly: a time budget counts from here."""


@dataclass(frozen=True)
class Processes:
    """The processes that train together; each is started with the same command."""

    processes: int | Literal["auto"] | None = None
    """How many there are; auto asks the launcher: SLURM, Open MPI, Kubernetes, Cloud TPU."""
    process: int | None = None
    """Which of them this is, from 0."""
    coordinator: str | None = None
    """Where process 0 can be reached: host:port."""

    def join(self) -> None:
        """Joins the others, where this process was told of any; before JAX is used."""
        if self == Processes():
            return
        import jax

        from loopax import cluster

        count = None if self.processes == "auto" else self.processes
        cluster.join(self.coordinator, count, self.process)
        if jax.process_index():  # What all of them come to, one prints.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(frozen=True)
class Train(Generic[C]):
    """Train a recipe. Run it again on the same directory to continue."""

    config: Annotated[C, arg(name="")]
    """What to train, and how."""
    run_dir: Path
    """Where everything goes; a run found there is continued."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    """When to save and what to keep."""
    max_time: str | None = None
    """Save and stop within this time: seconds, or 90s, 30m, 2h, 1:30:00."""
    log: tuple[Log, ...] | None = None
    """Where rows go beside the files that every run has. When left out, where the last start of the
    run has sent them; with nothing after it, nowhere."""
    mesh: str | None = None
    """The devices that train, such as data=2,fsdp=4; by default all that share a batch evenly."""
    profile: str | None = None
    """Steps to trace with JAX's profiler, such as 100:110, for TensorBoard and Perfetto."""
    together: Annotated[Processes, arg(name="")] = field(default_factory=Processes)
    """The processes that train together."""
    fresh: bool = False
    """Begin anew: a run found in the directory is kept beside it, under another name."""
    dry_run: bool = False
    """Only say what a step costs: parameters, FLOPs, memory, time. Nothing is written."""


@dataclass(frozen=True)
class Resume:
    """Continue a run with the settings it was made with."""

    run: Positional[Path]
    """The run directory."""
    data: str | None = None
    """Where its data is by now, if not where it was."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    """When to save and what to keep."""
    max_time: str | None = None
    """Save and stop within this time: seconds, or 90s, 30m, 2h, 1:30:00."""
    log: tuple[Log, ...] | None = None
    """Where rows go beside the files that every run has. When left out, where the last start of the
    run has sent them; with nothing after it, nowhere."""
    mesh: str | None = None
    """The devices that train, such as data=2,fsdp=4; by default those of the last start."""
    profile: str | None = None
    """Steps to trace with JAX's profiler, such as 100:110, for TensorBoard and Perfetto."""
    together: Annotated[Processes, arg(name="")] = field(default_factory=Processes)
    """The processes that train together."""


def train(words: list[str]) -> int:
    """`loopax train RECIPE`: the preset gives the defaults that the other options change."""
    if not words or words[0] in HELP:
        print(f"usage: loopax train RECIPE ...\n\n{_listed()}\n")
        print("loopax train RECIPE --help says what each takes.")
        return 0 if words else 2
    recipe, options = find(words[0]), words[1:]
    preset = value_of("--preset", options) or next(iter(recipe.presets))
    run_dir = Path("runs") / f"{recipe.name.rpartition(':')[2]}-{preset}"
    default = Train(recipe.preset(preset), run_dir)
    # The class is known only now, so mypy takes what stands in the brackets for no type.
    kind: Any = Train[type(default.config)]  # type: ignore[misc]
    command = parse(kind, options, f"loopax train {words[0]}", default)
    command.together.join()
    if command.dry_run:
        from loopax.caches import keep_compiled

        keep_compiled()
        print("\n".join(recipe.costs(command.config, command.mesh)))
        return 0
    if command.fresh:
        from loopax.run import set_aside

        # What cannot be trained is refused while everything is in its place.
        seconds("--max-time", command.max_time)
        chosen_writers(command.log or (), command.run_dir)
        recipe.problem(command.config).state()
        if kept := set_aside(command.run_dir):
            print(f"{command.run_dir}: the run that was there is now {kept}")
    return _trained(recipe, command.config, command.run_dir, command)


def _listed() -> str:
    """The recipes that have a name, a line each; only those that ship are asked what they do."""
    said = {name: find(name).about if name in SHIPPED else where for name, where in known().items()}
    said["module:Class"] = "a recipe of your own"
    return "\n".join(f"  {name:<14}{about}" for name, about in said.items())


def resume(words: list[str]) -> int:
    """`loopax resume RUN`."""
    command = parse(Resume, words, "loopax resume")
    command.together.join()
    recipe = recipe_of(command.run)
    config = recipe.config_of(command.run)
    if command.data is not None:
        config = replace(config, data=command.data)
    if command.mesh is None:
        from loopax.run import RunDir

        command = replace(command, mesh=RunDir(command.run).mesh)
    return _trained(recipe, config, command.run, command)


def _trained(recipe: Recipe, config: Any, run_dir: Path, command: Train[Any] | Resume) -> int:
    from loopax.caches import keep_compiled
    from loopax.recipe import RESULTS_FILE
    from loopax.recipe import train as train_recipe

    budget = seconds("--max-time", command.max_time)
    writers = chosen_writers(command.log, run_dir)
    keep_compiled()
    with output_optional():
        train_recipe(
            recipe,
            config,
            run_dir,
            checkpoints=command.checkpoints,
            writers=writers,
            mesh=command.mesh,
            profile=command.profile,
            # What is left of it; where nothing is, one step is made and it is said.
            max_seconds=None
            if budget is None
            else max(1e-3, budget - (time.monotonic() - STARTED)),
        )
        if (file := run_dir / RESULTS_FILE).exists():
            show_tables(_tables(recipe, file))
            print(f"\n{run_dir}: {', '.join(name for name in LEFT if (run_dir / name).exists())}")
    return 0


def chosen_writers(names: Sequence[str] | None, run_dir: Path) -> list[Writer]:
    """Those that are named; those of the run's last start where nothing was said."""
    from loopax import writers
    from loopax.run import RunDir

    known = {name: getattr(writers, name) for name in ("CSV", "MLflow", "Trackio", "WandB")}
    if names is None:
        last = RunDir(run_dir).starts[-1:]
        chosen = [name for start in last for name in start.get("writers", ()) if name in known]
    else:
        chosen = [name for name in known if name.lower() in names]
    return [known[name]() for name in chosen]


def _tables(recipe: Recipe, file: Path) -> Any:
    from loopax.run import RunDir

    try:
        return recipe.tables(RunDir(file.parent).read_json(file.name))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, LoopaxError):
            raise
        raise RunDirError(
            f"{file}: is damaged, or of an older version; remove it, and the same command "
            "measures anew"
        ) from error
