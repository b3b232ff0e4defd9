"""Commands that recipes bring to the command line: each is a dataclass.

Its fields are what the command takes, and the first line of its docstring is its line in the help.
It is called with the recipe; what it returns is the exit status, None for 0. One with a field `run`
is for the runs of the recipes that have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tyro.conf import Positional

from loopax.errors import StorageError
from loopax.recipe.base import Recipe
from loopax.terminal import output_optional, show_tables, to_stderr


@dataclass(frozen=True)
class Command:
    """What a recipe brings to the command line."""

    is_ended_by_ctrl_c: ClassVar = False
    """Whether it raises KeyboardInterrupt in it; else the process ends there and then."""

    def __call__(self, recipe: Recipe) -> int | None:
        """Does it; returns the exit status."""
        raise NotImplementedError


@dataclass(frozen=True)
class OfRun(Command):
    """A command on a trained run and one of its checkpoints."""

    run: Positional[Path]
    """The run directory."""
    checkpoint: str = "best"
    """best (or the latest, where a run chooses none), latest, or the number of a step."""


@dataclass(frozen=True)
class Evaluate(OfRun):
    """Measure a trained run again."""

    def __call__(self, recipe: Recipe) -> None:
        """Shows the results, and keeps them in `evaluation.json`."""
        with output_optional():
            trained, results = self.measured(recipe)
            show_tables(recipe.tables(results))
            try:
                trained.dir.write_json("evaluation.json", results)
            except StorageError as error:  # A run that may only be read can be measured as well.
                to_stderr(f"loopax: {error}")
            else:
                print(f"\n{trained.dir.path / 'evaluation.json'}")

    def measured(self, recipe: Recipe) -> tuple[Any, Mapping[str, Any]]:
        """The trained run, and its results."""
        trained = recipe.load(self.run, self.checkpoint)
        return trained, recipe.evaluate(trained)
