"""What pictures of any run have in common: curves over the steps, and how they are kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loopax.extras import require
from loopax.files import replacing

PANELS = 4
DOTS = 50
"""Values of a curve up to which each has a dot."""
TOWERING = 3
"""Times the range of the others."""


def save_curves(
    history: Sequence[Mapping[str, Any]],
    path: Path,
    titles: Mapping[str, str],
    *,
    most: int = PANELS,
) -> None:
    """Draws metrics over the steps, a panel each: means in training, and evaluations.

    The values of the first steps are cut off where they tower over all that come later.

    Args:
        history: the logged rows, as `RunDir.metrics` has them.
        path: the picture.
        titles: the metrics to draw, the first `most` that there are, with their titles.
        most: panels.

    Raises:
        ConfigError: matplotlib is not installed.
        OSError: the picture cannot be written.
    """
    require("report", "drawing", "matplotlib")
    from matplotlib.figure import Figure

    known = [name for name in titles if _values(history, name)]
    names = known[:most] or list(titles)[:1]
    down = math.ceil(len(names) / 3)
    across = math.ceil(len(names) / down)
    figure = Figure(figsize=(4.5 * across, 3.2 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flat
    for axes, name in itertools.zip_longest(panels, names):
        if name is None:
            axes.remove()
            continue
        _draw(axes, history, name)
        if (top := _top(_values(history, name))) is not None:
            axes.set_ylim(top=top)
        axes.set(title=titles[name], xlabel="step")
        axes.grid(alpha=0.3)
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
    rows = [row for row in history if isinstance(row.get(name), int | float)]
    # Training first, whatever was logged first, so that it has the same colour in every picture.
    sources = sorted({row["source"] for row in rows}, key=lambda each: (each != "train", each))
    for source in sources:
        its = [(row["step"], row[name]) for row in rows if row["source"] == source]
        dense = source == "train" or len(its) > DOTS
        look = {"lw": 1, "alpha": 0.7} if dense else {"marker": "o", "ms": 4}
        axes.plot(*zip(*its, strict=True), label=source, **look)
    if sources:
        axes.legend()


def _top(values: Sequence[float]) -> float | None:
    """Where to cut off the values of the first steps; None where they do not tower over others."""
    if not values:
        return None
    ordered = sorted(values)
    low, high = ordered[0], ordered[int(0.97 * (len(ordered) - 1))]
    above = [at for at, value in enumerate(values) if value > high]
    towers = high > low and ordered[-1] - low > TOWERING * (high - low)
    return high + 0.1 * (high - low) if towers and above[-1] < len(values) / 10 else None


def _values(history: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The finite values of a metric in the order of their steps; none of what is an array."""
    rows = sorted((row for row in history if name in row), key=lambda row: row["step"])
    values = [row[name] for row in rows]
    return [each for each in values if isinstance(each, int | float) and math.isfinite(each)]
