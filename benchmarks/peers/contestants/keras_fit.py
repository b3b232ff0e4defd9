"""Keras on JAX: `compile` and `fit` on arrays in memory, with a CSV log and a checkpoint at each
epoch, as `loopax.fit` has them too. `STEPS_PER_EXECUTION` is Keras' own option."""

import math
import os
import tempfile

os.environ["KERAS_BACKEND"] = "jax"
import keras
import numpy as np
from benchmarks.peers.contestants.base import Clock, contest
from benchmarks.peers.task import LEARNING_RATE, WEIGHT_DECAY, Task, Weights
from benchmarks.peers.tasks.vae import KL_WEIGHT, LAYERS, SMALL
from keras import ops


def layer_of(name: str, shape: tuple[int, ...]) -> keras.Layer:
    if len(shape) == 2:
        plain = name in ("code", "latent", "label")
        return keras.layers.Dense(shape[1], activation=None if plain else "relu")
    conv, channels = (
        (keras.layers.Conv2DTranspose, shape[2])
        if name.startswith("dec")
        else (keras.layers.Conv2D, shape[3])
    )
    return conv(channels, shape[:2], 2, padding="same", activation="relu")


class VAE(keras.Model):
    def __init__(self, task: str):
        super().__init__()
        self.parts = {name: layer_of(name, shape) for name, shape in LAYERS[task].items()}
        self.convolves = task == "conv"
        self.seeds = keras.random.SeedGenerator(0)
        self.mse, self.kl = keras.metrics.Mean("mse"), keras.metrics.Mean("kl")

    def call(self, inputs):
        image, label = inputs
        hidden = self.stack("enc", ops.reshape(image, (-1, 28, 28, 1)) if self.convolves else image)
        if self.convolves:
            hidden = ops.reshape(hidden, (-1, math.prod(SMALL)))
        mean, logvar = ops.split(self.parts["code"](hidden), 2, axis=-1)
        noise = keras.random.normal(ops.shape(mean), seed=self.seeds)
        latent = self.parts["latent"](mean + ops.exp(0.5 * logvar) * noise)
        hidden = ops.relu(latent + self.parts["label"](ops.one_hot(label, 10)))
        hidden = self.stack("dec", ops.reshape(hidden, (-1, *SMALL)) if self.convolves else hidden)
        return ops.reshape(hidden, ops.shape(image)), mean, logvar

    def stack(self, half, hidden):
        for name, layer in self.parts.items():
            if name.startswith(half):
                hidden = layer(hidden)
        return hidden

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        reconstruction, mean, logvar = y_pred
        mse = ops.mean(ops.sum(0.5 * ops.square(reconstruction - x[0]), axis=-1))
        kl = ops.mean(ops.sum(0.5 * (ops.exp(logvar) + mean**2 - 1 - logvar), axis=-1))
        self.mse.update_state(mse)
        self.kl.update_state(kl)
        return mse + KL_WEIGHT * kl


class Ticks(keras.callbacks.Callback):
    """Tells the clock each 100 steps or so, without making `fit` wait for the step."""

    async_safe = True

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.before, self.told = clock, 0, 0

    def on_train_batch_end(self, batch, logs=None):
        step = self.before + min(batch + 1, self.params["steps"])  # An execution may be cut.
        if step - self.told >= self.clock.task.every:
            float(logs["loss"])
            self.clock(step)
            self.told = step

    def on_epoch_end(self, epoch, logs=None):
        self.before += self.params["steps"]
        self.clock.epoch(lambda: taken(self.model))


def taken(model: VAE) -> Weights:
    return {name: tuple(layer.get_weights()) for name, layer in model.parts.items()}


def train(task: Task, clock: Clock) -> Weights:
    images, labels = task.columns().values()
    images = images.astype(np.float32) / 255
    model = VAE(task.name)
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
