"""What a trained VAE is worth, in tables: objective, density, and samples beside real images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax

import loopax
from loopax.deadline import check_time
from loopax.errors import ConfigError
from loopax.recipes.images import as_floats, at_once, known_only, some_of
from loopax.recipes.vae.comparison import compare
from loopax.recipes.vae.config import VAEConfig
from loopax.recipes.vae.objective import Objective
from loopax.recipes.vae.trained import TrainedVAE
from loopax.report import Table
from loopax.terminal import Progress

Results = dict[str, Any]

EVAL_BATCH, LIKELIHOOD_BATCH, DRAWN = 500, 100, 4000
"""Images that are measured at once, and latents that are decoded for a likelihood, at most."""
SIGMA_OF = 10_000
"""Training images, at most, that an optimal deviation is taken from."""
STEPS_OF_A_BYTE = 255
"""From 0 to 1: two neighbouring values of a stored pixel differ by one of them."""

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
SOURCES = {"baseline": "baseline: PCA, mixtures", "floor": "floor: real images"}
MEMORISED = 0.8
"""Of the test images' distance to the nearest training image: what is below is a warning."""
MAY_BE_NEGATIVE = "Nats of a density may be below 0, as a density may be above 1; less is better"
BASELINE = "PCA with a Gaussian mixture for each class"


