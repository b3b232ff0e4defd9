"""How near generated images come to real ones, judged by a classifier's features and its answers.

Every distance here depends on the classifier: two figures compare only under the same one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from loopax.errors import ConfigError, DataError

Features = Float[np.ndarray, "n features"]

CONFIDENT = 0.9
ROWS_AT_ONCE = 256
DISTANCES_MIB = 16


class PointSet:
    """Features that several others are held against: what is their own is computed once."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self._radii: dict[int, Float[np.ndarray, " n"]] = {}

    @classmethod
    def of(cls, features: Features | PointSet) -> PointSet:
        """Features as such a set, or the one that they already are."""
        return features if isinstance(features, PointSet) else cls(features)

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def points(self) -> Features:
        """In double precision."""
        return self.features.astype(np.float64)

    @cached_property
    def covariance_root(self) -> Float[np.ndarray, "rank features"]:
        """A matrix R with RᵀR the unbiased covariance, which itself is never formed."""
        centred = self.points - self.points.mean(axis=0)
        return np.linalg.qr(centred, mode="r") / np.sqrt(len(self) - 1)

    @cached_property
    def kernel(self) -> float:
        """The mean kernel over pairs of different points."""
        pairs, count = 0.0, len(self)
        for start in range(0, count, ROWS_AT_ONCE):
            rows, later = np.split(self.points[start:], [ROWS_AT_ONCE])
            own = np.einsum("ij,ij->i", rows, rows) / rows.shape[1] + 1
            # Two later rows are met when it is their turn.
            pairs += _kernel_sum(rows, rows) - float(np.sum(own**3)) + 2 * _kernel_sum(rows, later)
        return pairs / (count * (count - 1))

    def radii(self, k: int) -> Float[np.ndarray, " n"]:
        """How far each ball reaches: to the k-th neighbour of its point, which itself is none."""
        from sklearn.neighbors import NearestNeighbors

        if k not in self._radii:
            # Distances come from inner products, which lose their digits far from the origin.
            centred = self.points - self.points.mean(axis=0)
            search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(centred)
            # A neighbour at the radius, as a copy of a training image is, must not fall inside by
            # rounding.
            self._radii[k] = search.kneighbors()[0][:, -1] * (1 - 1e-9)
        return self._radii[k]


@dataclass(frozen=True)
class NeighbourhoodScores:
    """Shares of points that lie within reach of the other set's points; see the function.

    Precision and density reward blur: read them beside recall and coverage, and against the
    scores of real images that were held out.
    """

    precision: float
    recall: float
    density: float
    coverage: float


class Nearest(NamedTuple):
    """The nearest reference of each query: how far it is, and its row."""

    distances: Float[np.ndarray, " queries"]
    indices: Integer[np.ndarray, " queries"]


@dataclass(frozen=True)
class ClassScores:
    """How often a classifier sees the class that was asked for, as shares of 1.

    `accuracy` and `confident`, the share seen with a probability above 0.9, are means over the
    classes that have examples, so a rare class counts as much as any. `per_class` is nan for a
    class without examples.
    """

    accuracy: float
    confident: float
    per_class: tuple[float, ...]

    @property
    def worst(self) -> tuple[int, float]:
        """The class with the lowest accuracy, and that accuracy."""
        label = int(np.nanargmin(self.per_class))
        return label, self.per_class[label]


def frechet_distance(one: Features | PointSet, other: Features | PointSet) -> float:
    """The Fréchet distance of the Gaussians fitted to two sets, in squared units of the features.

    |m₁ - m₂|² + Tr(C₁ + C₂ - 2 (C₁C₂)^½) with unbiased covariances (Dowson and Landau 1982; as
    FID, Heusel et al. 2017). It is biased upwards for few points, so compare equal counts.

    Raises:
        DataError: the sets cannot be compared.
    """
    one, other = PointSet.of(one), PointSet.of(other)
    _check(2, one=one.features, other=other.features)
    shift = one.points.mean(axis=0) - other.points.mean(axis=0)
    root, other_root = one.covariance_root, other.covariance_root
    # The singular values of this product are the roots of the eigenvalues of C₁C₂. Roots taken of
    # eigenvalues would turn a rounding error of 1e-16 into 1e-8 wherever a covariance is singular.
    overlap = np.linalg.norm(root @ other_root.T, "nuc")
    distance = shift @ shift + np.square(root).sum() + np.square(other_root).sum() - 2 * overlap
    return max(float(distance), 0.0)


def kernel_distance(one: Features | PointSet, other: Features | PointSet) -> float:
    """The kernel distance (KID): squared MMD with the kernel (x·y / features + 1)³.

    Unbiased, so equal distributions give 0 on average and single values may be slightly negative
    (Bińkowski et al. 2018). All pairs are used, not means over subsets.

    Raises:
        DataError: the sets cannot be compared.
    """
    one, other = PointSet.of(one), PointSet.of(other)
    _check(2, one=one.features, other=other.features)
    across = _kernel_sum(one.points, other.points) / (len(one) * len(other))
    return one.kernel + other.kernel - 2 * across


