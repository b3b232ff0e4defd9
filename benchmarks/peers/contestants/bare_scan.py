"""JAX, Flax and Optax by hand: 100 steps compiled into a scan, data on the device, nothing else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks.peers.contestants.base import Clock, contest
from benchmarks.peers.contestants.linen import given, loss_fn, optimizer, taken
from benchmarks.peers.task import Task, Weights
from flax.training.train_state import TrainState

CHUNK = 100


def train(task: Task, clock: Clock) -> Weights:
    images, labels = jax.device_put(task.images())
    state = TrainState.create(apply_fn=None, params=given(task.weights()), tx=optimizer)
    key, rng = jax.random.key(0), np.random.default_rng(0)

    @partial(jax.jit, donate_argnums=0)
    def run_chunk(state, images, labels, rows):
        def step(state, row):
            batch = {"image": images[row].astype(jnp.float32) / 255, "label": labels[row]}
            rngs = {"noise": jax.random.fold_in(key, state.step)}
            grads, _ = jax.grad(loss_fn, has_aux=True)(state.params, batch, rngs)
            return state.apply_gradients(grads=grads), None

        state = jax.lax.scan(step, state, rows)[0]
        return state, state.step

    full = len(labels) // task.batch
    rows, before = np.empty((0, task.batch), np.int32), None
    for step in range(0, task.steps, CHUNK):
        while len(rows) < CHUNK:
            order = rng.permutation(len(labels))[: full * task.batch].astype(np.int32)
            rows = np.concatenate([rows, order.reshape(full, task.batch)])
        chunk, rows = rows[:CHUNK], rows[CHUNK:]
        state, made = run_chunk(state, images, labels, chunk[: task.steps - step])
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
