"""The benchmark beside peers: what its page tells of winners and failures, and how it counts."""

from pathlib import Path

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
    text = page.text({"results": {"16": rows}, "titles": names})
    said = "At batch 16, faster than loopax: bare scan (1.20 times); level with it: NNX; loopax is "
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
