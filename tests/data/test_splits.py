from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopax.data import Dataset, Splits, Texts, mnist, split_texts
from loopax.data.splits import hold_out
from loopax.errors import ConfigError


def part(labels, names=(), name="d train", shape=(8, 6, 1), **options):
    labels = np.array(labels, np.int32)
    images = np.arange(len(labels) * np.prod(shape)) % 251
    columns = {"image": images.reshape(-1, *shape).astype(np.uint8), "label": labels}
    return Dataset(columns, name, tuple(names), **options)


def splits(labels, names=(), **options):
    return Splits(part(labels, names, **options), None, part([0, 0], names, **options))


def stratified_split(dataset, fraction):
    train, test = hold_out(dataset, fraction, "test")
    return Splits(train, None, test)


def test_mnist_is_described():
    assert mnist().description == (
        "MNIST (bundled): 60,000 to train on, 10,000 to test on (given), 28 x 28 grey, "
        "10 classes (0 to 9), 5,421 to 6,742 images each"
    )


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (
            splits([0, 1, 1, 2], ["cat", "dog", "owl"], source="NPZ", held_out=0.1),
            "d (NPZ): 4 to train on, 2 to test on (1 in 3 held out), 8 x 6 grey, "
            "3 classes (cat, dog, owl), 1 to 2 images each",
        ),
        (
            splits([0, 0, 1, 1], ["cat", "dog"], shape=(8, 6, 3), held_out=0.3),
            "d: 4 to train on, 2 to test on (1 in 3 held out), 8 x 6 colour, "
            "2 classes (cat, dog), 2 images each",
        ),
        (
            splits([0] * 1200, ["d"]),
            "d: 1,200 to train on, 2 to test on (given), 8 x 6 grey, 1 class (d)",
        ),
        (
            splits([0, -1, -1], list("abcdefgh")),
            "d: 3 to train on, 2 to test on (given), 8 x 6 grey, 8 classes (a, b, ..., h), "
            "0 to 1 images each, 2 without a label",
        ),
        (
            Splits(part([0], ["a"], name="two\nlines train"), None, part([-1], ["a"])),
            "'two\\nlines': 1 to train on, 1 to test on (given), 8 x 6 grey, 1 class (a), "
            "1 without a label",
        ),
        (
            Splits(part([0], ["x" * 99]), None, part([0])),
            f"d: 1 to train on, 1 to test on (given), 8 x 6 grey, 1 class ({'x' * 37}...)",
        ),
        (
            Splits(*[Dataset({"tokens": np.zeros((5, 3), np.int32)}, "reviews")] * 3),
            "reviews: 5 to train on, 5 to choose by (given), 5 to test on (given)",
        ),
        (
            Splits(part([0] * 9), None, part([0] * 2, name="d val")),
            "d: 9 to train on, 2 to test on (given as val), 8 x 6 grey",
        ),
        (
            Splits(part([0] * 20), None, part([0] * 5)).with_validation(0.25),
            "d: 15 to train on, 5 to choose by (1 in 4 of the training data held out), "
            "5 to test on (given), 8 x 6 grey",
        ),
    ],
)
def test_data_are_described_in_one_line(made, expected):
    assert made.description == expected


def rows(labels):
    labels = np.array(labels, np.int32)
    return Dataset({"label": labels, "row": np.arange(len(labels))}, "d train")


def test_a_validation_part_is_held_out_of_the_training_part_alone():
    given = Splits(rows([0] * 40 + [1] * 20 + [2, 2, 3, -1, -1]), None, rows([0, 1, 2]))
    held = given.with_validation(0.1)
    found = held.validation.columns
    assert np.bincount(found["label"] + 1).tolist() == [1, 4, 2, 1]
    assert found["row"].tolist() == [6, 12, 28, 34, 46, 52, 61, 64]
    together = [*held.train.columns["row"], *found["row"]]
    assert sorted(together) == list(range(65))
    assert held.test is given.test
    assert held.validation.name == "d validation"
    assert given.with_validation(0.1).train.fingerprint == held.train.fingerprint


def test_a_validation_part_that_is_given_stays_as_it_is():
    given = Splits(rows([0] * 40), rows([0, 1]), rows([0]))
    assert given.with_validation(0.5) is given


@pytest.mark.parametrize("column", [{"x": np.zeros((20, 3))}, {"label": np.linspace(0, 1, 20)}])
def test_examples_without_classes_are_held_out_evenly(column):
    held = Splits(Dataset(column), None, Dataset(column)).with_validation(0.2)
    assert [len(part) for part in held] == [16, 4, 20]


def test_what_cannot_be_held_out_is_said(refuses):
    given = Splits(rows([0, 1, 2]), None, rows([0]))
    with refuses("d train", "1 example of each class"):
        given.with_validation(0.5)
    for fraction in (0, 1, -0.1, float("nan")):
        with refuses(f"fraction is {fraction}", "between 0 and 1", error=ConfigError):
            given.with_validation(fraction)


def test_two_names_for_three_parts_are_refused():
    with pytest.raises(ValueError, match="unpack"):
        _train, _test = Splits(rows([0]), None, rows([0]))


# Of images


def labels_dataset(labels):
    return Dataset({"label": np.array(labels, np.int32), "row": np.arange(len(labels))}, name="d")


