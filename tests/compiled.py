"""Compiled programs, in a folder that all test processes share, and the programs that they start.

Most runs here differ in how they are driven and not in what is compiled. Only programs that are
equal to the letter share a compilation, so nothing that is compared is made equal by it.
"""

import os
import threading
from pathlib import Path

import jax
import pytest
from jax._src.lru_cache import LRUCache


def share(folder: str | Path) -> None:
    """Keeps compiled programs in a folder, in this process and in those that it starts."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    LRUCache.put = _put_whole


def _put_whole(cache: LRUCache, key: str, value: bytes) -> None:
    """So that no other process reads half a program, as it might of JAX's own."""
    file = cache.path / f"{key}-cache"
    if not file.exists():
        part = cache.path / f".{key}-{os.getpid()}-{threading.get_ident()}"
        part.write_bytes(value)
        part.replace(file)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """For a folder whose tests mostly compile: a third sooner, where they may run slower.

    Not where a step is compared bit for bit with the same step elsewhere, which is to hold for the
    programs that users get.
    """
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """As all other folders want it."""
    jax.config.update("jax_disable_most_optimizations", False)
