"""The command line: thin, no logic. Each command is a dataclass that says what it takes.

Importing this imports neither JAX nor anything that does, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import tyro
from tyro.conf import Positional, arg

from loopax import __version__
from loopax.errors import ConfigError, LoopaxError
from loopax.recipes.vae import PRESETS, VAEConfig

T = TypeVar("T")

RECIPES = ("vae",)
_STYLE = (tyro.conf.AvoidSubcommands,)

USAGE = """\
usage: loopax COMMAND ...

  train vae            train a class-conditional VAE, or continue a run
  sample RUN           draw samples from a trained run
  reconstruct RUN      draw test images beside their reconstructions
  evaluate RUN         measure a trained run on all of its data
  runs DIR             list the runs below a directory

loopax COMMAND --help says what each takes; loopax --version says which version this is.
"""


@dataclass(frozen=True)
class OfRun:
    """A trained run and one of its checkpoints."""

    run: Positional[Path]
    """The run directory."""
    checkpoint: str = "latest"
    """latest, best, or the number of a step."""


@dataclass(frozen=True)
class Sample(OfRun):
    """Draw samples from a trained run: ten of each class, or `count` of one class."""

    label: Annotated[str | None, arg(name="class")] = None
    """A class, by its name or number; every class when left out."""
    count: int = 10
    """Images of each class."""
    seed: int = 1
    """Of the latents."""
    out: Path | None = None
    """Where the picture goes; RUN/pictures/samples.png (or samples-CLASS.png) when left out."""


@dataclass(frozen=True)
class Reconstruct(OfRun):
    """Draw test images beside their reconstructions."""

    count: int = 5
    """Pairs of each class."""
    out: Path | None = None
    """Where the picture goes; RUN/pictures/reconstructions.png when left out."""


@dataclass(frozen=True)
class Evaluate(OfRun):
    """Measure a trained run on every image of its training and test data."""


@dataclass(frozen=True)
class Runs:
    """List the runs below a directory."""

    directory: Positional[Path] = Path("runs")
    """Where to look."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; a mistake of the user is one line, status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except LoopaxError as error:
        print(f"loopax: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "loopax: stopped; the same command continues from the last checkpoint", file=sys.stderr
        )
        return 130
    except BrokenPipeError:
        # The reader of our output has left (`loopax runs | head`); there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"loopax {__version__}")
        return 0
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": train,
        "sample": sample,
        "reconstruct": reconstruct,
        "evaluate": evaluate,
        "runs": runs,
    }
    if words[0] not in commands:
        raise ConfigError(_unknown("command", words[0], commands))
    return commands[words[0]](words[1:])


def train(words: list[str]) -> int:
    """`loopax train RECIPE`."""
    if words[:1] != ["vae"]:
        if not words or words[0] in ("-h", "--help"):
            print("usage: loopax train vae ...\n\nloopax train vae --help says what it takes.")
            return 0 if words else 2
        raise ConfigError(_unknown("recipe", words[0], ["vae"]))
    return train_vae(words[1:])


def train_vae(words: list[str]) -> int:
    """`loopax train vae`: the preset gives the defaults that the other options change."""
    preset = _value_of("--preset", words) or "wide"
    if preset not in PRESETS:
        raise ConfigError(_unknown("preset", preset, PRESETS))

    @dataclass(frozen=True)
    class Train:
        """Train a class-conditional VAE. Run it again on the same directory to continue."""

        config: Annotated[VAEConfig, arg(name="")]
        run_dir: Path = Path("runs") / f"vae-{preset}"
        """Where everything goes; a run found there is continued."""

    command = _parse(Train, words, "loopax train vae", Train(PRESETS[preset]))
    from loopax.recipes import vae

    trained = vae.train(command.config, command.run_dir)
    _show_results(trained.dir.read_json("results.json"), vae.RESULTS)
    print(
        f"\n{trained.dir.path}: pictures/, results.json, metrics.jsonl, checkpoints/, tensorboard/"
    )
    return 0


