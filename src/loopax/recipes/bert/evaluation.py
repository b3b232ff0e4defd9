"""What a text classifier is worth on texts it has not seen, beside what guessing is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import loopax
from loopax import measures
from loopax.data import Texts
from loopax.errors import DataError, LoopaxError
from loopax.recipes.bert.baseline import BASELINE, fit_baseline
from loopax.recipes.bert.texts import Parts, texts_of
from loopax.recipes.bert.trained import TrainedClassifier
from loopax.report import Table

Results = dict[str, Any]

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
            left out. Those without a label are left out.
        parts: the run's own data, read anew when left out.
        baseline: whether a simple classifier, fitted to the run's own texts, is measured too.
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
    labels, names = labelled.labels, trained.class_names
    probabilities, simple = trained.probabilities(labelled.rows), None
    if baseline and parts and (fitted := fit_baseline(parts.train, parts.validation)):
        simple = BASELINE, fitted.probabilities(labelled.rows)
    mistakes = measures.surest_mistakes(probabilities, labels, names, MISTAKES)
    return {
        "step": trained.step,
        "data": texts.name,
        **measures.beside_others(probabilities, labels, names, simple),
        "mistakes": [{**each, "text": _excerpt(labelled.rows[each["index"]])} for each in mistakes],
    }


def tables(results: Mapping[str, Any]) -> list[Table]:
    """The results for people."""
    return measures.tables(results, NOUN)


def _excerpt(row: Sequence[str]) -> str:
    """A text, or two with a stroke between them, in one line that is not too long."""
    text = " | ".join(" ".join(each.split()) for each in row)
    return text if len(text) <= EXCERPT else f"{text[: EXCERPT - 1]}…"
