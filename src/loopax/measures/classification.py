"""How good a classifier is, by the true classes of examples that it was not trained on.

Everything is plain values for JSON: `tables` and the pictures show them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Float, Int

Results = dict[str, Any]
Probabilities = Float[np.ndarray, "examples classes"]
Labels = Int[np.ndarray, " examples"]

BINS = 15
"""Of confidence, as in the experiments of Guo et al. (2017)."""


def scores(probabilities: Probabilities, labels: Labels) -> Results:
    """How good probabilities are: accuracy, macro-F1, likelihood, by class, and calibration.

    A class that neither occurs nor is predicted has no F1 (None) and no part in the macro-F1.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    probabilities = probabilities.astype(np.float64)
    classes = np.arange(probabilities.shape[1])
    predicted = probabilities.argmax(-1)
    right = int((predicted == labels).sum())
    per_class = precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=np.nan
    )
    of_truth = np.take_along_axis(probabilities, labels[:, None].astype(np.intp), axis=1)
    return {
        "examples": len(labels),
        "accuracy": right / len(labels),
        "accuracy_interval": list(wilson_interval(right, len(labels))),
        "macro_f1": float(np.nanmean(per_class[2])),
        # What float32 rounds to zero is not impossible; JSON knows no infinity either.
        "nll_nats": float(-np.log(of_truth.clip(min=np.finfo(np.float32).tiny)).mean()),
        "per_class": [
            {
                "precision": _known(precision),
                "recall": _known(recall),
                "f1": _known(f1),
                "support": int(support),
            }
            for precision, recall, f1, support in zip(*per_class, strict=True)
        ],
        "confusion": confusion_matrix(labels, predicted, labels=classes).tolist(),
        "calibration": calibration(probabilities, labels),
    }


def beside_others(
    probabilities: Probabilities,
    labels: Labels,
    class_names: Sequence[str],
    baseline: tuple[str, Probabilities] | None,
) -> Results:
    """The scores of a classifier, beside those of guessing and of a simple one.

    Args:
        probabilities: of the classifier.
        labels: the true classes.
        class_names: by which they are told.
        baseline: what the simple one is called, and its probabilities.
    """
    found = {
        "class_names": list(class_names),
        **scores(probabilities, labels),
        "floor": guessing(labels, class_names),
    }
    if baseline is not None:
        name, answers = baseline
        theirs = scores(answers, labels)
        overall = ("accuracy", "accuracy_interval", "macro_f1", "nll_nats")
        found["baseline"] = {each: theirs[each] for each in overall} | {"name": name}
    return found


def guessing(labels: Labels, class_names: Sequence[str]) -> Results:
    """What the best constant answers score on these labels.

    They are always the most frequent class for accuracy and macro-F1, and the frequencies of the
    classes for the likelihood.
    """
    from sklearn.metrics import f1_score

    frequencies = np.bincount(labels) / len(labels)
    most = int(frequencies.argmax())
    present = frequencies[frequencies > 0]
    constant = np.full_like(labels, most)
    return {
        "class": class_names[most],
        "accuracy": float(frequencies[most]),
        "macro_f1": float(f1_score(labels, constant, average="macro", zero_division=0)),
        "nll_nats": float(-(present * np.log(present)).sum()),
    }


def wilson_interval(right: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """The score interval of a proportion (Wilson, 1927), which also holds for few examples."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, extra = right / count, z * z / count
    middle = (share + extra / 2) / (1 + extra)
    reach = z * math.sqrt(share * (1 - share) / count + extra / (4 * count)) / (1 + extra)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def calibration(probabilities: Probabilities, labels: Labels) -> Results:
    """The expected calibration error (Guo et al., 2017), and its bins of confidence.

    It is the mean distance between how sure the most likely class is and how often it is right.
    Bins without examples are left out.
    """
    confidence = probabilities.max(-1)
    right = probabilities.argmax(-1) == labels
    places = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    bins = [
        {
            "from": place / BINS,
            "to": (place + 1) / BINS,
            "confidence": float(confidence[places == place].mean()),
            "accuracy": float(right[places == place].mean()),
            "count": int((places == place).sum()),
        }
        for place in np.unique(places).tolist()
    ]
    gaps = [each["count"] * abs(each["accuracy"] - each["confidence"]) for each in bins]
    return {"error": sum(gaps) / len(labels), "bins": bins}


def surest_mistakes(
    probabilities: Probabilities, labels: Labels, class_names: Sequence[str], count: int
) -> list[Results]:
    """At most `count` wrong answers, those with the highest probability first.

    Each has the place of its example, `index`, the true `class`, the `predicted` one and its
    `probability`.
    """
    predicted, confidence = probabilities.argmax(-1), probabilities.max(-1)
    wrong = np.flatnonzero(predicted != labels)
    return [
        {
            "index": index,
            "class": class_names[labels[index]],
            "predicted": class_names[predicted[index]],
            "probability": float(confidence[index]),
        }
        for index in wrong[np.argsort(-confidence[wrong], kind="stable")][:count].tolist()
    ]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
