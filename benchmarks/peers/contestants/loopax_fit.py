"""loopax.fit with its defaults: progress, metrics, checkpoints, a run directory."""

import tempfile

from benchmarks.peers.contestants.base import Clock, contest
from benchmarks.peers.contestants.linen import given, loss_of, optimizer, taken
from benchmarks.peers.task import Task, Weights

import loopax


class Ticks:
    """A writer that tells the clock of each row."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def open(self, run, step):
        pass

    def write(self, row):
        if row["source"] == "train":
            self.clock(row["step"])

    def sync(self):
        pass

    def close(self):
        pass


def batches_of(task: Task):
    columns = task.columns()
    if "image" in columns:
        columns["image"] = columns["image"].reshape(-1, 28, 28, 1)
    return loopax.data.Dataset(columns, name=task.name).batches(task.batch)


def train(task: Task, clock: Clock, data=None) -> Weights:
    """`data` are other batches than those that lie on the device."""
    state = loopax.TrainState.create(params=given(task.weights()), tx=optimizer)
    with tempfile.TemporaryDirectory() as folder:
        run = loopax.fit(
            state,
            loss_of(task.name),
            batches_of(task) if data is None else data,
            steps=task.steps,
            run_dir=f"{folder}/run",
            log_every=task.every,
            writers=[Ticks(clock)],
        )
    return taken(run.state.params)


if __name__ == "__main__":
    contest(train)
