"""A short sweep of kills; `python -m tests.system.faults` makes a long one."""

import pytest

from tests.system import faults


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_loses_nothing(kills, tmp_path):
    campaigns, values = faults.sweep(tmp_path, kills, runs=2, length=0.05, seed=1)
    assert [problem for campaign in campaigns for problem in campaign.problems] == []
    assert sum(campaign.kills for campaign in campaigns) >= kills
    assert all(campaign.over for campaign in campaigns)
    assert values > 100
    # That it compares what it should: a leaf of the optimiser, a row, a pixel.
    alone = faults.outcome(tmp_path / "vae-alone")
    assert {"metrics.jsonl", "results.json", "pictures/samples.png", "best step"} <= alone.keys()
    assert any(name.startswith("latest ['opt_state']") for name in alone)
    rows = (tmp_path / "vae-alone" / "metrics.jsonl").read_text()
    (tmp_path / "vae-alone" / "metrics.jsonl").write_text(rows.replace("1", "2", 1))
    other = faults.outcome(tmp_path / "vae-alone")
    assert [name for name in alone if alone[name] != other[name]] == ["metrics.jsonl"]
