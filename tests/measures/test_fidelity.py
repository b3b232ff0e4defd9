"""The metrics of generated images on cases with known answers, and beside slow, plain versions."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopax.errors import ConfigError, DataError
from loopax.measures import fidelity
from loopax.measures.fidelity import (
    class_scores,
    frechet_distance,
    kernel_distance,
    nearest_distances,
    neighbourhood_scores,
)

METRICS = [frechet_distance, kernel_distance, neighbourhood_scores]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def correlated(rng, count, size):
    return rng.normal(size=(count, size)) @ rng.normal(size=(size, size)) + rng.normal(size=size)


def rotation(rng, size):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


def both_ways(scales):
    """Points at a distance on each axis: the covariance is exactly diagonal, the mean 0."""
    return np.concatenate([np.diag(scales), -np.diag(scales)])


class TestFrechet:
    def test_a_set_is_at_no_distance_from_itself(self, rng):
        points = correlated(rng, 200, 6)
        assert frechet_distance(points, points[::-1]) == pytest.approx(0, abs=1e-10)

    def test_a_translate_is_at_the_square_of_its_shift(self, rng):
        points, shift = correlated(rng, 200, 6), np.arange(6.0)
        assert frechet_distance(points, points + shift) == pytest.approx(55)

    def test_samples_of_shifted_gaussians_come_near_it(self, rng):
        one, other = rng.normal(size=(2, 20_000, 4))
        assert frechet_distance(one, other + 1) == pytest.approx(4, abs=0.1)

    def test_scaling_about_the_mean_costs_the_trace(self, rng):
        points = correlated(rng, 200, 6)
        mean = points.mean(axis=0)
        trace = np.trace(np.cov(points.T))
        assert frechet_distance(points, mean + 3 * (points - mean)) == pytest.approx(4 * trace)

    def test_diagonal_covariances_differ_by_their_roots(self):
        one, other = np.array([1.0, 2.0, 5.0]), np.array([4.0, 2.0, 1.0])
        # Six points: two of them hold the variance of each axis, 2 s² / (6 - 1).
        expected = np.square(one - other).sum() * 2 / 5
        assert frechet_distance(both_ways(one), both_ways(other)) == pytest.approx(expected)

    def test_two_dimensions_by_trace_and_determinant(self, rng):
        """The trace of the root of a 2 x 2 matrix M is the root of tr M + 2 √det M."""
        one, other = correlated(rng, 50, 2), correlated(rng, 70, 2)
        first, second = np.cov(one.T), np.cov(other.T)
        product = first @ second
        root = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
        shift = one.mean(axis=0) - other.mean(axis=0)
        expected = shift @ shift + np.trace(first) + np.trace(second) - 2 * root
        assert frechet_distance(one, other) == pytest.approx(expected)

    @given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(2, 30), st.integers(2, 30))
    def test_agrees_with_the_eigenvalues_of_the_product(self, seed, size, count, other_count):
        """Also where there are fewer points than features, so that covariances are singular."""
        rng = np.random.default_rng(seed)
        one, other = correlated(rng, count, size), correlated(rng, other_count, size)
        first = np.cov(one.T).reshape(size, size)
        second = np.cov(other.T).reshape(size, size)
        values = np.linalg.eigvals(first @ second).real.clip(0)
        shift = one.mean(axis=0) - other.mean(axis=0)
        expected = shift @ shift + np.trace(first) + np.trace(second) - 2 * np.sqrt(values).sum()
        assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert frechet_distance(other, one) == pytest.approx(frechet_distance(one, other))

    def test_two_lines_at_an_angle(self):
        """Covariances of rank 1: the roots overlap by the cosine of the angle."""
        along = np.linspace(-1, 1, 9)[:, np.newaxis]
        variance = along.var(ddof=1)
        line = np.array([1.0, 0, 0, 0])
        for angle in (0, math.pi / 3, math.pi / 2):
            turned = np.array([math.cos(angle), math.sin(angle), 0, 0])
            distance = frechet_distance(along * line, 2 * along * turned)
            assert distance == pytest.approx(variance * (1 + 4 - 4 * math.cos(angle)), abs=1e-12)

    def test_dead_features_cost_no_digits_and_give_nothing_negative(self, rng):
        for _ in range(5):
            points = np.pad(rng.normal(size=(300, 5)), [(0, 0), (0, 60)]) @ rotation(rng, 65)
            assert 0 <= frechet_distance(points, points[::-1]) < 1e-12

    def test_turning_both_sets_changes_nothing(self, rng):
        one, other, turn = correlated(rng, 90, 7), correlated(rng, 60, 7), rotation(rng, 7)
        expected = frechet_distance(one, other)
        assert frechet_distance(one @ turn, other @ turn) == pytest.approx(expected)


def kernel_distance_by_loops(one, other):
    def mean_kernel(pairs):
        return np.mean([(float(x @ y) / len(x) + 1) ** 3 for x, y in pairs])

    def different(points):
        return [(x, y) for i, x in enumerate(points) for j, y in enumerate(points) if i != j]

    across = [(x, y) for x in one for y in other]
    return mean_kernel(different(one)) + mean_kernel(different(other)) - 2 * mean_kernel(across)


class TestKernel:
    @pytest.mark.parametrize(("count", "other_count", "size"), [(2, 2, 1), (20, 13, 5), (7, 30, 3)])
    def test_agrees_with_plain_loops(self, rng, count, other_count, size):
        one, other = correlated(rng, count, size), correlated(rng, other_count, size)
        expected = kernel_distance_by_loops(one, other)
        assert kernel_distance(one, other) == pytest.approx(expected)
        assert kernel_distance(other, one) == pytest.approx(expected)

    def test_blocks_leave_no_pair_out(self, rng, monkeypatch):
        one, other = correlated(rng, 25, 4), correlated(rng, 17, 4)
        monkeypatch.setattr(fidelity, "ROWS_AT_ONCE", 4)
        assert kernel_distance(one, other) == pytest.approx(kernel_distance_by_loops(one, other))

    def test_by_hand(self):
        """k(1, 2) = 27, k(0, 0) = 1, and every kernel across is 1: 27 + 1 - 2."""
        assert kernel_distance(np.array([[1.0], [2.0]]), np.zeros((2, 1))) == pytest.approx(26)

    def test_equal_distributions_average_to_nothing(self, rng):
        draws = [kernel_distance(*rng.normal(size=(2, 50, 4))) for _ in range(300)]
        error = np.std(draws) / math.sqrt(len(draws))
        assert abs(np.mean(draws)) < 4 * error
        assert min(draws) < 0 < max(draws)
        one, other = rng.normal(size=(2, 50, 4))
        assert kernel_distance(one, other + 1) > max(draws)


def neighbourhoods_by_brute_force(real, generated, k):
    """The four scores from full matrices of distances, word for word as they are defined."""

    def between(one, other):
        return np.array([[math.dist(x, y) for y in other] for x in one])

    def radii(points):
        everyone = between(points, points)
        return [sorted(np.delete(row, index))[k - 1] for index, row in enumerate(everyone)]

    across = between(real, generated)
    in_real_ball = across < np.array(radii(real))[:, np.newaxis]
    in_generated_ball = across < np.array(radii(generated))[np.newaxis, :]
    return {
        "precision": in_real_ball.any(axis=0).mean(),
        "recall": in_generated_ball.any(axis=1).mean(),
        "density": in_real_ball.sum() / (k * len(generated)),
        "coverage": in_real_ball.any(axis=1).mean(),
    }


def assert_scores(scores, expected, **tolerance):
    assert vars(scores) == pytest.approx(expected, **tolerance)


class TestNeighbourhoods:
    @given(st.data())
    def test_agrees_with_brute_force(self, data):
        """Small whole numbers are full of copies and of points exactly on a ball's surface."""
        k = data.draw(st.integers(1, 6), "k")
        count, other = (data.draw(st.integers(k + 1, 25), name) for name in ("real", "generated"))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
        size = data.draw(st.integers(1, 5), "features")
        if data.draw(st.booleans(), "whole"):
            real, generated = (
                rng.integers(-3, 4, (rows, size)).astype(float) for rows in (count, other)
            )
        else:
            real, generated = rng.normal(size=(count, size)), 1.5 * rng.normal(size=(other, size))
        expected = neighbourhoods_by_brute_force(real, generated, k)
        assert_scores(neighbourhood_scores(real, generated, k), expected)

    def test_chunks_leave_nothing_out(self, rng, monkeypatch):
        real, generated = rng.normal(size=(700, 3)), 1.3 * rng.normal(size=(500, 3))
        whole = neighbourhood_scores(real, generated)
        monkeypatch.setattr(fidelity, "DISTANCES_MIB", 0.1)
        assert neighbourhood_scores(real, generated) == whole

    def test_by_hand(self):
        """Balls of 1, 1, 2 around 0, 1, 3, and of 4.5, 4.5 around 0.5 and 5."""
        real, generated = np.array([[0.0], [1.0], [3.0]]), np.array([[0.5], [5.0]])
        expected = {"precision": 0.5, "recall": 1.0, "density": 1.0, "coverage": 2 / 3}
        assert_scores(neighbourhood_scores(real, generated, k=1), expected)

    @pytest.mark.parametrize("kind", [np.float32, np.float64])
    def test_a_copy_of_the_real_set_has_everything_once(self, rng, kind):
        """Of the k + 1 points at hand each ball leaves out the one at its surface."""
        points = correlated(rng, 400, 16).astype(kind)
        for copy in (points, points[::-1].copy()):
            expected = dict.fromkeys(("precision", "recall", "density", "coverage"), 1.0)
            assert_scores(neighbourhood_scores(points, copy), expected)

    def test_samples_of_one_distribution_reach_the_known_level(self, rng):
        """With equal counts coverage is near 1 - 2^-k, and density near 1 (Naeem et al. 2020)."""
        scores = neighbourhood_scores(*rng.normal(size=(2, 2000, 8)))
        assert scores.coverage == pytest.approx(1 - 0.5**5, abs=0.02)
        assert scores.density == pytest.approx(1, abs=0.05)
        assert min(scores.precision, scores.recall) > 0.85

    def test_a_dropped_mode_costs_recall_and_coverage_only(self, rng):
        cluster, other, generated = 0.1 * rng.normal(size=(3, 300, 4))
        scores = neighbourhood_scores(np.concatenate([cluster, other + 100]), generated)
        assert scores.precision > 0.95
        assert 0.45 < scores.recall <= 0.5
        assert 0.45 < scores.coverage <= 0.5

    def test_an_invented_mode_costs_precision_and_density_only(self, rng):
        cluster, other, real = 0.1 * rng.normal(size=(3, 300, 4))
        scores = neighbourhood_scores(real, np.concatenate([cluster, other + 100]))
        assert 0.45 < scores.precision <= 0.5
        assert 0.45 < scores.density < 0.55
        assert scores.recall > 0.95
        assert scores.coverage > 0.9

    def test_far_sets_have_nothing_in_common(self, rng):
        one, other = rng.normal(size=(2, 50, 3))
        assert set(vars(neighbourhood_scores(one, other + 100)).values()) == {0.0}

    def test_neither_order_nor_turning_nor_place_nor_scale_matters(self, rng):
        real, generated = correlated(rng, 120, 6), correlated(rng, 80, 6)
        expected = vars(neighbourhood_scores(real, generated, k=3))
        turn, place = rotation(rng, 6), 1e7 * rng.normal(size=6)
        shuffled = rng.permutation(real), rng.permutation(generated)
        for one, other in (
            shuffled,
            (real @ turn, generated @ turn),
            (real + place, generated + place),
            (1000 * real, 1000 * generated),
        ):
            assert_scores(neighbourhood_scores(one, other, k=3), expected)

    def test_k_is_at_least_1(self, rng):
        with pytest.raises(ConfigError, match="k is 0; it must be at least 1"):
            neighbourhood_scores(*rng.normal(size=(2, 9, 2)), k=0)

    def test_more_points_than_k_are_needed(self, rng):
        points = rng.normal(size=(6, 2))
        neighbourhood_scores(points, points, k=5)
        with pytest.raises(DataError, match="generated has 5 points; at least 6 are needed"):
            neighbourhood_scores(points, points[:5], k=5)


