"""Early stopping ends a run for good, and counts evaluations since the best one."""

import math

import numpy as np
import optax
import pytest

import loopax
from loopax import EarlyStopping
from loopax.errors import ConfigError

NAN = math.nan
BATCHES = [{"image": np.ones((2, 4, 4), np.float32), "label": np.zeros(2, np.float32)}] * 5


def rows(*values, steps=None):
    steps = steps or [10 * (index + 1) for index in range(len(values))]
    return [{"step": step, "loss": value} for step, value in zip(steps, values, strict=True)]


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
    assert EarlyStopping("v/loss", 2, "max").has_stalled(rows(*values)) is stalls
    mirrored = rows(*(-value for value in values))
    assert EarlyStopping("v/loss", 2).has_stalled(mirrored) is stalls


def test_where_a_run_was_stopped_in_between_does_not_count():
    measured = rows(0.5, 0.4, 0.4, steps=[10, 13, 20])
    assert EarlyStopping("v/loss", 2, "max").has_stalled(measured)
    assert not EarlyStopping("v/loss", 2, "max", every=10).has_stalled(measured)


def train(line_state, line_loss, run_dir, **options):
    """Of a loss that only grows in the evaluation, so that the second of them is worse."""
    state = line_state(optax.sgd(-1e-3))
    given = {"steps": 40, "evaluation": loopax.Evaluation(BATCHES, every=5)} | options
    return loopax.fit(
        state, line_loss, BATCHES * 8, run_dir=run_dir, log_every=4, progress=False, **given
    )


def test_a_run_that_a_hook_has_stopped_is_saved_and_stays_ended(line_state, line_loss, tmp_path):
    options = {"hooks": EarlyStopping("test/loss", patience=2)}
    run = train(line_state, line_loss, tmp_path, **options)
    assert run.step == 15
    assert run.stopped == "2 evaluations without a better test/loss"
    files = {path: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    again = train(line_state, line_loss, tmp_path, **options)
    assert (again.step, again.stopped) == (15, run.stopped)
    assert files == {path: path.read_bytes() for path in files}
    (tmp_path / "stopped.json").unlink()
    assert train(line_state, line_loss, tmp_path, hooks=()).step == 40


def test_a_reason_to_stop_of_a_step_that_was_not_saved_is_passed_over(
    line_state, line_loss, tmp_path
):
    """As a process leaves it that is killed between the two."""
    train(line_state, line_loss, tmp_path, steps=10)
    (tmp_path / "stopped.json").write_text('{"step": 15, "reason": "killed"}')
    assert train(line_state, line_loss, tmp_path, steps=20).stopped is None
    (tmp_path / "stopped.json").write_text("{")
    assert train(line_state, line_loss, tmp_path, steps=30).step == 30


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hooks": EarlyStopping("test/accuracy", 3, "max")}, "'test/accuracy', and .*test/loss"),
        ({"hooks": EarlyStopping("other/loss", every=5)}, "'other/loss', and no 'other'"),
        ({"hooks": EarlyStopping("test/loss"), "evaluation": None}, "how often that is measured"),
    ],
)
def test_what_can_never_stop_is_refused(line_state, line_loss, options, said):
    with pytest.raises(ConfigError, match=said):
        train(line_state, line_loss, None, **options)
