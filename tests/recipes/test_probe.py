"""A linear probe is the logistic regression that it is called."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from loopax.recipes.bert.probe import DECAY, fit_probe

RNG = np.random.default_rng(0)
LABELS = np.repeat([0, 1, 2], [120, 60, 20])
FEATURES = (RNG.normal(size=(200, 8)) + 1.5 * np.eye(3, 8)[LABELS]).astype(np.float32)
FEATURES = FEATURES * np.geomspace(0.01, 100, 8, dtype=np.float32) + 5
EQUAL = np.ones(3, np.float32)


@pytest.mark.parametrize("weights", [EQUAL, 200 / (3 * np.bincount(LABELS))])
def test_it_agrees_with_scikit_learn_whatever_the_features_are_scaled_by(weights):
    head = fit_probe(FEATURES, LABELS, weights.astype(np.float32))
    scaled = (FEATURES - FEATURES.mean(0)) / FEATURES.std(0)
    theirs = LogisticRegression(C=1 / (DECAY * len(LABELS)), tol=1e-8, max_iter=1000)
    theirs.fit(scaled, LABELS, sample_weight=weights[LABELS])
    logits = FEATURES @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(probabilities, theirs.predict_proba(scaled), atol=2e-3)


def test_a_class_without_texts_and_a_feature_that_never_changes_do_no_harm():
    features = np.concatenate([FEATURES, np.full((200, 1), 3, np.float32)], axis=1)
    head = fit_probe(features, LABELS, np.ones(4, np.float32))
    assert all(np.isfinite(array).all() for array in head.values())
    predicted = (features @ np.asarray(head["kernel"]) + np.asarray(head["bias"])).argmax(-1)
    assert (predicted == LABELS).mean() > 0.7
    assert not (predicted == 3).any()
