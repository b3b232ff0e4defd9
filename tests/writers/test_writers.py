"""Writers beside those of the run directory: what they are given, and that none can stop a run."""

import csv
import functools
import os
import signal

import pytest

import loopax
from loopax.errors import ConfigError, Stopped, StorageError
from loopax.jsonlines import JsonLines
from loopax.run.logs import TensorBoard


@pytest.fixture
def train(tmp_path, dataset, line_loss, line_state):
    return functools.partial(
        loopax.fit,
        line_state(),
        line_loss,
        dataset.batches(2),
        log_every=4,
        probe_every=8,
        progress=False,
    )


class Noting:
    """Keeps what it is given; raises in the methods that are named."""

    def __init__(self, *failing):
        self.failing, self.calls, self.rows = failing, [], []

    def _note(self, name):
        self.calls.append(name)
        if name in self.failing:
            raise ValueError("no\nroom")

    def open(self, run, step):
        self.run, self.step = run, step
        self._note("open")

    def write(self, row):
        row = dict(row)
        self.rows.append(row)
        self._note("write")

    def sync(self):
        self._note("sync")

    def close(self):
        self._note("close")


def interrupting_at(step):
    def interrupt(run):
        if run.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return loopax.Hook(interrupt, step)


def test_a_writer_is_given_every_row_and_opened_where_the_run_goes_on(train, tmp_path):
    noting = Noting()
    run = train(steps=16, run_dir=tmp_path / "run", writers=[noting])
    assert [row for row in noting.rows if row["source"] != "time"] == run.dir.metrics
    assert sum(row["source"] == "time" for row in noting.rows) == 4
    assert (noting.run, noting.step) == (run, 0)
    assert noting.calls[0] == "open"
    assert noting.calls[-2:] == ["sync", "close"]  # the last checkpoint, and the end
    again = Noting()
    run = train(steps=24, run_dir=tmp_path / "run", writers=[again])
    assert again.step == 16
    assert min(row["step"] for row in again.rows) == 20
    assert run.dir.read_json("run.json")["starts"][-1]["writers"] == ["Noting"]


def test_a_run_in_memory_has_writers_too(train):
    noting = Noting()
    run = train(steps=8, writers=[noting])
    assert [row for row in noting.rows if row["source"] != "time"] == list(run.history)


@pytest.mark.parametrize(
    "failing", [("open",), ("write", "close"), ("sync",), ("close",)], ids=" and ".join
)
def test_what_a_writer_raises_is_told_once_and_stops_nothing(
    train, tmp_path, bits, failing, recwarn
):
    failed, sound = Noting(*failing), Noting()
    whole = train(steps=16, run_dir=tmp_path / "whole")
    run = train(steps=16, run_dir=tmp_path / "run", writers=[failed, sound])
    assert bits(run.state) == bits(whole.state)
    assert run.dir.metrics_file.read_bytes() == whole.dir.metrics_file.read_bytes()
    assert failed.calls.count(failing[0]) == 1
    assert failed.calls[-1] == "close"  # it may hold something that is to be given back
    assert len(sound.rows) == len(whole.history) + 4
    (warning,) = [it for it in recwarn if "Noting" in str(it.message)]
    assert f"Noting: {failing[0]} failed (ValueError: no room); the run goes on" in str(
        warning.message
    )


def test_a_writer_that_changes_its_rows_changes_no_others(train, tmp_path):
    class Greedy(Noting):
        def write(self, row):
            row.clear()

    run = train(steps=8, run_dir=tmp_path / "run", writers=[Greedy()])
    assert [row["step"] for row in run.history] == [row["step"] for row in run.dir.metrics]


def test_tensorboard_is_a_writer_as_others_are_and_the_json_lines_are_not(
    train, tmp_path, monkeypatch
):
    def fail(self, row):
        raise StorageError("the disk is full")

    monkeypatch.setattr(TensorBoard, "write", fail)
    with pytest.warns(UserWarning, match="TensorBoard: write failed"):
        assert train(steps=8, run_dir=tmp_path / "board").step == 8
    monkeypatch.undo()
    monkeypatch.setattr(JsonLines, "write", fail)
    with pytest.raises(StorageError, match="the disk is full"):
        train(steps=8, run_dir=tmp_path / "lines")


@pytest.mark.parametrize(
    ("writers", "said"),
    [
        (Noting(), r"writers is a Noting; it must be a list"),
        ("csv", r"writers is 'csv'; it must be a list"),
        ([Noting], r"writers\[0\] is the class Noting; it must be an object"),
        ([Noting(), "csv"], r"writers\[1\] is 'csv'; .* open, write, sync, close"),
    ],
)
def test_what_is_no_writer_is_refused_at_the_call(train, writers, said):
    with pytest.raises(ConfigError, match=said):
        train(steps=8, writers=writers)


def test_csv_holds_the_rows_of_the_run_once_each_however_it_was_interrupted(train, tmp_path):
    writers, folder = [loopax.writers.CSV()], tmp_path / "run"
    with pytest.raises(Stopped):
        train(steps=24, run_dir=folder, writers=writers, hooks=[interrupting_at(10)])
    file = folder / "metrics.csv"
    with file.open("a") as rest:
        rest.write("22,0.2,train,loss,1.5\n22,0.2,tr")  # of a start that was killed
    run = train(steps=24, run_dir=folder, writers=writers)
    with file.open(newline="") as lines:
        names = ("step", "source", "metric", "value")
        found = [tuple(map(line.get, names)) for line in csv.DictReader(lines)]
    assert found == [
        (str(row["step"]), row["source"], name, str(value))
        for row in run.history
        for name, value in loopax.writers.values_of(row).items()
    ]
