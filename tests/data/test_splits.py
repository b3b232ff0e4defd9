import numpy as np
import pytest

from loopax.data import Dataset, Splits, mnist
from loopax.errors import ConfigError


def part(labels, names=(), name="d train", shape=(8, 6, 1), **options):
    labels = np.array(labels, np.int32)
    images = np.arange(len(labels) * np.prod(shape)) % 251
    columns = {"image": images.reshape(-1, *shape).astype(np.uint8), "label": labels}
    return Dataset(columns, name, tuple(names), **options)


def splits(labels, names=(), **options):
    return Splits(part(labels, names, **options), None, part([0, 0], names, **options))


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
