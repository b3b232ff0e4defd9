"""A process that is lost, or never comes, ends the others with a line that says which."""

import random

import pytest

from loopax import cluster
from loopax.errors import ConfigError, ProcessError
from tests.system.losses import kill_one
from tests.system.processes import Process, free_port


def test_when_process_0_is_lost_the_others_end_and_name_it(tmp_path):
    """It is the one by which the others are connected; JAX aborts them when it is gone."""
    kill_one(2, tmp_path, random.Random(0), victim=0)


@pytest.mark.slow
def test_when_any_process_is_lost_the_others_end_and_name_it(tmp_path):
    kill_one(4, tmp_path, random.Random(1), victim=2)
    kill_one(4, tmp_path, random.Random(2), victim=1)


def wait_alone(port):
    cluster.join(f"127.0.0.1:{port}", processes=2, process=0, patience=1)


def test_who_waits_in_vain_ends_and_says_so(tmp_path):
    port = free_port()
    with Process(wait_alone, port, log=tmp_path / "alone") as alone:
        assert alone.wait() == ProcessError.exit_code
    waits, ended = alone.said.splitlines()
    assert waits == f"loopax: process 0 of 2 waits for the others at 127.0.0.1:{port}"
    assert ended.startswith("loopax: process 0 of 2 waited 1 s in vain; start all processes again")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"coordinator": "node1"}, "coordinator is 'node1'; it must be host:port"),
        ({"processes": 2, "process": 2}, "process is 2; of 2 it must be one from 0 to 1"),
    ],
)
def test_processes_that_cannot_be_are_refused(arguments, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        cluster.join(**arguments)
