"""Packages that only some uses need: extras of loopax, as `pip install 'loopax[report]'`."""

from __future__ import annotations

import importlib.util
import sys

from loopax.errors import ConfigError


def require(extra: str, purpose: str, *modules: str) -> None:
    """Makes sure that what an extra installs can be imported, and imports nothing itself.

    Args:
        extra: its name in pyproject.
        purpose: what needs it, such as `drawing`.
        modules: what will be imported, by the names of the modules.

    Raises:
        ConfigError: one of them is not installed.
    """
    for module in modules:
        if not _is_there(module):
            raise ConfigError(f"{purpose} needs {module}: pip install 'loopax[{extra}]'")


def _is_there(module: str) -> bool:
    if module in sys.modules:  # None there is how a module is blocked
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None
