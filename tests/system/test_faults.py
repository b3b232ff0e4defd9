"""A short sweep of kills; `python -m tests.system.faults` makes a long one."""

from tests.system import faults


def test_a_run_that_is_killed_again_and_again_loses_nothing(tmp_path):
    campaigns, values = faults.sweep(tmp_path, kills=12, runs=2, length=0.1, seed=1)
    assert [problem for campaign in campaigns for problem in campaign.problems] == []
    assert sum(campaign.kills for campaign in campaigns) >= 12
    assert all(campaign.over for campaign in campaigns)
    assert values > 100


def test_the_sweep_sees_a_difference(tmp_path):
    """In a leaf, in a row and in a pixel."""
    sweep = faults.sweep(tmp_path, kills=0, runs=1, length=0.01, seed=1)
    assert sweep[0] == []
    run_dir = tmp_path / "vae-alone"
    before = faults.outcome(run_dir)
    names = {"metrics.jsonl", "results.json", "pictures/samples.png", "latest step", "best step"}
    assert names <= before.keys()
    assert any(name.startswith("latest ['opt_state']") for name in before)
    rows = (run_dir / "metrics.jsonl").read_text()
    (run_dir / "metrics.jsonl").write_text(rows.replace("1", "2", 1))
    assert faults.outcome(run_dir) != before
