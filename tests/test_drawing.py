"""Curves show what matters of a metric, and names of the user's own fit into pictures."""

import pytest
from matplotlib.figure import Figure

from loopax.report import legible, save_curves


@pytest.fixture
def saved(monkeypatch):
    """The figures that are saved."""
    figures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path, **_: figures.append(self) or path.touch()
    )
    return figures


def history(values, source="train", name="loss"):
    return [{"step": step, "source": source, name: value} for step, value in enumerate(values)]


def test_the_best_of_a_metric_is_never_cut_off(saved, tmp_path):
    peak = [0.5] * 99 + [0.9]
    rows = history(peak, name="accuracy") + history(peak)
    titles = {"loss": "loss", "accuracy": "accuracy"}
    save_curves(rows, tmp_path / "c.png", titles)
    loss, accuracy = saved[0].axes
    assert accuracy.get_ylim()[1] > 0.9
    assert loss.get_title() == "loss"
    towering = history([1000.0, *[1.0, 2.0] * 50])
    save_curves(towering, tmp_path / "c.png", titles)
    assert saved[1].axes[0].get_ylim()[1] < 10


def test_each_source_has_its_curve_and_a_metric_that_is_not_there_no_panel(saved, tmp_path):
    rows = history([4.0], "validation") + history([3.0, 2.0])
    save_curves(rows, tmp_path / "c.png", {"accuracy": "accuracy", "loss": "nats"})
    (axes,) = saved[0].axes
    assert axes.get_title() == "nats"
    curves = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert [*curves.items()] == [("train", [3.0, 2.0]), ("validation", [4.0])]


def test_names_are_one_short_line_and_no_formula():
    assert legible("a\nb$c\x07") == "a?b?c?"
    assert legible("x" * 50) == "x" * 23 + "…"
