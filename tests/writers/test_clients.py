"""Trackers by their own clients, where these are installed, and by small stand-ins for them."""

import importlib
import json
import shutil
import struct
import sys

import pytest
from tests.trackers import FakeMLflow, FakeRuns

import loopax
from loopax.errors import ConfigError
from loopax.writers import MLflow, Trackio, WandB

BLOCK = 2**15


FAKES = {"wandb": FakeRuns, "mlflow": FakeMLflow, "trackio": FakeRuns}
WRITERS = {"wandb": WandB, "mlflow": MLflow, "trackio": Trackio}


@pytest.fixture
def fake(request, monkeypatch):
    """The stand-in for a client, by its name."""
    module = FAKES[request.param]()
    monkeypatch.setitem(sys.modules, request.param, module)
    return request.param, module


@pytest.fixture
def train(tmp_path, dataset, line_loss, line_state):
    def train(*writers, steps=16, name="run", **options):
        return loopax.fit(
            line_state(),
            line_loss,
            dataset.batches(2),
            steps=steps,
            run_dir=None if name is None else tmp_path / name,
            writers=writers,
            log_every=4,
            probe_every=8,
            checkpoints=loopax.Checkpoints(every=8, keep=5),
            progress=False,
            **options,
        )

    return train


def lose_steps_and_go_on(train, make):
    """Trains to step 16, goes back to 8 as a kill would have it, and trains to 24."""
    run = train(make(), config={"rate": 0.1})
    shutil.rmtree(run.dir.checkpoints / "16")
    return train(make(), steps=24, config={"rate": 0.1})


def expected_of(run):
    return sorted(
        (row["step"], f"{row['source']}/{name}", value)
        for row in run.history
        for name, value in loopax.writers.values_of(row).items()
    )


def without_speed(rows):
    return sorted(row for row in rows if not row[1].startswith("time/"))


@pytest.mark.parametrize("fake", FAKES, indirect=True)
def test_a_run_that_lost_steps_goes_on_in_the_same_remote_run_and_sends_nothing_twice(train, fake):
    name, module = fake
    run = lose_steps_and_go_on(train, WRITERS[name])
    assert without_speed(module.read()) == expected_of(run)
    assert len(run.dir.read_json("writers.json")[name]) > len("run-")
    if name == "mlflow":
        assert {**module.status} == {run.dir.read_json("writers.json")[name]: "FINISHED"}
        assert [*module.params.values()] == [{"rate": 0.1}]
    else:
        assert [it["resume"] for it in module.options] == ["allow", "allow"]
        assert module.options[-1]["config"] == {"rate": 0.1}


@pytest.mark.parametrize("fake", FAKES, indirect=True)
def test_a_tracker_that_comes_late_is_sent_what_the_run_has_logged(train, fake, monkeypatch):
    name, module = fake
    monkeypatch.setattr("loopax.writers.clients.REQUEST", 3)
    train()
    run = train(WRITERS[name](), steps=24)
    assert without_speed(module.read()) == expected_of(run)


@pytest.mark.parametrize("fake", FAKES, indirect=True)
def test_another_run_directory_or_none_is_another_remote_run(train, fake):
    name, module = fake
    for folder in ("first", "second", None):
        train(WRITERS[name](), steps=4, name=folder)
    assert len(module.metrics if name == "mlflow" else module.rows) == 3


@pytest.mark.parametrize("fake", ["wandb", "trackio"], indirect=True)
def test_options_are_handed_on_to_the_client_and_come_first(train, fake):
    name, module = fake
    train(WRITERS[name](project="mine", resume="never"), steps=4)
    assert (module.options[0]["project"], module.options[0]["resume"]) == ("mine", "never")


@pytest.mark.parametrize("name", WRITERS)
def test_a_client_that_is_missing_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"needs {name}: pip install 'loopax\[{name}\]'"):
        WRITERS[name]()


def test_the_real_mlflow_has_each_number_once(train, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    place = f"sqlite:///{tmp_path}/mlflow.db"
    run = lose_steps_and_go_on(train, lambda: MLflow("mine", tracking_uri=place))
    client, known = mlflow.MlflowClient(place), run.dir.read_json("writers.json")["mlflow"]
    remote = client.get_run(known)
    found = [
        (it.step, key, it.value)
        for key in remote.data.metrics
        for it in client.get_metric_history(known, key)
    ]
    assert without_speed(found) == expected_of(run)
    assert (remote.info.status, remote.data.params) == ("FINISHED", {"rate": "0.1"})
    assert client.get_experiment(remote.info.experiment_id).name == "mine"


def test_the_real_trackio_has_each_number_once(train, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    run = lose_steps_and_go_on(train, Trackio)
    rows = storage.get_logs("loopax", run.dir.read_json("writers.json")["trackio"])
    found = [(row["step"], key, value) for row in rows for key, value in row.items() if "/" in key]
    assert without_speed(found) == expected_of(run)


def test_the_real_wandb_keeps_each_start_of_one_run_offline(train, monkeypatch):
    """Offline it cannot know what was sent; each start's folder has the run up to its end."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    pytest.importorskip("wandb")
    run = lose_steps_and_go_on(train, WandB)
    first, second = sorted(run.dir.path.glob("wandb/offline-run-*/*.wandb"))
    rows = [wandb_rows(first), wandb_rows(second)]
    expected = expected_of(run)
    assert without_speed(rows[0]) == [row for row in expected if row[0] <= 16]
    assert without_speed(rows[1]) == expected
    known = run.dir.read_json("writers.json")["wandb"]
    assert first.name == second.name == f"run-{known}.wandb"


def wandb_rows(path):
    """The numbers in a file of W&B: LevelDB's log format, after a header of seven bytes."""
    record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:  # too little for a header; filled with zeros
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or the last part of it
            items = record.FromString(whole).history.item
            row = {"/".join(it.nested_key) or it.key: json.loads(it.value_json) for it in items}
            yield from ((row["_step"], *item) for item in row.items() if "/" in item[0])
            whole = b""
