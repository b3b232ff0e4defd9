"""`model.json` of a run: what its model is made of, and which data it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopax.errors import DataError, RunDirError
from loopax.recipe.problem import Problem, places
from loopax.run.directory import RunDir
from loopax.run.run import Run

MODEL_FILE = "model.json"


def write_noted(run: Run, problem: Problem) -> None:
    """Keeps in a run's directory what the problem notes, if it is not there yet."""
    if (
        run.is_writer
        and run.dir is not None
        and problem.noted
        and not (run.dir.path / MODEL_FILE).exists()
    ):
        run.dir.write_json(MODEL_FILE, dict(problem.noted))


def noted(directory: RunDir, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """What a problem has noted, with these fields; `(str,)` is a list of that type.

    Raises:
        RunDirError: the file is missing or damaged.
    """
    file = directory.path / MODEL_FILE
    if not file.exists():
        raise RunDirError(
            f"{directory.path}: has no {MODEL_FILE}; `loopax resume {directory.path}` writes it"
        )
    kept = directory.read_json(MODEL_FILE)
    if not isinstance(kept, dict) or not all(_is_of(kept.get(n), kinds[n]) for n in kinds):
        raise RunDirError(
            f"{file}: is damaged; remove it, and the same training command writes it anew"
        )
    return kept


def _is_of(value: Any, kind: Any) -> bool:
    if isinstance(kind, type):
        return isinstance(value, kind)
    return isinstance(value, list) and all(type(each) is kind[0] for each in value)


def check_data(run: str | Path, config: Any, data_sha256: str | None) -> None:
    """Makes sure that a run that is there, finished or not, was trained on this data.

    Raises:
        DataError: it was trained on other data.
    """
    directory = RunDir(run)
    if data_sha256 is None or not (directory.path / MODEL_FILE).exists():
        return
    if noted(directory, {"data_sha256": str})["data_sha256"] != data_sha256:
        names = places(config)
        now = " and ".join(filter(None, (getattr(config, name) for name in names)))
        then = " and ".join(filter(None, map(directory.config.get, names)))
        raise DataError(
            f"{now}: is not the data that {run} was trained on, which was in {then}; give it as "
            "it was, name another run directory, or begin anew with --fresh"
        )
