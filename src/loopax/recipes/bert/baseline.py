"""What a simple classifier makes of the same texts: whether a pretrained model was worth it."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from loopax.data import Texts
from loopax.deadline import check_time

BASELINE = "TF-IDF with logistic regression"
KINDS = ((1, 1000.0), (1, 100.0), (1, 10.0), (2, 100.0))
"""Words that a term has at most, and how little the weights of terms are held back. The one that
is best on the validation texts is taken, of equals the first."""
TERMS_LIMIT = 200_000


class Baseline(NamedTuple):
    """A fitted classifier of bags of words."""

    vectorizer: Any
    classifier: Any
    classes: int

    def probabilities(self, rows: Sequence[tuple[str, ...]]) -> Float[np.ndarray, "rows classes"]:
        """How likely each row is of each class; 0 for one that was not trained on."""
        found = self.classifier.predict_proba(self.vectorizer.transform(_joined(rows)))
        probabilities = np.zeros((len(rows), self.classes))
        probabilities[:, self.classifier.classes_] = found
        return probabilities


def fit_baseline(train: Texts, validation: Texts) -> Baseline | None:
    """TF-IDF of words, or also of pairs of them, and a logistic regression on it.

    None where there is nothing to count: texts without words, or of a single class.
    """
    if len(np.unique(train.labels)) < 2:
        return None
    fitted = []
    for words, strength in KINDS:
        check_time()
        try:
            fitted.append(_fitted(train, words, strength))
        except ValueError:  # as the vectoriser says that there are no words
            return None
    return max(fitted, key=lambda each: _right(each, validation))


def _fitted(train: Texts, words: int, strength: float) -> Baseline:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    texts = _joined(train.rows)
    kind = {"analyzer": "word", "ngram_range": (1, words)}
    if _has_no_spaces(texts):
        kind = {"analyzer": "char", "ngram_range": (1, 1 + words)}
    vectorizer = TfidfVectorizer(sublinear_tf=True, max_features=TERMS_LIMIT, **kind)
    terms = vectorizer.fit_transform(texts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier = LogisticRegression(C=strength, max_iter=300).fit(terms, train.labels)
    return Baseline(vectorizer, classifier, len(train.class_names))


def _has_no_spaces(texts: Sequence[str]) -> bool:
    """Whether most letters are of scripts such as Chinese, which set no words apart."""
    wide = [unicodedata.east_asian_width(each) == "W" for text in texts for each in text[:200]]
    return 2 * sum(wide) > len(wide)


def _right(baseline: Baseline, texts: Texts) -> int:
    return int((baseline.probabilities(texts.rows).argmax(-1) == texts.labels).sum())


def _joined(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Texts as they are; of pairs both, the words of the second marked as such."""
    return [
        row[0] if len(row) == 1 else f"{row[0]} {' '.join(f'second_{w}' for w in row[1].split())}"
        for row in rows
    ]
