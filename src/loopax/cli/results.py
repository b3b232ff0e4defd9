"""Commands on what a run has come to: look at it, measure it, take its weights elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from loopax.cli.parsing import parse, recipe_of
from loopax.cli.printing import show, show_tables, table
from loopax.errors import ConfigError, LoopaxError, StorageError


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
    """Measure a trained run: its objective, its likelihood, and its samples beside real images."""

    importance_samples: int = 500
    """For the likelihood of each test image; 0 leaves out this part, which takes minutes."""
    draws: int = 3
    """Sets of samples that are judged, for a mean and a standard deviation."""


@dataclass(frozen=True)
class Export(OfRun):
    """Write the weights of any run, averaged where it averages, as a safetensors file.

    Of a VAE also the sampler, as `sampler.stablehlo` beside it, which runs without loopax.
    """

    out: Path | None = None
    """Where the weights go; RUN/weights.safetensors when left out."""


@dataclass(frozen=True)
class Runs:
    """List the runs below a directory."""

    directory: Positional[Path] = Path("runs")
    """Where to look."""


def sample(words: list[str]) -> int:
    """`loopax sample RUN`."""
    command = parse(Sample, words, "loopax sample")
    recipe = recipe_of(command.run)
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
    command = parse(Reconstruct, words, "loopax reconstruct")
    recipe = recipe_of(command.run)
    trained = recipe.load(command.run, command.checkpoint)
    return _drawn(
        command.out or trained.dir.pictures / "reconstructions.png",
        lambda path: recipe.save_reconstructions(trained, path, each=command.count),
    )


def evaluate(words: list[str]) -> int:
    """`loopax evaluate RUN`."""
    command = parse(Evaluate, words, "loopax evaluate")
    recipe = recipe_of(command.run)
    trained = recipe.load(command.run, command.checkpoint)
    results = recipe.evaluate(
        trained,
        importance_samples=command.importance_samples or None,
        draws=command.draws,
    )
    show_tables(recipe.tables(results))
    try:
        trained.dir.write_json("evaluation.json", results)
    except StorageError as error:  # A run that may only be read can be measured all the same.
        print(f"loopax: {error}", file=sys.stderr)
    else:
        print(f"\n{trained.dir.path / 'evaluation.json'}")
    return 0


def export(words: list[str]) -> int:
    """`loopax export RUN`."""
    command = parse(Export, words, "loopax export")
    from loopax.checkpoint import CheckpointStore
    from loopax.rundir import RunDir
    from loopax.weights import save_weights

    run = RunDir.open(command.run)
    out = command.out or run.path / "weights.safetensors"
    with CheckpointStore(run.checkpoints) as store:
        save_weights(out, store.weights(command.checkpoint))
    print(out)
    if run.config.get("recipe") == "vae":
        recipe = recipe_of(command.run)
        sampler = out.with_name("sampler.stablehlo")
        recipe.export_sampler(recipe.load(command.run, command.checkpoint), sampler)
        print(sampler)
    return 0


def runs(words: list[str]) -> int:
    """`loopax runs DIR`."""
    command = parse(Runs, words, "loopax runs")
    if not command.directory.is_dir():
        raise ConfigError(f"{command.directory}: is not a directory")
    from loopax.rundir import RunDir

    listed = table("run", "recipe", "step", "test loss")
    for config in sorted(command.directory.rglob("config.json")):
        run = RunDir(config.parent)
        try:
            rows, recipe = run.metrics, str(run.config.get("recipe", "-"))
        except LoopaxError as error:
            print(f"loopax: {error}", file=sys.stderr)
            continue
        tested = [row["loss"] for row in rows if row["source"] == "test" and "loss" in row]
        listed.add_row(
            str(run.path),
            recipe,
            f"{rows[-1]['step']:,}" if rows else "0",
            f"{tested[-1]:.4g}" if tested else "-",
        )
    show(listed)
    return 0


def _drawn(path: Path, draw: Callable[[Path], object]) -> int:
    try:
        draw(path)
    except (OSError, ValueError) as error:
        if isinstance(error, LoopaxError):
            raise
        raise ConfigError(f"{path}: the picture cannot be written: {error}") from error
    print(path)
    return 0
