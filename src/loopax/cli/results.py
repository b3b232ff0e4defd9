"""Commands on what runs have come to: take weights elsewhere, list the runs below a directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from loopax.cli.parsing import parse
from loopax.errors import ConfigError, LoopaxError
from loopax.recipe import OfRun, find
from loopax.terminal import show, table, to_stderr


@dataclass(frozen=True)
class Export(OfRun):
    """Write what a run has trained for use elsewhere.

    The weights of any run, averaged where it averages, as a safetensors file; of a recipe what its
    models are used as elsewhere, such as a sampler or a folder for another library.
    """

    out: Path | None = None
    """Inside of the run directory when left out."""


@dataclass(frozen=True)
class Report:
    """Write `report.html` into the directory of any run: what it came to, and how."""

    run: Positional[Path]
    """The run directory."""


@dataclass(frozen=True)
class Runs:
    """List the runs below a directory, each with the metric that ranks its checkpoints."""

    directory: Positional[Path] = Path("runs")
    """Where to look."""


def export(words: list[str]) -> int:
    """`loopax export RUN`."""
    command = parse(Export, words, "loopax export")
    from loopax.caches import keep_compiled
    from loopax.recipe import export as usual
    from loopax.run import RunDir

    keep_compiled()
    name, said = RunDir.open(command.run).config.get("recipe"), list[str]()
    write = usual if name is None else find(name).export
    written = write(command.run, command.checkpoint, command.out, said.append)
    to_stderr(*said)
    print("\n".join(map(str, written)))
    return 0


def runs(words: list[str]) -> int:
    """`loopax runs DIR`."""
    command = parse(Runs, words, "loopax runs")
    if not command.directory.is_dir():
        raise ConfigError(f"{command.directory}: is not a directory")
    from loopax.report import Standing, runs_below

    listed = table("run", "recipe", "step", "metric", "latest", "best", "at step")
    for run in runs_below(command.directory):
        try:
            recipe, at = str(run.config.get("recipe", "-")), Standing.of(run)
        except (LoopaxError, OSError) as error:  # one that is damaged hides no other
            to_stderr(f"loopax: {error}")
            continue
        values = ("-" if value is None else f"{value:.4g}" for value in (at.latest, at.best_value))
        best = "-" if at.best is None else f"{at.best:,}"
        listed.add_row(str(run.path), recipe, f"{at.step:,}", at.metric or "-", *values, best)
    if not listed.row_count:
        to_stderr(f"{command.directory}: no run is below it")
        return 0
    show(listed)
    return 0


def report(words: list[str]) -> int:
    """`loopax report RUN`."""
    command = parse(Report, words, "loopax report")
    from loopax.caches import keep_compiled
    from loopax.recipe import RESULTS_FILE
    from loopax.report import of_run
    from loopax.run import RunDir

    keep_compiled()
    run = RunDir.open(command.run)
    if "recipe" in run.config and (run.path / RESULTS_FILE).exists():
        recipe = find(run.config["recipe"])
        print(recipe.report(recipe.load(run.path), run.read_json(RESULTS_FILE)))
    else:
        print(of_run(run.path))
    return 0