class TestNearest:
    @pytest.mark.parametrize("kind", [np.float32, np.float64])
    def test_copied_images_are_at_no_distance(self, rng, kind):
        train = rng.random((300, 49)).astype(kind)
        copied = rng.permutation(300)[:40]
        found = nearest_distances(train[copied], train)
        assert found.distances.tolist() == [0] * 40
        np.testing.assert_array_equal(found.indices, copied)

    def test_agrees_with_all_distances(self, rng):
        queries, references = rng.normal(size=(30, 4)), rng.normal(size=(50, 4))
        distances, indices = nearest_distances(queries, references)
        everyone = np.linalg.norm(queries[:, np.newaxis] - references, axis=-1)
        np.testing.assert_allclose(distances, everyone.min(axis=1))
        np.testing.assert_array_equal(indices, everyone.argmin(axis=1))

    def test_one_of_each_is_enough(self):
        found = nearest_distances(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]]))
        assert (found.distances.tolist(), found.indices.tolist()) == ([5.0], [0])


@pytest.mark.parametrize("metric", METRICS)
def test_single_precision_is_computed_in_double(rng, metric):
    one, other = (3 + rng.normal(size=(2, 400, 8))).astype(np.float32)
    expected = metric(one.astype(np.float64), other.astype(np.float64))
    assert metric(one, other) == expected


