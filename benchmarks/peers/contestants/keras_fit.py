"""Keras on JAX: `compile` and `fit` on arrays in memory, with a CSV log and a checkpoint at each
epoch, as `loopax.fit` has them too. `STEPS_PER_EXECUTION` is Keras' own option."""

import os
import tempfile

os.environ["KERAS_BACKEND"] = "jax"
import keras
import numpy as np
from benchmarks.peers.contestants.base import Clock, contest
from benchmarks.peers.task import (
    KL_WEIGHT,
    LAYERS,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Task,
    Weights,
)
from keras import ops


class VAE(keras.Model):
    def __init__(self):
        super().__init__()
        plain = ("code", "latent", "label")
        self.parts = {
            name: keras.layers.Dense(outputs, activation=None if name in plain else "relu")
            for name, (_, outputs) in LAYERS.items()
        }
        self.seeds = keras.random.SeedGenerator(0)
        self.mse, self.kl = keras.metrics.Mean("mse"), keras.metrics.Mean("kl")

    def call(self, inputs):
        hidden, label = inputs
        for name in ("enc0", "enc1", "enc2"):
            hidden = self.parts[name](hidden)
        mean, logvar = ops.split(self.parts["code"](hidden), 2, axis=-1)
        noise = keras.random.normal(ops.shape(mean), seed=self.seeds)
        latent = self.parts["latent"](mean + ops.exp(0.5 * logvar) * noise)
        hidden = ops.relu(latent + self.parts["label"](ops.one_hot(label, 10)))
        for name in ("dec0", "dec1", "dec2"):
            hidden = self.parts[name](hidden)
        return hidden, mean, logvar

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        reconstruction, mean, logvar = y_pred
        mse = ops.mean(ops.sum(0.5 * ops.square(reconstruction - x[0]), axis=-1))
        kl = ops.mean(ops.sum(0.5 * (ops.exp(logvar) + mean**2 - 1 - logvar), axis=-1))
        self.mse.update_state(mse)
        self.kl.update_state(kl)
        return mse + KL_WEIGHT * kl


class Ticks(keras.callbacks.Callback):
    """Tells the clock each 100 steps, without making `fit` wait for the step."""

    async_safe = True

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.before, self.told = clock, 0, 0

    def on_train_batch_end(self, batch, logs=None):
        step = self.before + batch + 1
        if step - self.told >= 100:
            float(logs["loss"])
            self.clock(step)
            self.told = step

    def on_epoch_end(self, epoch, logs=None):
        self.before += self.params["steps"]
        self.clock.epoch(lambda: taken(self.model))


def taken(model: VAE) -> Weights:
    return {name: tuple(layer.get_weights()) for name, layer in model.parts.items()}


def train(task: Task, clock: Clock) -> Weights:
    images, labels = task.images()
    images = images.astype(np.float32) / 255
    model = VAE()
    optimizer = keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY, epsilon=1e-8)
    spe = int(os.environ.get("STEPS_PER_EXECUTION", "1"))
    model.compile(optimizer, steps_per_execution=spe)
    model.build([(None, images.shape[1]), (None,)])
    model([images[:2], labels[:2]])
    for name, pair in task.weights().items():
        model.parts[name].set_weights(pair)
    whole, rest = divmod(task.steps, len(labels) // task.batch)
    used = len(labels) // task.batch * task.batch
    ticks = Ticks(clock)
    with tempfile.TemporaryDirectory() as folder:
        log = keras.callbacks.CSVLogger(f"{folder}/log.csv", append=True)
        kept = keras.callbacks.ModelCheckpoint(f"{folder}/model.weights.h5", save_weights_only=True)
        for examples, epochs in ((used, whole), (rest * task.batch, 1)):
            if examples and epochs:
                model.fit(
                    [images[:examples], labels[:examples]],
                    batch_size=task.batch,
                    epochs=epochs,
                    verbose=2,
                    callbacks=[ticks, log, kept],
                )
    clock(task.steps)
    return taken(model)


if __name__ == "__main__":
    contest(train)
