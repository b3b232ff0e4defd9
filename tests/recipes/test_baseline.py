"""What simple models make of the same data: the bag of words learns what words tell."""

import numpy as np

from loopax.data import Texts
from loopax.recipes.bert.baseline import fit_baseline


def texts_of(rows, labels, names=("no", "yes", "never")):
    return Texts([tuple(row) for row in rows], np.array(labels, np.int32), names)


def right(train, test):
    baseline = fit_baseline(train, test)
    return float((baseline.probabilities(test.rows).argmax(-1) == test.labels).mean())


def test_a_word_that_decides_is_learned_and_a_class_never_met_is_impossible():
    rows = [(f"some {('dull', 'great')[index % 2]} film {index}",) for index in range(60)]
    train, test = texts_of(rows, np.arange(60) % 2), texts_of(rows[:20], np.arange(20) % 2)
    assert right(train, test) == 1.0
    probabilities = fit_baseline(train, test).probabilities(test.rows)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (probabilities[:, 2] == 0).all()


def test_which_text_of_a_pair_a_word_is_in_is_learned():
    rows = [("sun", "rain"), ("rain", "sun")] * 20
    train = texts_of(rows, [0, 1] * 20)
    assert right(train, train) == 1.0


def test_languages_without_spaces_have_terms_too():
    rows = [(f"这部电影{('很好', '很差')[index % 2]}我看了" * 3,) for index in range(40)]
    train = texts_of(rows, np.arange(40) % 2)
    assert right(train, train) == 1.0


def test_where_nothing_can_be_counted_there_is_none():
    assert fit_baseline(texts_of([("?",), ("!",)], [0, 1]), texts_of([], [])) is None
    assert fit_baseline(texts_of([("one",), ("two",)], [1, 1]), texts_of([], [])) is None
