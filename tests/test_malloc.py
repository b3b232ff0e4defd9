"""What the process has freed is its own the next time, and is not filled with zeros again."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import threading
import numpy as np
from loopax.malloc import keep_freed_memory

def work():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(50_000_000, np.float32)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

keep_freed_memory()
thread = threading.Thread(target=work)  # as XLA computes
thread.start()
thread.join()
"""


def faults(**variables: str) -> list[int]:
    """Pages that the system gave for an array of 200 MB, and for the next one."""
    # NumPy asks for huge pages by default, which are few.
    environment = {"NUMPY_MADVISE_HUGEPAGE": "0", **variables}
    usual = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**usual, **environment},
        capture_output=True,
        check=True,
    )
    return [int(line) for line in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_a_large_array_takes_the_memory_of_the_one_before_unless_the_user_has_chosen():
    first, second = faults()
    assert first > 10_000
    assert second < first / 100
    first, second = faults(MALLOC_MMAP_THRESHOLD_="131072")
    assert second > first / 2, "the user's own setting stays"
