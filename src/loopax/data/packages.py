"""Archives of packages, fetched by the ordinary clients as their user has set them up."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

from loopax.data.files import fault
from loopax.errors import ConfigError, StorageError


def fetch_archive(client: str, package: str, version: str, folder: Path) -> Path:
    """Puts the archive of a package into a folder, by pip or npm, and says where.

    Nothing of it is installed, and none of its code is run.

    Raises:
        ConfigError: the client is not there.
        DataError: it does not fetch the package.
        StorageError: the disk is full.
    """
    before = set(folder.iterdir())
    command = _command(client, f"{package}{'==' if client == 'pip' else '@'}{version}", folder)
    # In the folder, so that no file of where the user stands is taken for a setting or a module.
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
    )
    where = f"{package} {version}"
    if done.returncode and re.search("No space left|ENOSPC", done.stderr):
        raise StorageError(
            f"{where}: {client} has no room for it; make room in {folder.parent}, in the folder of "
            f"temporary files and in the cache of {client}"
        )
    if done.returncode:
        raise fault(
            where,
            f"{client} cannot fetch it ({_reason(done.stderr)}); is there a network, and does "
            f"{client} fetch other packages?",
        )
    archives = [path for path in folder.iterdir() if path not in before and path.is_file()]
    if len(archives) != 1:
        raise fault(where, f"{client} left {len(archives)} files; it must leave one archive")
    return archives[0]


def _command(client: str, requirement: str, folder: Path) -> list[str]:
    if client == "pip":
        if importlib.util.find_spec("pip") is None:
            raise ConfigError(
                f"{requirement} is fetched by pip, which {sys.executable} does not have; "
                "install it with: python -m ensurepip"
            )
        # A wheel only: to fetch a source archive pip would run its code.
        options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
        return [
            sys.executable,
            "-m",
            "pip",
            "download",
            *options,
            "--dest",
            str(folder),
            requirement,
        ]
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError(f"{requirement} is fetched by npm, which is not there; install Node.js")
    return [npm, "pack", "--ignore-scripts", "--pack-destination", str(folder), requirement]


def _reason(complaint: str) -> str:
    """The first line that says so itself to be an error, or else the last."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "npm err"))]
    return textwrap.shorten((errors or lines[-1:] or ["it says nothing"])[0], 200)
