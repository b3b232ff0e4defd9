"""Two class-conditional VAEs on MNIST: the article's, of dense layers, and one of convolutions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Weights = dict[str, tuple[np.ndarray, ...]]

LATENT, CLASSES, PIXELS = 32, 10, 784
SMALL = (7, 7, 64)
"""What the convolutions make of an image: height, width, channels."""
KL_WEIGHT = 0.5
LAYERS: dict[str, dict[str, tuple[int, ...]]] = {
    "article": {
        "enc0": (PIXELS, 256),
        "enc1": (256, 128),
        "enc2": (128, 64),
        "code": (64, 2 * LATENT),
        "latent": (LATENT, 64),
        "label": (CLASSES, 64),
        "dec0": (64, 128),
        "dec1": (128, 256),
        "dec2": (256, PIXELS),
    },
    "conv": {
        "enc0": (4, 4, 1, 32),
        "enc1": (4, 4, 32, 64),
        "code": (7 * 7 * 64, 2 * LATENT),
        "latent": (LATENT, 7 * 7 * 64),
        "label": (CLASSES, 7 * 7 * 64),
        "dec0": (4, 4, 32, 64),
        "dec1": (4, 4, 1, 32),
    },
}
"""Kernels by name: of a dense layer what goes in and what comes out, of a convolution height,
width, in, out, of a transposed one (dec) out, in. Those have a stride of 2 and a margin of 1. A
ReLU follows each but code, latent and label; the last two are added to each other before theirs."""


def weights(name: str) -> Weights:
    """The values that all begin with: LeCun's normal distribution and zeros, as Flax has them."""
    rng, found = np.random.default_rng(0), {}
    for layer, shape in LAYERS[name].items():
        transposed = len(shape) == 4 and layer.startswith("dec")
        inputs, outputs = (shape[-1], shape[-2]) if transposed else (shape[-2], shape[-1])
        # A pixel sees the whole kernel of a convolution, and a quarter of a transposed one.
        inputs *= 4 if transposed else int(np.prod(shape[:-2]))
        kernel = (rng.standard_normal(shape) / np.sqrt(inputs)).astype(np.float32)
        found[layer] = (kernel, np.zeros(outputs, np.float32))
    return found


def data(name: str, part: str) -> dict[str, np.ndarray]:
    """Images, uint8 `(n, 784)`, and labels, int32 `(n,)`; of the test part all, or 2,000."""
    import loopax

    found = loopax.data.mnist().parts[part].columns
    columns = {"image": found["image"].reshape(-1, PIXELS), "label": found["label"].astype("int32")}
    few = name == "conv" and part == "test"  # A convolution in NumPy takes its time.
    return {key: column[: 2000 if few else None] for key, column in columns.items()}


def loss(name: str, weights: Weights, test: Mapping[str, np.ndarray], *, noise: bool) -> float:
    """Half the squared error, summed over pixels, and half the Kullback-Leibler divergence.

    Decoded from the mean of each latent; with `noise` each is drawn, as the article and loopax do
    where they evaluate.
    """

    def layer(at: str, x: np.ndarray) -> np.ndarray:
        kernel, bias = weights[at]
        if kernel.ndim == 2:
            return x @ kernel + bias
        return (_doubled if at.startswith("dec") else _halved)(x, kernel) + bias

    def stack(half: str, x: np.ndarray) -> np.ndarray:
        for at in (at for at in weights if at.startswith(half)):
            x = np.maximum(layer(at, x), 0)
        return x

    image = test["image"].astype(np.float32) / 255
    hidden = stack("enc", image.reshape(-1, 28, 28, 1) if name == "conv" else image)
    mean, logvar = np.split(layer("code", hidden.reshape(len(image), -1)), 2, axis=-1)
    drawn = np.random.default_rng(0).standard_normal(mean.shape, np.float32)
    latent = mean + np.exp(0.5 * logvar) * drawn if noise else mean
    one_hot = np.eye(CLASSES, dtype=np.float32)[test["label"]]
    hidden = np.maximum(layer("latent", latent) + layer("label", one_hot), 0)
    hidden = stack("dec", hidden.reshape(-1, *SMALL) if name == "conv" else hidden)
    mse = 0.5 * np.square(hidden.reshape(len(image), -1) - image).sum(-1).mean()
    kl = 0.5 * (np.exp(logvar) + mean**2 - 1 - logvar).sum(-1).mean()
    return float(mse + KL_WEIGHT * kl)


def _halved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A convolution of stride 2 with a margin of 1."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))[:, ::2, ::2]
    return np.tensordot(windows, kernel, ((4, 5, 3), (0, 1, 2)))


def _doubled(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The same, transposed."""
    count, height, width = x.shape[:3]
    found = np.zeros((count, 2 * height + 2, 2 * width + 2, kernel.shape[2]), np.float32)
    for i, j in np.ndindex(kernel.shape[:2]):
        found[:, i : i + 2 * height : 2, j : j + 2 * width : 2] += x @ kernel[i, j].T
    return found[:, 1:-1, 1:-1]
