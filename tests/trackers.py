"""Small stand-ins for the clients of trackers, which are too heavy to be installed for tests."""

from collections import defaultdict
from types import SimpleNamespace
from typing import NamedTuple


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class FakeRuns:
    """What `wandb.init` and `trackio.init` are to a run that is resumed by its name."""

    def __init__(self):
        self.rows, self.options = defaultdict(list), []

    def init(self, **options):
        self.options.append(options)
        rows = self.rows[options["name"]]
        first = max([-1, *(step for step, _ in rows)]) + 1

        def log(values, step):
            rows.append((step, values))

        return SimpleNamespace(starting_step=first, _next_step=first, log=log, finish=lambda: None)

    def read(self):
        return [
            (step, *item)
            for rows in self.rows.values()
            for step, values in rows
            for item in values.items()
        ]


class FakeMLflow:
    """A tracking server, as far as the writer uses it."""

    entities = SimpleNamespace(Metric=Metric)

    def __init__(self):
        self.metrics, self.params, self.status, self.experiments = {}, {}, {}, {}

    # As mlflow calls its class.
    def MlflowClient(self, tracking_uri):  # noqa: N802
        return self

    def get_experiment_by_name(self, name):
        found = self.experiments.get(name)
        return found and SimpleNamespace(experiment_id=found)

    def create_experiment(self, name):
        return self.experiments.setdefault(name, f"experiment {name}")

    def create_run(self, experiment_id, run_name):
        self.metrics[run_name], self.params[run_name] = [], {}
        return SimpleNamespace(info=SimpleNamespace(run_id=run_name))

    def log_param(self, run_id, key, value):
        self.params[run_id][key] = value

    def update_run(self, run_id, status):
        self.status[run_id] = status

    def set_terminated(self, run_id):
        self.status[run_id] = "FINISHED"

    def get_run(self, run_id):
        return SimpleNamespace(
            data=SimpleNamespace(metrics={it.key for it in self.metrics[run_id]})
        )

    def get_metric_history(self, run_id, key):
        return [it for it in self.metrics[run_id] if it.key == key]

    def log_batch(self, run_id, metrics):
        self.metrics[run_id] += metrics

    def read(self):
        return [(it.step, it.key, it.value) for run in self.metrics.values() for it in run]
