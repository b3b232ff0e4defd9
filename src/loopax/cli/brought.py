"""Commands that recipes bring; which recipe one is for follows from the run that it names."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from loopax.cli.parsing import HELP, parse, target_of
from loopax.errors import ConfigError
from loopax.recipe import SHIPPED, Evaluate, Recipe, find, known, recipe_of


def commands_of(recipe: Recipe) -> Mapping[str, type[Any]]:
    """The commands that work on a recipe, by name."""
    return {"evaluate": Evaluate, **recipe.commands}


def shipped_commands() -> Iterator[tuple[Recipe, str, type[Any]]]:
    """What the recipes that ship bring: recipe, name and command."""
    for recipe in map(find, SHIPPED):
        for name, kind in recipe.commands.items():
            yield recipe, name, kind


def usage() -> str:
    """A line for each command that a recipe that ships brings."""
    lines = []
    for recipe, name, kind in shipped_commands():
        if name != "evaluate":
            first = dataclasses.fields(kind)[0].name.upper()
            said = (inspect.getdoc(kind) or "").partition("\n")[0].rstrip(".")
            lines.append(f"  {f'{name} {first}':<21}{recipe.name}: {said[:1].lower()}{said[1:]}")
    return "\n".join(lines)


def run(name: str, words: list[str]) -> int | None:
    """`loopax NAME ...`; None where no recipe has such a command."""
    recipes = [recipe for recipe in map(find, known()) if name in commands_of(recipe)]
    target = target_of(words)
    if target is None and len(recipes) > 1 and HELP & {*words}:
        return _helps(name, recipes)
    on_runs = all(_takes_run(commands_of(recipe)[name]) for recipe in recipes)
    is_there = target is not None and (Path(target) / "config.json").is_file()
    if target is not None and on_runs and (recipes or is_there):
        recipe = recipe_of(target)
        if name not in commands_of(recipe):
            able = ", ".join(each.name for each in recipes) or "no recipe"
            raise ConfigError(
                f"{target}: holds a run of {recipe.name}; {name} works on runs of {able}"
            )
    elif recipes:
        recipe = recipes[0]
    else:
        return None
    command = parse(commands_of(recipe)[name], words, f"loopax {name}")
    from loopax.caches import keep_compiled

    keep_compiled()
    return command(recipe) or 0


def _takes_run(kind: type[Any]) -> bool:
    return any(field.name == "run" for field in dataclasses.fields(kind))


def _helps(name: str, recipes: Iterable[Recipe]) -> int:
    """The options for runs of each recipe, which differ."""
    for recipe in recipes:
        print(f"Of a run of {recipe.name}:\n", flush=True)
        with suppress(SystemExit):
            parse(commands_of(recipe)[name], ["--help"], f"loopax {name}")
    return 0
