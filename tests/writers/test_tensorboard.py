"""Logged rows as the readers of other programs see them."""

import struct

import jax.numpy as jnp
import numpy as np
import optax
from tensorboardX.proto.event_pb2 import Event, SessionLog

import loopax


def events(directory):
    """The events of all files of TensorBoard, from the oldest file."""
    for path in sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content, start = path.read_bytes(), 0
        while start < len(content):
            (length,) = struct.unpack_from("<Q", content, start)
            # A length, its checksum, the event, and its checksum.
            yield Event.FromString(content[start + 12 : start + 12 + length])
            start += 16 + length


def scalars(directory):
    """What a reader of TensorBoard keeps: at a start it drops what came from that step on."""
    kept = []
    for event in events(directory):
        if event.session_log.status == SessionLog.START:
            kept = [row for row in kept if row[0] < event.step]
        kept += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return kept


def test_tensorboard_has_every_row_of_a_run_that_was_resumed_once_each(tmp_path):
    """The rows of the step at which it goes on are not written again."""
    data = [{"x": np.full(4, i + 1, np.float32)} for i in range(5)]

    def loss(params, batch, rngs):
        matrix = {} if rngs.training else {"matrix": jnp.eye(2)}
        return jnp.square(params["w"] - batch["x"]).mean(), {"mean": batch["x"].mean(), **matrix}

    state = loopax.TrainState.create(params={"w": jnp.zeros(())}, tx=optax.sgd(0.01))
    for steps in (10, 20):
        run = loopax.fit(
            state,
            loss,
            data,
            steps=steps,
            run_dir=tmp_path,
            log_every=5,
            probe_every=5,
            evaluation=loopax.Evaluation(data, every=5),
            progress=False,
        )
    expected = [
        (row["step"], f"{row['source']}/{name}")
        for row in run.dir.metrics
        for name, value in row.items()
        if name not in ("step", "source", "epoch", "steps") and not isinstance(value, list)
    ]
    found = [(step, tag) for step, tag, _ in scalars(run.dir.tensorboard) if tag[:5] != "time/"]
    assert sorted(found) == sorted(expected)
    assert {(step, "test/mean") for step in (5, 10, 15, 20)} <= set(found)