def sample(words: list[str]) -> int:
    """`loopax sample RUN`."""
    command = _parse(Sample, words, "loopax sample")
    recipe = _recipe_of(command.run)
    trained = recipe.load(command.run, command.checkpoint)
    if command.label is None:
        images, name = trained.samples_by_class(command.count, seed=command.seed), "samples.png"
    else:
        images = trained.sample(command.label, command.count, seed=command.seed)[None]
        name = f"samples-{trained.label_of(command.label)}.png"
    out = command.out or trained.dir.pictures / name
    return _drawn(out, lambda path: recipe.save_grid(images, path))


def reconstruct(words: list[str]) -> int:
    """`loopax reconstruct RUN`."""
    command = _parse(Reconstruct, words, "loopax reconstruct")
    trained = _recipe_of(command.run).load(command.run, command.checkpoint)
    return _drawn(
        command.out or trained.dir.pictures / "reconstructions.png",
        lambda path: trained.save_reconstructions(path, each=command.count),
    )


def evaluate(words: list[str]) -> int:
    """`loopax evaluate RUN`."""
    command = _parse(Evaluate, words, "loopax evaluate")
    recipe = _recipe_of(command.run)
    _show_results(recipe.load(command.run, command.checkpoint).measure(), recipe.RESULTS)
    return 0


def runs(words: list[str]) -> int:
    """`loopax runs DIR`."""
    command = _parse(Runs, words, "loopax runs")
    if not command.directory.is_dir():
        raise ConfigError(f"{command.directory}: is not a directory")
    from loopax.rundir import RunDir

    table = _table("run", "recipe", "step", "test loss")
    for config in sorted(command.directory.rglob("config.json")):
        run = RunDir(config.parent)
        rows = run.metrics
        tested = [row["loss"] for row in rows if row["source"] == "test" and "loss" in row]
        table.add_row(
            str(run.path),
            str(run.config.get("recipe", "-")),
            f"{rows[-1]['step']:,}" if rows else "0",
            f"{tested[-1]:.4g}" if tested else "-",
        )
    _print(table)
    return 0


def _parse(kind: type[T], words: list[str], program: str, default: T | None = None) -> T:
    """The command that the words describe.

    Raises:
        ConfigError: a word is unknown or has a value of another type.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            command = tyro.cli(kind, args=words, prog=program, default=default, config=_STYLE)
            return cast(T, command)
    except SystemExit as end:
        if end.code == 0:
            raise
        raise ConfigError(f"{_one_line(complaint.getvalue())} ({program} --help)") from None


def _one_line(complaint: str) -> str:
    """The first sentence of tyro's box."""
    lines = [line.strip("│ ") for line in complaint.splitlines() if line.startswith("│")]
    rule = next((index for index, line in enumerate(lines) if "──" in line), None)
    return " ".join(lines[:rule]) or "the command line could not be understood"


def _unknown(kind: str, word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"there is no {kind} {word!r}; {hint}"


def _value_of(option: str, words: Sequence[str]) -> str | None:
    """The value of an option that must be known before the others can be read."""
    for index, word in enumerate(words):
        if word == option and index + 1 < len(words):
            return words[index + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def _recipe_of(run: Path) -> Any:
    """The recipe that made a run, as a module."""
    from loopax.rundir import RunDir

    recipe = RunDir.open(run).config.get("recipe")
    if recipe not in RECIPES:
        raise ConfigError(
            f"{run}: holds a run of {recipe or 'a program of its own'}; this command works on "
            f"runs of {', '.join(RECIPES)}"
        )
    return importlib.import_module(f"loopax.recipes.{recipe}")


def _drawn(path: Path, draw: Callable[[Path], None]) -> int:
    try:
        draw(path)
    except (OSError, ValueError) as error:
        if isinstance(error, LoopaxError):
            raise
        raise ConfigError(f"{path}: the picture cannot be written: {error}") from error
    print(path)
    return 0


def _show_results(results: dict[str, dict[str, float]], units: dict[str, str]) -> None:
    table = _table("", *(f"{name}" for name in results))
    for name, unit in units.items():
        table.add_row(unit, *(f"{values[name]:.4f}" for values in results.values()))
    _print(table)


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(*columns[:1])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _print(table: Any) -> None:
    from rich.console import Console

    Console().print(table)
