"""Any step of a run again: the very bits of its rows and checkpoints, and another way on."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tests.kills import kill, killed

import loopax
from loopax.data import Dataset
from loopax.diagnose import Replay
from loopax.diagnose.replay import CAPACITY
from loopax.errors import CheckpointError, ConfigError, RunDirError
from loopax.run.directory import RunDir

QUIET = {"progress": False}
EACH_TWENTY = loopax.Checkpoints(every=20, seconds=None, best=None, keep=9)
TRAP, SEED = 0.025, 509
# Chunks as large as those of a replay share its compilation; the result does not depend on it.
LARGE = {"chunk_steps": CAPACITY}


def ready_batches(dataset):
    images = dataset.columns["image"].astype(np.float32) / 255
    labels = dataset.columns["label"]
    return [
        {"image": images[first : first + 2], "label": labels[first : first + 2]}
        for first in range(0, len(labels), 2)
    ]


@pytest.fixture(scope="module")
def trapped_loss(line_loss):
    """The regression's loss, bad where the key of a step says so: at step 27 with this seed."""

    def loss(params, batch, rngs):
        value, metrics = line_loss(params, batch, rngs)
        bad = jax.random.uniform(rngs["trap"]) < TRAP
        return jnp.where(bad, jnp.nan, value), metrics

    return loss


@pytest.fixture(scope="module")
def runs(tmp_path_factory, dataset, loss_fn, line_loss, trapped_loss, new_state, line_state):
    """Runs of 60 steps that log each of them, by what happened to them, each made once.

    Gives the directory, the state, the loss and the data of each.
    """
    made = {}

    def train(name, directory):
        data = ready_batches(dataset) if name == "iterable" else dataset.batches(2)
        trap = name == "skipped"
        state = new_state(ema_decay=0.9) if name == "device" else line_state(seed=SEED)
        loss = {"device": loss_fn, "skipped": trapped_loss}.get(name, line_loss)

        def fit(*hooks):
            loopax.fit(
                state,
                loss,
                data,
                steps=60,
                run_dir=directory,
                checkpoints=EACH_TWENTY,
                nonfinite="skip" if trap else "stop",
                hooks=hooks,
                log_every=1,
                probe_every=7,
                **({} if name == "resumed" else LARGE),
                **QUIET,
            )

        if name == "resumed":
            for step in (27, 47):
                with killed():
                    fit(loopax.Hook(kill, step))
        fit()
        return RunDir.open(directory), state, loss, data

    def run(name):
        if name not in made:
            made[name] = train(name, tmp_path_factory.mktemp("runs") / name.replace(" ", "-"))
        return made[name]

    return run


STEPS = {
    "device": (0, 20),
    "iterable": (20,),
    "resumed": (34,),
    "skipped": (27, 28),
}


@pytest.mark.parametrize(
    "name", [pytest.param("device", marks=pytest.mark.optimized), *[*STEPS][1:]]
)
def test_a_step_again_has_the_numbers_that_were_logged(runs, name):
    directory, state, loss, data = runs(name)
    rows = {row["step"] - 1: row for row in directory.metrics if row["source"] == "train"}
    probed = {row["step"] - 1: row for row in directory.metrics if row["source"] == "probe"}
    replay = Replay(directory, state, loss, data)
    for step in STEPS[name]:
        again, row = replay.step(step), rows[step]
        assert again.step == again.report.step == step
        assert again.batch["image"].shape == (2, 4, 4, 1)
        if row.get("skipped_steps"):
            assert (name, step) == ("skipped", 27)
            assert again.metrics["skipped"] == 1
            assert math.isnan(again.metrics["loss"])
            continue
        metrics = {n: value for n, value in again.metrics.items() if n != "skipped"}
        assert len(metrics) == 2
        assert metrics == {n: row[n] for n in metrics}
        if step in probed:
            assert again.norms == {n: probed[step][n] for n in ("grad_norm", "update_norm")}
        # Outside of the loop it is the same mathematics, if not the same bits.
        assert again.report.metrics["loss"] == pytest.approx(row["loss"], rel=1e-4)
    starts = [start["step"] for start in directory.read_json("run.json")["starts"]]
    assert starts == ([0, 20, 40] if name == "resumed" else [0])


@pytest.mark.parametrize(
    ("name", "kept"),
    [("resumed", None), ("skipped", 20)],
)
def test_a_state_on_the_way_is_the_one_that_was_saved(runs, name, kept, tmp_path, bits):
    """With all other checkpoints gone, or with none at all."""
    original, state, loss, data = runs(name)
    shutil.copytree(original.path, tmp_path / "run")
    directory = RunDir(tmp_path / "run")
    for path in directory.checkpoints.iterdir():
        if path.name != str(kept):
            shutil.rmtree(path)
    replay = Replay(directory, state, loss, data)
    store = loopax.CheckpointStore(original.checkpoints)
    for step in (20, 40, 60):
        assert bits(replay.state_at(step)) == bits(store.restore(state, step)[0]), f"step {step}"
    assert replay.state_at(0).step == 0
    assert loopax.CheckpointStore(directory.checkpoints).steps == ([kept] if kept else [])


