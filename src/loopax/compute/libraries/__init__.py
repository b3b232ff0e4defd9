"""Model libraries: how a model of each is taken apart into arrays and structure, and merged again.

A library is found by the type of the model, and only among those that the program has imported.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from loopax.compute.libraries.base import Library

PACKAGES = {"flax.linen": "linen", "flax.nnx": "nnx", "equinox": "equinox", "haiku": "haiku"}
"""The module here that knows a package."""


def library_of(model: Any) -> Library | None:
    """The library that a model was made with; None where it is of none of them."""
    for package, name in PACKAGES.items():
        # A model cannot be of a library that nobody has imported.
        if package in sys.modules:
            library: Library = importlib.import_module(f"{__name__}.{name}")
            if isinstance(model, library.MODEL):
                return library
    return None
