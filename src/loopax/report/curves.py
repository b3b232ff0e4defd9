"""What pictures of any run have in common: curves over the steps, and how they are kept."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from loopax.extras import require
from loopax.files import replacing

PANELS = 4


def save_curves(
    history: Sequence[Mapping[str, Any]],
    path: Path,
    titles: Mapping[str, str],
    *,
    whole: Collection[str] = (),
) -> None:
    """Draws metrics over the steps, a panel each: means in training, and evaluations.

    Args:
        history: the logged rows, as `RunDir.metrics` has them.
        path: the picture.
        titles: the metrics to draw, the first four that there are, with their titles.
        whole: those of them whose highest values matter; of others the first few values, which
            tower over the rest, are cut off.
    """
    require("report", "drawing", "matplotlib")
    from matplotlib.figure import Figure

    known = [name for name in titles if _finite(history, name)]
    names = known[:PANELS] or list(titles)[:1]
    down = math.ceil(len(names) / 3)
    across = math.ceil(len(names) / down)
    figure = Figure(figsize=(4.5 * across, 3.2 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flat
    for axes, name in zip(panels, names, strict=True):
        _draw(axes, history, name)
        seen = _finite(history, name)
        high = seen[int(0.97 * (len(seen) - 1))] if seen else 0.0
        if name not in whole and seen and high > seen[0]:
            axes.set_ylim(top=high + 0.1 * (high - seen[0]))
        axes.set(title=titles[name], xlabel="step")
        axes.grid(alpha=0.3)
    if history:
        axes.legend()
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure of matplotlib whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150)


def legible(name: str, length: int = 24) -> str:
    """A name of the user's own as a picture can show it: in one line, and not too long."""
    # A dollar would begin a formula.
    name = "".join(c if c.isprintable() and c != "$" else "?" for c in name)
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _draw(axes: Any, history: Sequence[Mapping[str, Any]], name: str) -> None:
    # Training first, whatever was logged first, so that it has the same colour in every picture.
    for source in sorted(
        {row["source"] for row in history if row["source"] != "probe" or name in row},
        key=lambda each: (each != "train", each),
    ):
        rows = [row for row in history if row["source"] == source]
        values = [row.get(name, math.nan) for row in rows]
        if source == "train":
            axes.plot([row["step"] for row in rows], values, label=source, lw=1, alpha=0.7)
        else:
            axes.plot([row["step"] for row in rows], values, label=source, marker="o", ms=4)


def _finite(history: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The finite values of a metric, from the lowest."""
    return sorted(row[name] for row in history if math.isfinite(row.get(name, math.nan)))
