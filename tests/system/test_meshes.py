"""Runs on eight virtual devices, each as exact as one on a single device."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.system.meshes import MESHES


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    home = tmp_path_factory.mktemp("meshes")
    done = subprocess.run(
        [sys.executable, "-m", "tests.system.meshes", home],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    return {**json.loads(done.stdout), "said": done.stderr}


def losses(rows):
    return [
        row["loss"]
        for row in map(json.loads, rows.splitlines())
        if row["source"] in ("train", "test")
    ]


def test_all_devices_share_a_batch_that_they_divide(told):
    assert told["default"] == 8
    assert "default: trains on 8 devices, data=8\n" in told["said"]


def test_the_device_that_jax_is_told_to_use_trains_alone(told):
    assert told["alone"] == {"on": [3], "state": told["data=1"]["state"]}
    assert "alone: trains on data=1; 7 of 8 devices idle\n" in told["said"]


def test_what_the_devices_cannot_divide_is_said(told):
    """Batches that come ready-made, and an array without an axis to divide."""
    assert "undivided None: trains on 4 devices, data=4; 4 of 8 devices idle\n" in told["said"]
    assert (
        "undivided fsdp=4: mesh is fsdp=4, and fsdp divides no axis of trainable/w (45, 45); each "
        "device holds 100% of the state whole\n"
    ) in told["said"]


@pytest.mark.parametrize("mesh", MESHES)
def test_the_same_mesh_gives_the_same_bits(told, mesh):
    """Whatever the length of the chunks, interrupted or not, and executed again."""
    found = told[mesh]
    assert found["in parts"] == found["replayed"] == found["state"]
    # The first part also measured its own last step.
    in_parts = found["rows in parts"].splitlines(True)
    assert "".join(row for row in in_parts if '"step": 17' not in row) == found["rows"]
    assert len(found["compiled"]["train"]) == 1


@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_comes_to_the_same_losses(told, mesh):
    np.testing.assert_allclose(
        losses(told[mesh]["rows"]), losses(told["data=1"]["rows"]), rtol=1e-4
    )


@pytest.mark.parametrize("mesh", MESHES)
def test_a_checkpoint_is_restored_on_another_mesh(told, mesh):
    assert told[mesh]["elsewhere"] == told[mesh]["state"]


def test_adapters_of_lora_train_beside_a_kernel_that_is_divided(told):
    alone, divided, in_parts = told["adapters"]
    assert (alone["base on a device"], divided["base on a device"]) == (1, 1 / 4)
    np.testing.assert_allclose(losses(divided["rows"]), losses(alone["rows"]), rtol=1e-4)
    assert divided["base"] == alone["base"]
    assert in_parts["state"] == divided["state"] != alone["state"]


def test_data_that_the_devices_share_gives_the_same_bits(told):
    """Ten rows on eight devices, and floats that addition would not keep."""
    divided = told["divided"]
    assert divided["rows on a device"] == 2
    assert set(divided["kept"].values()) == {True}
    assert divided["state"] == told["data=2,fsdp=4"]["state"]


def test_devices_send_each_other_what_theory_says_and_no_more(told):
    """Gradients once; with `fsdp` the parameters too, and never the activations."""
    sent = told["sent"]
    assert sent["data=1"] == {}
    assert sent["data=8"] == {"all-reduce": pytest.approx(1, abs=0.02)}
    assert sent["fsdp=8"].keys() == {"all-reduce", "all-gather"}
    assert sent["fsdp=8"]["all-reduce"] == pytest.approx(1, abs=0.02)
    assert sent["fsdp=8"]["all-gather"] < 1


def test_a_mesh_that_cannot_be_is_refused_with_what_would_be_right(told):
    assert told["refused"] == [
        "mesh is data=2,fsdp=4, over which a batch of 20 cannot be shared evenly; take a batch "
        "size of 16 or 24",
        "mesh is data=8, over which a batch of 4 cannot be shared evenly; take a batch size of 8",
        "mesh is data=16, 16 devices; there are 8",
    ]


@pytest.mark.parametrize(
    ("mesh", "parts"), [("data=8", 1), ("data=2,fsdp=4", 4), ("data=2,tensor=4", 4)]
)
def test_a_mesh_divides_what_a_device_holds(told, mesh, parts):
    assert told[mesh]["kernel on a device"] * parts == told[mesh]["kernel"]
    assert told[mesh]["its moments on a device"] * parts == told[mesh]["kernel"]
