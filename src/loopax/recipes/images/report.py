"""The report of a classifier of images: one page to send to a colleague."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopax import measures
from loopax.recipes.images.config import PRESETS
from loopax.recipes.images.data import as_floats, known_only
from loopax.recipes.images.evaluation import NOUN
from loopax.recipes.images.trained import TrainedClassifier
from loopax.report import (
    Picture,
    Provenance,
    Table,
    Text,
    legible,
    save_figure,
    settings_table,
)

COLUMNS = 5
"""Of images that it is wrong on."""


def write(trained: TrainedClassifier, results: Mapping[str, Any]) -> Path:
    """Draws the pictures of a run, and leaves `report.html` in its directory.

    Raises:
        LoopaxError: a picture or the report cannot be written.
    """
    name = trained.problem.data.train.name.removesuffix(" train")
    return measures.write_classifier_report(
        trained.dir,
        results,
        NOUN,
        title=f"A classifier of images: {name}",
        summary=_summary(trained, results),
        mistakes=[_mistakes(trained, results)],
        settings=_settings(trained),
    )


def _summary(trained: TrainedClassifier, results: Mapping[str, Any]) -> str:
    """What was trained on what, for how long, and what it is measured by."""
    problem, took = trained.problem, Provenance(trained.dir).took
    chosen = (
        "The checkpoint is the latest"
        if problem.data.validation is None
        else "The checkpoint is the most accurate one on validation images"
    )
    return (
        f"It tells {len(trained.class_names)} classes of images apart, and was trained from the "
        f"beginning in {trained.step:,} steps of {problem.batches.batch_size}"
        f"{took and f', {took}'}. {chosen}; all figures here are of test images, which were never "
        f"trained on or chosen by.\n\n{measures.verdict(results, NOUN)} Guessing is the best that "
        f"can be said without looking: always “{results['floor']['class']}”, or the frequencies "
        f"of the classes as probabilities.\n\n{problem.data.description}."
    )


def _mistakes(trained: TrainedClassifier, results: Mapping[str, Any]) -> Text | Picture:
    if not results["mistakes"]:
        return Text("There is no mistake on the test images.")
    path = trained.dir.pictures / "mistakes.png"
    return Picture(path, save_mistakes(trained, results, path))


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
        image = as_floats(images[each["index"]])
        grey = image.shape[-1] == 1
        axes.imshow(image.squeeze(-1) if grey else image, cmap="gray", vmin=0, vmax=1)
        true, taken = (legible(each[name], 16) for name in ("class", "predicted"))
        axes.set_title(f"{true}\ntaken for {taken}, {each['probability']:.0%}", fontsize=9)
    save_figure(figure, path)
    return (
        f"The {len(wrong)} mistakes that the classifier is surest of, with the true class above: "
        "what it has not understood, or a label that is wrong."
    )


def _settings(trained: TrainedClassifier) -> Table:
    """Every setting beside that of the preset; those that follow the data, as they did here."""
    problem = trained.problem
    followed = {
        "epochs": round(problem.steps / problem.batches.steps_per_epoch, 2),
        "batch_size": problem.batches.batch_size,
        "shift": problem.shift,
    }
    return settings_table(trained.config, PRESETS[trained.config.preset], followed)
