"""Runs of several processes on one machine: as exact as those of one, and ended as politely."""

import json
import signal

import jax
import numpy as np
import pytest

from loopax.data import Dataset, IterableBatches
from loopax.run.checkpoint_reader import CheckpointReader
from tests.system.many import LONG, member, problem
from tests.system.processes import Together, left_over, steps_in

PASSED_ON = "passed on"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


def bad_batches():
    """Of which the first are good."""
    _, data = problem()
    x = np.array(data.columns["x"])
    x[5] = np.nan
    return Dataset({**data.columns, "x": x}).batches(16)


def shuffled_by_itself(seed):
    """Batches under a name, in an order of their own."""
    _, data = problem()
    rows = np.random.default_rng(seed).permutation(240).reshape(-1, 16)
    columns = data.columns.items()
    batches = [{name: column[picked] for name, column in columns} for picked in rows]
    return IterableBatches(batches, identity="mine")


class Drifting:
    """A stream that nobody knows the length of, whose batches are others from one on."""

    def __init__(self, count, other_from):
        self.count, self.other_from = count, other_from

    def __iter__(self):
        x, label = np.ones((16, 32), np.float32), np.zeros(16, np.int32)
        return ({"x": x * (i < self.other_from), "label": label} for i in range(self.count))


@pytest.fixture(scope="module")
def told(home):
    """What two processes printed and said, after one, they and four have trained."""
    alone = Together(member, 1, home, home, [("one", 60), (PASSED_ON, 20)])
    assert alone.wait() == [0], alone.processes[0].said
    plan = [("resident", 60), (PASSED_ON, 40), ("long", LONG)]
    refused = [
        {"log_every": (10, 20)},
        {"data": [bad_batches()] * 2, "run_dir": [home / "bad"] * 2},
        {"data": [shuffled_by_itself(0), shuffled_by_itself(1)]},
        {"data": [Drifting(40, 99), Drifting(40, 25)], "run_dir": [home / "drifting"] * 2},
        {"evaluation": [Drifting(3, 9), Drifting(2, 9)], "run_dir": [None] * 2},
    ]
    uneven = [iter([*Drifting(count, 99)]) for count in (40, 40, 40, 17)]
    ends = [{"data": uneven, "run_dir": [None] * 4}]
    two = Together(member, 2, home, home, plan, refused)
    second = two.processes[1]
    second.wait_for(lambda: len(steps_in(home / "long")) > 1, "a save of the long run")
    second.send(signal.SIGTERM)
    codes = two.wait()
    four = Together(member, 4, home, home, [(PASSED_ON, 60)], [], ends)
    assert four.wait() == [0] * 4, four.processes[0].said
    return {
        "codes": codes,
        "printed": [
            # Gloo prints too.
            [json.loads(line) for line in process.printed.splitlines() if line.startswith('"')]
            for process in (*two.processes, *four.processes)
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
    line = (
        "ConfigError: log_every is 10 in process 0 and 20 in process 1; start all processes with "
        "the same program, arguments and versions"
    )
    assert [lines[0] for lines in told["printed"][:2]] == [line, line]
    assert not (home / "refused").exists()


def test_processes_that_read_other_batches_under_one_name_are_refused(told):
    first, second = (lines[2] for lines in told["printed"][:2])
    assert first == second
    assert first.startswith("ConfigError: the data: data is an iterable whose first batches are ")


def test_a_stream_that_becomes_another_one_is_refused_before_it_is_trained_on(told, home):
    right = "; an iterable must give the same in all processes: the same files, order and seed"
    for lines in told["printed"][:2]:
        assert lines[3] == (
            "DataError: process 1 has read other batches than process 0 for steps 20 to 29" + right
        )
        assert lines[4] == (
            "DataError: process 1 has read other batches than process 0 for evaluation batches 0 "
            "to 2" + right
        )
    assert bits(home / "drifting")[0] == 20


def test_a_stream_that_ends_in_one_process_ends_all_with_its_line(told):
    said = (
        "the data ended after 17 batches, and list_iterator cannot be begun again; train for fewer "
        "steps, or pass something that can be iterated more than once"
    )
    others = f"ProcessError: process 3 ended: {said}"
    assert [lines[-1] for lines in told["printed"][2:]] == [*[others] * 3, f"DataError: {said}"]


def test_where_a_nan_began_is_found_by_one_process_and_said_by_all(told, home):
    first, second = (lines[1] for lines in told["printed"][:2])
    assert first == second
    assert first.startswith("NonFiniteError: ")
    autopsy = json.loads((home / "bad" / "autopsy.json").read_text())
    assert f"; step {autopsy['step']}: nan comes in with the batch's x; see " in first
