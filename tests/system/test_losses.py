"""A process that is lost, or never comes, ends the others with a line that says which."""

import os
import random
import socket

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
    assert ended == (
        f"loopax: process 0 of 2 waited 1 s in vain for all 2 to come to 127.0.0.1:{port}; each "
        "must be started, with a number of its own, and reach that host and port"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"coordinator": "node1"}, "coordinator is 'node1'; it must be host:port"),
        ({"coordinator": "node1:123456"}, "coordinator is 'node1:123456'; it must be host:port"),
        ({"processes": 2, "process": 2}, "process is 2; of 2 it must be one from 0 to 1"),
        ({"processes": 0, "process": 0}, "processes is 0; it must be how many there are"),
    ],
)
def test_processes_that_cannot_be_are_refused(arguments, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        cluster.join(**arguments)


def test_a_second_process_0_is_refused():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} is not free here"):
            cluster.join(f"127.0.0.1:{port}", processes=2, process=0)


OMPI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}


def join_by_launcher(variables):
    os.environ.update(variables)
    try:
        cluster.join()
    except ConfigError as error:
        print(error)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        pytest.param({"JAX_COORDINATOR_ADDRESS": "node1"}, "must be host:port", id="JAX"),
        pytest.param({"SLURM_JOB_ID": "7"}, "start the program with srun", id="SLURM"),
        pytest.param(OMPI, "the launcher has not set OMPI_COMM_WORLD_SIZE", id="Open MPI"),
        pytest.param({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "'jax[k8s]'", id="Kubernetes"),
    ],
)
def test_a_launcher_that_does_not_tell_enough_is_said_in_a_line(variables, said, tmp_path):
    with Process(join_by_launcher, variables, log=tmp_path / "alone") as alone:
        assert alone.wait() == 0
    (line,) = alone.printed.splitlines()
    assert said in line
    assert alone.said == ""
