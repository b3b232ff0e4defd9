"""What a text classifier is worth on texts it has not seen, beside what guessing is worth.

The floor is the best that can be said without reading a text: always the most frequent class for
accuracy and F1, the frequencies of the classes for the likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Float, Int

import loopax
from loopax import Rows
from loopax.data import Texts
from loopax.errors import DataError, LoopaxError
from loopax.recipes.bert.baseline import BASELINE, fit_baseline
from loopax.recipes.bert.problem import Parts, texts_of
from loopax.recipes.bert.trained import TrainedClassifier

Results = dict[str, Any]
Probabilities = Float[np.ndarray, "texts classes"]
Labels = Int[np.ndarray, " texts"]

BINS = 15
"""Of confidence, as in the experiments of Guo et al. (2017)."""
MISTAKES = 10
EXCERPT = 200
"""Characters of a text that is quoted."""
TABULATED = 6
"""Classes up to which the confusion matrix is legible as a table."""
CLASSES_LISTED = 100
CONFUSIONS_LISTED = 15


def evaluate(
    trained: TrainedClassifier,
    *,
    texts: Texts | None = None,
    parts: Parts | None = None,
    baseline: bool = True,
    say: Callable[[str], None] = print,
) -> Results:
    """Everything that `tables` shows, as plain values for JSON.

    Args:
        trained: what to measure.
        texts: to measure it on, with the run's own classes; the test texts of the run's data when
            left out. Those without a label are.
        parts: the run's own data, read anew when left out.
        baseline: whether a simple classifier is measured beside it, which takes the texts that the
            run was trained on.
        say: is told what is left out.

    Raises:
        DataError: no text has a label, or the classes are others than the run's.
        LoopaxError: the run's own data cannot be used.
    """
    if parts is None and (baseline or texts is None):
        try:
            parts = texts_of(trained.config, trained.tokenizer, trained.longest)
            loopax.recipe.check_data(trained.dir.path, trained.config, parts.fingerprint)
        except LoopaxError as error:
            if texts is None:
                raise
            say(f"no baseline, as it is fitted to the texts that were trained on: {error}")
    if texts is None:
        assert parts is not None, "or it was raised why not"
        texts = parts.test
    if texts.class_names != trained.class_names:
        raise DataError(
            f"{texts.name}: its classes are {', '.join(texts.class_names)}; this run knows "
            f"{', '.join(trained.class_names)}"
        )
    labelled = texts.subset(np.flatnonzero(texts.labels >= 0))
    if not len(labelled):
        raise DataError(f"{texts.name}: no text has a label; there is nothing to measure by")
    if left_out := len(texts) - len(labelled):
        say(f"{texts.name}: {left_out:,} of {len(texts):,} texts have no label and are left out")
    probabilities = trained.probabilities(labelled.rows).astype(np.float64)
    simple = _simple(parts, labelled) if baseline and parts is not None else {}
    return {
        "step": trained.step,
        "data": texts.name,
        "class_names": list(trained.class_names),
        **scores(probabilities, labelled.labels),
        **simple,
        "floor": floor(labelled.labels, trained.class_names),
        "mistakes": mistakes(probabilities, labelled),
    }


def _simple(parts: Parts, texts: Texts) -> Results:
    """What the baseline scores on these texts; nothing where none can be fitted."""
    baseline = fit_baseline(parts.train, parts.validation)
    if baseline is None:
        return {}
    found = scores(baseline.probabilities(texts.rows), texts.labels)
    kept = ("accuracy", "accuracy_interval", "macro_f1", "nll_nats")
    return {"baseline": {name: found[name] for name in kept} | {"name": BASELINE}}


def verdict(results: Mapping[str, Any]) -> str | None:
    """Whether the model was worth it, in a sentence; None where there is no baseline."""
    if not (simple := results.get("baseline")):
        return None
    ours, theirs = results["accuracy"], simple["accuracy"]
    figures = f"it is right on {ours:.1%} of these texts, {BASELINE} on {theirs:.1%}"
    if ours > theirs:
        return f"The model was worth its training: {figures}."
    return f"The model was not worth its training: {figures}, after seconds."


def scores(probabilities: Probabilities, labels: Labels) -> Results:
    """How good probabilities are, by the true classes.

    A class that neither occurs nor is predicted has no F1 (None) and no part in the macro-F1.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    classes = np.arange(probabilities.shape[1])
    predicted = probabilities.argmax(-1)
    right = int((predicted == labels).sum())
    per_class = precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=np.nan
    )
    of_truth = np.take_along_axis(probabilities, labels[:, None].astype(np.intp), axis=1)
    return {
        "texts": len(labels),
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


def floor(labels: Labels, class_names: Sequence[str]) -> Results:
    """What the best constant answers score on these labels, which is what guessing is worth."""
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
    """The score interval of a proportion (Wilson, 1927), which also holds for few texts, or all."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, extra = right / count, z * z / count
    middle = (share + extra / 2) / (1 + extra)
    reach = z * math.sqrt(share * (1 - share) / count + extra / (4 * count)) / (1 + extra)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def calibration(probabilities: Probabilities, labels: Labels) -> Results:
    """The expected calibration error (Guo et al., 2017), and its bins of confidence with texts.

    It is the mean distance between how sure the most likely class is and how often it is right.
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


def mistakes(probabilities: Probabilities, texts: Texts) -> list[Results]:
    """The texts that a wrong class was most probable for, most probable first."""
    predicted, confidence = probabilities.argmax(-1), probabilities.max(-1)
    wrong = np.flatnonzero(predicted != texts.labels)
    chosen = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
    return [
        {
            "text": _excerpt(texts.rows[index]),
            "class": texts.class_names[texts.labels[index]],
            "predicted": texts.class_names[predicted[index]],
            "probability": float(confidence[index]),
        }
        for index in chosen.tolist()
    ]


def tables(results: Mapping[str, Any]) -> list[Rows]:
    """The results for people."""
    return [_overall(results), _by_class(results), _confusion(results), _calibration(results)]


def _overall(results: Mapping[str, Any]) -> Rows:
    guess = results["floor"]
    low, high = results["accuracy_interval"]
    beside = [each for each in (results.get("baseline"), guess) if each]
    rows = [
        (
            "accuracy",
            f"{results['accuracy']:.2%}",
            f"{low:.2%} – {high:.2%}",
            *(f"{each['accuracy']:.2%}" for each in beside),
        ),
        (
            "macro-F1, from 0 to 1",
            f"{results['macro_f1']:.4f}",
            "",
            *(f"{each['macro_f1']:.4f}" for each in beside),
        ),
        (
            "negative log-likelihood, nats",
            f"{results['nll_nats']:.4f}",
            "",
            *(f"{each['nll_nats']:.4f}" for each in beside),
        ),
        (
            "expected calibration error",
            f"{results['calibration']['error']:.2%}",
            *("" for _ in beside),
            "",
        ),
    ]
    title = f"{results['texts']:,} texts of {results['data']}, step {results['step']:,}"
    if worth := verdict(results):
        title = f"{title}. {worth}"
    names = ["guessing"] if len(beside) == 1 else ["baseline: bag of words", "guessing"]
    return Rows(("", "classifier", "95 % interval", *names), rows, title)


def _by_class(results: Mapping[str, Any]) -> Rows:
    """Every class; of very many the worst."""
    named = list(zip(results["class_names"], results["per_class"], strict=True))
    limited = ""
    if len(named) > CLASSES_LISTED:
        occurring = [each for each in named if each[1]["f1"] is not None]
        named = sorted(occurring, key=lambda each: each[1]["f1"])[:CLASSES_LISTED]
        limited = f", the {len(named)} with the lowest F1 of {len(results['class_names']):,}"
    rows = [
        (
            name,
            *(_cell(of_class[figure]) for figure in ("precision", "recall", "f1")),
            f"{of_class['support']:,}",
        )
        for name, of_class in named
    ]
    heads = ("class", "precision", "recall", "F1", "texts")
    return Rows(heads, rows, f"By class, from 0 to 1{limited}")


def _confusion(results: Mapping[str, Any]) -> Rows:
    """The matrix of few classes; of many the confusions that are most frequent."""
    names, counts = results["class_names"], np.array(results["confusion"])
    if len(names) <= TABULATED:
        rows = [
            (name, *(f"{count:,}" for count in row))
            for name, row in zip(names, counts.tolist(), strict=True)
        ]
        return Rows(("class", *names), rows, "Texts of a class (row) taken for a class (column)")
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:CONFUSIONS_LISTED]
    found = [divmod(place, len(names)) for place in order.tolist()]
    rows = [
        (names[true], names[taken], f"{counts[true, taken]:,}")
        for true, taken in found
        if counts[true, taken]
    ]
    none = "" if rows else ": none"
    return Rows(("class", "taken for", "texts"), rows, f"The most frequent confusions{none}")


def _calibration(results: Mapping[str, Any]) -> Rows:
    rows = [
        (
            f"{each['from']:.0%} – {each['to']:.0%}",
            f"{each['confidence']:.1%}",
            f"{each['accuracy']:.1%}",
            f"{each['count']:,}",
        )
        for each in results["calibration"]["bins"]
    ]
    heads = ("probability", "on average", "is right", "texts")
    return Rows(heads, rows, "How often an answer is right, by its probability")


def _excerpt(row: Sequence[str]) -> str:
    """A text, or two with a stroke between them, in one line that is not too long."""
    text = " | ".join(" ".join(each.split()) for each in row)
    return text if len(text) <= EXCERPT else f"{text[: EXCERPT - 1]}…"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
