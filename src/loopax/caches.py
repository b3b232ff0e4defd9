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


COMPILED_BYTES = 1 << 30
"""What all compiled programs together may take; those that were used longest ago go first."""


def _make_room(folder: Path, limit: int = COMPILED_BYTES) -> None:
    """Removes files below `folder` until half of `limit` is free, where they take more than that.

    JAX's own limit stops all writing once a process is killed at the wrong moment:
    https://github.com/jax-ml/jax/issues/39880
    """
    found = []
    for file in folder.glob("*/*-cache"):
        with suppress(OSError):  # Another process has removed it.
            about = file.stat()
            found.append((max(about.st_atime, about.st_mtime), about.st_size, file))
    taken = sum(size for _, size, _ in found)
    if taken <= limit:
        return
    for _, size, file in sorted(found):
        if taken <= limit // 2:
            break
        with suppress(OSError):
            file.unlink()
        taken -= size


def keep_compiled() -> None:
    """Lets processes on machines of this kind share what they compiled, in the user's cache.

    A second start begins seconds sooner. What `JAX_COMPILATION_CACHE_DIR` says goes first, and
    `JAX_ENABLE_COMPILATION_CACHE=0` leaves all as it is. Other processors get a folder of their
    own: JAX would run instructions there that they do not have. It is JAX's own cache, and holds
    for the whole process: the command line turns it on, and a program does where it wants to.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache:
        return
    kind = hashlib.sha256(repr((cpu_kind(), visible_cores())).encode()).hexdigest()[:12]
    folder = cache_folder(f"compiled/{kind}")
    if folder is None:
        return
    _make_room(folder.parent)
    config.update("jax_compilation_cache_dir", str(folder))
    # Small programs are many, and each is read in a tenth of the time in which it is compiled.
    config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # What cannot be read, as after a kill, or be written is compiled: that is nothing to report.
    for verb in ("reading", "writing"):
        warnings.filterwarnings("ignore", f"Error {verb} persistent compilation cache", UserWarning)
