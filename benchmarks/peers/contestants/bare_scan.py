"""JAX, Flax and Optax by hand: 100 steps, or fewer large ones, compiled into a scan, data on the
device, nothing else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks.peers.contestants.base import Clock, contest
from benchmarks.peers.contestants.linen import given, loss_of, optimizer, taken
from benchmarks.peers.task import Task, Weights
from flax.training.train_state import TrainState


def train(task: Task, clock: Clock) -> Weights:
    columns, loss_fn, chunk = jax.device_put(task.columns()), loss_of(task.name), task.every
    state = TrainState.create(apply_fn=None, params=given(task.weights()), tx=optimizer)
    key, rng = jax.random.key(0), np.random.default_rng(0)

    @partial(jax.jit, donate_argnums=0)
    def run_chunk(state, columns, rows):
        def step(state, row):
            batch = {name: column[row] for name, column in columns.items()}
            if "image" in batch:
                batch["image"] = batch["image"].astype(jnp.float32) / 255
            rngs = dict.fromkeys(("noise", "dropout"), jax.random.fold_in(key, state.step))
            grads, _ = jax.grad(loss_fn, has_aux=True)(state.params, batch, rngs)
            return state.apply_gradients(grads=grads), None

        state = jax.lax.scan(step, state, rows)[0]
        return state, state.step

    count = len(columns["label"])
    full = count // task.batch
    rows, before = np.empty((0, task.batch), np.int32), None
    for step in range(0, task.steps, chunk):
        while len(rows) < chunk:
            order = rng.permutation(count)[: full * task.batch].astype(np.int32)
            rows = np.concatenate([rows, order.reshape(full, task.batch)])
        now, rows = rows[:chunk], rows[chunk:]
        state, made = run_chunk(state, columns, now[: task.steps - step])
        if before is not None:
            # JAX would dispatch dozens of chunks ahead, of which the clock must not hear.
            before.block_until_ready()
            clock(step)
        before = made
    jax.block_until_ready(state)
    clock(task.steps)
    return taken(state.params)


if __name__ == "__main__":
    contest(train)
