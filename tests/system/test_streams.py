"""A short kill of what processes read; `python -m tests.system.streams` kills all kinds."""

import random
import signal

import pytest

from tests.system import streams

MODULES = {"datasets": "datasets", "torch's": "torch", "torchdata's": "torchdata"}
"""What a source needs that is installed for nothing else."""


def test_what_processes_read_goes_on_after_a_kill_and_leaves_none_of_them(tmp_path):
    pytest.importorskip("grain")
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    streams.train("Grain's map", whole)
    numbers, draw = [signal.SIGKILL], random.Random(1)
    problems, _ = streams.killed("Grain's map by processes", pieces, numbers, draw)
    assert problems + streams.differences(whole, pieces) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", streams.SOURCES)
def test_every_kind_of_source_goes_on_after_kills_and_a_ctrl_c(name, tmp_path):
    for word in name.split():
        if word in MODULES:
            pytest.importorskip(MODULES[word])
    problems, _ = streams.compared(name, tmp_path, kills=3, seed=1)
    assert problems == []
