"""The report of a fine-tuned classifier: one page to send to a colleague."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import loopax
from loopax import measures
from loopax.files import storing
from loopax.recipes.bert.config import PRESETS, FineTuneConfig
from loopax.recipes.bert.evaluation import NOUN
from loopax.recipes.bert.problem import metric_of
from loopax.recipes.bert.trained import TrainedClassifier
from loopax.report import (
    Picture,
    Provenance,
    Section,
    Table,
    Text,
    settings_table,
    write_report,
)


def write(trained: TrainedClassifier, results: Mapping[str, Any]) -> Path:
    """Draws the pictures of a run, and leaves `report.html` in its directory.

    Args:
        trained: what the report is on.
        results: what `evaluate` measured.

    Raises:
        LoopaxError: a picture or the report cannot be written.
    """
    run, config = trained.dir, trained.config
    provenance = Provenance(run)
    with storing(run.path):
        curves = run.pictures / "curves.png"
        said = measures.save_training(run.metrics, curves, NOUN)
        sections = [
            Section("Summary", [_summary(trained, results), *measures.overview(results, NOUN)]),
            *measures.sections(results, NOUN, run.pictures),
            Section("Mistakes", [*_mistakes(results)]),
            Section("Training", [Picture(curves, said), *provenance.account]),
            Section("Configuration", [_settings(config)]),
            Section("Provenance", [*provenance.tables, _commands(trained)]),
        ]
    about = [f"preset {config.preset}", provenance.began, f"loopax {loopax.__version__}"]
    path = run.path / "report.html"
    title = f"A classifier of texts: {Path(config.data).name}"
    write_report(path, title, sections, subtitle=" · ".join(filter(None, about)))
    return path


def _summary(trained: TrainedClassifier, results: Mapping[str, Any]) -> Text:
    """What was trained on what, for how long, and what it is measured by."""
    config, names = trained.config, trained.class_names
    what = "pairs of texts" if len(config.text) == 2 else "texts"
    froze = f", of which {', '.join(config.optimizer.freeze)} stayed as it was," * bool(
        config.optimizer.freeze
    )
    took, worth = Provenance(trained.dir).took, measures.verdict(results, NOUN)
    return Text(
        f"It tells {len(names)} classes of {what} apart, and was fine-tuned from the pretrained "
        f"model {config.model}{froze} in {trained.step:,} steps"
        f"{took and f', {took}'}. The checkpoint is the one with the best "
        f"{metric_of(config)} on validation texts; all figures here are of other texts: as the "
        "model sees them, none was trained on or chosen by.\n\n"
        f"{f'{worth} ' if worth else ''}Guessing is the best that can be said without reading a "
        "text: always "
        f"“{results['floor']['class']}”, or the frequencies of the classes as probabilities."
    )


def _settings(config: FineTuneConfig) -> Table:
    """Every setting beside that of the preset; those that follow the data, as they did here."""
    preset = PRESETS[config.preset]
    epochs, batch_size = preset.epochs or config.epochs, preset.batch_size or config.batch_size
    return settings_table(config, replace(preset, epochs=epochs, batch_size=batch_size))


def _mistakes(results: Mapping[str, Any]) -> Iterator[Text | Table]:
    """Which are often errors of the labels."""
    found = results["mistakes"]
    if not found:
        return
    yield Text(
        "The mistakes that the classifier is surest of: what it has not understood, or a label "
        "that is wrong."
    )
    rows = [
        (each["text"], each["class"], each["predicted"], f"{each['probability']:.1%}")
        for each in found
    ]
    yield Table(("text", "class", "predicted", "probability"), rows)


def _commands(trained: TrainedClassifier) -> Table:
    run = shlex.quote(str(trained.dir.path))
    commands = {
        "measure it again": f"loopax evaluate {run}",
        "classify texts": f"loopax predict {run} --file texts.csv",
        "use it with PyTorch transformers": f"loopax export {run}",
        "see where it stands, or train on": f"loopax resume {run}",
    }
    return Table(("", ""), list(commands.items()), "Commands")
