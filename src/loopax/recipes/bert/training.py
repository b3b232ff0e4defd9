"""Fine-tuning: the problem, the loop, and what is left in the run directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import loopax
from loopax.recipes.bert import report
from loopax.recipes.bert.config import FineTuneConfig
from loopax.recipes.bert.evaluation import evaluate
from loopax.recipes.bert.problem import Problem
from loopax.recipes.bert.trained import (
    MODEL_FILE,
    TrainedClassifier,
    check_texts,
    load,
    note_model,
    stored_config,
)


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
        checkpoints, progress: as for `loopax.fit`.
        max_seconds: for all of it. What is not done by then is done when this is called again.

    Raises:
        LoopaxError: the texts, the model, the configuration or the run directory cannot be used.
    """
    say = print if progress else _silent
    with loopax.time_limit(
        max_seconds, lambda: say(f"{run_dir}: time is up; the same command measures the test texts")
    ):
        test = config.test_data and loopax.data.absolute(config.test_data)
        config = replace(
            config,
            data=loopax.data.absolute(config.data),
            test_data=test,
            model=loopax.data.absolute(config.model),
        )
        problem = Problem.of(config, say)
        say(problem.description)
        check_texts(run_dir, problem.texts, config.data)
        run = _fit(problem, run_dir, steps, checkpoints, progress)
        note_model(loopax.RunDir(run_dir), problem)  # of a finished run that has lost it
        trained = load(run_dir, say=_silent)
        is_finished = run.stopped is not None or run.step >= problem.steps
        if is_finished and not trained.results_file.exists():
            loopax.check_time()
            count = len(problem.texts.test.rows)
            say(f"{run_dir}: measuring step {trained.step:,} on {count:,} texts")
            results = evaluate(trained, parts=problem.texts, say=say)
            config = replace(config, epochs=problem.epochs, batch_size=problem.batch_size)
            report.write(replace(trained, config=config), results)
            trained.dir.write_json("results.json", results)  # last: it says that all is there
    return load(run_dir, say=_silent)


def _fit(
    problem: Problem,
    run_dir: str | Path,
    steps: int | None,
    checkpoints: loopax.Checkpoints | None,
    progress: bool,
) -> loopax.Run:
    """The training itself, or what is left of it."""
    config, every = problem.config, problem.evaluate_every
    patience = loopax.EarlyStopping(
        problem.chosen_by, config.patience, problem.chosen_mode, every=every
    )
    return loopax.fit(
        problem.state(),
        problem.loss_fn,
        problem.batches,
        steps=problem.steps if steps is None else min(steps, problem.steps),
        run_dir=run_dir,
        evaluation=loopax.Evaluation({"validation": problem.validation}, every=every),
        checkpoints=replace(
            checkpoints or loopax.Checkpoints(),
            best=problem.chosen_by,
            mode=problem.chosen_mode,
            self_contained=config.self_contained,
        ),
        hooks=[lambda run: note_model(run.dir, problem), *problem.hooks, patience],
        nonfinite=config.nonfinite,
        max_seconds=loopax.seconds_left(),
        log_every=config.log_every,
        progress=progress,
        config=_as_begun(config, run_dir).to_json(),
    )


def _as_begun(config: FineTuneConfig, run_dir: str | Path) -> FineTuneConfig:
    """The configuration as the run has it: its texts, which are the same, may have moved."""
    if not (loopax.RunDir(run_dir).path / MODEL_FILE).exists():
        return config
    stored = stored_config(run_dir)
    return replace(config, data=stored.data, test_data=stored.test_data)


def _silent(message: str) -> None:
    """Where nobody looks on."""
