"""JAX's profiler over some steps: a trace where one looks for it, and the same run."""

import gzip
import json

import pytest

import loopax
from loopax.errors import ConfigError


def test_a_profile_holds_its_steps_and_changes_nothing(
    tmp_path, dataset, line_loss, line_state, bits
):
    def fit(run_dir, **options):
        data = dataset.batches(4)
        return loopax.fit(
            line_state(), line_loss, data, steps=12, run_dir=run_dir, progress=False, **options
        )

    run = fit(tmp_path / "traced", profile="3:5", chunk_steps=4)
    (trace,) = (tmp_path / "traced" / "profile").rglob("*.trace.json.gz")
    assert list(trace.parent.glob("*.xplane.pb")), "what TensorBoard opens"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any("train" in str(event.get("args", {}).get("hlo_module")) for event in events)
    assert bits(run.state) == bits(fit(tmp_path / "plain").state)


@pytest.mark.parametrize("wrong", ["10", "5:5", (1, 2, 3), 7])
def test_what_is_no_pair_of_steps_is_refused(dataset, line_loss, line_state, wrong):
    with pytest.raises(ConfigError, match="such as '100:110'"):
        loopax.fit(line_state(), line_loss, dataset.batches(4), steps=9, profile=wrong)


def test_that_nothing_was_traced_is_said(dataset, line_loss, line_state, capsys):
    loopax.fit(line_state(), line_loss, dataset.batches(4), steps=2, profile="10:20")
    assert "profile: no step from 10 to 20 was made" in capsys.readouterr().err
