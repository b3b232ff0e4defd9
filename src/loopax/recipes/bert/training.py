"""Fine-tuning: the problem, the loop, and what is left in the run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import loopax
from loopax.recipes.bert import report
from loopax.recipes.bert.config import FineTuneConfig
from loopax.recipes.bert.evaluation import evaluate
from loopax.recipes.bert.problem import Problem
from loopax.recipes.bert.trained import TrainedClassifier, load, note_model


def train(
    config: FineTuneConfig,
    run_dir: str | Path,
    *,
    steps: int | None = None,
    checkpoints: loopax.Checkpoints | None = None,
    max_seconds: float | None = None,
    progress: bool = True,
) -> TrainedClassifier:
    """Fine-tunes a classifier, or continues the run in `run_dir`; measures what is finished.

    Args:
        config: what to train, and how.
        run_dir: where everything goes.
        steps: stop here, before the end that `config` states.
        checkpoints, max_seconds, progress: as for `loopax.fit`.

    Raises:
        LoopaxError: the texts, the model, the configuration or the run directory cannot be used.
    """
    say = print if progress else _silent
    problem = Problem.of(config, say)
    say(problem.description)
    every = problem.evaluate_every
    last = problem.steps if steps is None else min(steps, problem.steps)
    if not has_stalled(_history(run_dir), config, every):
        chunks = loopax.steps(
            problem.state(),
            problem.loss_fn,
            problem.batches,
            steps=last,
            run_dir=run_dir,
            evaluation=loopax.Evaluation({"validation": problem.validation}, every=every),
            checkpoints=replace(
                checkpoints or loopax.Checkpoints(),
                best=f"validation/{config.metric}",
                mode="min" if config.metric == "loss" else "max",
                self_contained=config.self_contained,
            ),
            nonfinite=config.nonfinite,
            max_seconds=max_seconds,
            log_every=config.log_every,
            progress=progress,
            config=config.to_json(),
        )
        with closing(chunks):
            for chunk in chunks:
                note_model(chunk.run, problem)
                if has_stalled(chunk.run.history, config, every):
                    say(f"{run_dir}: {config.patience} evaluations without a better one; done")
                    break
    trained = load(run_dir)
    with loopax.CheckpointStore(trained.dir.checkpoints) as store:
        reached = store.steps[-1]
    finished = reached >= problem.steps or has_stalled(_history(run_dir), config, every)
    if finished and not trained.results_file.exists():
        say(f"{run_dir}: measuring step {trained.step:,} on {len(problem.texts.test.rows):,} texts")
        results = evaluate(trained, texts=problem.texts.test)
        report.write(trained, results)
        trained.dir.write_json("results.json", results)  # last: it says that all of this is there
    return trained


def has_stalled(history: Sequence[Mapping[str, Any]], config: FineTuneConfig, every: int) -> bool:
    """Whether the last `patience` evaluations were all no better than one before.

    Only those that come each `every` steps count: a run that was stopped early measured once more.
    """
    values = [
        row[config.metric]
        for row in history
        if row["source"] == "validation" and row["step"] % every == 0
    ]
    if not values:
        return False
    best = min(values) if config.metric == "loss" else max(values)
    return len(values) - 1 - values.index(best) >= config.patience


def _history(run_dir: str | Path) -> list[dict[str, Any]]:
    directory = loopax.RunDir(run_dir)
    return directory.metrics if directory.metrics_file.exists() else []


def _silent(message: str) -> None:
    """Where nobody looks on."""
