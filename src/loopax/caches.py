"""What can be made again and is kept for the next time, in the user's cache."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from loopax.environment import cpu_kind, visible_cores
from loopax.errors import ConfigError


def cache_dir() -> Path:
    """Where what can be made again is kept: `$LOOPAX_CACHE`, or `loopax` in the user's cache.

    Raises:
        ConfigError: neither is known: there is no home.
    """
    if chosen := os.environ.get("LOOPAX_CACHE"):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loopax"
    except RuntimeError as error:
        raise ConfigError(
            f"there is no home directory to keep files in ({error}); let LOOPAX_CACHE name one"
        ) from error


def cache_folder(name: str) -> Path | None:
    """The folder `name` in the cache, made if it is not there; None where it cannot be written.

    A cache is a convenience: its user does without, and a line on stderr says how to have one.
    """
    try:
        folder = cache_dir() / name
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, ConfigError) as error:
        _without_cache(str(error))
        return None


@functools.cache
def _without_cache(reason: str) -> None:
    """Says it once in a process."""
    line = f"loopax: nothing is kept for the next time ({reason}); let LOOPAX_CACHE name a folder"
    with suppress(OSError):
        print(line, file=sys.stderr)


def keep_compiled() -> None:
    """Lets processes on machines of this kind share what they compiled, in the user's cache.

    A resumed run begins seconds sooner. What `JAX_COMPILATION_CACHE_DIR` says goes first. Other
    processors get a folder of their own: JAX would run instructions there that they do not have.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir is not None:
        return
    kind = hashlib.sha256(repr((cpu_kind(), visible_cores())).encode()).hexdigest()[:12]
    folder = cache_folder(f"compiled/{kind}")
    if folder is None:
        return
    config.update("jax_compilation_cache_dir", str(folder))
    config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # What cannot be read, as after a kill, or be written is compiled: that is nothing to report.
    for verb in ("reading", "writing"):
        warnings.filterwarnings("ignore", f"Error {verb} persistent compilation cache", UserWarning)
