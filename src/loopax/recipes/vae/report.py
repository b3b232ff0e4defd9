"""The report of a finished VAE run: one page to send to a colleague."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from loopax.recipes.vae.config import PRESETS
from loopax.recipes.vae.evaluation import BASELINE, Results, tables, verdict
from loopax.recipes.vae.trained import TrainedVAE
from loopax.report import (
    Figures,
    Picture,
    Provenance,
    Section,
    Table,
    Text,
    settings_table,
    write_report,
)

SECTIONS = {
    "Samples": ("samples-prior.png",),
    "Reconstructions": ("reconstructions.png",),
    "Latents": ("interpolation.png", "latents.png"),
    "Training": ("curves.png",),
}
"""Where each picture goes; `samples.png` comes first of all."""
CLASSES_LISTED = 100


def write(trained: TrainedVAE, results: Results, pictures: Mapping[str, str]) -> Path:
    """Leaves `report.html` in the run directory.

    Args:
        trained: what the report is on.
        results: what `evaluate` measured.
        pictures: what each of the run's pictures shows, by its name.

    Raises:
        LoopaxError: a picture cannot be read, or the report cannot be written.
    """
    folder = trained.dir.pictures
    drawn = {name: Picture(folder / name, caption) for name, caption in pictures.items()}
    first = [drawn.pop(name) for name in ("samples.png",) if name in drawn]
    placed = {
        title: [drawn.pop(name) for name in names if name in drawn]
        for title, names in SECTIONS.items()
    }
    provenance = Provenance(trained.dir)
    sections = [
        Section("Summary", [*_summary(trained, results), *first]),
        Section("Samples", [*placed["Samples"], *_per_class(trained, results)]),
        Section("Reconstructions", placed["Reconstructions"]),
        Section("Latents", placed["Latents"]),
        Section("More pictures", list(drawn.values())),
        Section("Measures", [Text(_how_to_read(results)), *tables(results)]),
        Section("Training", [*placed["Training"], *provenance.account]),
        Section("Configuration", [_settings(trained)]),
        Section("Provenance", provenance.tables),
    ]
    name = trained.data.train.name.removesuffix(" train")
    path = trained.dir.path / "report.html"
    write_report(path, f"A VAE of {name}", sections, subtitle=provenance.subtitle)
    return path


def _settings(trained: TrainedVAE) -> Table:
    """Every setting, those that followed the data as they were chosen."""
    problem, config = trained.problem, trained.config
    followed = {
        "epochs": problem.epochs,
        "batch_size": problem.batch_size,
        "kl_weight": config.kl_weight,
    }
    return settings_table(config, PRESETS[config.preset], followed)


def _summary(trained: TrainedVAE, results: Results) -> Iterator[Text | Figures]:
    """What was trained on what, for how long, and what came of it."""
    config = trained.config
    network = "convolutions" if config.network == "conv" else "dense layers"
    by_class = " of a given class" if len(trained.class_names) > 1 else ""
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained.params))
    took = Provenance(trained.dir).took
    batch_size = trained.problem.batch_size
    epochs = trained.step * batch_size / len(trained.data.train)
    if worth := verdict(results):
        yield Text(f"{worth}.")
    yield Text(
        f"A variational autoencoder that draws images{by_class}: {network}, {config.latent} "
        f"numbers in a latent, {parameters:,} parameters. It was trained for {epochs:.3g} passes "
        f"over the training images, {trained.step:,} steps of {batch_size}"
        f"{took and f', {took}'}."
        f"\n\n{trained.data.description}."
    )
    yield Figures([*_figures(results)])


def _figures(results: Results) -> Iterator[tuple[str, str, str]]:
    """The main figures, each beside what it compares with."""
    samples, floor = _best(results), results["samples"].get("floor", {})
    if "class_accuracy" in samples:
        share, real = f"{samples['class_accuracy']:.1%}", f"{floor['class_accuracy']:.1%}"
        yield "samples in their class", share, f"real images: {real}"
    if "frechet_distance" in samples and "frechet_distance" in floor:
        baseline = results["samples"].get("baseline")
        simple = f"baseline: {baseline['frechet_distance']:.2f}, " if baseline else ""
        yield (
            "Fréchet distance to test images",
            f"{samples['frechet_distance']:.2f}",
            f"{simple}real images: {floor['frechet_distance']:.2f}",
        )
    test = results["objective"]["test"]
    if "neg_elbo_nats" in test:
        bits = test.get("neg_elbo_bits_per_dim")
        said = "" if bits is None else f"{bits:.3f} bits per dimension; less is better"
        yield "-ELBO of a test image", f"{test['neg_elbo_nats']:.1f} nats", said
    if "mse_per_pixel" in test:
        yield "squared error per pixel", f"{test['mse_per_pixel']:.4f}", "test images, from 0 to 1"


def _how_to_read(results: Results) -> str:
    """A sentence on each thing that is not known from elsewhere."""
    samples, test = results["samples"], results["objective"]["test"]
    sentences = {
        "The column of real images is the floor: as many training images of the same classes, "
        "scored as if they were samples. No sampler is expected to do better.": True,
        f"The baseline is {BASELINE}, fitted to the same training images in seconds: a model that "
        "does no better was not worth its training.": "baseline" in samples,
        "Samples are measured by a classifier, the judge, which was trained on the same training "
        "images; distances compare only under the same judge.": "class_accuracy" in _best(results),
        "-ELBO, nats, is at least -log p(image | class), so less is better; a density may be above "
        "1, and this then below 0.": "neg_elbo_nats" in test,
        "-ELBO, bits per dimension, is the same as bits for each number of an image, as a "
        "compressed file would need them: never below 0, and less is better.": (
            "neg_elbo_bits_per_dim" in test
        ),
    }
    return "\n\n".join(sentence for sentence, applies in sentences.items() if applies)


def _per_class(trained: TrainedVAE, results: Results) -> Iterator[Table]:
    """How many samples of each class the judge takes for it, from every source."""
    columns = {
        source: scores["per_class_accuracy"]
        for source, scores in results["samples"].items()
        if "per_class_accuracy" in scores
    }
    if not columns:
        return
    names = trained.class_names[:CLASSES_LISTED]
    limited = f", the first {CLASSES_LISTED}" if len(trained.class_names) > len(names) else ""
    shares = ([_share(value) for value in values[: len(names)]] for values in columns.values())
    heads = ("class", *("real images" if each == "floor" else each for each in columns))
    rows = list(zip(names, *shares, strict=True))
    yield Table(heads, rows, f"Samples in their class, by the judge{limited}")


def _best(results: Results) -> Mapping[str, Any]:
    """The scores of the sampler that the run uses."""
    return next((s for name, s in results["samples"].items() if name != "floor"), {})


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