def evaluate(
    trained: TrainedVAE,
    *,
    importance_samples: int | None = None,
    draws: int = 1,
    say: Callable[[str], None] = print,
    progress: bool = False,
) -> Results:
    """Everything that `tables` shows, as plain numbers.

    Args:
        trained: what to measure.
        importance_samples: of the likelihood estimate; None leaves it out, as it takes minutes.
        draws: how many sets of samples are judged; with several, their standard deviation is told.
        say: is told what takes long.
        progress: whether the training of a judge is shown.

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
    return {**results, **compare(trained, draws, say, progress)}


def objective_means(trained: TrainedVAE) -> dict[str, dict[str, float]]:
    """The objective and its parts over every image of each part, once.

    `mse_per_pixel` is twice `sse_half` over the numbers in an image. The negative ELBO is left out
    of what is no density, and its bits of images that are no bytes.
    """
    objective, seed = density(trained), trained.config.seed
    state = loopax.TrainState.create(params=trained.params, tx=optax.identity(), seed=seed)
    means = {}
    for name, dataset in trained.data.parts.items():
        check_time()
        batches = dataset.batches(min(at_once(EVAL_BATCH, trained.image_shape), len(dataset)))
        metrics = loopax.evaluate(state, objective.loss, batches)
        if "sse_half" in metrics:
            metrics["mse_per_pixel"] = 2 * metrics["sse_half"] / objective.pixels
        neg_elbo = metrics.pop("neg_elbo_nats")
        if is_density(trained.config):
            metrics["neg_elbo_nats"] = neg_elbo
            metrics |= _bits(trained, objective, neg_elbo_bits_per_dim=neg_elbo)
        means[name] = metrics
    return means


def is_density(config: VAEConfig) -> bool:
    """Whether the objective has a likelihood: a squared error has one by the weight beside it."""
    return config.likelihood != "squared_error" or config.kl_weight != 0


def density(trained: TrainedVAE) -> Objective:
    """The objective as a density: an optimal variance becomes that of the training images."""
    objective, config = trained.problem.objective, trained.config
    if config.likelihood != "gaussian" or config.sigma != "optimal":
        return objective
    columns = trained.data.train.columns
    chosen = some_of(columns["image"], SIGMA_OF)
    images, labels = columns["image"][chosen], columns["label"][chosen]
    mean, logvar = trained.encode(images, labels)
    noise = np.random.default_rng(0).standard_normal(mean.shape, np.float32)
    decoded = trained.decode(mean + np.exp(0.5 * logvar) * noise, labels)
    sigma = float(np.sqrt(np.mean(np.square(decoded - as_floats(images)))))
    return replace(objective, config=replace(config, sigma=sigma))


def likelihood(trained: TrainedVAE, samples: int) -> Results:
    """An importance-sampled bound on -log p of the test images of known class, with fixed keys.

    Where no class is known it is of all of them, with no class on, which bounds nothing else. For
    Bernoulli the ink is drawn once, with a fixed key too: the same images for every model and seed.
    """
    objective = density(trained)
    drawn = at_once(DRAWN, trained.image_shape)
    estimate = objective.negative_log_likelihood(samples, per_pass=drawn)
    columns = known_only(trained.data.test).columns
    count, size = len(columns["label"]), at_once(LIKELIHOOD_BATCH, trained.image_shape)
    key, total = jax.random.key(0), []
    with Progress("estimating the likelihood of images", count) as progress:
        for first in range(0, count, size):
            check_time()
            image = as_floats(columns["image"][first : first + size])
            label = columns["label"][first : first + size]
            here = jax.random.fold_in(key, first)
            observed = objective.observed(image, {"binarise": here})
            total.append(np.asarray(estimate(trained.params, observed, label, here)))
            progress.at(first + len(label))
    nats = np.concatenate(total).astype(np.float64)
    mean = float(nats.mean())
    found = {
        "importance_samples": samples,
        "images": len(nats),
        "nll_nats": mean,
        "nll_standard_error_nats": float(nats.std() / math.sqrt(len(nats))),
        **_bits(trained, objective, nll_bits_per_dim=mean),
    }
    if not trained.is_conditional:
        found["nll_unconditional_nats"] = mean
    elif (columns["label"] >= 0).all():
        found["nll_unconditional_nats"] = mean + math.log(len(trained.class_names))
    return found


def _bits(trained: TrainedVAE, objective: Objective, **nats: float) -> dict[str, float]:
    """Nats of an image as bits of each of its numbers, by name; none where images are no bytes.

    A density at stored bytes bounds no probability of them: it is without limit where they fall
    on a few values. With uniform noise of one step between two bytes it does (Theis et al., 2016).
    Its logarithm is a quadratic of the pixels here, so the mean over that noise, whose variance is
    a twelfth of a squared step, can be written down (for importance-weighted estimates it is
    bounded so), and no noise is drawn.
    """
    pixels, noise_nats, levels_bits = objective.pixels, 0.0, 0.0
    if objective.config.likelihood != "bernoulli":
        if trained.data.train.columns["image"].dtype != np.uint8:
            return {}
        variance = float(objective.variance(trained.params))
        noise_nats = pixels / (24 * STEPS_OF_A_BYTE**2 * variance)
        levels_bits = math.log2(STEPS_OF_A_BYTE)
    return {
        name: (value + noise_nats) / math.log(2) / pixels + levels_bits
        for name, value in nats.items()
    }


def verdict(results: Results) -> str | None:
    """Whether the model was worth it, or why not to tell; None without baseline or distances."""
    samples, judge = results["samples"], results.get("judge")
    if judge and not judge.get("is_sound", True):
        return (
            f"Measures by the judge are withheld: it is right on {judge['test_accuracy']:.1%} of "
            f"the test images, a logistic regression on pixels on {judge['plain_accuracy']:.1%}"
        )
    ours, simple, floor = (samples.get(name) for name in (next(iter(samples)), "baseline", "floor"))
    if simple is None or "frechet_distance" not in simple:
        return None
    distance, simply = ours["frechet_distance"], simple["frechet_distance"]
    said = (
        "The model was worth its training: the Fréchet distance of its samples is "
        f"{distance:.2f}, that of {BASELINE} {simply:.2f}"
        if distance < simply
        else f"{BASELINE} does better, in seconds: its samples have a Fréchet distance of "
        f"{simply:.2f}, those of the model {distance:.2f}"
    )
    near, usual = ours["nearest_train_distance"], floor["nearest_train_distance"]
    if near < MEMORISED * usual:
        said += (
            f". The model may have memorised images: its samples are {near:.2f} from the nearest "
            f"training image, test images {usual:.2f}"
        )
    return said


def tables(results: Results) -> list[Table]:
    """The results for people."""
    made = [_objective_table(results["objective"])]
    if found := results.get("likelihood"):
        made.append(_likelihood_table(found))
    samples = results["samples"]
    rows = [
        (title, *(_cell(scores, name, form) for scores in samples.values()))
        for name, (title, form) in SAMPLES.items()
        if name in next(iter(samples.values()))
    ]
    heads = ("", *(SOURCES.get(source, source) for source in samples))
    said = [f"Samples, {_judged_by(results.get('judge'))}", verdict(results)]
    return [*made, Table(heads, rows, ". ".join(filter(None, said)))]


def _objective_table(parts: Results) -> Table:
    rows = [
        (title, *(_number(means[name], ".4f") for means in parts.values()))
        for name, title in OBJECTIVE.items()
        if name in next(iter(parts.values()))
    ]
    negative = any(means.get("neg_elbo_nats", 0) < 0 for means in parts.values())
    title = f"Objective, mean over images{f'. {MAY_BE_NEGATIVE}' if negative else ''}"
    return Table(("", *parts), rows, title)


def _likelihood_table(found: Results) -> Table:
    rows = [
        (title, _number(found[name], ".4f")) for name, title in LIKELIHOOD.items() if name in found
    ]
    error = _number(found["nll_standard_error_nats"], ".2f")
    title = (
        f"Likelihood of {found['images']:,} test images, {found['importance_samples']} "
        f"importance samples (standard error {error} nats)"
    )
    return Table(("", "test"), rows, title)


def _judged_by(judge: Results | None) -> str:
    if not judge:
        return "not judged: there is one class only, or judge is none"
    if not judge.get("is_sound", True):
        return "not judged"
    if judge["test_accuracy"] is None:
        return f"judged by {judge['digest']}, which met no test image of a known class"
    plain = judge.get("plain_accuracy")
    beside = "" if plain is None else f" (logistic regression on pixels: {plain:.2%})"
    right = f"right on {judge['test_accuracy']:.2%} of the test images"
    return f"judged by {judge['digest']}, {right}{beside}"


def _cell(scores: dict[str, Any], name: str, form: str) -> str:
    value, deviation = scores.get(name), scores.get(f"{name}_std")
    if value is None:
        return ""
    beside = "" if deviation is None else f" ± {_number(deviation, form)}"
    return f"{_number(value, form)}{beside}"


def _number(value: float, form: str) -> str:
    return f"{value:{form}}" if math.isfinite(value) else "not finite"
