"""A classifier is measured by known answers, and told of in tables, pictures and one page."""

import base64
import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.test_report import page_of

from loopax import measures
from loopax.data import Texts
from loopax.errors import DataError
from loopax.recipes.bert import (
    FineTuneConfig,
    evaluate,
    read_pretrained,
    report,
    tables,
)
from loopax.run.directory import RunDir

TINY = Path(__file__).parents[1] / "fixtures" / "tiny-bert"
NAMES = ("bad", "fair", "good")
LABELS = [0, 0, 0, 1, 1, 2]
PREDICTED = [0, 0, 1, 1, 2, 2]


def texts_of(labels, names=NAMES, rows=None):
    rows = rows or [(f"text {index}",) for index in range(len(labels))]
    return Texts(rows, np.array(labels, np.int32), tuple(names), name="some.csv")


def sure(predicted, classes=3, probability=0.8):
    """Probabilities of which each is `probability` for one class, the same for the others."""
    rest = (1 - probability) / (classes - 1)
    return np.where(np.eye(classes, dtype=bool)[list(predicted)], probability, rest)


def classifier(probabilities, names=NAMES, **more):
    """What `evaluate` needs of a classifier that answers with these."""
    probabilities = np.asarray(probabilities, np.float32)
    return SimpleNamespace(
        class_names=tuple(names),
        step=7,
        probabilities=lambda rows: probabilities[: len(rows)],
        **more,
    )


def measured(labels, probabilities, names=NAMES, rows=None):
    trained = classifier(probabilities, names)
    results = evaluate(trained, texts=texts_of(labels, names, rows), baseline=False)
    assert results == json.loads(json.dumps(results, allow_nan=False))
    return results


def test_texts_without_a_label_are_left_out_and_told_of():
    said = []
    given = texts_of([0, -1, 2])
    asked = []

    def answer(rows):
        asked.extend(rows)
        return sure([0, 2])

    trained = SimpleNamespace(class_names=NAMES, step=1, probabilities=answer)
    results = evaluate(trained, texts=given, baseline=False, say=said.append)
    assert said == ["some.csv: 1 of 3 texts have no label and are left out"]
    assert asked == [("text 0",), ("text 2",)]
    assert (results["examples"], results["accuracy"]) == (2, 1.0)
    with pytest.raises(DataError, match=r"some\.csv: no text has a label"):
        evaluate(trained, texts=texts_of([-1, -1]), baseline=False)


def test_texts_of_other_classes_are_refused():
    with pytest.raises(
        DataError, match=r"some\.csv: its classes are bad, good; this run knows bad"
    ):
        evaluate(
            classifier(sure(PREDICTED)), texts=texts_of([0, 1], ("bad", "good")), baseline=False
        )


def test_without_texts_those_that_the_run_kept_aside_are_taken(tmp_path):
    lines = [f"some words number {index},{'ab'[index % 2]}" for index in range(100)]
    (tmp_path / "d.csv").write_text("\n".join(["text,label", *lines]))
    config = FineTuneConfig(data=str(tmp_path / "d.csv"), batch_size=4, test_fraction=0.2)
    trained = classifier(
        sure([0] * 20, 2),
        ("a", "b"),
        config=config,
        tokenizer=read_pretrained(TINY).tokenizer,
        longest=config.max_length,
        dir=RunDir(tmp_path / "run"),
    )
    results = evaluate(trained)
    assert results["examples"] == 20
    assert [each["support"] for each in results["per_class"]] == [10, 10]
    assert results["baseline"]["accuracy"] == 0.5, "every word is in both classes"
    assert "not worth" in measures.verdict(results, "texts")
    assert "guessing" in tables(results)[0].columns


def test_the_surest_mistakes_come_first_and_are_cut():
    rows = [("fine",), ("x\n y" * 100,), ("one", "two"), ("unsure",)]
    probabilities = [[0.9, 0.1], [0.8, 0.2], [0.95, 0.05], [0.55, 0.45]]
    found = measured([0, 1, 1, 1], probabilities, ("no", "yes"), rows)["mistakes"]
    assert [each["text"][:4] for each in found] == ["one ", "x yx", "unsu"]
    assert found[0] == {
        "index": 2,
        "text": "one | two",
        "class": "yes",
        "predicted": "no",
        "probability": pytest.approx(0.95),
    }
    assert len(found[1]["text"]) == 200
    many = measured([0] * 50, sure([1] * 50), NAMES)["mistakes"]
    assert len(many) == 10


@pytest.fixture
def trained(tmp_path):
    run = RunDir.create(tmp_path / "run")
    config = FineTuneConfig(data="reviews.csv", batch_size=16)
    run.claim({"recipe": "bert", **asdict(config)})
    run.note_start(0, print, data={"data": "f00d" * 16})
    rows = [
        {"step": step, "source": source, "loss": 1 / step, "accuracy": 1 - 1 / step}
        for step in (1, 2)
        for source in ("train", "validation")
    ]
    run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return classifier(sure(PREDICTED), config=config, dir=run)


def test_the_report_holds_every_figure_picture_and_mistake(trained):
    hostile = [("<script>alert(1)</script>",), *[("text",)] * 5]
    results = measured([2, *LABELS[1:]], sure(PREDICTED), NAMES, hostile)
    page = page_of(report.write(trained, results))
    assert not page.attributes("script")
    values = page.texts("dd")
    assert dict(
        zip(page.texts("dt"), zip(values[::2], values[1::2], strict=True), strict=True)
    ) == {
        "accuracy": ("50.0%", "guessing: 33.3%"),
        "macro-F1, from 0 to 1": (f"{results['macro_f1']:.3f}", "guessing: 0.167"),
        "negative log-likelihood": (f"{results['nll_nats']:.3f} nats", "guessing: 1.099 nats"),
        "calibration error": ("30.0%", "of 6 texts"),
    }
    embedded = {base64.b64decode(i["src"].partition(",")[2]) for i in page.attributes("img")}
    assert embedded == {path.read_bytes() for path in trained.dir.pictures.iterdir()}
    assert len(embedded) == 3
    rows = [row.split("\n") for row in page.texts("tr")]
    assert ["<script>alert(1)</script>", "good", "bad", "80.0%"] in rows
    assert ["batch_size", "16", "–"] in rows
    assert ["data, SHA-256", "f00d" * 16] in rows
    for table in tables(results)[:2]:
        for row in table.rows:
            assert [cell for cell in row if cell] in [[c for c in each if c] for each in rows]


def test_a_report_of_a_classifier_without_mistakes_has_no_section_for_them(trained):
    page = page_of(report.write(trained, measured(LABELS, sure(LABELS))))
    assert "Mistakes" not in page.texts("h2")
