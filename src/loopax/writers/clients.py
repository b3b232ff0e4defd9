"""Writers to trackers of experiments, by their own clients, which are extras.

Each goes on in the same remote run when a run is resumed: its id is kept in the run directory. A
number is sent as `<source>/<name>`, and one that the tracker has already is not sent again. What it
has not, because a kill has lost it or the run began without a tracker, is sent at the start from
the run's history; so no `sync` has to wait.
"""

from __future__ import annotations

import importlib
import os
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any

from loopax.extras import require
from loopax.jsonlines import Row, values_of
from loopax.run.run import Run

FILE = "writers.json"
"""Of the run directory: the id of the remote run by the name of its client."""
REQUEST = 1000
"""Numbers that MLflow takes in one request."""


class WandB:
    """Weights & Biases.

    Args:
        options: for `wandb.init`, such as `project`, `entity`, `mode` or `tags`. What is left out
            is taken from the environment, as W&B does.

    Raises:
        ConfigError: wandb is not installed.
    """

    def __init__(self, **options: Any) -> None:
        self._client, self._options = client("wandb"), options

    def open(self, run: Run, step: int) -> None:
        del step
        name = remote_id(run, "wandb", lambda: new_name(run))
        own = {"id": name, "name": name, "resume": "allow", "config": config_of(run)}
        folder = {} if run.dir is None else {"dir": run.dir.path}
        # A run of the program's own, which it may have begun, stays as it is.
        self._run = self._client.init(**{"reinit": "create_new", **own, **folder, **self._options})
        for row in run.history:
            self.write(row)

    def write(self, row: Row) -> None:
        if row["step"] >= self._run.starting_step:  # W&B takes no earlier ones
            self._run.log(named_values(row), step=row["step"])

    def sync(self) -> None:
        """The client sends what it has when it can."""

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow.

    Args:
        experiment: its name; `MLFLOW_EXPERIMENT_NAME` or `Default` when left out.
        tracking_uri: where runs are kept; `MLFLOW_TRACKING_URI`, or what MLflow takes, when left
            out.

    Raises:
        ConfigError: mlflow is not installed.
    """

    def __init__(self, experiment: str | None = None, tracking_uri: str | None = None) -> None:
        self._module, self._tracking_uri = client("mlflow"), tracking_uri
        self._experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")

    def open(self, run: Run, step: int) -> None:
        del step
        self._client = self._module.MlflowClient(self._tracking_uri)
        self._id = remote_id(run, "mlflow", lambda: self._new(run))
        self._client.update_run(self._id, status="RUNNING")
        sent = self._client.get_run(self._id).data.metrics
        histories = {key: self._client.get_metric_history(self._id, key) for key in sent}
        self._last = {key: max(it.step for it in history) for key, history in histories.items()}
        self._send(run.history)

    def write(self, row: Row) -> None:
        self._send([row])

    def sync(self) -> None:
        """Each row is there when `write` returns."""

    def close(self) -> None:
        self._client.set_terminated(self._id)

    def _send(self, rows: Iterable[Row]) -> None:
        metric, now = self._module.entities.Metric, int(1000 * time.time())
        metrics = [
            metric(name, value, now, row["step"])
            for row in rows
            for name, value in named_values(row).items()
            if row["step"] > self._last.get(name, -1)
        ]
        for first in range(0, len(metrics), REQUEST):
            self._client.log_batch(self._id, metrics=metrics[first : first + REQUEST])

    def _new(self, run: Run) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        where = found.experiment_id if found else self._client.create_experiment(self._experiment)
        begun: str = self._client.create_run(where, run_name=new_name(run)).info.run_id
        for name, value in config_of(run).items():
            self._client.log_param(begun, name, value)
        return begun


class Trackio:
    """trackio, which keeps runs on this machine or in a Hugging Face Space.

    Args:
        project: of which the run is one.
        options: for `trackio.init`, such as `space_id`.

    Raises:
        ConfigError: trackio is not installed.
    """

    def __init__(self, project: str = "loopax", **options: Any) -> None:
        self._client, self._options = client("trackio"), {"project": project, **options}

    def open(self, run: Run, step: int) -> None:
        del step
        own = {"name": remote_id(run, "trackio", lambda: new_name(run)), "config": config_of(run)}
        self._run = self._client.init(**{"resume": "allow", **own, **self._options})
        self._first = self._run._next_step  # which has no public name
        for row in run.history:
            self.write(row)

    def write(self, row: Row) -> None:
        if row["step"] >= self._first:
            self._run.log(named_values(row), step=row["step"])

    def sync(self) -> None:
        """The client sends what it has when it can."""

    def close(self) -> None:
        self._run.finish()


def client(name: str) -> Any:
    """The module of a client, whose extra has its name.

    Raises:
        ConfigError: it is not installed.
    """
    require(name, f"logging to {name}", name)
    return importlib.import_module(name)


def remote_id(run: Run, name: str, begin: Callable[[], str]) -> str:
    """The id of the remote run that a client goes on with, or that of a new one."""
    if run.dir is None:
        return begin()
    kept = run.dir.read_json(FILE) if (run.dir.path / FILE).exists() else {}
    if name not in kept:
        kept[name] = begin()
        run.dir.write_json(FILE, kept)
    return str(kept[name])


def new_name(run: Run) -> str:
    """A name for a remote run that no other has."""
    return f"{'run' if run.dir is None else run.dir.path.name}-{secrets.token_hex(4)}"


def config_of(run: Run) -> dict[str, Any]:
    """What the run was configured with."""
    return {} if run.dir is None else run.dir.config


def named_values(row: Row) -> dict[str, float]:
    """The numbers of a row by the names that trackers group by."""
    return {f"{row['source']}/{name}": float(value) for name, value in values_of(row).items()}
