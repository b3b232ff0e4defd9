"""What a recipe has where it brings nothing of its own: a problem, what it comes to, measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from loopax.compute.state import TrainState
from loopax.deadline import check_time
from loopax.evaluation import Evaluation
from loopax.evaluation import evaluate as evaluate_state
from loopax.placement import put
from loopax.recipe.problem import Problem, Say
from loopax.report import Table
from loopax.run.checkpoint import CheckpointStore
from loopax.run.directory import RunDir
from loopax.weights import save_weights, with_weights


@dataclass(frozen=True, kw_only=True)
class SimpleProblem:
    """A `Problem` of given parts.

    Attributes:
        initial: makes the state that training begins with.
        others: as `Problem` has them.
    """

    config: Any
    initial: Callable[[], TrainState]
    loss_fn: Callable[..., Any]
    batches: Any
    steps: int
    evaluation: Evaluation | None = None
    ranking: tuple[str | None, Literal["min", "max"]] = (None, "min")
    description: str = ""
    noted: Mapping[str, Any] = field(default_factory=dict)

    def state(self, *, resumed: bool = False) -> TrainState:
        """The state that training begins with."""
        return self.initial()


@dataclass(frozen=True)
class Trained:
    """What a run has come to.

    Attributes:
        problem: what was trained.
        state: that of a checkpoint; `state.eval_params` are the parameters to use.
        dir: the run directory.
        step: how many updates the state has seen.
    """

    problem: Problem
    state: TrainState
    dir: RunDir
    step: int


def load(run: str | Path, checkpoint: str | int = "best", *, problem: Problem, say: Say) -> Trained:
    """A run of any recipe at one of its checkpoints."""
    directory = RunDir.open(run)
    with CheckpointStore(directory.checkpoints, say=say) as store:
        step = store.chosen(checkpoint)
        state, _ = store.restore(problem.state(resumed=True), step)
    return Trained(problem, state, directory, step)


def params_at(run: RunDir, checkpoint: str | int, form: Any, say: Say) -> tuple[Any, int]:
    """The parameters to use of a checkpoint, in the `form` of the model's, and its step."""
    with CheckpointStore(run.checkpoints, say=say) as store:
        step = store.chosen(checkpoint)
        source = str(run.checkpoints / str(step))
        return jax.tree.map(put, with_weights(form, store.weights(step), source=source)), step


def evaluate(trained: Trained) -> dict[str, Any]:
    """The loss and its metrics on each part of the problem's evaluation."""
    problem, measures = trained.problem, {}
    if problem.evaluation is not None:
        loss_fn = problem.evaluation.loss_fn or problem.loss_fn
        for name, batches in problem.evaluation.parts.items():
            check_time()
            values = evaluate_state(trained.state, loss_fn, batches)
            measures[name] = {key: np.asarray(value).tolist() for key, value in values.items()}
    return {"step": trained.step, "measures": measures}


def tables(results: Mapping[str, Any]) -> list[Table]:
    """The measures of each part, a column each."""
    parts = results["measures"]
    names = dict.fromkeys(name for values in parts.values() for name in values)
    rows = [(name, *(_shown(values.get(name)) for values in parts.values())) for name in names]
    return [Table(("", *parts), rows, f"Step {results['step']:,}")]


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


def export(run: str | Path, checkpoint: str | int, out: Path | None, say: Say) -> list[Path]:
    """Writes the weights of any run, averaged where it averages, as a safetensors file."""
    directory = RunDir.open(run)
    path = out or directory.path / "weights.safetensors"
    with CheckpointStore(directory.checkpoints, say=say) as store:
        save_weights(path, store.weights(store.chosen(checkpoint)))
    return [path]
