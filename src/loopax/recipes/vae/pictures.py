"""Pictures of a VAE: samples, reconstructions, its latents, and the curves of its training.

Each function that is given a `TrainedVAE` draws the same picture every time and returns, in one
sentence, what it shows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from loopax.deadline import check_time
from loopax.files import replacing
from loopax.recipes.images import as_floats, some_of
from loopax.recipes.vae.trained import TrainedVAE
from loopax.report import legible, save_curves, save_figure

Grid = Float[np.ndarray, "rows columns height width channels"]

GAP = 2
GREY = 64
HEIGHT = 56
"""Pixels that a small image is enlarged to, about, by a whole factor."""
CLASSES_SHOWN = 20
COLUMNS = 10
FEWEST_ROWS = 5
INTERPOLATIONS = 5
"""Rows within a class, and as many from one class to the next."""
ENCODED_LIMIT = 3_000

CURVES = {
    "loss": "loss",
    "sse_half": "½ squared error, summed over pixels",
    "reconstruction_nats": "reconstruction, nats",
    "kl_nats": "KL, nats",
    "neg_elbo_nats": "-ELBO, nats",
}
OTHERS = (0.6, 0.6, 0.6, 1.0)


def draw_all(trained: TrainedVAE) -> dict[str, str]:
    """Leaves every picture in the run directory; returns what each shows, by its file's name."""
    drawings: dict[str, Callable[[TrainedVAE, Path], str]] = {
        "samples.png": save_samples,
        "samples-prior.png": lambda trained, path: save_samples(trained.from_prior(), path),
        "reconstructions.png": save_reconstructions,
        "interpolation.png": save_interpolation,
        "latents.png": save_latents,
        "curves.png": _save_curves,
    }
    if trained.mixtures is None:
        del drawings["samples-prior.png"]
    drawn = {}
    for name, draw in drawings.items():
        check_time()
        drawn[name] = draw(trained, trained.dir.pictures / name)
    return drawn


def _save_curves(trained: TrainedVAE, path: Path) -> str:
    save_curves(trained.dir.metrics, path, CURVES)
    return "The loss and its parts over the steps, without the high values of the first ones."


def save_samples(trained: TrainedVAE, path: Path) -> str:
    """Draws samples of each class; of few classes, several rows each."""
    classes = min(len(trained.class_names), CLASSES_SHOWN)
    rows = math.ceil(FEWEST_ROWS / classes)
    labels = np.repeat(np.arange(classes), rows * COLUMNS)
    images = trained.samples_of(labels)
    save_grid(images.reshape(classes * rows, COLUMNS, *images.shape[1:]), path)
    fitted = "a mixture of normals for each class, fitted to the encoded training images"
    source = "the prior" if trained.mixtures is None else fitted
    each = "a row" if rows == 1 else f"{rows} rows"
    return f"Samples from {source}{_classes_said(trained, range(classes), each)}."


def save_reconstructions(trained: TrainedVAE, path: Path, *, each: int = 5) -> str:
    """Draws test images beside their reconstructions, `each` pairs a class."""
    groups = _groups(trained.data.test.columns["label"])
    chosen = np.concatenate([np.resize(found[:each], each) for found in groups.values()])
    save_grid(_pairs(trained, chosen, each), path)
    said = _classes_said(trained, groups, "a row")
    return f"Test images, each with its reconstruction to its right{said}."


def save_interpolation(trained: TrainedVAE, path: Path) -> str:
    """Draws the straight way between the posterior means of two test images, for several pairs.

    From one class to another there is no way for the class itself, so it changes in the middle.
    """
    test = trained.data.test.columns
    groups = list(_groups(test["label"]).values())
    turns = [(found, at) for at in range(0, 2 * INTERPOLATIONS, 2) for found in groups]
    within = [found[at : at + 2] for found, at in turns if len(found) > at + 1][:INTERPOLATIONS]
    across = [(one[0], other[0]) for one, other in itertools.pairwise(groups)][-INTERPOLATIONS:]
    ends = np.array([*within, *across] or [(0, 0)])
    images, labels = as_floats(test["image"][ends]), test["label"][ends]
    mean, _ = trained.encode(images.reshape(-1, *images.shape[2:]), labels.ravel())
    first, last = mean.reshape(*ends.shape, 1, -1).transpose(1, 0, 2, 3)
    way = np.linspace(0, 1, COLUMNS, dtype=np.float32)
    latents = first + way[:, None] * (last - first)
    on_the_way = np.where(way < 0.5, labels[:, :1], labels[:, 1:])
    decoded = trained.decode(latents.reshape(-1, latents.shape[-1]), on_the_way.ravel())
    decoded = decoded.reshape(*on_the_way.shape, *decoded.shape[1:])
    save_grid(np.concatenate([images[:, :1], decoded, images[:, 1:]], axis=1), path)
    said = "Between two test images (outermost), along the straight line between their latents"
    rows = {"within a class": len(within), "from one class to the next, in the middle": len(across)}
    counted = [f"{count} row{'s' * (count > 1)} {which}" for which, count in rows.items() if count]
    return f"{said}{': ' if counted else ''}{', then '.join(counted)}."


