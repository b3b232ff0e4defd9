"""The benchmark beside peers: what its page tells of winners and failures, and how it counts."""

import json
from pathlib import Path

import pytest
from benchmarks.peers import __main__ as peers
from benchmarks.peers import page
from benchmarks.peers.contestants.base import Clock
from benchmarks.peers.task import Task


def row(pace):
    figures = {"steps": 100, "wall_s": 2.0, "first_s": 1.0, "pace": pace, "cpu_s": 1, "peak_mb": 9}
    return {"samples": [figures], "check": figures, "loss": 14.2}


def test_a_peer_that_wins_is_named_first_and_one_that_fails_is_a_line():
    names = {"scan": "bare scan", "loopax": "loopax.fit", "torch": "PyTorch", "keras": "Keras"}
    names["nnx"] = "NNX"
    rows = {"scan": row(120.0), "loopax": row(100.0), "nnx": row(98.0), "torch": row(50.0)}
    rows["keras"] = {"samples": [], "failed": "failed: ImportError: no keras"}
    text = page.text({"results": {"article": {"16": rows}}, "titles": names})
    said = "Faster than loopax: bare scan (1.20 times); level with it: NNX; loopax is "
    assert f"{said}faster than PyTorch (2.00)." in text
    lines = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")][2:]
    assert lines == ["| bare scan", "| **loopax.fit**", "| NNX", "| PyTorch", "| Keras"]
    assert "| Keras | failed: ImportError: no keras |" in text


def test_steps_that_are_told_of_together_do_not_count_as_made_at_once():
    """Rows of a chunk come at its end: here ten a second, of 100 steps each."""
    clock = Clock(Task(Path(), 16, 20_000), 0.0)
    clock.ticks = [
        (chunk + i / 1e3, 1000 * (chunk - 1) + 100 * i)
        for chunk in range(1, 21)
        for i in range(1, 11)
    ]
    assert abs(clock.pace(10.0) - 1000) < 1
    assert clock.pace(30.0) is None


def test_a_measurement_goes_on_where_an_earlier_one_ended(monkeypatch, tmp_path):
    made, machine = [], {"machine": "2 cores", "versions": {}}

    def run(name, task, folder):
        made.append((name, task.steps))
        return row(100.0)["check"], {}

    def facts(options, contestants):
        titles = {name: each.title for name, each in contestants.items()}
        common = {"python": "3", "seconds": 9, "minutes": 0, "sessions": [{}], "results": {}}
        return {**common, **machine, "titles": titles}

    monkeypatch.setattr(peers, "run", run)
    monkeypatch.setattr(peers, "test_loss", lambda weights, task, noise: 14.2)
    monkeypatch.setattr(page, "facts", facts)
    file = tmp_path / "peers.json"

    def measure(**changes):
        options = peers.Options(task=("article",), batch=(16,), json=file, seconds=9, **changes)
        measurement = peers.Measurement(options, tmp_path)
        measurement.check()
        measurement.sample()
        return json.loads(file.read_text())["results"]["article"]["16"]

    measure(only=("scan",), repeats=1)
    assert made == [("scan", 3750), ("scan", 900)]
    rows = measure(only=("scan", "loopax"), repeats=2)
    # What the scan has is kept; as its caches are gone, it compiles again, which is not counted.
    first, second = [("loopax", 3750), ("loopax", 900)], [("scan", 200), ("scan", 900)]
    assert made[2:] == [*first, *second, ("loopax", 900)]
    assert [len(rows[name]["samples"]) for name in ("scan", "loopax")] == [2, 2]
    machine["machine"] = "4 cores"
    with pytest.raises(SystemExit, match=r"peers.json: machine is 2 cores, now 4 cores; give anot"):
        measure(only=("scan",), repeats=3)
