"""Where recipes are found: those that ship, those that are installed, and those of one's own."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import is_dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from loopax.errors import ConfigError, unknown
from loopax.recipe.base import Recipe

SHIPPED = {
    "vae": "loopax.recipes.vae:VAERecipe",
    "bert": "loopax.recipes.bert:BERTRecipe",
    "images": "loopax.recipes.images:ImagesRecipe",
}
GROUP = "loopax.recipes"
"""The group of entry points by which an installed package makes a recipe known by a name."""


def known() -> dict[str, str]:
    """Where each recipe is that has a name: `module:Class`."""
    return {**{each.name: each.value for each in entry_points(group=GROUP)}, **SHIPPED}


def is_recipe(word: str) -> bool:
    """Whether a word of the command line is meant as a recipe, and not as a file."""
    return not Path(word).exists() and (":" in word or word in known())


def find(name: str) -> Recipe:
    """The recipe of a name, or at `module:Class`; modules of the working directory count too.

    Raises:
        ConfigError: there is none, or it lacks something.
    """
    if ":" in name:
        return _loaded(name)
    if name not in SHIPPED and name not in known():
        raise ConfigError(
            f"{unknown('recipe', name, known())}; one of your own is given as module:Class"
        )
    return _loaded(SHIPPED.get(name) or known()[name])


def recipe_of(run: str | Path) -> Recipe:
    """The recipe that made the run in this directory.

    Raises:
        RunDirError: it is no run.
        ConfigError: it was made by a program, or its recipe is not found.
    """
    from loopax.run.directory import RunDir

    name = RunDir.open(run).config.get("recipe")
    if not isinstance(name, str):
        raise ConfigError(
            f"{run}: holds a run of a program, and this works on runs of a recipe; the program, "
            "started again, continues it, and has loopax.evaluate and loopax.diagnose.Replay"
        )
    try:
        return find(name)
    except ConfigError as error:
        raise ConfigError(f"{run}: its recipe is not found: {error}") from error


def _loaded(where: str) -> Recipe:
    """The recipe at `module:Class`, checked; an object that is one will do as well."""
    module, _, path = where.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # Last, so that no file there stands for a library.
    try:
        found: Any = importlib.import_module(module)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{where}: {module!r} cannot be imported ({error})") from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise ConfigError(f"{where}: there is no {path!r} in {module}")
        found = getattr(found, name)
    recipe = found() if isinstance(found, type) and issubclass(found, Recipe) else found
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"{where}: is no recipe; make it a subclass of loopax.recipe.Recipe")
    presets = recipe.presets
    if not presets or not all(is_dataclass(config) for config in presets.values()):
        raise ConfigError(
            f"{where}: its presets are {presets!r}; give instances of a dataclass by name: "
            'presets = {"default": Config()}'
        )
    if ":" not in recipe.name and recipe.name not in SHIPPED and recipe.name not in known():
        raise ConfigError(
            f"{where}: is called {recipe.name!r}, by which it would not be found again; leave out "
            f"its name, or make it an entry point of the group {GROUP}"
        )
    return recipe
