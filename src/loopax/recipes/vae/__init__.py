"""A class-conditional VAE: train it, sample it, see what it reconstructs, measure it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loopax.recipes.vae.config import PRESETS as PRESETS
    from loopax.recipes.vae.config import VAEConfig as VAEConfig
    from loopax.recipes.vae.evaluation import evaluate as evaluate
    from loopax.recipes.vae.evaluation import tables as tables
    from loopax.recipes.vae.exporting import export as export
    from loopax.recipes.vae.judge import judge_for as judge_for
    from loopax.recipes.vae.judge import kept_for as kept_for
    from loopax.recipes.vae.judge import read_judge as read_judge
    from loopax.recipes.vae.judge import train_judge as train_judge
    from loopax.recipes.vae.objective import Objective as Objective
    from loopax.recipes.vae.pictures import save_grid as save_grid
    from loopax.recipes.vae.pictures import save_reconstructions as save_reconstructions
    from loopax.recipes.vae.problem import Problem as Problem
    from loopax.recipes.vae.problem import costs as costs
    from loopax.recipes.vae.problem import data_of as data_of
    from loopax.recipes.vae.trained import TrainedVAE as TrainedVAE
    from loopax.recipes.vae.trained import load as load
    from loopax.recipes.vae.trained import stored_config as stored_config
    from loopax.recipes.vae.training import train as train

_HOMES = {
    "PRESETS": "config",
    "VAEConfig": "config",
    "evaluate": "evaluation",
    "tables": "evaluation",
    "export": "exporting",
    "judge_for": "judge",
    "kept_for": "judge",
    "read_judge": "judge",
    "train_judge": "judge",
    "Objective": "objective",
    "save_grid": "pictures",
    "save_reconstructions": "pictures",
    "Problem": "problem",
    "costs": "problem",
    "data_of": "problem",
    "TrainedVAE": "trained",
    "load": "trained",
    "stored_config": "trained",
    "train": "training",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
