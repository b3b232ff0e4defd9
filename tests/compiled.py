"""Compiled programs, in a folder that all test processes share, and the programs that they start.

Most runs here differ in how they are driven and not in what is compiled. Only programs that are
equal to the letter share a compilation, so nothing that is compared is made equal by it.
"""

import functools
import os
import threading
from pathlib import Path
from typing import Any

import jax
from jax._src import compiler
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


def hasten(wanted: bool, *, known: bool = False) -> None:
    """Compiles in a sixth of the time, or as users' programs are compiled.

    Without the optimisations of LLVM, each operation by itself, and all in one part. For all but
    tests that are marked `optimized`, where the bits are to be those that users get. `known` where
    another process has tried it, as that opens the devices.
    """
    global hastened, in_haste
    if wanted != hastened:
        # What was compiled the other way would be used on, and bits depend on the order of tests.
        jax.clear_caches()
    hastened, in_haste = wanted, wanted and (known or _is_known())
    jax.config.update("jax_disable_most_optimizations", wanted)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(wanted))  # for programs it starts


@functools.cache
def _is_known() -> bool:
    """Whether this XLA has the switches; that of JAX 0.12 has lost the first."""
    try:
        jax.jit(lambda: 0, compiler_options=IN_HASTE)()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _options(*args: Any, **kwargs: Any) -> Any:
    options = _users_options(*args, **kwargs)
    if in_haste:
        kept = options.env_option_overrides
        options.env_option_overrides = [*kept, *IN_HASTE.items()]
    return options


IN_HASTE = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
hastened = in_haste = False
_users_options = compiler.get_compile_options
compiler.get_compile_options = _options
