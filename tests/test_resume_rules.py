"""What a run may be continued with: the same, exactly; anything else is refused or said."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopax
from loopax.data import Dataset
from loopax.errors import CheckpointError, ConfigError, RunDirError, RunInUseError
from loopax.run.directory import RunDir, set_aside
from loopax.weights import with_weights
from tests.kills import kill, killed

QUIET = {"progress": False}


def files(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained_in(dataset, line_loss, line_state):
    """Trains the regression in a directory, with changes to what it is usually given."""

    def train(run_dir, *, steps=20, state=None, data=None, loss=None, **options):
        return loopax.fit(
            state or line_state(),
            loss or line_loss,
            data or dataset.batches(2),
            steps=steps,
            run_dir=run_dir,
            **{"log_every": 8, "probe_every": 5, "config": {"rate": 1e-2}, **QUIET, **options},
        )

    return train


@pytest.fixture
def train(trained_in, tmp_path):
    return lambda name="run", **options: trained_in(tmp_path / name, **options)


@pytest.fixture(scope="module")
def whole(trained_in, tmp_path_factory):
    """Forty steps of it."""
    return trained_in(tmp_path_factory.mktemp("whole") / "run", steps=40)


@pytest.fixture(scope="module")
def twenty(trained_in, tmp_path_factory):
    return trained_in(tmp_path_factory.mktemp("twenty") / "run")


@pytest.fixture
def half(twenty, tmp_path):
    """A run that has made twenty steps, to go on with."""
    return shutil.copytree(twenty.dir.path, tmp_path / "run")


# --- Refused, and told what differs -------------------------------------------

WRONG = {
    "batch size": (
        lambda dataset, state: {"data": dataset.batches(4)},
        CheckpointError,
        "checkpoints: made with batch_size 2, and now it is 4; give the same to continue",
    ),
    "dataset": (
        lambda dataset, state: {
            "data": Dataset({**dataset.columns, "label": dataset.columns["label"] + 1}).batches(2)
        },
        CheckpointError,
        "made with data [0-9a-f]+, and now it is [0-9a-f]+;",
    ),
    "an iterable": (
        lambda dataset, state: {"data": [dataset.batches(2).example]},
        CheckpointError,
        "made with data [0-9a-f]+, and now it is an iterable whose first batches are [0-9a-f]+; "
        "made with batch_size 2, and now it is absent; ",
    ),
    "seed": (
        lambda dataset, state: {"state": state(seed=7)},
        CheckpointError,
        r"made with seed \[0, 0\], and now it is \[0, 7\]",
    ),
    "configuration": (
        lambda dataset, state: {"state": state(optax.adam(1e-3)), "config": {"rate": 1e-3}},
        ConfigError,
        r"run: this run was made with rate = 0.01, not 0.001; name another run directory",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_does_not_fit_is_named_and_the_run_stays_as_it_is(
    train, half, twenty, bits, dataset, line_state, change, error, message
):
    before = files(half)
    with pytest.raises(error, match=message) as caught:
        train(steps=40, **change(dataset, line_state))
    assert "\n" not in str(caught.value)
    assert str(half) in str(caught.value)
    assert files(half) == before
    assert bits(train().state) == bits(twenty.state), "and can be continued as ever"


# --- Allowed, and exact -------------------------------------------------------

HARMLESS = {
    "where the data lies": lambda dataset: {"data": dataset.batches(2, resident=False)},
    "how steps are grouped": lambda dataset: {"chunk_steps": 3},
    "what is measured and saved": lambda dataset: {
        "evaluation": dataset.batches(100),
        "checkpoints": loopax.Checkpoints(every=3, keep=1),
    },
    "how often it is logged": lambda dataset: {"log_every": 3, "probe_every": None},
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS.keys())
@pytest.mark.usefixtures("half")
def test_what_only_looks_on_may_change_and_no_bit_does(train, whole, bits, dataset, change):
    parts = train(steps=40, **change(dataset))
    assert bits(parts.state) == bits(whole.state)
    kept = [row for row in whole.history if row["step"] <= 16]
    assert parts.history[: len(kept)] == kept


@pytest.mark.optimized
def test_another_policy_for_bad_numbers_changes_no_bit(train, bits):
    """As users get them: compiled in haste, programs of two policies do not agree in every bit."""
    train()
    parts, whole = train(steps=40, nonfinite="skip"), train("whole", steps=40)
    assert bits(parts.state) == bits(whole.state)


def test_steps_are_counted_from_the_beginning_and_fewer_are_done_already(train, half, capsys):
    before = files(half)
    again = train(steps=10, progress=True)
    assert again.step == 20
    with pytest.warns(UserWarning, match="finished, 20 of 10 steps are done; nothing is taken"):
        train(steps=10)
    assert f"{half}: finished, 20 of 10 steps are done" in capsys.readouterr().err
    assert files(half) == before


# --- Allowed, and said --------------------------------------------------------


def test_an_environment_that_can_change_bits_is_said_in_one_line(
    train, half, whole, monkeypatch, capsys, bits
):
    now = {**loopax.run.resumption.numerics(), "visible_cores": 99, "XLA_FLAGS": "--xla_new"}
    monkeypatch.setattr(loopax.run.resumption, "numerics", lambda *_: now)
    parts = train(steps=40, progress=True)
    said = [line for line in capsys.readouterr().err.splitlines() if "results may differ" in line]
    assert len(said) == 1
    assert said[0].startswith(f"{half}: ")
    assert "visible_cores" in said[0]
    assert "-> 99" in said[0]
    assert "XLA_FLAGS" in said[0]
    assert bits(parts.state) == bits(whole.state), "as nothing has really changed"


@pytest.mark.usefixtures("half")
def test_in_the_same_environment_nothing_is_said(train, capsys):
    train(steps=40, progress=True)
    assert "may differ" not in capsys.readouterr().err


def test_rows_that_were_lost_are_said(train, half, whole, capsys, bits):
    file = half / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 7
    file.write_text("".join(lines[:1]) + '{"step": 16, "sour')
    parts = train(steps=40, probe_every=None, progress=True)
    assert f"{file}: has 1 of the 6 rows logged up to step 20" in capsys.readouterr().err
    assert bits(parts.state) == bits(whole.state)
    # The short row of an end that was none is not missing from the longer run.
    steps = [row["step"] for row in RunDir.open(half).metrics if row["source"] == "train"]
    assert steps == [24, 32, 40]


@pytest.mark.usefixtures("half")
def test_a_start_that_was_killed_before_its_first_save_has_lost_nothing(train, whole, capsys, bits):
    with killed():
        train(steps=40, hooks=loopax.Hook(kill, 1))
    parts = train(steps=40, progress=True)
    assert "lost" not in capsys.readouterr().err
    assert bits(parts.state) == bits(whole.state)
    assert parts.history == whole.history


def test_another_number_of_steps_is_said_and_the_rate_that_jumps(
    tmp_path, capsys, dataset, line_loss, line_state
):
    def train(name, steps, schedule, **options):
        rate = loopax.Schedule("cosine" if schedule else "constant")
        return loopax.fit(
            line_state(loopax.Optimizer("sgd", 0.1, schedule=rate).build(steps)),
            line_loss,
            dataset.batches(2),
            steps=steps,
            run_dir=tmp_path / name,
            **{"log_every": 8, "probe_every": None, "progress": True, **options},
        )

    for schedule, said in (
        (False, "run: begun for 16 steps and now for 32\n"),
        (
            True,
            "run: begun for 16 steps and now for 32; learning_rate was 0.0009607 at step 16 and",
        ),
    ):
        name = f"{schedule}/run"
        train(name, 16, schedule)
        assert "begun for" not in capsys.readouterr().err
        train(name, 32, schedule)
        assert capsys.readouterr().err.count(said) == 1
    train("quiet", 16, True, **QUIET)
    with pytest.warns(UserWarning, match="begun for 16 steps and now for 32; learning_rate was"):
        train("quiet", 32, True, **QUIET)


def test_a_rate_that_the_optimiser_s_state_keeps_is_said_to_be_kept(
    line_state, line_loss, dataset, tmp_path
):
    def train(rate, steps):
        tx = optax.inject_hyperparams(optax.adam)(learning_rate=rate, b1=lambda step: 0.9)
        loopax.fit(
            line_state(tx), line_loss, dataset.batches(2), steps=steps, run_dir=tmp_path, **QUIET
        )

    train(0.5, 2)
    train(0.5, 4)
    with pytest.warns(UserWarning, match="the learning_rate 0.5 of the checkpoint and not 0.25: "):
        train(0.25, 6)


def test_a_run_whose_length_is_a_setting_says_how_it_is_made_longer(train, tmp_path):
    train(config={"epochs": 1})
    with pytest.raises(ConfigError, match="made with epochs = 1, not 2; to make a run longer keep"):
        train(config={"epochs": 2})
    train(name="vae", config={"epochs": 1, "recipe": "vae"})
    with pytest.raises(ConfigError, match=r"loopax rewind .*vae --step 20 --set epochs=2`"):
        train(name="vae", config={"epochs": 2, "recipe": "vae"})


# --- Beginning anew -----------------------------------------------------------


def test_a_run_that_is_set_aside_is_whole_under_another_name(
    train, twenty, whole, tmp_path, monkeypatch, bits
):
    kept = []
    for name in ("run", "run", "."):
        shutil.copytree(twenty.dir.path, tmp_path / "run")
        if name == ".":
            monkeypatch.chdir(tmp_path / "run")
        kept.append(set_aside(tmp_path / name if name == "run" else Path(name)).name)
    assert kept == ["run-old", "run-old-2", "run-old-3"]
    assert not (tmp_path / "run").exists()
    again = train(name="run-old", steps=40)
    assert [start["step"] for start in again.dir.read_json("run.json")["starts"]] == [0, 20]
    assert bits(again.state) == bits(whole.state)


def test_what_is_no_run_or_in_use_is_not_set_aside(train, tmp_path, dataset, line_loss, line_state):
    assert set_aside(tmp_path / "run") is None
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("mine")
    with pytest.raises(RunDirError, match="thesis: is not a run directory"):
        set_aside(tmp_path / "thesis")
    with (
        loopax.training(
            line_state(), line_loss, dataset.batches(2), steps=9, run_dir=tmp_path / "run", **QUIET
        ),
        pytest.raises(RunInUseError, match="run: is in use by process"),
    ):
        set_aside(tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "thesis"]
    assert set_aside(tmp_path / "run").name == "run-old"


# --- Weights alone ------------------------------------------------------------


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_the_weights_of_a_run_are_its_averages_and_what_is_frozen(
    tmp_path, dataset, line_loss, ema_decay
):
    params = {"weights": jnp.linspace(-1.0, 1.0, 16), "bias": jnp.ones((1,))}
    state = loopax.TrainState.create(
        params=params, tx=optax.adam(1e-2), frozen=("bias",), ema_decay=ema_decay
    )
    run = loopax.fit(
        state,
        line_loss,
        dataset.batches(2),
        steps=20,
        run_dir=tmp_path,
        checkpoints=loopax.Checkpoints(every=10, seconds=None),
        **QUIET,
    )
    store = loopax.CheckpointStore(run.dir.checkpoints)
    weights = store.weights()
    assert weights.keys() == {"weights", "bias"}
    np.testing.assert_array_equal(weights["bias"], params["bias"])
    expected = run.state.params if ema_decay is None else run.state.ema
    np.testing.assert_array_equal(weights["weights"], expected["weights"])
    other = np.array_equal(weights["weights"], run.state.params["weights"])
    assert other == (ema_decay is None)
    earlier = store.restore(state, 10)[0].eval_params
    np.testing.assert_array_equal(store.weights(10)["weights"], earlier["weights"])
    begun = state.with_params(with_weights(state.params, weights, source="run"))
    jax.tree.map(np.testing.assert_array_equal, begun.eval_params, run.state.eval_params)
    jax.tree.map(np.testing.assert_array_equal, begun.opt_state, state.opt_state)
    assert begun.step == 0


def numbers(*values):
    return [{"x": np.full(2, value, np.float32)} for value in values]


ANOTHER_SOURCE = {
    "another batch size": (
        [{"x": np.full(4, 10.0, np.float32)}] * 3,
        r"batch x float32\[2\], and now it is x float32\[4\]",
    ),
    "another order": (numbers(12, 11, 10), "and now it is an iterable whose first batches are"),
    "another number": (numbers(10, 11), "batches_per_epoch 3, and now it is 2"),
    "an iterator that was drawn from": (iter(numbers(11, 12)), "made with data an iterable"),
}


@pytest.mark.parametrize(("source", "message"), ANOTHER_SOURCE.values(), ids=ANOTHER_SOURCE.keys())
def test_other_batches_under_an_old_run_are_refused_with_both(tmp_path, source, message):
    def loss(params, batch, rngs):
        return (params["w"] ** 2 + 0 * batch["x"]).mean()

    def fit(source, steps):
        state = loopax.TrainState.create(params={"w": jnp.ones(())}, tx=optax.sgd(0.1))
        return loopax.fit(state, loss, source, steps=steps, run_dir=tmp_path / "run", **QUIET)

    fit(numbers(10, 11, 12), 2)
    with pytest.raises(CheckpointError, match=message) as caught:
        fit(source, 4)
    assert "\n" not in str(caught.value)
    assert fit(tuple(numbers(10, 11, 12)), 4).step == 4
