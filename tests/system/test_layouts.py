"""What one layout of processes and devices has saved is restored on each other one."""

import pytest

from tests.system.layouts import matrix


@pytest.mark.slow
def test_a_checkpoint_is_restored_on_every_layout_of_processes_and_devices(tmp_path):
    same = matrix(tmp_path)
    assert [pair for pair, is_same in same.items() if not is_same] == []
