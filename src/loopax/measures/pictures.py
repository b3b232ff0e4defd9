"""Pictures of a classifier: which class it takes for which, how sure it may be, its training.

Each function returns what the picture shows, in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loopax.report import legible, save_curves, save_figure

CURVES = {"loss": "cross-entropy, nats", "accuracy": "accuracy", "learning_rate": "learning rate"}
COUNTED = 30
"""Classes up to which the counts fit into the fields of the confusion matrix."""
NAMED = 100
"""Classes up to which their names fit beside it."""
SIDE = (2.6, 14.0)
"""Inches of the confusion matrix: at least, and at most."""
INCHES_OF_A_POINT = 0.65 / 72
"""Width of a letter for each point of its size, about."""


def save_confusion(results: Mapping[str, Any], path: Path, noun: str) -> str:
    """Draws the confusion matrix: counts, coloured by their share of the row."""
    from matplotlib.figure import Figure

    counts, names = np.array(results["confusion"]), results["class_names"]
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    side = float(np.clip(1.6 + 0.45 * len(names), *SIDE))
    figure = Figure(figsize=(side + 2.5, side + 1.5), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= COUNTED:
        _write_counts(axes, counts, shares)
    if len(names) <= NAMED:
        _name_classes(axes, [legible(name) for name in names], side / len(names))
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(
        image, ax=axes, shrink=0.6, format="{x:.0%}", label=f"of the {noun} of the class"
    )
    save_figure(figure, path)
    counted = f"; the numbers count {noun}" if len(names) <= COUNTED else ""
    return (
        f"What the {noun} of each class (a row) are taken for, as a share of the row"
        f"{counted}. A classifier without mistakes colours the diagonal alone."
    )


def _write_counts(axes: Any, counts: np.ndarray, shares: np.ndarray) -> None:
    # The longer the numbers, the smaller: a field is about 30 points wide.
    size = min(11.0, 44.0 / len(str(counts.max())))
    for row, column in np.argwhere(counts > 0).tolist():
        ink = "white" if shares[row, column] > 0.5 else "black"
        written = {"ha": "center", "va": "center", "color": ink, "fontsize": size}
        axes.text(column, row, str(counts[row, column]), **written)


def _name_classes(axes: Any, names: list[str], width: float) -> None:
    """Names the rows and the columns, which are `width` inches wide."""
    places, size = range(len(names)), float(np.clip(400 / len(names), 5, 10))
    fits = max(map(len, names)) * size * INCHES_OF_A_POINT < width
    axes.set_xticks(places, names, fontsize=size, rotation=0 if fits else 90)
    axes.set_yticks(places, names, fontsize=size)


def save_calibration(results: Mapping[str, Any], path: Path, noun: str) -> str:
    """Draws the reliability diagram (Niculescu-Mizil and Caruana, 2005) above its counts."""
    from matplotlib.figure import Figure

    bins = results["calibration"]["bins"]
    confidence = [each["confidence"] for each in bins]
    left = [each["from"] for each in bins]
    width = [each["to"] - each["from"] for each in bins]
    figure = Figure(figsize=(5.0, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="0.4", lw=1, ls="--", label="as sure as it should be")
    above.bar(left, [each["accuracy"] for each in bins], width, align="edge", alpha=0.35)
    above.plot(confidence, [each["accuracy"] for each in bins], "o", label="the classifier")
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="answers that are right")
    above.legend(loc="upper left")
    below.bar(left, [each["count"] for each in bins], width, align="edge", alpha=0.35)
    below.set(xlabel="probability of the answer", ylabel=noun)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    save_figure(figure, path)
    return (
        "How often an answer is right, by how sure the classifier is of it: below the line it is "
        f"too sure, above it too modest. The mean distance from the line, over {noun}, is "
        f"{results['calibration']['error']:.1%}."
    )


def save_training(history: Sequence[Mapping[str, Any]], path: Path, noun: str) -> str:
    """Draws loss, accuracy and learning rate over the steps; `history` is `RunDir.metrics`."""
    save_curves(history, path, CURVES)
    return f"Means over the {noun} that were trained on, and over the validation {noun}, by step."