def save_latents(trained: TrainedVAE, path: Path) -> str:
    """Draws a map of the test images: the first two principal components of their latents."""
    import matplotlib
    from matplotlib.figure import Figure

    test = trained.data.test.columns
    chosen = some_of(test["label"], ENCODED_LIMIT)
    labels = test["label"][chosen]
    mean, _ = trained.encode(test["image"][chosen], labels)
    (x, y), shares = _principal(mean)
    shown = [label for label in _groups(labels) if label >= 0]
    palette = matplotlib.colormaps["tab10" if len(shown) <= 10 else "tab20"]
    colours = {label: palette(place) for place, label in enumerate(shown)}
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    axes = figure.subplots()
    # In a random order: else the class drawn last would lie over all others.
    order = np.random.default_rng(0).permutation(len(mean))
    of_each = [colours.get(label, OTHERS) for label in labels[order].tolist()]
    size = min(40.0, max(8.0, 8_000 / len(mean)))
    axes.scatter(x[order], y[order], s=size, c=of_each, alpha=0.7, linewidths=0)
    for label, colour in colours.items():
        axes.scatter([], [], color=colour, label=legible(trained.class_names[label]))
    if not np.isin(labels, shown).all():
        axes.scatter([], [], color=OTHERS, label="other or unknown")
    axes.set_xlabel(f"first principal component ({shares[0]:.1%} of the variance)")
    axes.set_ylabel(f"second principal component ({shares[1]:.1%})")
    axes.grid(alpha=0.3)
    if len(trained.class_names) > 1:
        figure.legend(loc="outside right upper", frameon=False)
    save_figure(figure, path)
    # Without this a reader would take the mixing for a fault.
    told = "; a model that is told the class need not keep the classes apart here"
    mixed = told if len(shown) > 1 and trained.is_conditional else ""
    return f"A map of {len(mean):,} test images by the main directions of their latents{mixed}."


def save_grid(images: Grid, path: Path) -> None:
    """Writes rows of images in [0, 1] as one PNG; values outside are clipped."""
    from PIL import Image

    picture = Image.fromarray(tiled(images))
    factor = max(1, round(HEIGHT / images.shape[2]))
    size = (picture.width * factor, picture.height * factor)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        picture.resize(size, Image.Resampling.NEAREST).save(partial)


def tiled(images: Grid) -> UInt8[np.ndarray, ...]:
    """Rows of images side by side with a thin grey line between them."""
    rows, columns, height, width, channels = images.shape
    pixels = np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)
    line = [(0, 0), (0, 0), (GAP, 0), (GAP, 0), (0, 0)]
    canvas = np.pad(pixels, line, constant_values=GREY).swapaxes(1, 2)
    canvas = canvas.reshape(rows * (height + GAP), columns * (width + GAP), channels)
    canvas = np.pad(canvas, [(0, GAP), (0, GAP), (0, 0)], constant_values=GREY)
    return canvas[..., 0] if channels == 1 else canvas


def _groups(labels: Int[np.ndarray, " n"]) -> dict[int, Int[np.ndarray, " found"]]:
    """Where the images of the first classes are; last, under -1, those whose class is unknown.

    Those of a class are in an order drawn with a fixed seed: its first ones may be much alike.
    """
    shown = [*np.unique(labels[labels >= 0])[:CLASSES_SHOWN].tolist(), -1]
    rng = np.random.default_rng(0)
    found = {label: rng.permutation(np.flatnonzero(labels == label)) for label in shown}
    return {label: where for label, where in found.items() if len(where)}


def _pairs(trained: TrainedVAE, chosen: Int[np.ndarray, " n"], in_a_row: int) -> Grid:
    """Test images, each followed by its reconstruction; the last row is filled up with grey."""
    test = trained.data.test.columns
    images, labels = as_floats(test["image"][chosen]), test["label"][chosen]
    pairs = np.stack([images, trained.reconstruct(images, labels)], axis=1)
    missing = -len(pairs) % in_a_row
    blank = np.full((missing, *pairs.shape[1:]), GREY / 255, pairs.dtype)
    return np.concatenate([pairs, blank]).reshape(-1, 2 * in_a_row, *images.shape[1:])


def _principal(points: Float[np.ndarray, "n latent"]) -> tuple[np.ndarray, np.ndarray]:
    """Where points lie in the two main directions, and the shares of the variance of these."""
    from sklearn.decomposition import PCA

    pca = PCA(min(2, *points.shape))
    with np.errstate(invalid="ignore"):  # A single image has no variance.
        places = pca.fit_transform(points.astype(np.float64))
    missing = 2 - places.shape[1]
    shares = np.nan_to_num(pca.explained_variance_ratio_)
    return np.pad(places, [(0, 0), (0, missing)]).T, np.pad(shares, (0, missing))


def _classes_said(trained: TrainedVAE, labels: Iterable[int], each: str) -> str:
    """Which classes are shown, where there is more than one."""
    labels = list(labels)
    if len(labels) == 1:
        return ""
    total = len(trained.class_names)
    limited = f"the first {CLASSES_SHOWN} of {total} classes, " if total > CLASSES_SHOWN else ""
    named = [legible(trained.class_names[at]) if at >= 0 else "unknown class" for at in labels]
    return f"; {limited}{each} a class, from the top: {', '.join(named)}"
