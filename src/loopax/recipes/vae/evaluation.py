"""One table of what a trained VAE is worth: objective, density, and samples judged beside a floor.

The floor is what real training images score against the same test images: no sampler is expected
to do better, and one that seems to is blurred (precision, density) or has memorised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import loopax
from loopax.errors import ConfigError
from loopax.recipes.vae import fidelity
from loopax.recipes.vae.config import VAEConfig
from loopax.recipes.vae.judge import Judge, judge_for, known_only
from loopax.recipes.vae.objective import Objective
from loopax.recipes.vae.trained import SAMPLE_SEED, TrainedVAE, as_floats

Results = dict[str, Any]

EVAL_BATCH = 500
SAMPLES_LIMIT = 10_000
LIKELIHOOD_BATCH = 100
NEIGHBOURS = 5
NEAREST_OF = 500
"""Images whose nearest training image is looked for."""
PIXEL_LEVELS_BITS = 8
"""Bits of a stored pixel: densities on [0, 1] are told per dimension as if on 0 to 255."""

OBJECTIVE = {
    "loss": "training objective",
    "sse_half": "½ squared error, summed over pixels",
    "mse_per_pixel": "squared error per pixel",
    "reconstruction_nats": "reconstruction, nats",
    "kl_nats": "KL divergence to the prior, nats",
    "neg_elbo_nats": "-ELBO, nats",
    "neg_elbo_bits_per_dim": "-ELBO, bits per dimension",
}
LIKELIHOOD = {
    "nll_nats": "-log p(image | class), nats",
    "nll_bits_per_dim": "the same, bits per dimension",
    "nll_unconditional_nats": "-log p(image), nats, at most",
}
SAMPLES = {
    "class_accuracy": ("samples in their class, by the judge", ".4f"),
    "worst_class_accuracy": ("the same, worst class", ".4f"),
    "confident": ("in their class with p > 0.9", ".4f"),
    "frechet_distance": ("Fréchet distance", ".2f"),
    "kernel_distance": ("kernel distance (KID)", ".3f"),
    "precision": ("precision", ".3f"),
    "recall": ("recall", ".3f"),
    "density": ("density", ".3f"),
    "coverage": ("coverage", ".3f"),
    "spread": ("spread within a class, per pixel", ".4f"),
    "dead_pixels": ("dead pixels", ".0f"),
    "out_of_range": ("pixels outside [0, 1]", ".4%"),
    "nearest_train_distance": ("distance to the nearest training image", ".2f"),
}
"""What is measured of samples, in words, and how it is printed."""


class Table(NamedTuple):
    """Rows for a terminal or a page; the first column is text."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def evaluate(
    trained: TrainedVAE,
    *,
    importance_samples: int | None = None,
    draws: int = 1,
    say: Callable[[str], None] = print,
) -> Results:
    """Everything that `tables` shows, as plain numbers.

    Args:
        trained: what to measure.
        importance_samples: of the likelihood estimate; None leaves it out, as it takes minutes.
        draws: how many sets of samples are judged; with several, their standard deviation is told.
        say: is told what takes long.

    Raises:
        ConfigError: a number is below 1.
    """
    if draws < 1 or (importance_samples is not None and importance_samples < 1):
        raise ConfigError("draws and importance_samples must be at least 1")
    results: Results = {"step": trained.step, "objective": objective_means(trained)}
    if importance_samples is not None and not is_density(trained.config):
        say("with kl_weight 0 the squared error is that of no density: there is no likelihood")
    elif importance_samples is not None:
        results["likelihood"] = likelihood(trained, importance_samples)
    return {**results, **judged(trained, draws, say)}


def objective_means(trained: TrainedVAE) -> dict[str, dict[str, float]]:
    """The objective and its parts over every image of each part, once.

    `mse_per_pixel` is twice `sse_half` over the numbers in an image. The negative ELBO is left out
    of what is no density.
    """
    objective, seed = density(trained), trained.config.seed
    state = loopax.TrainState.create(params=trained.params, tx=optax.identity(), seed=seed)
    means = {}
    for name, dataset in trained.data.parts.items():
        batches = dataset.batches(min(EVAL_BATCH, len(dataset)))
        metrics = loopax.evaluate(state, objective.loss, batches)
        if "sse_half" in metrics:
            metrics["mse_per_pixel"] = 2 * metrics["sse_half"] / objective.pixels
        neg_elbo = metrics.pop("neg_elbo_nats")
        if is_density(trained.config):
            metrics["neg_elbo_nats"] = neg_elbo
            metrics["neg_elbo_bits_per_dim"] = bits_per_dimension(trained, neg_elbo)
        means[name] = metrics
    return means


def is_density(config: VAEConfig) -> bool:
    """Whether the objective has a likelihood: a squared error has one by the weight beside it."""
    return config.likelihood != "squared_error" or config.kl_weight > 0


