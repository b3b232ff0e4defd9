"""Runs of several processes on one machine: as exact as those of one, and ended as politely."""

import json
import signal
import socket

import jax
import numpy as np
import pytest

from loopax.run.checkpoint_reader import CheckpointReader
from tests.system.many import LONG, member
from tests.system.processes import Process, left_over, steps_in

PASSED_ON = "passed on"


class Started:
    """So many processes that train together, and what becomes of them."""

    def __init__(self, count, home, plan, refused=()):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = [
            Process(member, port, count, index, home, plan, refused, log=home / f"{count}-{index}")
            for index in range(count)
        ]

    def wait(self):
        """How each of them ended; none goes on after this."""
        try:
            return [process.wait() for process in self.processes]
        finally:
            for process in self.processes:
                process.__exit__()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def told(home):
    """What two processes printed and said, after one, they and four have trained."""
    alone = Started(1, home, [("one", 60), (PASSED_ON, 20)])
    assert alone.wait() == [0], alone.processes[0].said
    two = Started(
        2,
        home,
        [("resident", 60), (PASSED_ON, 40), ("long", LONG)],
        refused=[{"log_every": (10, 20)}],
    )
    second = two.processes[1]
    second.wait_for(lambda: len(steps_in(home / "long")) > 1, "a save of the long run")
    second.send(signal.SIGTERM)
    codes = two.wait()
    four = Started(4, home, [(PASSED_ON, 60)])
    assert four.wait() == [0] * 4, four.processes[0].said
    return {
        "codes": codes,
        # Gloo prints too.
        "printed": [
            [line for line in process.printed.splitlines() if line.startswith('"')]
            for process in two.processes
        ],
        "said": [process.said for process in four.processes],
    }


def bits(run_dir):
    tree, meta = CheckpointReader(run_dir / "checkpoints").read()
    is_key = jax.dtypes.prng_key
    arrays = [
        np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, is_key) else leaf)
        for leaf in jax.tree.leaves(tree)
    ]
    return meta["step"], [array.tobytes() for array in arrays]


@pytest.mark.parametrize("run", ["resident", PASSED_ON])
def test_one_mesh_gives_the_same_bits_whoever_holds_it(told, home, run):
    """By one process, by two, and by one, then two, then four; resident or gathered in parts."""
    assert bits(home / run) == bits(home / "one")
    rows = (home / run / "metrics.jsonl").read_text()
    assert rows == (home / "one" / "metrics.jsonl").read_text()


def test_one_process_writes_and_shows(told, home):
    assert left_over(home / PASSED_ON) == []
    hooked = [
        row["process"]
        for row in map(json.loads, (home / PASSED_ON / "metrics.jsonl").read_text().splitlines())
        if row["source"] == "hook"
    ]
    assert hooked == [0, 0, 0]
    starts = json.loads((home / PASSED_ON / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 20, 40]
    shown = ["train step" in said for said in told["said"]]
    assert shown == [True, False, False, False]


def test_a_signal_to_one_process_saves_once_and_ends_all(told, home):
    assert told["codes"] == [128 + signal.SIGTERM] * 2
    step, _ = bits(home / "long")
    rows = (home / "long" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == step < LONG
    assert left_over(home / "long") == []


def test_processes_that_are_started_otherwise_are_refused_in_a_line(told, home):
    line = json.dumps(
        "ConfigError: log_every is 10 in process 0 and 20 in process 1; start all processes with "
        "the same program, arguments and versions"
    )
    assert told["printed"] == [[line], [line]]
    assert not (home / "refused").exists()
