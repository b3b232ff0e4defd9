"""The programs of docs/writers.md, as they stand there."""

import re
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest
from tests.trackers import FakeRuns

import loopax

PAGE = (Path(__file__).parents[2] / "docs" / "writers.md").read_text()


@pytest.fixture
def names(dataset, line_loss, line_state, tmp_path, monkeypatch):
    """What the page takes for granted."""
    monkeypatch.chdir(tmp_path)
    train = dataset.batches(2)
    return {"loopax": loopax, "state": line_state(), "loss_fn": line_loss, "train": train}


def blocks():
    return re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_program_with_writers_runs(names, monkeypatch):
    module = FakeRuns()
    monkeypatch.setitem(sys.modules, "wandb", module)
    exec(blocks()[0], names)
    assert names["run"].step == 40
    assert Path("runs/first/metrics.csv").exists()
    assert {step for step, *_ in module.read()} == {*range(4, 44, 4)}


def test_the_writer_of_ones_own_has_each_row_once_after_a_resumption(names, tmp_path):
    exec(blocks()[1], names)

    def fit(steps):
        return loopax.fit(
            names["state"],
            names["loss_fn"],
            names["train"],
            steps=steps,
            run_dir=tmp_path / "run",
            log_every=4,
            checkpoints=loopax.Checkpoints(every=8, keep=5),
            writers=[names["SQLite"]()],
            progress=False,
        )

    shutil.rmtree(fit(16).dir.checkpoints / "16")
    run = fit(24)
    query = "select * from metrics where source != 'time' order by step, name"
    with sqlite3.connect(tmp_path / "run" / "metrics.db") as database:
        found = database.execute(query).fetchall()
    assert found == sorted(
        (row["step"], row["source"], name, value)
        for row in run.history
        for name, value in loopax.writers.values_of(row).items()
    )