def is_conditional(config: VAEConfig) -> bool:
    """Whether the class means anything to the model."""
    return config.conditioning != "none" or config.prior == "class"


def density(trained: TrainedVAE) -> Objective:
    """The objective as a density: an optimal variance becomes that of the training images."""
    objective, config = trained.problem.objective, trained.config
    if config.likelihood != "gaussian" or config.sigma != "optimal":
        return objective
    columns = trained.data.train.columns
    images, labels = columns["image"][:SAMPLES_LIMIT], columns["label"][:SAMPLES_LIMIT]
    mean, logvar = trained.encode(images, labels)
    noise = np.random.default_rng(0).standard_normal(mean.shape, np.float32)
    decoded = trained.decode(mean + np.exp(0.5 * logvar) * noise, labels)
    sigma = float(np.sqrt(np.mean(np.square(decoded - as_floats(images)))))
    return replace(objective, config=replace(config, sigma=sigma))


def likelihood(trained: TrainedVAE, samples: int, images: int | None = None) -> Results:
    """An importance-sampled bound on -log p of the test images of known class, with fixed keys.

    `images` limits it to the first so many. Where no class is known it is of all of them, with no
    class on, which bounds nothing else. For Bernoulli the ink is drawn once, with a fixed key too:
    the same images for every model and seed.
    """
    objective = density(trained)
    estimate = objective.negative_log_likelihood(samples)
    test = known_only(trained.data.test)
    columns = {name: column[:images] for name, column in test.columns.items()}
    key, total = jax.random.key(0), []
    for first in range(0, len(columns["label"]), LIKELIHOOD_BATCH):
        image = as_floats(columns["image"][first : first + LIKELIHOOD_BATCH])
        label = columns["label"][first : first + LIKELIHOOD_BATCH]
        here = jax.random.fold_in(key, first)
        observed = objective.observed(image, {"binarise": here})
        total.append(np.asarray(estimate(trained.params, observed, label, here)))
    nats = np.concatenate(total).astype(np.float64)
    mean = float(nats.mean())
    found = {
        "importance_samples": samples,
        "images": len(nats),
        "nll_nats": mean,
        "nll_standard_error_nats": float(nats.std() / math.sqrt(len(nats))),
        "nll_bits_per_dim": bits_per_dimension(trained, mean),
    }
    if not is_conditional(trained.config):
        found["nll_unconditional_nats"] = mean
    elif (columns["label"] >= 0).all():
        found["nll_unconditional_nats"] = mean + math.log(len(trained.class_names))
    return found


def bits_per_dimension(trained: TrainedVAE, nats: float) -> float:
    """Nats of an image as bits of each of its numbers."""
    bits = nats / math.log(2) / math.prod(trained.model.image_shape)
    return bits if trained.config.likelihood == "bernoulli" else bits + PIXEL_LEVELS_BITS


def judged(trained: TrainedVAE, draws: int, say: Callable[[str], None]) -> Results:
    """Samples beside real images, `draws` times; with a judge where there are several classes."""
    test = known_only(trained.data.test)
    judge = judge_for(trained.problem.given, say) if len(trained.class_names) > 1 else None
    count = min(SAMPLES_LIMIT, len(test))
    chosen = np.random.default_rng(0).permutation(len(test))[:count]
    images = test.columns["image"][chosen]
    reference = _Reference(
        images,
        None if judge is None else judge.opinion(images).features,
        _flat(trained.data.train.columns["image"]),
    )
    results: Results = {"samples": {}, "judge": None}
    if judge is not None:
        results["judge"] = {
            "digest": judge.digest,
            "test_accuracy": judge.test_accuracy if math.isfinite(judge.test_accuracy) else None,
        }
        if count <= NEIGHBOURS:
            say(f"{count} test images are too few for all distances")
    classes = len(trained.class_names)
    labels = np.arange(count) * classes // count  # as many of each class, in order
    samplers = {"prior": trained.from_prior()}
    if trained.mixtures is not None:
        samplers = {"mixture": trained, **samplers}
    for name, sampler in samplers.items():
        scored = []
        for draw in range(draws):
            raw = sampler.decode(sampler.latents_of(labels, SAMPLE_SEED + draw), labels)
            scored.append(_scores(raw, labels, reference, judge) | reference.nearest(raw))
        results["samples"][name] = _mean(scored)
    results["samples"]["floor"] = _mean([_floor(trained, labels, reference, judge)])
    return results


class _Reference(NamedTuple):
    """What samples are held against: test images and their features, and training images."""

    images: np.ndarray
    features: np.ndarray | None
    train: np.ndarray

    def nearest(self, raw: np.ndarray) -> dict[str, float]:
        """How far some of these images are from their nearest training image, on average."""
        few = raw[np.linspace(0, len(raw) - 1, min(NEAREST_OF, len(raw))).astype(int)]
        found = fidelity.nearest_distances(np.clip(_flat(few), 0, 1), self.train)
        return {"nearest_train_distance": float(found.distances.mean())}


