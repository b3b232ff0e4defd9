"""loopax: the training loop for JAX.

Everything public is here; importing it is free, each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loopax import data as data
    from loopax.checkpoint import CheckpointStore as CheckpointStore
    from loopax.cost import estimate as estimate
    from loopax.drawing import legible as legible
    from loopax.drawing import save_curves as save_curves
    from loopax.drawing import save_figure as save_figure
    from loopax.durable import replacing as replacing
    from loopax.durable import storing as storing
    from loopax.environment import cache_dir as cache_dir
    from loopax.errors import LoopaxError as LoopaxError
    from loopax.evaluation import Evaluation as Evaluation
    from loopax.evaluation import evaluate as evaluate
    from loopax.loop import Chunk as Chunk
    from loopax.loop import fit as fit
    from loopax.loop import steps as steps
    from loopax.moments import Hook as Hook
    from loopax.optimizer import Group as Group
    from loopax.optimizer import Optimizer as Optimizer
    from loopax.optimizer import Schedule as Schedule
    from loopax.optimizer import recorded_learning_rate as recorded_learning_rate
    from loopax.origin import Origin as Origin
    from loopax.origin import settings_table as settings_table
    from loopax.replay import Replay as Replay
    from loopax.report import Figures as Figures
    from loopax.report import Picture as Picture
    from loopax.report import Rows as Rows
    from loopax.report import Section as Section
    from loopax.report import Text as Text
    from loopax.report import write_report as write_report
    from loopax.retention import Checkpoints as Checkpoints
    from loopax.run import Run as Run
    from loopax.rundir import RunDir as RunDir
    from loopax.rundir import read_config as read_config
    from loopax.state import TrainState as TrainState
    from loopax.weights import read_weights as read_weights
    from loopax.weights import save_weights as save_weights
    from loopax.weights import with_weights as with_weights

_HOMES = {
    "fit": "loopax.loop",
    "steps": "loopax.loop",
    "evaluate": "loopax.evaluation",
    "TrainState": "loopax.state",
    "Optimizer": "loopax.optimizer",
    "Schedule": "loopax.optimizer",
    "Group": "loopax.optimizer",
    "recorded_learning_rate": "loopax.optimizer",
    "Evaluation": "loopax.evaluation",
    "Hook": "loopax.moments",
    "Checkpoints": "loopax.retention",
    "CheckpointStore": "loopax.checkpoint",
    "Replay": "loopax.replay",
    "read_weights": "loopax.weights",
    "save_weights": "loopax.weights",
    "with_weights": "loopax.weights",
    "Run": "loopax.run",
    "Chunk": "loopax.loop",
    "RunDir": "loopax.rundir",
    "read_config": "loopax.rundir",
    "replacing": "loopax.durable",
    "storing": "loopax.durable",
    "write_report": "loopax.report",
    "Section": "loopax.report",
    "Text": "loopax.report",
    "Figures": "loopax.report",
    "Rows": "loopax.report",
    "Picture": "loopax.report",
    "Origin": "loopax.origin",
    "settings_table": "loopax.origin",
    "save_curves": "loopax.drawing",
    "save_figure": "loopax.drawing",
    "legible": "loopax.drawing",
    "estimate": "loopax.cost",
    "cache_dir": "loopax.environment",
    "LoopaxError": "loopax.errors",
}
_MODULES = ("data", "models", "recipes", "errors")

__version__ = "0.1.0"
__all__ = [*_HOMES, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"loopax.{name}")
    raise AttributeError(f"module 'loopax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
