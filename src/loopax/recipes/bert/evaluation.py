"""What a text classifier is worth on texts it has not seen, beside what guessing is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

import loopax
from loopax import measures
from loopax.data import Texts
from loopax.errors import DataError, LoopaxError
from loopax.recipes.bert.baseline import BASELINE, fit_baseline
from loopax.recipes.bert.texts import Parts, texts_of
from loopax.recipes.bert.trained import TrainedClassifier
from loopax.report import Table

Results = dict[str, Any]
Probabilities = Float[np.ndarray, "texts classes"]

NOUN = "texts"
MISTAKES = 10
EXCERPT = 200
"""Characters of a text that is quoted."""


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
    probabilities = trained.probabilities(labelled.rows)
    simple = _simple(parts, labelled) if baseline and parts is not None else {}
    return {
        "step": trained.step,
        "data": texts.name,
        "class_names": list(trained.class_names),
        **measures.scores(probabilities, labelled.labels),
        **simple,
        "floor": measures.guessing(labelled.labels, trained.class_names),
        "mistakes": mistakes(probabilities, labelled),
    }


def _simple(parts: Parts, texts: Texts) -> Results:
    """What the baseline scores on these texts; nothing where none can be fitted."""
    baseline = fit_baseline(parts.train, parts.validation)
    if baseline is None:
        return {}
    probabilities = baseline.probabilities(texts.rows)
    return {"baseline": measures.scores_of_baseline(BASELINE, probabilities, texts.labels)}


def mistakes(probabilities: Probabilities, texts: Texts) -> list[Results]:
    """The texts that a wrong class was most probable for, most probable first."""
    predicted, confidence = probabilities.argmax(-1), probabilities.max(-1)
    chosen = measures.surest_mistakes(probabilities, texts.labels, MISTAKES)
    return [
        {
            "text": _excerpt(texts.rows[index]),
            "class": texts.class_names[texts.labels[index]],
            "predicted": texts.class_names[predicted[index]],
            "probability": float(confidence[index]),
        }
        for index in chosen.tolist()
    ]


def tables(results: Mapping[str, Any]) -> list[Table]:
    """The results for people."""
    return measures.tables(results, NOUN)


def _excerpt(row: Sequence[str]) -> str:
    """A text, or two with a stroke between them, in one line that is not too long."""
    text = " | ".join(" ".join(each.split()) for each in row)
    return text if len(text) <= EXCERPT else f"{text[: EXCERPT - 1]}…"
