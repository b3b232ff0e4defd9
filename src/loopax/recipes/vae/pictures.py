"""Pictures of a VAE: grids of images, and the curves of its training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

import loopax

Grid = Float[np.ndarray, "rows columns height width channels"]

ENLARGE = 2
GAP = 2
GREY = 64


def save_grid(images: Grid, path: Path) -> None:
    """Writes rows of images in [0, 1] as one PNG; values outside are clipped."""
    from PIL import Image

    picture = Image.fromarray(tiled(images))
    size = (picture.width * ENLARGE, picture.height * ENLARGE)
    path.parent.mkdir(parents=True, exist_ok=True)
    with loopax.replacing(path) as partial:
        picture.resize(size, Image.Resampling.NEAREST).save(partial)


def tiled(images: Grid) -> UInt8[np.ndarray, ...]:
    """Rows of images side by side with a thin grey line between them."""
    rows, columns, height, width, channels = images.shape
    shape = (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels)
    canvas = np.full(shape, GREY, np.uint8)
    pixels = np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
            canvas[top : top + height, left : left + width] = pixels[row, column]
    return canvas[..., 0] if channels == 1 else canvas


def save_curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws loss, squared error and KL over the steps: training means and test evaluations."""
    from matplotlib.figure import Figure

    panels = {
        "loss": "loss",
        "sse_half": "½ squared error, summed over pixels",
        "kl_nats": "KL, nats",
    }
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for source, style in (
            ("train", {"lw": 1, "alpha": 0.7}),
            ("test", {"marker": "o", "ms": 4}),
        ):
            rows = [row for row in history if row["source"] == source]
            values = [row.get(name, math.nan) for row in rows]
            axes.plot([row["step"] for row in rows], values, label=source, **style)
        seen = sorted(row[name] for row in history if math.isfinite(row.get(name, math.nan)))
        # The first rows tower over the rest; what matters happens below them.
        axes.set_ylim(top=1.1 * seen[int(0.97 * (len(seen) - 1))] if seen else None)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    axes.legend()
    with loopax.replacing(path) as partial:
        figure.savefig(partial, dpi=110)
