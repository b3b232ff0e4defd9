"""What two trials left, compared by its bits: what differs is named, and nothing else."""

import json

import numpy as np
import pytest

from loopax.verify.compare import KINDS, Outcome, compare


def outcome(**parts):
    names = {name.replace(" ", "_"): name for name in KINDS}
    return Outcome(3, {name: parts.get(short, {}) for short, name in names.items()})


def row(**values):
    return json.dumps({"step": 1, "source": "metrics", **values})


def test_the_same_bits_are_equal_nan_and_the_sign_of_zero_included():
    array = np.array([np.nan, -0.0, np.inf], np.float32)
    one, two = (
        outcome(parameters={"w": array.copy()}, metrics={1: row(loss=float("nan"))})
        for _ in range(2)
    )
    compared = {each.what: each for each in compare(one, two)}
    assert [*compared] == [*KINDS]
    assert compared["parameters"].compared == compared["metrics"].compared == 1
    assert not any(each.differing or each.examples for each in compared.values())


@pytest.mark.parametrize(
    ("one", "two", "line"),
    [
        (np.float32([0, 1, 2]), np.float32([0, 1, 2.5]), "w: 1 of 3 numbers, by up to 0.5"),
        (np.float32([0, 1]), np.float32([-0.0, 1]), "w: 1 of 2 numbers, by up to 0"),
        (np.float32([0, 1]), np.float64([0, 1]), "w: float32[2] and float64[2]"),
        (np.complex64([1j]), np.complex64([2j]), "w: 1 of 1 numbers, by up to 1"),
        (np.float32([0]), None, "w: only without interruption"),
        (None, np.float32([0]), "w: only with interruption"),
    ],
)
def test_arrays_that_differ_say_by_how_much(one, two, line):
    trials = (outcome(parameters={} if each is None else {"w": each}) for each in (one, two))
    first, *others = compare(*trials)
    assert (first.what, first.differing, first.examples) == ("parameters", 1, (line,))
    assert not any(other.differing for other in others)


def test_of_rows_the_first_that_differs_is_shown_with_the_values_that_do():
    one = outcome(logged_rows={1: row(loss=0.5, mse=1.0), 2: row(loss=0.25), 3: row(loss=1.0)})
    two = outcome(logged_rows={1: row(loss=0.5, mse=1.0), 2: row(loss=0.3), 3: row(kl=1.0)})
    rows = compare(one, two)[-1]
    assert (rows.what, rows.unit, rows.compared, rows.differing) == ("logged rows", "rows", 3, 2)
    assert rows.examples == (
        "line 2: loss 0.25 and 0.3",
        "line 3: loss 1.0 and None, kl None and 1.0",
    )


def test_of_many_arrays_three_are_shown():
    one, two = (outcome(keys={str(n): np.full(1, n + shift) for n in range(9)}) for shift in (0, 1))
    keys = next(each for each in compare(one, two) if each.what == "keys")
    assert (keys.differing, len(keys.examples)) == (9, 3)
