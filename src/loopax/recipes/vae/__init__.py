"""A class-conditional VAE: train it, sample it, see what it reconstructs, measure it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loopax.recipes.vae.config import PRESETS as PRESETS
    from loopax.recipes.vae.config import VAEConfig as VAEConfig
    from loopax.recipes.vae.pictures import save_grid as save_grid
    from loopax.recipes.vae.problem import Problem as Problem
    from loopax.recipes.vae.problem import loss_function as loss_function
    from loopax.recipes.vae.trained import RESULTS as RESULTS
    from loopax.recipes.vae.trained import TrainedVAE as TrainedVAE
    from loopax.recipes.vae.trained import load as load
    from loopax.recipes.vae.trained import stored_config as stored_config
    from loopax.recipes.vae.training import train as train

_HOMES = {
    "PRESETS": "config",
    "VAEConfig": "config",
    "RESULTS": "trained",
    "TrainedVAE": "trained",
    "load": "trained",
    "save_grid": "pictures",
    "Problem": "problem",
    "loss_function": "problem",
    "stored_config": "trained",
    "train": "training",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
