"""A small language model in the manner of Flax's lm1b example, written anew for loopax.

It learns the bytes of Python's own library. The original's train.py is 419 lines of code, of which
its tokens, its many devices and its sampling are left out here; this is 46.
"""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import loopax

LENGTH, WIDTH, LAYERS, STEPS = 64, 128, 2, 2000


class Block(nnx.Module):
    """Attention to what came before, and two layers, each beside a short cut."""

    def __init__(self, rngs):
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(4, WIDTH, decode=False, rngs=rngs)
        self.widen = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.narrow = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x, mask):
        x += self.dropout(self.attention(self.norms[0](x), mask=mask))
        return x + self.dropout(self.narrow(nnx.gelu(self.widen(self.norms[1](x)))))


class Model(nnx.Module):
    """A decoder: what byte comes next, at each place."""

    def __init__(self, rngs):
        self.bytes = nnx.Embed(256, WIDTH, rngs=rngs)
        self.places = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)

    def __call__(self, text):
        x = self.bytes(text) + self.places(jnp.arange(LENGTH))[None]
        for block in self.blocks:
            x = block(x, nnx.make_causal_mask(text))
        return self.bytes.attend(self.norm(x))


def loss_fn(model, batch, rngs):
    before, after = batch["text"][:, :-1], batch["text"][:, 1:]
    nats = optax.softmax_cross_entropy_with_integer_labels(model(before), after).mean()
    return nats, {"bits_per_byte": nats / jnp.log(2)}


files = sorted(Path(os.__file__).parent.glob("*.py"))
written = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)
windows = written[: len(written) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
train, test = (
    loopax.data.Dataset({"text": rows.astype(np.int32)})
    for rows in (windows[:-640], windows[-640:])
)
tx = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(2e-3, STEPS))
)
state = loopax.TrainState.create(Model(nnx.Rngs(0)), tx=tx)
run = loopax.fit(state, loss_fn, train.batches(32), steps=STEPS, evaluation=test.batches(64))
print(f"{run.latest('test')['bits_per_byte']:.3f} bits a byte")