@pytest.mark.parametrize("metric", METRICS)
def test_what_is_passed_in_stays_as_it_is(rng, metric):
    one, other = rng.normal(size=(2, 20, 3))
    before = one.copy(), other.copy()
    metric(one, other)
    np.testing.assert_array_equal((one, other), before)


@pytest.mark.parametrize("metric", [*METRICS, nearest_distances])
def test_sets_that_cannot_be_compared_are_refused(rng, metric):
    points = rng.normal(size=(20, 3))
    with pytest.raises(DataError, match=r"^\w+ has 3 and \w+ has 2 features; they must have"):
        metric(points, points[:, :2])
    with pytest.raises(DataError, match=r"is \[20\]; it must be \[points, features\]"):
        metric(points, points[:, 0])
    with pytest.raises(DataError, match=r"has 0 points; at least \d are needed"):
        metric(points[:0], points)
    for value in (math.nan, math.inf):
        bad = points.copy()
        bad[7, 1] = value
        with pytest.raises(DataError, match="row 7 is not finite"):
            metric(points, bad)


@pytest.mark.parametrize("metric", [frechet_distance, kernel_distance])
def test_one_point_has_no_spread(rng, metric):
    points = rng.normal(size=(2, 3))
    metric(points, points)
    with pytest.raises(DataError, match="other has 1 points; at least 2 are needed"):
        metric(points, points[:1])