def _scores(
    raw: np.ndarray, labels: np.ndarray, reference: _Reference, judge: Judge | None
) -> dict[str, Any]:
    images = np.clip(raw, 0, 1)
    scores: dict[str, Any] = {
        "spread": _spread(images, labels),
        "dead_pixels": float(((raw.max(axis=0) <= 0) & (reference.images.max(axis=0) > 0)).sum()),
        "out_of_range": float(((raw < 0) | (raw > 1)).mean()),
    }
    if judge is None or reference.features is None:
        return scores
    features, probabilities = judge.opinion(images)
    found = fidelity.class_scores(probabilities, labels, judge.model.classes)
    scores |= {
        "class_accuracy": found.accuracy,
        "worst_class_accuracy": found.worst[1],
        "confident": found.confident,
        "per_class_accuracy": [round(float(value), 4) for value in found.per_class],
    }
    fewest = min(len(features), len(reference.features))
    if fewest > 1:
        scores |= {
            "frechet_distance": fidelity.frechet_distance(reference.features, features),
            "kernel_distance": fidelity.kernel_distance(reference.features, features),
        }
    if fewest > NEIGHBOURS:
        near = fidelity.neighbourhood_scores(reference.features, features, NEIGHBOURS)
        scores |= asdict(near)
    return scores


def _floor(
    trained: TrainedVAE, labels: np.ndarray, reference: _Reference, judge: Judge | None
) -> dict[str, Any]:
    """What as many real training images score."""
    train = trained.data.train.columns
    known = np.flatnonzero(train["label"] >= 0)
    chosen = np.random.default_rng(1).permutation(known)[: len(labels)]
    images = as_floats(train["image"][chosen])
    scores = _scores(images, train["label"][chosen], reference, judge)
    return scores | reference.nearest(reference.images)


def _spread(images: np.ndarray, labels: np.ndarray) -> float:
    """Standard deviation of a pixel among images of one class, mean over pixels and classes."""
    return float(np.mean([images[labels == each].std(axis=0).mean() for each in np.unique(labels)]))


def _flat(images: np.ndarray) -> np.ndarray:
    return as_floats(images).reshape(len(images), -1)


def _mean(scored: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the draws, and with several of them standard deviations as `NAME_std`.

    A class without images has no accuracy: None, as JSON has no other word for it.
    """
    mean = {name: np.mean([s[name] for s in scored], axis=0).tolist() for name in scored[0]}
    if len(scored) > 1:
        numbers = [name for name in mean if name != "per_class_accuracy"]
        mean |= {
            f"{name}_std": float(np.std([s[name] for s in scored], ddof=1)) for name in numbers
        }
    if shares := mean.get("per_class_accuracy"):
        mean["per_class_accuracy"] = [s if math.isfinite(s) else None for s in shares]
    return mean


def tables(results: Results) -> list[Table]:
    """The results for people."""
    made = []
    split_names = tuple(results["objective"])
    rows = [
        (title, *(_number(results["objective"][split][name], ".4f") for split in split_names))
        for name, title in OBJECTIVE.items()
        if name in results["objective"][split_names[0]]
    ]
    made.append(Table("Objective, mean over images", ("", *split_names), rows))
    if found := results.get("likelihood"):
        rows = [
            (title, _number(found[name], ".4f"))
            for name, title in LIKELIHOOD.items()
            if name in found
        ]
        error = _number(found["nll_standard_error_nats"], ".2f")
        title = (
            f"Likelihood of {found['images']:,} test images, {found['importance_samples']} "
            f"importance samples (standard error {error} nats)"
        )
        made.append(Table(title, ("", "test"), rows))
    sources = tuple(results["samples"])
    rows = [
        (title, *(_cell(results["samples"][source], name, form) for source in sources))
        for name, (title, form) in SAMPLES.items()
        if name in results["samples"][sources[0]]
    ]
    judge = results.get("judge")
    if not judge:
        judged_by = "of one class only, which no judge can tell apart"
    elif judge["test_accuracy"] is None:
        judged_by = f"judged by {judge['digest']}, which met no test image of a known class"
    else:
        right = f"right on {judge['test_accuracy']:.2%} of the test images"
        judged_by = f"judged by {judge['digest']}, {right}"
    heads = ("", *(f"{source}: real images" if source == "floor" else source for source in sources))
    made.append(Table(f"Samples, {judged_by}", heads, rows))
    return made


def _cell(scores: dict[str, Any], name: str, form: str) -> str:
    value, deviation = scores.get(name), scores.get(f"{name}_std")
    if value is None:
        return ""
    beside = "" if deviation is None else f" ± {_number(deviation, form)}"
    return f"{_number(value, form)}{beside}"


def _number(value: float, form: str) -> str:
    return f"{value:{form}}" if math.isfinite(value) else "not finite"
