"""The baseline for samples: principal components, and a Gaussian mixture of them for each class.

It takes seconds and no network: what a VAE must beat to be worth its training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from loopax.data import Dataset
from loopax.recipes.images import flat_portions, some_of
from loopax.recipes.vae.samplers import FEWEST, Mixtures, fit_mixtures

COMPONENTS, NORMALS = 40, 10
"""Principal components, and normals in the mixture of a class, at most."""
FITTED_LIMIT = 20_000
"""Images that the mixtures are fitted to, at most."""
PCA_LIMIT = 10_000
"""Images that the components are found in, at most."""


@dataclass(frozen=True)
class Baseline:
    """What was fitted; it draws as a `TrainedVAE` does.

    Attributes:
        pca: scikit-learn's, of flattened images in [0, 1].
        mixtures: of its components, for each class.
        image_shape: height, width and channels.
    """

    pca: Any
    mixtures: Mixtures
    image_shape: tuple[int, ...]

    def latents_of(self, labels: Int[np.ndarray, " n"], seed: int) -> Float[np.ndarray, "n latent"]:
        """The components of an image for each label."""
        return np.asarray(self.mixtures.sample(jax.random.key(seed), jnp.asarray(labels)))

    def decode(
        self, latents: Float[np.ndarray, "n latent"], labels: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n height width channels"]:
        """The image that components mean, whatever its class; not clipped to [0, 1]."""
        del labels
        return self.pca.inverse_transform(latents).reshape(-1, *self.image_shape)


def fit_baseline(train: Dataset) -> Baseline | None:
    """The baseline of these images; None where they are too few for a mixture."""
    from sklearn.decomposition import PCA

    images, labels = train.columns["image"], train.columns["label"]
    if len(images) < FEWEST:
        return None
    pixels = math.prod(images.shape[1:])
    seen = some_of(images, PCA_LIMIT)
    pca = PCA(min(COMPONENTS, pixels, len(seen) - 1), random_state=0)
    with np.errstate(invalid="ignore"):  # Images that are all alike have no shares of variance.
        pca.fit(np.concatenate([*flat_portions(images[seen])]))
    fitted = some_of(labels, FITTED_LIMIT)
    latents = np.concatenate([pca.transform(part) for part in flat_portions(images[fitted])])
    mixtures = fit_mixtures(latents, labels[fitted], len(train.class_names), NORMALS)
    return Baseline(pca, mixtures, images.shape[1:])
