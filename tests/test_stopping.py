"""Early stopping counts evaluations since the best one."""

import math

import pytest

from loopax import has_stalled

NAN = math.nan


def rows(*values, steps=None):
    steps = steps or [10 * (index + 1) for index in range(len(values))]
    measured = [
        {"source": "validation", "step": step, "accuracy": value, "loss": value}
        for step, value in zip(steps, values, strict=True)
    ]
    return [{"source": "train", "step": 1, "accuracy": 1.0, "loss": 0.0}, *measured]


@pytest.mark.parametrize(
    ("values", "stalls"),
    [
        ((), False),
        ((0.5, 0.4), False),
        ((0.5, 0.4, 0.5), True),
        ((0.5, 0.4, 0.6), False),
        ((NAN, 0.1, 0.2, 0.3), False),
        ((0.5, NAN, math.inf), True),
        ((NAN, NAN), True),
        ((NAN, NAN, 0.1), False),
    ],
)
def test_the_evaluations_since_the_best_are_counted(values, stalls):
    assert has_stalled(rows(*values), "validation/accuracy", patience=2, mode="max") is stalls
    mirrored = rows(*(-value for value in values))
    assert has_stalled(mirrored, "validation/loss", patience=2) is stalls


def test_where_a_run_was_stopped_in_between_does_not_count():
    measured = rows(0.5, 0.4, 0.4, steps=[10, 13, 20])
    options = {"patience": 2, "mode": "max"}
    assert has_stalled(measured, "validation/accuracy", **options)
    assert not has_stalled(measured, "validation/accuracy", every=10, **options)
