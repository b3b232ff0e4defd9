"""What can change the bits of a result is recorded, nothing else is, and a change is said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopax.environment import changes, numerics, provenance
from loopax.run.directory import RunDir


def numerics_of_a_process(before="", **variables):
    """The record of a new process, which runs `before` first."""
    code = (
        f"import json, os; {before}\n"
        "from loopax.environment import numerics; print(json.dumps(numerics()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def usual():
    """The record of a process with two cores and two devices, whatever this machine has."""
    return numerics_of_a_process(NPROC="2", XLA_FLAGS="--xla_force_host_platform_device_count=2")


def test_equal_environments_have_equal_records_also_by_way_of_json():
    assert json.loads(json.dumps(numerics())) == numerics()
    assert changes(json.loads(json.dumps(numerics())), numerics()) == []


def test_what_was_set_before_jax_started_is_seen(usual):
    other = numerics_of_a_process(
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])",
        NPROC="1",
        XLA_FLAGS="--xla_force_host_platform_device_count=3",
        JAX_ENABLE_X64="1",
        JAX_DEFAULT_PRNG_IMPL="rbg",
        JAX_THREEFRY_PARTITIONABLE="0",
        JAX_DEFAULT_MATMUL_PRECISION="highest",
    )
    expected = [
        "device_count 2 -> 3",
        "NPROC '2' -> '1'",
        "XLA_FLAGS '--xla_force_host_platform_device_count=2' -> "
        "'--xla_force_host_platform_device_count=3'",
        "jax_enable_x64 False -> True",
        "jax_default_matmul_precision unset -> 'highest'",
        "jax_default_prng_impl 'threefry2x32' -> 'rbg'",
        "jax_threefry_partitionable True -> False",
    ]
    if usual["visible_cores"] != 1:
        expected.insert(1, f"visible_cores {usual['visible_cores']} -> 1")
    assert changes(usual, other) == expected


def test_versions_and_the_processor_are_in_the_record(usual):
    assert usual["jax"] == jax.__version__
    assert usual["jaxlib"] == provenance()["packages"]["jaxlib"]
    assert (usual["platform"], usual["device_kinds"]) == ("cpu", ["cpu"])
    info = Path("/proc/cpuinfo")
    if info.exists():
        assert usual["cpu"] == numerics()["cpu"]
        name = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        assert not name or usual["cpu"].startswith(name[0].partition(": ")[2])


def test_no_other_variable_is_ever_recorded(monkeypatch):
    monkeypatch.setenv("API_TOKEN", "hunter2")
    monkeypatch.setenv("JAX_SECRET", "hunter2")
    assert "hunter2" not in json.dumps([provenance(), numerics()])


def test_each_start_of_a_run_holds_the_record(tmp_path):
    run = RunDir.create(tmp_path / "run")
    run.note_start(0, print, key=[0, 1], data={"name": "tiny"})
    run.note_start(7, print, key=[0, 1], data={"name": "tiny"})
    first, second = run.read_json("run.json")["starts"]
    assert (first["step"], second["step"], second["data"]) == (0, 7, {"name": "tiny"})
    assert second["pid"] == os.getpid()
    assert second["packages"]["jax"] == jax.__version__
    assert changes(first["numerics"], numerics()) == []


@pytest.mark.parametrize(
    ("before", "now", "lines"),
    [
        ({"visible_cores": 2}, {"visible_cores": 1}, ["visible_cores 2 -> 1"]),
        ({"NPROC": None}, {"NPROC": "2"}, ["NPROC unset -> '2'"]),
        ({"NPROC": "2"}, {"NPROC": None}, ["NPROC '2' -> unset"]),
        ({"a": 1}, {"a": 1, "b": None}, ["b unknown -> unset"]),
        ({"a": 1, "c": 3, "b": 2}, {"a": 1}, ["'b' 2 -> unknown", "'c' 3 -> unknown"]),
        ({"a": [1]}, {"a": 1}, ["a [1] -> 1"]),
        ({"a": "\x1b[31m\n"}, {"a": 1}, ["a '\\x1b[31m\\n' -> 1"]),
        ({"\x1b[31m\n": 1, "a": 1}, {"a": 1}, ["'\\x1b[31m\\n' 1 -> unknown"]),
        (None, {"a": 1}, ["numerics unknown -> recorded"]),
        ({}, {"a": 1}, ["numerics unknown -> recorded"]),
        ([1, 2], {"a": 1}, ["numerics unknown -> recorded"]),
        ("a", {"a": 1}, ["numerics unknown -> recorded"]),
    ],
)
def test_changes_are_read_as_a_line_each(before, now, lines):
    assert changes(before, now) == lines


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(before=anything | st.dictionaries(st.sampled_from(sorted(numerics())), anything))
def test_no_record_of_a_file_breaks_the_comparison(before):
    for line in changes(before, numerics()):
        assert line.isprintable()
        assert len(line) < 3000


def test_a_deep_or_a_long_record_is_cut_short():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    now = {"a": 1, "b": 2, "c": 3, "d": ["cpu"]}
    lines = changes({"a": deep, "b": "x" * 10**6, "c": 10**4000, "d": [deep]}, now)
    assert [line[:2] for line in lines] == ["a ", "b ", "c ", "d "]
    assert all(len(line) < 200 for line in lines)