@settings(deadline=None, max_examples=32)
@given(st.lists(st.integers(-1, 3), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_a_split_is_exact_and_in_proportion(labels, fraction):
    counts = np.bincount(np.array(labels) + 1)
    wanted = np.maximum((counts * fraction + 0.5).astype(int), 1)
    expected = np.maximum(np.minimum(wanted, counts - 1), 0)
    if not expected.any():
        return
    splits = stratified_split(labels_dataset(labels), fraction)
    train, test = (each.columns["row"] for each in splits.parts.values())
    assert sorted([*train, *test]) == list(range(len(labels)))
    assert train.tolist() == sorted(train)
    assert test.tolist() == sorted(test)
    found = np.bincount(splits.test.columns["label"] + 1, minlength=len(counts))
    assert found.tolist() == expected.tolist()
    assert set(splits.train.columns["label"]) == set(labels)


def test_a_split_is_spread_over_the_stored_order():
    test = stratified_split(labels_dataset([0] * 100), 0.1).test
    rows = test.columns["row"]
    assert (rows // 10).tolist() == list(range(10))
    # Nor always the same of ten things that come again and again.
    assert len({*(rows % 10)}) > 5


def test_a_split_is_made_without_chance():
    np.random.seed(0)
    one = stratified_split(labels_dataset([0, 1, 1] * 9), 0.3)
    np.random.seed(1)
    two = stratified_split(labels_dataset([0, 1, 1] * 9), 0.3)
    assert [each.fingerprint for each in one.parts.values()] == [
        each.fingerprint for each in two.parts.values()
    ]


def test_classes_of_one_cannot_be_split(refuses):
    with refuses("d:", "1 example of each class"):
        stratified_split(labels_dataset([0, 1, 2]), 0.9)


# Of texts

labelled = st.lists(st.integers(0, 3), min_size=2, max_size=60)


def made(labels, rows=None, groups=None):
    labels = np.asarray(labels, np.int32)
    rows = rows or [(f"text {index}",) for index in range(len(labels))]
    names = tuple(map(str, range(labels.max() + 1)))
    return Texts(rows, labels, names, groups=groups)


@settings(deadline=None, max_examples=32)
@given(labelled, st.floats(0.05, 0.95), st.integers(0, 5))
def test_single_rows_are_split_exactly_by_class(labels, fraction, seed):
    texts = made(labels)
    if max(Counter(labels).values()) < 2:
        return
    first, second = split_texts(texts, fraction, seed)
    assert sorted(first.rows + second.rows) == sorted(texts.rows)
    for label, n in Counter(labels).items():
        found = int((second.labels == label).sum())
        assert found == (min(max(1, round(fraction * n)), n - 1) if n > 1 else 0)
    position = texts.rows.index
    assert first.rows == sorted(first.rows, key=position)
    assert second.rows == sorted(second.rows, key=position)
    for part in (first, second):
        assert all(
            texts.labels[position(row)] == label
            for row, label in zip(part.rows, part.labels, strict=True)
        )


@settings(deadline=None, max_examples=32)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 8), st.integers(0, 30)), min_size=2, max_size=60
    ),
    st.floats(0.05, 0.95),
    st.integers(0, 5),
)
def test_groups_and_duplicates_are_on_one_side(outcome, rows, fraction, seed):
    texts = made(
        [label for label, _, _ in rows],
        [(f"text {words}",) for *_, words in rows],
        tuple(f"group {group}" if group else "" for _, group, _ in rows),
    )
    parts = outcome(lambda texts: split_texts(texts, fraction, seed), texts)
    if isinstance(parts, str):
        assert "cannot be split" in parts
        return
    first, second = parts
    assert len(first) + len(second) == len(rows)
    assert not set(first.rows) & set(second.rows)
    assert not (set(first.groups) & set(second.groups)) - {""}
    assert set(second.labels) <= set(first.labels)


def test_groups_are_split_nearly_by_class():
    rng = np.random.default_rng(0)
    groups = tuple(f"film {film}" for film in rng.integers(0, 300, 5000))
    labels = (rng.random(5000) < 0.3).astype(np.int32)
    _, second = split_texts(made(labels, groups=groups), 0.2, 0)
    for label in (0, 1):
        share = (second.labels == label).sum() / (labels == label).sum()
        assert abs(share - 0.2) < 0.01


def test_a_class_of_few_large_groups_is_still_in_both():
    labels = [0] * 80 + [1] * 20
    groups = ("",) * 80 + ("a",) * 10 + ("b",) * 10
    for seed in range(5):
        first, second = split_texts(made(labels, groups=groups), 0.1, seed)
        assert (first.labels == 1).sum() == (second.labels == 1).sum() == 10
        assert 7 <= (second.labels == 0).sum() <= 9


def test_what_a_model_does_not_tell_apart_stays_together():
    words = [(f"Some text number {index}",) for index in range(60)]
    twins = [(row[0].upper(),) for row in words] + [(f"  {row[0]} ",) for row in words]
    texts = made([0, 1] * 90, [*words, *twins])
    first, second = split_texts(texts, 0.3, 0)
    assert not {r[0].strip().lower() for r in first.rows} & {
        r[0].strip().lower() for r in second.rows
    }
    assert 40 < len(second) < 70
    tokens = [index % 10 for index in range(180)]
    first, second = split_texts(texts, 0.3, 0, contents=tokens)
    place = {row: index for index, row in enumerate(texts.rows)}
    assert not {place[r] % 10 for r in first.rows} & {place[r] % 10 for r in second.rows}


def test_the_split_is_a_function_of_content_and_seed():
    texts = made(np.arange(100) % 2)
    shuffled = texts.subset(np.random.default_rng(0).permutation(100))
    _, second = split_texts(texts, 0.3, 7)
    assert {*split_texts(shuffled, 0.3, 7)[1].rows} == {*second.rows}
    assert {*split_texts(texts, 0.3, 8)[1].rows} != {*second.rows}


def test_what_cannot_be_split_is_said(refuses):
    with refuses("cannot be split", "test on"):
        split_texts(made([0, 0], [("same",), ("same",)]), 0.5, 0)
    with refuses("fraction is 1.0", "between 0 and 1", error=ConfigError):
        split_texts(made([0, 0]), 1.0, 0)