PROBABILITIES = np.array(
    [
        [0.95, 0.05, 0.00, 0.00],
        [0.80, 0.20, 0.00, 0.00],
        [0.92, 0.08, 0.00, 0.00],
        [0.03, 0.97, 0.00, 0.00],
        [0.02, 0.00, 0.98, 0.00],
        [0.00, 0.00, 0.10, 0.90],
    ]
)
LABELS = np.array([0, 0, 1, 1, 2, 2])


class TestClassScores:
    def test_by_hand(self):
        """Rows 2 and 5 are wrong; row 1 is right without confidence; class 3 has no examples."""
        scores = class_scores(PROBABILITIES, LABELS, 4)
        assert scores.accuracy == pytest.approx(4 / 6)
        assert scores.confident == pytest.approx(3 / 6)
        assert scores.per_class[:3] == (1.0, 0.5, 0.5)
        assert math.isnan(scores.per_class[3])
        assert scores.worst == (1, 0.5)

    def test_a_rare_class_counts_as_much_as_any(self):
        scores = class_scores(PROBABILITIES[:3], LABELS[:3], 4)
        assert scores.accuracy == 1 / 2
        assert scores.confident == 1 / 4

    def test_a_probability_of_exactly_nine_tenths_is_not_confident(self):
        assert class_scores(np.array([[0.9, 0.1]]), np.array([0]), 2).confident == 0

    def test_classes_without_examples_are_no_worst(self):
        scores = class_scores(PROBABILITIES[4:5], LABELS[4:5], 4)
        assert scores.worst == (2, 1.0)
        assert [math.isnan(share) for share in scores.per_class] == [True, True, False, True]

    @pytest.mark.parametrize(
        ("probabilities", "labels", "message"),
        [
            (PROBABILITIES[:, :3], LABELS, r"\[6, 3\]; 6 labels of 4 classes need \[6, 4\]"),
            (PROBABILITIES[:5], LABELS, r"\[5, 4\]; 6 labels of 4 classes need \[6, 4\]"),
            (PROBABILITIES[:0], LABELS[:0], r"\[0, 4\]; 0 labels of 4 classes need \[n, 4\]"),
            (3 * PROBABILITIES - 0.5, LABELS, "at least 0 and sum to 1"),
            (PROBABILITIES / 2, LABELS, "at least 0 and sum to 1"),
            (np.full((6, 4), math.nan), LABELS, "at least 0 and sum to 1"),
            (PROBABILITIES, LABELS + 2, "labels go from 2 to 4; they must be 0 to 3"),
            (PROBABILITIES, LABELS - 1, "labels go from -1 to 1; they must be 0 to 3"),
        ],
    )
    def test_what_is_no_answer_is_refused(self, probabilities, labels, message):
        with pytest.raises(DataError, match=message):
            class_scores(probabilities, labels, 4)


def test_scikit_learn_waits_until_it_is_needed():
    code = "import sys, loopax.measures.fidelity; print('sklearn' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
