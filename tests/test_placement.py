import jax
import pytest
from jax.sharding import PartitionSpec

from loopax.errors import ConfigError
from loopax.placement import ONE, placement


@pytest.mark.parametrize("mesh", [None, "data=1", " data = 1 , fsdp=1"])
def test_a_single_device_has_no_mesh(mesh):
    assert placement(mesh, 16) == ONE


@pytest.mark.parametrize(
    ("mesh", "wrong"),
    [
        ("data", "mesh is 'data'; it must be a text such as 'data=2,fsdp=4'"),
        ("data=0", "mesh is 'data=0'; it must be"),
        (8, "mesh is 8; it must be"),
        ("", "mesh is ''; it must be"),
        ("data=1,data=1", "mesh is 'data=1,data=1'; it must be"),
        ("rows=1", "mesh has the axis 'rows'; its axes are data, fsdp, tensor"),
        ("data=64", "mesh is data=64, 64 devices; there are 1"),
    ],
)
def test_what_is_no_mesh_is_refused(mesh, wrong):
    with pytest.raises(ConfigError) as caught:
        placement(mesh, 16)
    assert str(caught.value).startswith(wrong)


@pytest.mark.parametrize("part", ["data", PartitionSpec("tensor")])
def test_an_array_is_spread_by_an_axis_of_the_mesh(part):
    with pytest.raises(ConfigError, match=r"it must be a jax.sharding.PartitionSpec of the axes d"):
        placement("data=1", 16, {"**/kernel": part})


def test_processes_that_are_not_connected_are_refused(monkeypatch):
    """Each would train by itself and write into the other's directory."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(
        ConfigError, match=r"2 processes that cannot talk .* call jax.distributed.initialize"
    ):
        placement(None, 16)
