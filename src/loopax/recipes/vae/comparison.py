"""Samples beside real images: as many, of the same classes, by the same judge.

The floor is what real training images score against the same test images: no sampler is expected
to do better, and one that seems to is blurred (precision, density) or has memorised. The baseline
is what takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from loopax import measures
from loopax.data import Dataset
from loopax.deadline import check_time
from loopax.recipes.images import as_floats, flat_portions, known_only, some_of
from loopax.recipes.vae.baseline import Baseline, fit_baseline
from loopax.recipes.vae.judge import Judge, judge_for
from loopax.recipes.vae.trained import SAMPLE_SEED, TrainedVAE
from loopax.terminal import Progress

Scores = dict[str, Any]

SAMPLES_LIMIT = 10_000
"""Images that are compared, at most."""
NEIGHBOURS = 5
NEAREST_OF = 500
"""Images whose nearest training image is looked for."""


def compare(
    trained: TrainedVAE, draws: int, say: Callable[[str], None], progress: bool = False
) -> Scores:
    """Samples of the VAE and of the baseline beside real images, `draws` times.

    Samples, test images and floor have the same labels, those of the test images; where these are
    not known they are drawn from those of the training images. A class that no test image has is
    not drawn. Measures that need a judge are left out where there is one class only, where the
    judge falls short of a linear classifier, and where the configuration wants none.
    """
    train, test = trained.data.train, known_only(trained.data.test)
    results: Scores = {"samples": {}, "judge": None}
    wanted = trained.config.judge == "auto" and len(trained.class_names) > 1
    judge = judge_for(trained.problem.given, say, progress=progress) if wanted else None
    if judge is not None:
        results["judge"] = {
            "digest": judge.digest,
            "test_accuracy": _or_none(judge.test_accuracy),
            "plain_accuracy": _or_none(judge.plain_accuracy),
            "is_sound": judge.is_sound,
        }
        judge = judge if judge.is_sound else None
    chosen = some_of(test.columns["image"], SAMPLES_LIMIT)
    images, labels = test.columns["image"][chosen], test.columns["label"][chosen]
    if (labels < 0).any():  # Then as often as in training.
        known = train.columns["label"][train.columns["label"] >= 0]
        labels = np.random.default_rng(0).choice(known, len(labels))
    if judge is not None and len(labels) <= NEIGHBOURS:
        say(f"{len(labels)} test images are too few for all distances")
    points = None if judge is None else measures.PointSet(judge.opinion(images).features)
    reference = _Reference(images, points, train.columns["image"], judge, trained.config.output)
    samplers: dict[str, TrainedVAE | Baseline | None] = {
        "mixture": trained if trained.mixtures is not None else None,
        "prior": trained.from_prior(),
        "baseline": fit_baseline(train),
    }
    for name, sampler in samplers.items():
        if sampler is not None:
            seeds = range(SAMPLE_SEED, SAMPLE_SEED + draws)
            scored = [reference.judged(sampler, labels, seed) for seed in seeds]
            results["samples"][name] = _mean(scored)
    results["samples"]["floor"] = _mean([_floor(train, labels, reference)])
    return results


class _Reference(NamedTuple):
    """What samples are held against: test images and their features, and training images."""

    images: np.ndarray
    points: measures.PointSet | None
    train: np.ndarray
    judge: Judge | None
    output: str

    def judged(self, sampler: TrainedVAE | Baseline, labels: np.ndarray, seed: int) -> Scores:
        """What a sampler's images of these classes score."""
        check_time()
        raw = sampler.decode(sampler.latents_of(labels, seed), labels)
        return self.scores(raw, labels) | self.nearest(raw)

    def nearest(self, raw: np.ndarray) -> Scores:
        """How far some of these images are from their nearest training image, on average."""
        few = raw[some_of(raw, NEAREST_OF)]
        few = few.reshape(len(few), -1).clip(0, 1)
        nearest, done = np.full(len(few), np.inf), 0
        with Progress("looking for the nearest training images", len(self.train)) as progress:
            for part in flat_portions(self.train):
                found = measures.nearest_distances(few, part).distances
                nearest, done = np.minimum(nearest, found), done + len(part)
                progress.at(done)
        return {"nearest_train_distance": float(nearest.mean())}

    def scores(self, raw: np.ndarray, labels: np.ndarray) -> Scores:
        """All that does not need the training images."""
        images = np.clip(raw, 0, 1)
        scores: Scores = {"spread": _spread(images, labels)}
        if self.output == "relu":  # A sigmoid is never 0, nor beyond 1.
            lit = self.images.max(axis=0) > 0
            scores["dead_pixels"] = float(((raw.max(axis=0) <= 0) & lit).sum())
            scores["out_of_range"] = float(((raw < 0) | (raw > 1)).mean())
        if self.judge is None or self.points is None:
            return scores
        features, probabilities = self.judge.opinion(images)
        found = measures.class_scores(probabilities, labels, self.judge.model.classes)
        scores |= {
            "class_accuracy": found.accuracy,
            "worst_class_accuracy": found.worst[1],
            "confident": found.confident,
            "per_class_accuracy": [round(float(value), 4) for value in found.per_class],
        }
        drawn = measures.PointSet(features)
        fewest = min(len(drawn), len(self.points))
        if fewest > 1:
            scores |= {
                "frechet_distance": measures.frechet_distance(self.points, drawn),
                "kernel_distance": measures.kernel_distance(self.points, drawn),
            }
        if fewest > NEIGHBOURS:
            scores |= asdict(measures.neighbourhood_scores(self.points, drawn, NEIGHBOURS))
        return scores


def _or_none(number: float) -> float | None:
    """A number as JSON can hold it, which has no nan."""
    return number if math.isfinite(number) else None


def _floor(train: Dataset, labels: np.ndarray, reference: _Reference) -> Scores:
    """What as many real training images of the same classes score."""
    chosen = with_labels(train.columns["label"], labels, seed=1)
    images = as_floats(train.columns["image"][chosen])
    scores = reference.scores(images, train.columns["label"][chosen])
    return scores | reference.nearest(as_floats(reference.images))


def with_labels(
    labels: Int[np.ndarray, " n"], wanted: Int[np.ndarray, " m"], *, seed: int = 0
) -> Int[np.ndarray, " m"]:
    """The places of things with the wanted labels, one for each, drawn with a fixed seed.

    Each is taken once as long as its class lasts. A class without any is replaced by whatever has
    a known label.
    """
    rng = np.random.default_rng(seed)
    places = np.empty(len(wanted), np.int64)
    for label in np.unique(wanted):
        own = np.flatnonzero(labels == label)
        own = own if len(own) else np.flatnonzero(labels >= 0)
        here = np.flatnonzero(wanted == label)
        places[here] = np.resize(rng.permutation(own), len(here))
    return places


def _spread(images: np.ndarray, labels: np.ndarray) -> float:
    """Standard deviation of a pixel among images of one class, mean over pixels and classes."""
    return float(np.mean([images[labels == each].std(axis=0).mean() for each in np.unique(labels)]))


def _mean(scored: Sequence[Scores]) -> Scores:
    """Means over the draws, and with several of them standard deviations as `NAME_std`.

    A class without images has no accuracy: None.
    """
    mean: Scores = {}
    for name in scored[0]:
        values = [scores[name] for scores in scored]
        mean[name] = np.mean(values, axis=0).tolist()
        if len(values) > 1 and name != "per_class_accuracy":
            mean[f"{name}_std"] = float(np.std(values, ddof=1))
    if shares := mean.get("per_class_accuracy"):
        mean["per_class_accuracy"] = [*map(_or_none, shares)]
    return mean
