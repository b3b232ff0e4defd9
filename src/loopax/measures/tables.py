"""The measures of a classifier for people: tables, main figures, sections of a report.

`results` are what `scores` returns, with `data`, `step`, `class_names`, what `guessing` returns as
`floor`, and as `baseline` the scores of a simple classifier with its `name`, if there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loopax.files import storing
from loopax.measures.pictures import save_calibration, save_confusion, save_training
from loopax.report import (
    Block,
    Figures,
    Picture,
    Provenance,
    Section,
    Table,
    Text,
    write_report,
)
from loopax.run import RunDir

TABULATED = 6
"""Classes up to which the confusion matrix is legible as a table."""
CLASSES_LISTED = 100
CONFUSIONS_LISTED = 15

Results = Mapping[str, Any]


def verdict(results: Results, noun: str) -> str | None:
    """Whether the model was worth it, in a sentence; None where there is no baseline."""
    if not (simple := results.get("baseline")):
        return None
    ours, theirs, name = results["accuracy"], simple["accuracy"], simple["name"]
    figures = f"it is right on {ours:.1%} of these {noun}, {name} on {theirs:.1%}"
    if ours > theirs:
        return f"The model was worth its training: {figures}."
    return f"The model was not worth its training: {figures}, after seconds."


def tables(results: Results, noun: str) -> list[Table]:
    """Overall figures, figures by class, confusions and calibration; `noun` is of the examples."""
    return [
        _overall(results, noun),
        _by_class(results, noun),
        _confusion(results, noun),
        _calibration(results, noun),
    ]


def overview(results: Results, noun: str) -> list[Figures | Table]:
    """The part of a report that comes first: the main figures, and all overall ones."""
    return [Figures([*_main_figures(results, noun)]), _overall(results, noun)]


def sections(results: Results, noun: str, folder: Path) -> list[Section]:
    """The part of a report on classes and on calibration, with pictures drawn in `folder`.

    Raises:
        OSError: a picture cannot be written.
    """
    _, by_class, confusions, by_probability = tables(results, noun)
    confusion, calibration = folder / "confusion.png", folder / "calibration.png"
    drawn = Picture(confusion, save_confusion(results, confusion, noun))
    # The picture of few classes says it all.
    listed = [confusions] if len(results["class_names"]) > TABULATED else []
    diagram = Picture(calibration, save_calibration(results, calibration, noun))
    return [
        Section("Classes", [by_class, drawn, *listed]),
        Section("Calibration", [diagram, by_probability]),
    ]


def write_classifier_report(
    run: RunDir,
    results: Results,
    noun: str,
    *,
    title: str,
    summary: str,
    mistakes: Sequence[Block],
    settings: Table,
) -> Path:
    """Draws the pictures of a classifier's run, and leaves `report.html` in its directory.

    Args:
        run: the directory.
        results: what was measured.
        noun: of the examples, such as `images`.
        title: of the page.
        summary: what was trained on what, in paragraphs.
        mistakes: some of them.
        settings: the configuration.

    Raises:
        LoopaxError: a picture or the report cannot be written.
    """
    provenance, path = Provenance(run), run.path / "report.html"
    with storing(run.path):
        curves = run.pictures / "curves.png"
        training = Picture(curves, save_training(run.metrics, curves, noun))
        parts = [
            Section("Summary", [Text(summary), *overview(results, noun)]),
            *sections(results, noun, run.pictures),
            Section("Mistakes", mistakes),
            Section("Training", [training, *provenance.account]),
            Section("Configuration", [settings]),
            Section("Provenance", provenance.tables),
        ]
    write_report(path, title, parts, subtitle=provenance.subtitle)
    return path


def _main_figures(results: Results, noun: str) -> Iterator[tuple[str, str, str]]:
    """The main figures, each beside what guessing scores."""
    guess, calibration = results["floor"], results["calibration"]
    simple = results.get("baseline")
    beside = f"baseline: {simple['accuracy']:.1%}, " if simple else ""
    yield "accuracy", f"{results['accuracy']:.1%}", f"{beside}guessing: {guess['accuracy']:.1%}"
    yield (
        "macro-F1, from 0 to 1",
        f"{results['macro_f1']:.3f}",
        f"guessing: {guess['macro_f1']:.3f}",
    )
    yield (
        "negative log-likelihood",
        f"{results['nll_nats']:.3f} nats",
        f"guessing: {guess['nll_nats']:.3f} nats",
    )
    yield "calibration error", f"{calibration['error']:.1%}", f"of {results['examples']:,} {noun}"


def _overall(results: Results, noun: str) -> Table:
    beside = {"baseline": results.get("baseline"), "guessing": results["floor"]}
    others = {name: each for name, each in beside.items() if each}
    low, high = results["accuracy_interval"]
    figures = {
        "accuracy": ("accuracy", ".2%", f"{low:.2%} – {high:.2%}"),
        "macro_f1": ("macro-F1, from 0 to 1", ".4f", ""),
        "nll_nats": ("negative log-likelihood, nats", ".4f", ""),
    }
    rows = [
        (said, f"{results[name]:{form}}", interval, *(f"{o[name]:{form}}" for o in others.values()))
        for name, (said, form, interval) in figures.items()
    ]
    error = f"{results['calibration']['error']:.2%}"
    rows.append(("expected calibration error", error, "", *("" for _ in others)))
    title = f"{results['examples']:,} {noun} of {results['data']}, step {results['step']:,}"
    if worth := verdict(results, noun):
        title = f"{title}. {worth}"
    return Table(("", "classifier", "95 % interval", *others), rows, title)


def _by_class(results: Results, noun: str) -> Table:
    """Every class; of very many the worst."""
    named = list(zip(results["class_names"], results["per_class"], strict=True))
    limited = ""
    if len(named) > CLASSES_LISTED:
        occurring = [each for each in named if each[1]["f1"] is not None]
        named = sorted(occurring, key=lambda each: each[1]["f1"])[:CLASSES_LISTED]
        limited = f", the {len(named)} with the lowest F1 of {len(results['class_names']):,}"
    rows = [
        (
            name,
            *(_cell(of_class[figure]) for figure in ("precision", "recall", "f1")),
            f"{of_class['support']:,}",
        )
        for name, of_class in named
    ]
    heads = ("class", "precision", "recall", "F1", noun)
    return Table(heads, rows, f"By class, from 0 to 1{limited}")


def _confusion(results: Results, noun: str) -> Table:
    """The matrix of few classes; of many the confusions that are most frequent."""
    names, counts = results["class_names"], np.array(results["confusion"])
    if len(names) <= TABULATED:
        rows = [
            (name, *(f"{count:,}" for count in row))
            for name, row in zip(names, counts.tolist(), strict=True)
        ]
        title = f"{noun.capitalize()} of a class (row) taken for a class (column)"
        return Table(("class", *names), rows, title)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:CONFUSIONS_LISTED]
    found = [divmod(place, len(names)) for place in order.tolist()]
    rows = [
        (names[true], names[taken], f"{counts[true, taken]:,}")
        for true, taken in found
        if counts[true, taken]
    ]
    none = "" if rows else ": none"
    return Table(("class", "taken for", noun), rows, f"The most frequent confusions{none}")


def _calibration(results: Results, noun: str) -> Table:
    rows = [
        (
            f"{each['from']:.0%} – {each['to']:.0%}",
            f"{each['confidence']:.1%}",
            f"{each['accuracy']:.1%}",
            f"{each['count']:,}",
        )
        for each in results["calibration"]["bins"]
    ]
    heads = ("probability", "on average", "is right", noun)
    return Table(heads, rows, "How often an answer is right, by its probability")


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
