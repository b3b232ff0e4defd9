"""The report of a classifier of images: one page to send to a colleague."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import loopax
from loopax import measures
from loopax.files import storing
from loopax.recipes.images.config import PRESETS
from loopax.recipes.images.data import known_only
from loopax.recipes.images.evaluation import NOUN
from loopax.recipes.images.trained import TrainedClassifier
from loopax.report import (
    Picture,
    Provenance,
    Section,
    Table,
    Text,
    legible,
    save_figure,
    settings_table,
    write_report,
)
from loopax.run import RunDir

COLUMNS = 5
"""Of images that it is wrong on."""


def write(trained: TrainedClassifier, results: Mapping[str, Any]) -> Path:
    """Draws the pictures of a run, and leaves `report.html` in its directory.

    Args:
        trained: what the report is on.
        results: what `evaluate` measured.

    Raises:
        LoopaxError: a picture or the report cannot be written.
    """
    run, config, provenance = trained.dir, trained.config, Provenance(trained.dir)
    with storing(run.path):
        curves = run.pictures / "curves.png"
        said = measures.save_training(run.metrics, curves, NOUN)
        sections = [
            Section("Summary", [_summary(trained, results), *measures.overview(results, NOUN)]),
            *measures.sections(results, NOUN, run.pictures),
            Section("Mistakes", _mistakes(trained, results)),
            Section("Training", [Picture(curves, said), *provenance.account]),
            Section("Configuration", [_settings(trained)]),
            Section("Provenance", [*provenance.tables, _commands(run)]),
        ]
    path, name = run.path / "report.html", trained.problem.data.train.name.removesuffix(" train")
    about = [f"preset {config.preset}", provenance.began, f"loopax {loopax.__version__}"]
    title = f"A classifier of images: {name}"
    write_report(path, title, sections, subtitle=" · ".join(filter(None, about)))
    return path


def _summary(trained: TrainedClassifier, results: Mapping[str, Any]) -> Text:
    """What was trained on what, for how long, and what it is measured by."""
    problem, took = trained.problem, Provenance(trained.dir).took
    chosen = (
        "The checkpoint is the latest"
        if problem.data.validation is None
        else "The checkpoint is the most accurate one on validation images"
    )
    return Text(
        f"It tells {len(trained.class_names)} classes of images apart, and was trained from the "
        f"beginning in {trained.step:,} steps of {problem.batches.batch_size}"
        f"{took and f', {took}'}. {chosen}; all figures here are of test images, which were never "
        f"trained on or chosen by.\n\n{measures.verdict(results, NOUN)} Guessing is the best that "
        f"can be said without looking: always “{results['floor']['class']}”, or the frequencies "
        f"of the classes as probabilities.\n\n{problem.data.description}."
    )


def _mistakes(trained: TrainedClassifier, results: Mapping[str, Any]) -> list[Text | Picture]:
    if not results["mistakes"]:
        return [Text("There is no mistake on the test images.")]
    path = trained.dir.pictures / "mistakes.png"
    return [Picture(path, save_mistakes(trained, results, path))]


def save_mistakes(trained: TrainedClassifier, results: Mapping[str, Any], path: Path) -> str:
    """Draws the images that a wrong class was most probable for, and says what is shown."""
    from matplotlib.figure import Figure

    images = known_only(trained.problem.data.test).columns["image"]
    wrong = results["mistakes"]
    rows = -(-len(wrong) // COLUMNS)
    figure = Figure(figsize=(2 * COLUMNS, 2.5 * rows), layout="constrained")
    panels = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axes in panels:
        axes.axis("off")
    for axes, each in zip(panels, wrong, strict=False):
        image = images[each["image"]]
        top = 255 if image.dtype == np.uint8 else 1
        axes.imshow(
            image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=top
        )
        true, taken = (legible(each[name], 16) for name in ("class", "predicted"))
        axes.set_title(f"{true}\ntaken for {taken}, {each['probability']:.0%}", fontsize=9)
    save_figure(figure, path)
    return (
        f"The {len(wrong)} mistakes that the classifier is surest of, with the true class above: "
        "what it has not understood, or a label that is wrong."
    )


def _settings(trained: TrainedClassifier) -> Table:
    """Every setting beside that of the preset; those that follow the data, as they did here."""
    problem, preset = trained.problem, PRESETS[trained.config.preset]
    chosen = replace(
        trained.config,
        epochs=round(problem.steps / problem.batches.steps_per_epoch, 2),
        batch_size=problem.batches.batch_size,
        shift=problem.shift,
    )
    usual = replace(
        preset,
        epochs=preset.epochs or chosen.epochs,
        batch_size=preset.batch_size or chosen.batch_size,
        shift=chosen.shift if preset.shift is None else preset.shift,
    )
    return settings_table(chosen, usual)


def _commands(run: RunDir) -> Table:
    path = shlex.quote(str(run.path))
    commands = {
        "measure it again": f"loopax evaluate {path}",
        "take its weights elsewhere": f"loopax export {path}",
        "see where it stands, or train on": f"loopax resume {path}",
    }
    return Table(("", ""), list(commands.items()), "Commands")
