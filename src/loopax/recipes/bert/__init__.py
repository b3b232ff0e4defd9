"""A classifier of texts, fine-tuned from a pretrained BERT: train it, ask it, measure it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loopax.recipes.bert.config import PRESETS as PRESETS
    from loopax.recipes.bert.config import FineTuneConfig as FineTuneConfig
    from loopax.recipes.bert.evaluation import evaluate as evaluate
    from loopax.recipes.bert.evaluation import tables as tables
    from loopax.recipes.bert.pretrained import Pretrained as Pretrained
    from loopax.recipes.bert.pretrained import read_pretrained as read_pretrained
    from loopax.recipes.bert.problem import Problem as Problem
    from loopax.recipes.bert.problem import costs as costs
    from loopax.recipes.bert.saving import save_pretrained as save_pretrained
    from loopax.recipes.bert.trained import TrainedClassifier as TrainedClassifier
    from loopax.recipes.bert.trained import export as export
    from loopax.recipes.bert.trained import load as load
    from loopax.recipes.bert.trained import stored_config as stored_config
    from loopax.recipes.bert.trained import texts_like as texts_like
    from loopax.recipes.bert.training import train as train

_HOMES = {
    "PRESETS": "config",
    "FineTuneConfig": "config",
    "evaluate": "evaluation",
    "tables": "evaluation",
    "Pretrained": "pretrained",
    "read_pretrained": "pretrained",
    "save_pretrained": "saving",
    "Problem": "problem",
    "costs": "problem",
    "TrainedClassifier": "trained",
    "export": "trained",
    "load": "trained",
    "stored_config": "trained",
    "texts_like": "trained",
    "train": "training",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
