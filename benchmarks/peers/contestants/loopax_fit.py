"""loopax.fit with its defaults: progress, metrics, checkpoints, a run directory."""

import tempfile

from benchmarks.peers.contestants.base import Clock, contest
from benchmarks.peers.contestants.linen import given, loss_fn, optimizer, taken
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
    images, labels = task.images()
    columns = {"image": images.reshape(-1, 28, 28, 1), "label": labels}
    return loopax.data.Dataset(columns, name="MNIST").batches(task.batch)


def train(task: Task, clock: Clock, data=None) -> Weights:
    """`data` are other batches than those that lie on the device."""
    state = loopax.TrainState.create(params=given(task.weights()), tx=optimizer)
    with tempfile.TemporaryDirectory() as folder:
        run = loopax.fit(
            state,
            loss_fn,
            batches_of(task) if data is None else data,
            steps=task.steps,
            run_dir=f"{folder}/run",
            writers=[Ticks(clock)],
        )
    return taken(run.state.params)


if __name__ == "__main__":
    contest(train)
