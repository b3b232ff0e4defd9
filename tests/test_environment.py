"""What can change the bits of a result is recorded, nothing else is, and a change is said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

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


def test_equal_environments_have_equal_records_also_by_way_of_json():
    assert json.loads(json.dumps(numerics())) == numerics()
    assert changes(json.loads(json.dumps(numerics())), numerics()) == []


def test_what_was_set_before_jax_started_is_seen():
    other = numerics_of_a_process(
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])",
        NPROC="1",
        XLA_FLAGS="--xla_force_host_platform_device_count=3",
        JAX_ENABLE_X64="1",
        JAX_DEFAULT_PRNG_IMPL="rbg",
        JAX_THREEFRY_PARTITIONABLE="0",
        JAX_DEFAULT_MATMUL_PRECISION="highest",
    )
    expected = {
        "device_count": 3,
        "visible_cores": 1,
        "NPROC": "1",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=3",
        "jax_enable_x64": True,
        "jax_default_matmul_precision": "highest",
        "jax_default_prng_impl": "rbg",
        "jax_threefry_partitionable": False,
    }
    assert other == numerics() | expected
    changed = [name for name in expected if numerics()[name] != expected[name]]
    assert [line.split()[0] for line in changes(numerics(), other)] == changed


def test_versions_and_the_processor_are_in_the_record():
    record = numerics()
    assert record["jax"] == jax.__version__
    assert record["jaxlib"] == provenance()["packages"]["jaxlib"]
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        assert not name or record["cpu"].startswith(name[0].partition(": ")[2])


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
        ({"a": 1, "c": 3, "b": 2}, {"a": 1}, ["c 3 -> unknown", "b 2 -> unknown"]),
        ({"a": [1]}, {"a": 1}, ["a [1] -> 1"]),
        ({"a": "\x1b[31m\n"}, {"a": 1}, ["a '\\x1b[31m\\n' -> 1"]),
        ({}, {"a": 1}, ["numerics unknown -> recorded"]),
    ],
)
def test_changes_are_read_as_a_line_each(before, now, lines):
    assert changes(before, now) == lines
