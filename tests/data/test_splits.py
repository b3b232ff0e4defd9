import numpy as np
import pytest

from loopax.data import Dataset, Splits, mnist


def part(labels, names=(), name="d train", shape=(8, 6, 1), **options):
    labels = np.array(labels, np.int32)
    columns = {"image": np.zeros((len(labels), *shape), np.uint8), "label": labels}
    return Dataset(columns, name, tuple(names), **options)


def splits(labels, names=(), **options):
    return Splits(part(labels, names, **options), part([0, 0], names, **options))


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
            "d (NPZ): 4 to train on, 2 to test on (1 in 10 held out), 8 x 6 grey, "
            "3 classes (cat, dog, owl), 1 to 2 images each",
        ),
        (
            splits([0, 0, 1, 1], ["cat", "dog"], shape=(8, 6, 3), held_out=0.3),
            "d: 4 to train on, 2 to test on (1 in 3.3 held out), 8 x 6 colour, "
            "2 classes (cat, dog), 2 images each",
        ),
        (
            splits([0] * 1200, ["d"]),
            "d: 1,200 to train on, 2 to test on (given), 8 x 6 grey, 1 class (d)",
        ),
        (
            splits([0, -1, -1], list("abcdefgh")),
            "d: 3 to train on, 2 to test on (given), 8 x 6 grey, 8 classes (a, b, ... h), "
            "0 to 1 images each, 2 without a label",
        ),
        (
            Splits(part([0], ["a"], name="two\nlines train"), part([-1], ["a"])),
            "'two\\nlines': 1 to train on, 1 to test on (given), 8 x 6 grey, 1 class (a), "
            "1 without a label",
        ),
        (
            Splits(part([0], ["x" * 99]), part([0])),
            f"d: 1 to train on, 1 to test on (given), 8 x 6 grey, 1 class ({'x' * 37}...)",
        ),
        (
            Splits(*[Dataset({"tokens": np.zeros((5, 3), np.int32)}, "reviews")] * 2),
            "reviews: 5 to train on, 5 to test on (given)",
        ),
    ],
)
def test_data_are_described_in_one_line(made, expected):
    assert made.description == expected
