"""Commands on what a run has come to: look at it, measure it, take its weights elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from loopax.cli.parsing import RECIPES, is_target, parse, recipe_of
from loopax.cli.printing import output_optional, show, show_tables, table, tell
from loopax.errors import ConfigError, LoopaxError, StorageError


@dataclass(frozen=True)
class OfRun:
    """A trained run and one of its checkpoints."""

    run: Positional[Path]
    """The run directory."""
    checkpoint: str = "best"
    """best (or the latest, where a run chooses none), latest, or the number of a step."""


@dataclass(frozen=True)
class OfVAE(OfRun):
    """A trained VAE."""

    data: str | None = None
    """Where its images are by now, if not where they were."""


@dataclass(frozen=True)
class Sample(OfVAE):
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
class Reconstruct(OfVAE):
    """Draw test images beside their reconstructions."""

    count: int = 5
    """Pairs of each class."""
    out: Path | None = None
    """Where the picture goes; RUN/pictures/reconstructions.png when left out."""


@dataclass(frozen=True)
class EvaluateVAE(OfVAE):
    """Measure a trained run: its objective, its likelihood, and its samples beside real images."""

    importance_samples: int = 500
    """For the likelihood of each test image; 0 leaves out this part, which takes minutes."""
    draws: int = 3
    """Sets of samples that are judged, for a mean and a standard deviation."""


@dataclass(frozen=True)
class EvaluateBERT(OfRun):
    """Measure a fine-tuned classifier on texts that it was not trained on, class by class."""

    data: Path | None = None
    """A table with labels; the run's own test texts when left out."""


@dataclass(frozen=True)
class Export(OfRun):
    """Write what a run has trained for use elsewhere.

    The weights of any run, averaged where it averages, as a safetensors file; of a VAE also the
    sampler, as `sampler.stablehlo` beside it, which runs without loopax; of a fine-tuned BERT a
    folder that PyTorch transformers loads.
    """

    out: Path | None = None
    """RUN/weights.safetensors when left out; of a BERT the folder, RUN/exported."""


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


def sample(words: list[str]) -> int:
    """`loopax sample RUN`."""
    command = parse(Sample, words, "loopax sample")
    recipe, said = recipe_of(command.run, "vae"), list[str]()
    trained = recipe.load(command.run, command.checkpoint, data=command.data, say=said.append)
    if command.label is None:
        images, name = trained.samples_by_class(command.count, seed=command.seed), "samples.png"
    else:
        images = trained.sample(command.label, command.count, seed=command.seed)[None]
        name = f"samples-{trained.label_of(command.label)}.png"
    out = command.out or trained.dir.pictures / name
    return _drawn(out, lambda path: recipe.save_grid(images, path), said)


def reconstruct(words: list[str]) -> int:
    """`loopax reconstruct RUN`."""
    command = parse(Reconstruct, words, "loopax reconstruct")
    recipe, said = recipe_of(command.run, "vae"), list[str]()
    trained = recipe.load(command.run, command.checkpoint, data=command.data, say=said.append)
    return _drawn(
        command.out or trained.dir.pictures / "reconstructions.png",
        lambda path: recipe.save_reconstructions(trained, path, each=command.count),
        said,
    )


def evaluate(words: list[str]) -> int:
    """`loopax evaluate RUN`: what is measured depends on what was trained."""
    run = next((word for index, word in enumerate(words) if is_target(words, index)), None)
    if run is None:
        return _evaluate_helps(words)
    recipe = recipe_of(Path(run))
    if recipe.__name__.endswith(".vae"):
        vae = parse(EvaluateVAE, words, "loopax evaluate")
        recipe = recipe_of(vae.run)
        trained = recipe.load(vae.run, vae.checkpoint, data=vae.data)
        options: dict[str, Any] = {
            "importance_samples": vae.importance_samples or None,
            "draws": vae.draws,
            "progress": True,
        }
    else:
        bert = parse(EvaluateBERT, words, "loopax evaluate")
        trained = recipe.load(bert.run, bert.checkpoint)
        options = {} if bert.data is None else {"texts": recipe.texts_like(trained, bert.data)}
    with output_optional():
        results = recipe.evaluate(trained, **options)
        show_tables(recipe.tables(results))
        try:
            trained.dir.write_json("evaluation.json", results)
        except StorageError as error:  # A run that may only be read can be measured all the same.
            print(f"loopax: {error}", file=sys.stderr)
        else:
            print(f"\n{trained.dir.path / 'evaluation.json'}")
    return 0


def _evaluate_helps(words: list[str]) -> int:
    """The options for runs of each recipe, which differ."""
    if not {"-h", "--help"} & {*words}:
        raise ConfigError("give a run directory (loopax evaluate --help)")
    for kind, recipe in ((EvaluateVAE, "vae"), (EvaluateBERT, "bert")):
        print(f"Of a run of {recipe}:\n", flush=True)
        with suppress(SystemExit):
            parse(kind, ["--help"], "loopax evaluate")
    return 0


def export(words: list[str]) -> int:
    """`loopax export RUN`."""
    command = parse(Export, words, "loopax export")
    from loopax import CheckpointStore
    from loopax.rundir import RunDir
    from loopax.weights import save_weights

    run, said = RunDir.open(command.run), list[str]()
    if run.config.get("recipe") in RECIPES:
        recipe = recipe_of(command.run)
        written = recipe.export(command.run, command.checkpoint, command.out, said.append)
    else:
        written = [command.out or run.path / "weights.safetensors"]
        with CheckpointStore(run.checkpoints, say=said.append) as store:
            save_weights(written[0], store.weights(store.chosen(command.checkpoint)))
    tell(said)
    for path in written:
        print(path)
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
            print(f"loopax: {error}", file=sys.stderr)
            continue
        values = ("-" if value is None else f"{value:.4g}" for value in (at.latest, at.best_value))
        best = "-" if at.best is None else f"{at.best:,}"
        listed.add_row(str(run.path), recipe, f"{at.step:,}", at.metric or "-", *values, best)
    show(listed)
    return 0


def report(words: list[str]) -> int:
    """`loopax report RUN`."""
    command = parse(Report, words, "loopax report")
    from loopax.report import of_run

    print(of_run(command.run))
    return 0


def _drawn(path: Path, draw: Callable[[Path], object], said: list[str]) -> int:
    try:
        draw(path)
    except (OSError, ValueError) as error:
        if isinstance(error, LoopaxError):
            raise
        raise ConfigError(f"{path}: the picture cannot be written: {error}") from error
    tell(said)
    print(path)
    return 0
