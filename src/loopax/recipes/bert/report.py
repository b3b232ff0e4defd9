"""The report of a fine-tuned classifier: one page to send to a colleague."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loopax import measures
from loopax.recipes.bert.config import PRESETS
from loopax.recipes.bert.evaluation import NOUN
from loopax.recipes.bert.problem import metric_of
from loopax.recipes.bert.trained import TrainedClassifier
from loopax.report import Provenance, Table, Text, settings_table


def write(trained: TrainedClassifier, results: Mapping[str, Any]) -> Path:
    """Draws the pictures of a run, and leaves `report.html` in its directory.

    Raises:
        LoopaxError: a picture or the report cannot be written.
    """
    config = trained.config
    return measures.write_classifier_report(
        trained.dir,
        results,
        NOUN,
        title=f"A classifier of texts: {Path(config.data).name}",
        summary=_summary(trained, results),
        mistakes=[*_mistakes(results)],
        settings=settings_table(config, PRESETS[config.preset], results.get("chosen", {})),
    )


def _summary(trained: TrainedClassifier, results: Mapping[str, Any]) -> str:
    """What was trained on what, for how long, and what it is measured by."""
    config, names = trained.config, trained.class_names
    what = "pairs of texts" if len(config.text) == 2 else "texts"
    frozen = ", ".join(config.optimizer.freeze)
    froze = f", of which {frozen} stayed as it was," if frozen else ""
    if config.lora is not None:
        froze = f", which stayed as it was beside LoRA adapters of rank {config.lora},"
    took, worth = Provenance(trained.dir).took, measures.verdict(results, NOUN)
    return (
        f"It tells {len(names)} classes of {what} apart, and was fine-tuned from the pretrained "
        f"model {config.model}{froze} in {trained.step:,} steps"
        f"{took and f', {took}'}. The checkpoint is the one with the best "
        f"{metric_of(config)} on validation texts; all figures here are of other texts: as the "
        "model sees them, none was trained on or chosen by.\n\n"
        f"{f'{worth} ' if worth else ''}Guessing is the best that can be said without reading a "
        f"text: always “{results['floor']['class']}”, or the frequencies of the classes as "
        "probabilities."
    )


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