def test_replaying_writes_nothing_and_leaves_the_state_as_it_is(runs, bits):
    directory, state, loss, data = runs("skipped")
    before = {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
    given = bits(state)
    replay = Replay(directory, state, loss, data)
    assert replay.step(3).metrics == replay.step(3).metrics
    replay.state_at(0)
    assert bits(state) == given
    after = {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
    assert after == before


def test_what_is_kept_of_a_step_is_json_and_arrays(runs, tmp_path):
    directory, state, loss, data = runs("skipped")
    again = Replay(directory, state, loss, data).step(27)
    again.save(tmp_path / "kept" / "27")
    text = (tmp_path / "kept" / "27" / "report.json").read_text()
    told = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert told["step"] == 27
    assert told["metrics"] == {**again.metrics, "loss": "nan"}
    assert told["norms"].keys() == {"grad_norm", "update_norm"}
    assert told["origin"]["what"] == "nan"
    with np.load(tmp_path / "kept" / "27" / "batch.npz") as arrays:
        assert {name: array.tolist() for name, array in arrays.items()} == {
            name: np.asarray(leaf).tolist() for name, leaf in again.batch.items()
        }
    lines = again.lines()
    assert any(line.startswith("image: float32[2, 4, 4, 1], from 0") for line in lines)
    assert "loss nan" in lines
    assert f"error {again.metrics['error']!r}" in lines
    assert any("nan is" in line for line in lines)


def test_a_run_without_steps_has_nothing_to_replay(tmp_path, runs):
    _, state, loss, data = runs("device")
    directory = RunDir.create(tmp_path / "run")
    directory.claim({})
    with pytest.raises(RunDirError, match=r"run\.json"):
        Replay(directory, state, loss, data)
    directory.write_json("run.json", {"starts": []})
    with pytest.raises(RunDirError, match="has not been trained yet"):
        Replay(directory, state, loss, data)


def test_another_model_is_refused_by_the_leaf_that_differs(runs, line_state):
    directory, _, loss, data = runs("device")
    with pytest.raises(CheckpointError, match=r"optimiser: \S+bias is .* there and absent here"):
        Replay(directory, line_state(), loss, data).state_at(30)


# --- Where it went bad --------------------------------------------------------


@pytest.mark.parametrize("bad", [0, 33])
def test_the_step_that_spoiled_the_state_is_found(tmp_path, line_state, bad):
    """A collection goes bad, and nothing depends on it: the run notices when it ends."""

    def loss(params, batch, rngs, model_state):
        return jnp.square(params["weights"]).sum(), {}, {"seen": model_state["seen"] + batch["x"]}

    column = np.ones((60, 1), np.float32)
    column[bad] = np.nan
    data = Dataset({"x": column}).batches(1, shuffle=False)
    state = line_state(optax.sgd(0.01), model_state={"seen": jnp.zeros((1, 1))})
    with pytest.raises(loopax.errors.NonFiniteError) as caught:
        loopax.fit(
            state,
            loss,
            data,
            steps=58,
            run_dir=tmp_path,
            checkpoints=loopax.Checkpoints(seconds=None),
            **QUIET,
        )
    replay = Replay(RunDir.open(tmp_path), state, loss, data)
    assert replay.culprit(caught.value.step) == bad
    assert replay.culprit(58) == bad
    # A step that was good is its own answer.
    assert replay.culprit(bad) == bad


# --- Another way on -----------------------------------------------------------


def trained(state, loss, data, run_dir, *, evaluation=None, **options):
    return loopax.fit(
        state,
        loss,
        data,
        steps=53,
        run_dir=run_dir,
        evaluation=None if evaluation is None else loopax.Evaluation(evaluation, every=9),
        checkpoints=loopax.Checkpoints(every=20, seconds=None, keep=9),
        **{"log_every": 10, "probe_every": 7, **LARGE, **QUIET, **options},
    )


@pytest.fixture(scope="module")
def parent(tmp_path_factory, dataset, line_loss, line_state):
    """Fifty-three steps with rows each ten, probes each seven and evaluations each nine."""
    data, state = dataset.batches(2), line_state(ema_decay=0.9)
    place = tmp_path_factory.mktemp("runs") / "parent"
    run = trained(state, line_loss, data, place, evaluation=data)
    return run, state, Replay(run.dir, state, line_loss, data), data


BRANCHES = {
    "at the start": 0,
    "at an evaluation between two rows": 36,
    "at the end, where the last row is short": 53,
}


@pytest.mark.parametrize("step", BRANCHES.values(), ids=BRANCHES.keys())
def test_a_branch_without_a_change_is_the_run_itself(parent, line_loss, bits, tmp_path, step):
    run, state, replay, data = parent
    branch = replay.branch(step, tmp_path / "branch", state=state, data=data, config=None)
    assert loopax.CheckpointStore(branch.checkpoints).steps == [step]
    assert [row["step"] <= step for row in branch.metrics].count(False) == 0
    again = trained(state, line_loss, data, tmp_path / "branch", evaluation=data)
    assert bits(again.state) == bits(run.state)
    assert branch.metrics_file.read_text() == run.dir.metrics_file.read_text()
    told = branch.read_json("run.json")
    assert told["parent"] == {"run": str(run.dir.path.absolute()), "step": step}
    assert [start["step"] for start in told["starts"]] == ([step] if step < 53 else [])


def test_a_run_that_skipped_can_be_branched(runs, bits, tmp_path):
    directory, state, loss, data = runs("skipped")
    replay = Replay(directory, state, loss, data)
    branch = replay.branch(29, tmp_path / "branch", state=state, data=data, config=None)
    run = loopax.fit(
        state,
        loss,
        data,
        steps=60,
        run_dir=branch.path,
        checkpoints=EACH_TWENTY,
        nonfinite="skip",
        log_every=1,
        probe_every=7,
        **LARGE,
        **QUIET,
    )
    last = loopax.CheckpointStore(directory.checkpoints).restore(state, 60)[0]
    assert branch.metrics_file.read_text() == directory.metrics_file.read_text()
    assert bits(run.state) == bits(last)


def test_with_another_loss_or_rate_it_goes_on_from_the_same_state(
    parent, line_loss, line_state, bits, tmp_path
):
    run, _, replay, data = parent
    slower = line_state(optax.adam(1e-4), ema_decay=0.9)

    def twice(params, batch, rngs):
        loss, metrics = line_loss(params, batch, rngs)
        return 2 * loss, metrics

    config = {"rate": 1e-4}
    branch = replay.branch(25, tmp_path / "other", state=slower, data=data, config=config)
    begun = loopax.CheckpointStore(branch.checkpoints).restore(slower, 25)[0]
    assert bits(begun) == bits(replay.state_at(25))
    other = trained(slower, twice, data, branch.path, evaluation=data, config=config)
    assert branch.config == config
    common = [row for row in run.history if row["step"] < 25]
    assert other.history[: len(common)] == common
    assert other.latest("train")["loss"] != run.latest("train")["loss"]


def test_what_does_not_fit_the_past_is_refused_and_nothing_is_left(
    parent, dataset, line_state, tmp_path
):
    _, state, replay, data = parent
    sgd = line_state(optax.sgd(0.1), ema_decay=0.9)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    cases = [
        ("new", state, dataset.batches(4), CheckpointError, "batch_size was 2 and would be 4"),
        ("new", state, dataset.batches(2, shuffle=False), CheckpointError, "shuffle was True"),
        ("new", state, ready_batches(dataset), CheckpointError, "data was .* would be an iterable"),
        ("new", sgd, data, CheckpointError, "opt_state/0/mu.* there and absent here"),
        ("new", line_state(), data, CheckpointError, "ema/.* there and absent here"),
        ("new", line_state(seed=1, ema_decay=0.9), data, CheckpointError, "seed was"),
        ("taken", state, data, RunDirError, "taken: is there already"),
    ]
    for name, there, batches, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            replay.branch(20, tmp_path / name, state=there, data=batches, config=None)
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_branch_can_be_replayed_from_where_it_begins(parent, line_loss, bits, tmp_path):
    _, state, replay, data = parent
    branch = replay.branch(25, tmp_path / "branch", state=state, data=data, config=None)
    trained(state, line_loss, data, tmp_path / "branch", evaluation=data)
    again = Replay(branch, state, line_loss, data)
    assert bits(again.state_at(33)) == bits(replay.state_at(33))
    with pytest.raises(
        ConfigError, match=r"begins at step 25.*up to step 24.*branched from"
    ) as caught:
        again.state_at(24)
    assert "\n" not in str(caught.value)
    # Where the first checkpoint is gone, what came after it is no longer there either.
    shutil.rmtree(branch.checkpoints / "25")
    assert again.state_at(45).step == 45
    with pytest.raises(ConfigError, match="no checkpoint up to step 33"):
        again.state_at(33)
