"""What every contestant trains: the article's class-conditional VAE on MNIST. NumPy alone.

All begin with the same values, see the same images, and are judged by the same function of the
parameters they end with. What they draw at random (order, noise) is their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

LATENT, CLASSES, PIXELS = 32, 10, 784
LAYERS = {
    "enc0": (PIXELS, 256),
    "enc1": (256, 128),
    "enc2": (128, 64),
    "code": (64, 2 * LATENT),
    "latent": (LATENT, 64),
    "label": (CLASSES, 64),
    "dec0": (64, 128),
    "dec1": (128, 256),
    "dec2": (256, PIXELS),
}
"""Dense layers by name: what goes in, what comes out. A ReLU follows all but code, latent, label;
the last two are added to each other before theirs."""
LEARNING_RATE, WEIGHT_DECAY, KL_WEIGHT = 1e-4, 1e-4, 0.5
"""Of AdamW with the moments' decays 0.9 and 0.999 and epsilon 1e-8, as Optax has them."""

Weights = dict[str, tuple[np.ndarray, np.ndarray]]
"""Of each layer its matrix `(in, out)` and its bias `(out,)`, float32."""


@dataclass(frozen=True)
class Task:
    """What a contestant is asked for.

    Attributes:
        folder: holds the arrays.
        batch: images in a step; the last of an epoch that would be smaller is dropped.
        steps: how many to make.
        target: end after the first epoch by which the loss of the test images is this one or less.
    """

    folder: Path
    batch: int
    steps: int
    target: float | None = None

    def images(self, part: str = "train") -> tuple[np.ndarray, np.ndarray]:
        """Images, uint8 `(n, 784)`, and labels, int32 `(n,)`."""
        return tuple(np.load(self.folder / f"{part}_{name}.npy") for name in ("images", "labels"))

    def weights(self) -> Weights:
        """The values that all begin with."""
        rng = np.random.default_rng(0)
        # As Flax initialises a dense layer: LeCun's normal distribution and zeros.
        return {
            name: (
                (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32),
                np.zeros(shape[1], np.float32),
            )
            for name, shape in LAYERS.items()
        }


def prepare(folder: Path) -> None:
    """Leaves MNIST in a folder, as `Task.images` reads it."""
    import loopax

    data = loopax.data.mnist()
    for part in ("train", "test"):
        columns = data.parts[part].columns
        np.save(folder / f"{part}_images.npy", columns["image"].reshape(-1, PIXELS))
        np.save(folder / f"{part}_labels.npy", columns["label"].astype(np.int32))


def test_loss(weights: Weights, task: Task, *, noise: bool) -> float:
    """The article's loss on the 10,000 test images, decoded from the mean of each latent.

    Half the squared error, summed over pixels, and half the Kullback-Leibler divergence. With
    `noise` each latent is drawn, as the article and loopax do where they evaluate.
    """
    images, labels = task.images("test")
    image = images.astype(np.float32) / 255

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        matrix, bias = weights[name]
        return x @ matrix + bias

    def relu(x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)

    hidden = image
    for name in ("enc0", "enc1", "enc2"):
        hidden = relu(dense(name, hidden))
    mean, logvar = np.split(dense("code", hidden), 2, axis=-1)
    one_hot = np.eye(CLASSES, dtype=np.float32)[labels]
    drawn = np.random.default_rng(0).standard_normal(mean.shape, np.float32)
    latent = mean + np.exp(0.5 * logvar) * drawn if noise else mean
    hidden = relu(dense("latent", latent) + dense("label", one_hot))
    for name in ("dec0", "dec1", "dec2"):
        hidden = relu(dense(name, hidden))
    mse = 0.5 * np.square(hidden - image).sum(-1).mean()
    kl = 0.5 * (np.exp(logvar) + mean**2 - 1 - logvar).sum(-1).mean()
    return float(mse + KL_WEIGHT * kl)
