"""What a recipe must have, and what it has by default.

Importing this does not import JAX: the command line reads presets before anything is trained.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from loopax.errors import ConfigError, RunDirError, unknown
from loopax.recipe.problem import Problem, Say
from loopax.terminal import to_stderr

if TYPE_CHECKING:
    from loopax.report import Table
    from loopax.run.hooks import Hook
    from loopax.run.run import Run

Config = TypeVar("Config")


class Recipe:
    """A training that the command line can run: `loopax train my_package.mine:Digits`.

    A subclass has `presets` and `problem`; whatever else is here may be replaced. The first line
    of its docstring is its line in `loopax train`.

    Attributes:
        presets: configurations by name, dataclasses of one type; the first is the default. Their
            fields are the options of the command line. `nonfinite` and `log_every` are handed to
            `fit`, `preset` says which one it is, and a class attribute `PLACES` names the fields
            that say where data is.
        commands: dataclasses by the name of the command that each is, beside those that work on
            every recipe; `Evaluate` and `OfRun` show how.
        parts: a module whose `load`, `evaluate`, `tables` and `export`, as far as it has them, do
            what the methods of these names say.
        name: what `config.json` calls the recipe, so that it is found again: `module:Class`, or
            the name of its entry point in the group `loopax.recipes`.
    """

    presets: ClassVar[Mapping[Any, Any]] = {}
    commands: ClassVar[Mapping[str, type[Any]]] = {}
    parts: ClassVar[str | None] = None
    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            cls.name = f"{_module_of(cls)}:{cls.__qualname__}"

    @property
    def about(self) -> str:
        """What it trains, in a line."""
        return (inspect.getdoc(type(self)) or "").partition("\n")[0].rstrip(".")

    def problem(self, config: Any, say: Say = print) -> Problem:
        """What `config` says is to be trained; `say` hears what takes long.

        Raises:
            LoopaxError: the data or the configuration cannot be used.
        """
        raise NotImplementedError(f"{self.name} has no problem(config, say)")

    def hooks(self, problem: Any) -> Sequence[Hook | Callable[[Run], Any]]:
        """What is called along the way, as `fit` takes it."""
        return ()

    def load(
        self,
        run: str | Path,
        checkpoint: str | int = "best",
        *,
        problem: Any = None,
        say: Say = to_stderr,
    ) -> Any:
        """What a run has come to: at least `dir`, its `RunDir`, and `step`.

        Args:
            run: its directory.
            checkpoint: `best` (the latest where none is chosen), `latest`, or a step.
            problem: what was trained, where it is at hand.
            say: hears which checkpoint it is.

        Raises:
            RunDirError: `run` is not the directory of a run of this recipe.
            CheckpointError: there is no such checkpoint.
        """
        load = self._part("load")
        if problem is None and load is self._usual("load"):
            problem = self.problem(self.config_of(run), say)
        return load(run, checkpoint, problem=problem, say=say)

    def evaluate(self, trained: Any) -> Mapping[str, Any]:
        """The results of what `load` gave, as plain values for JSON: what `tables` shows."""
        results: Mapping[str, Any] = self._part("evaluate")(trained)
        return results

    def finish(self, trained: Any, problem: Any, say: Say, progress: bool) -> Mapping[str, Any]:
        """Measures, draws and reports at the end of a training; the results are kept last."""
        return self.evaluate(trained)

    def report(self, trained: Any, results: Mapping[str, Any]) -> Path:
        """Leaves `report.html` in the run's directory; returns its path.

        By default it says what can be said of any run, and shows `tables`.
        """
        from loopax.report import of_run

        return of_run(trained.dir.path, measures=self.tables(results))

    def tables(self, results: Any) -> Sequence[Table]:
        """Results for people."""
        shown: Sequence[Table] = self._part("tables")(results)
        return shown

    def costs(self, config: Any, mesh: str | None = None) -> list[str]:
        """What a step of this training costs, in lines; `mesh` is as for `fit`."""
        from loopax.diagnose.cost import estimate

        problem = self.problem(config)
        costs = estimate(problem.state(resumed=True), problem.loss_fn, problem.batches, mesh=mesh)
        return [*problem.description.splitlines(), *costs.lines()]

    def export(
        self, run: str | Path, checkpoint: str | int, out: Path | None, say: Say = print
    ) -> list[Path]:
        """Writes what a run has trained for use elsewhere; returns the files."""
        files: list[Path] = self._part("export")(run, checkpoint, out, say)
        return files

    def _part(self, name: str) -> Callable[..., Any]:
        """A function of `parts`, which is imported only now, as it may import JAX."""
        own = importlib.import_module(self.parts) if self.parts else None
        return getattr(own, name, None) or self._usual(name)

    @staticmethod
    def _usual(name: str) -> Callable[..., Any]:
        part: Callable[..., Any] = getattr(importlib.import_module("loopax.recipe.simple"), name)
        return part

    def as_json(self, config: Any) -> dict[str, Any]:
        """A configuration as `config.json` keeps it."""
        return _as_json(config, self.name)

    def config_of(self, run: str | Path) -> Any:
        """The configuration of the run in this directory.

        Raises:
            RunDirError: it is of another recipe, or of none.
            ConfigError: it is damaged, or of another version.
        """
        return config_of(run, self.name, type(self.preset()))

    def preset(self, name: str | None = None) -> Any:
        """The configuration of a preset, of the default where none is named."""
        name = name or next(iter(self.presets))
        if name not in self.presets:
            raise ConfigError(unknown("preset", name, self.presets))
        return self.presets[name]


def config_of(run: str | Path, name: str, kind: type[Config]) -> Config:
    """The configuration of the run in this directory, of the recipe of this name.

    Raises:
        RunDirError: it is of another recipe, or of none.
        ConfigError: it is damaged, or of another version.
    """
    from loopax.run.directory import RunDir, read_config

    directory = RunDir.open(run)
    if (other := directory.config.get("recipe")) != name:
        raise RunDirError(f"{run}: holds a run of {other or 'a program'}, not of the recipe {name}")
    config: Config = read_config(kind, directory.config)
    directory.check(_as_json(config, name))
    return config


def _as_json(config: Any, recipe: str) -> dict[str, Any]:
    return {"recipe": recipe, **asdict(config)}


def _module_of(kind: type[Any]) -> str:
    """The module that others import a class from, also while it runs as a program."""
    module = kind.__module__
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).stem if module == "__main__" and file else module


def check_fields(config: Any, names: str, is_right: Callable[[Any], bool], right: str) -> None:
    """Refuses fields of a configuration, by their names in a line, that cannot work.

    What is None is left to the data.

    Raises:
        ConfigError: a value is not `is_right`; `right` says what it must be.
    """
    for name in names.split():
        value = getattr(config, name)
        if value is not None and not is_right(value):
            raise ConfigError(f"{name} is {value}; it must be {right}")


def batch_size_for(examples: int, usual: int, smallest: int, batches: int) -> int:
    """A power of two by which a pass has `batches` or more: `usual`, or less for few examples."""
    fitting = max(smallest, examples // batches)
    return min(usual, 1 << (fitting.bit_length() - 1), max(1, examples))