def neighbourhood_scores(
    real: Features | PointSet, generated: Features | PointSet, k: int = 5
) -> NeighbourhoodScores:
    """Precision, recall, density and coverage of a generated set.

    The ball of a point reaches to its k-th nearest neighbour in its own set. Precision is the share
    of generated points inside of some real ball, recall that of real points inside of some
    generated ball (Kynkäänniemi et al. 2019). Density is the mean number of real balls around a
    generated point, over k, and may exceed 1; coverage is the share of real balls that hold a
    generated point (Naeem et al. 2020). A point on the surface of a ball is outside.

    Raises:
        ConfigError: `k` is below 1.
        DataError: the sets cannot be compared, or one has no more than `k` points.
    """
    from sklearn.metrics import pairwise_distances_chunked

    if k < 1:
        raise ConfigError(f"k is {k}; it must be at least 1")
    real, generated = PointSet.of(real), PointSet.of(generated)
    _check(k + 1, real=real.features, generated=generated.features)
    real_radii, generated_radii = real.radii(k), generated.radii(k)
    # As for the radii: about the origin, so that inner products keep their digits.
    origin = real.points.mean(axis=0)
    queries, references = generated.points - origin, real.points - origin
    balls_around = np.zeros(len(generated), np.int64)
    covered, recalled = np.zeros(len(real), bool), np.zeros(len(real), bool)
    done = 0
    for distances in pairwise_distances_chunked(queries, references, working_memory=DISTANCES_MIB):
        rows = slice(done, done := done + len(distances))
        in_real_ball = distances < real_radii
        balls_around[rows] = np.count_nonzero(in_real_ball, axis=1)
        covered |= in_real_ball.any(axis=0)
        recalled |= (distances < generated_radii[rows, np.newaxis]).any(axis=0)
    return NeighbourhoodScores(
        precision=float(np.mean(balls_around > 0)),
        recall=float(recalled.mean()),
        density=float(balls_around.mean() / k),
        coverage=float(covered.mean()),
    )


def nearest_distances(queries: Features, references: Features) -> Nearest:
    """The Euclidean distance from each query to its nearest reference, and which one that is.

    For a look at memorising: a model that copies has samples nearer to its training images than
    test images are. Rows are features or flattened pixels.

    Raises:
        DataError: the sets cannot be compared.
    """
    from sklearn.neighbors import NearestNeighbors

    _check(1, queries=queries, references=references)
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(references)
    indices = search.kneighbors(queries, return_distance=False)[:, 0]
    # The search's own distances come from inner products, by which a copy is not quite at 0.
    return Nearest(np.linalg.norm(queries - references[indices], axis=1), indices)


def class_scores(
    probabilities: Float[np.ndarray, "n classes"], labels: Integer[np.ndarray, " n"], classes: int
) -> ClassScores:
    """Compares a classifier's probabilities with the labels that were asked for.

    Raises:
        DataError: the shapes do not fit, rows are not probabilities, or a label is no class.
    """
    if probabilities.shape != (len(labels), classes) or not len(labels):
        raise DataError(
            f"probabilities are {list(probabilities.shape)}; "
            f"{len(labels)} labels of {classes} classes need [{len(labels) or 'n'}, {classes}]"
        )
    if not (np.all(probabilities >= 0) and np.allclose(probabilities.sum(axis=1), 1, atol=1e-3)):
        raise DataError(
            "probabilities must be at least 0 and sum to 1 in each row, as of a softmax"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"labels go from {labels.min()} to {labels.max()}; they must be 0 to {classes - 1}"
        )
    right = probabilities.argmax(axis=1) == labels
    asked = probabilities[np.arange(len(labels)), labels]
    with np.errstate(invalid="ignore"):
        per_class, confident = (
            np.bincount(labels, hits, classes) / np.bincount(labels, minlength=classes)
            for hits in (right, asked > CONFIDENT)
        )
    return ClassScores(
        accuracy=float(np.nanmean(per_class)),
        confident=float(np.nanmean(confident)),
        per_class=tuple(per_class.tolist()),
    )


def _kernel_sum(one: Features, other: Features) -> float:
    total = 0.0
    for start in range(0, len(one), ROWS_AT_ONCE):
        base = one[start : start + ROWS_AT_ONCE] @ other.T / one.shape[1] + 1
        total += float(np.vdot(base * base, base))
    return total


def _check(least: int, **sets: Features) -> None:
    for name, features in sets.items():
        if features.ndim != 2:
            raise DataError(f"{name} is {list(features.shape)}; it must be [points, features]")
        if len(features) < least:
            raise DataError(f"{name} has {len(features)} points; at least {least} are needed")
        bad = ~np.isfinite(features).all(axis=1)
        if bad.any():
            raise DataError(f"{name}: row {bad.argmax()} is not finite; all features must be")
    if len({features.shape[1] for features in sets.values()}) > 1:
        widths = " and ".join(f"{name} has {sets[name].shape[1]}" for name in sets)
        raise DataError(f"{widths} features; they must have the same")
