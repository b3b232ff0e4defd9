"""Where the latents of samples come from: the prior, or a mixture of normals for each class.

A VAE's posteriors together seldom fill its prior, least of all within a class, so samples from the
prior land where the decoder was never trained. A density fitted to the encoded training images
afterwards (Ghosh et al., 2020), here one per class, takes seconds and closes that gap.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from loopax.deadline import check_time
from loopax.errors import DataError
from loopax.terminal import Progress

PER_COMPONENT = 50
"""Encoded images that a component is fitted to, at least, on average."""
FEWEST = 4
"""Images that a class needs for a mixture of its own."""
RIDGE = 1e-3
"""Added to the variance of each latent, so that few images do not make a component collapse."""


@dataclass(frozen=True)
class Mixtures:
    """A Gaussian mixture of the latents for each class.

    Attributes:
        weights: `[classes, components]`, which sum to 1 in each class.
        means: `[classes, components, latent]`.
        factors: `[classes, components, latent, latent]`, Cholesky factors of the covariances.
    """

    weights: Float[Array, "classes components"]
    means: Float[Array, "classes components latent"]
    factors: Float[Array, "classes components latent latent"]

    def sample(self, key: Key[Array, ""], label: Int[Array, " n"]) -> Float[Array, "n latent"]:
        """A latent for each label; traceable. A label below 0 draws its class first."""
        pick, draw, guess = jax.random.split(key, 3)
        some = jax.random.randint(guess, label.shape, 0, len(self.weights))
        label = jnp.where(label < 0, some, label)
        noise = jax.random.normal(draw, (*label.shape, self.means.shape[-1]))
        return self.place(label, jax.random.uniform(pick, label.shape), noise)

    def place(
        self, label: Int[Array, " n"], pick: Float[Array, " n"], noise: Float[Array, "n latent"]
    ) -> Float[Array, "n latent"]:
        """The latents that random numbers mean: `pick` in [0, 1) chooses the normal, `noise` in it.

        It holds no randomness of its own, for exports to where JAX's is not to be had.
        """
        # By hand from one uniform number each: Gumbel noise would need one a component.
        ends = jnp.cumsum(self.weights, axis=-1)[label]
        component = (pick[:, None] * ends[:, -1:] >= ends).sum(axis=-1)
        factor = self.factors[label, component]
        return self.means[label, component] + jnp.einsum("nij,nj->ni", factor, noise)

    def arrays(self) -> dict[str, Any]:
        """As they are kept in a file."""
        return {"weights": self.weights, "means": self.means, "factors": self.factors}


def fit_mixtures(
    latents: Float[np.ndarray, "n latent"],
    labels: Int[np.ndarray, " n"],
    classes: int,
    components: int,
    *,
    seed: int = 0,
) -> Mixtures:
    """A mixture with full covariances for each class, by expectation maximisation.

    A class with few images gets fewer components, and one with hardly any is given the mixture of
    all. Images whose class is not known help only with that one.

    Raises:
        DataError: there are not even `FEWEST` encoded images, or some are not finite.
    """
    if len(latents) < FEWEST or not np.isfinite(latents).all():
        raise DataError(
            f"a mixture is fitted to {FEWEST} or more finite latents; there are {len(latents)}"
        )
    own = [latents[labels == label] for label in range(classes)]
    fitted = _fitted([o if len(o) >= FEWEST else latents for o in own], components, seed)
    most = max(len(weights) for weights, _, _ in fitted)
    # Components that a class does not have weigh nothing there.
    arrays = [
        np.stack([_padded(part, most) for part in parts]) for parts in zip(*fitted, strict=True)
    ]
    return Mixtures(*(jnp.asarray(array, jnp.float32) for array in arrays))


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    """Zeros behind the end of the first axis."""
    return np.pad(array, [(0, length - len(array)), *[(0, 0)] * (array.ndim - 1)])


def _fitted(
    classes: Sequence[np.ndarray], components: int, seed: int
) -> list[tuple[np.ndarray, ...]]:
    """Weights, means and factors of each class, which are fitted beside each other."""
    from joblib import Parallel, delayed
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    def fit(points: np.ndarray) -> tuple[np.ndarray, ...]:
        check_time()
        count = min(components, max(1, len(points) // PER_COMPONENT))
        # Stopped early: samples of MNIST scored no better with three times as many iterations.
        mixture = GaussianMixture(count, reg_covar=RIDGE, tol=1e-2, max_iter=30, random_state=seed)
        mixture.fit(points.astype(np.float64))
        return mixture.weights_, mixture.means_, np.linalg.cholesky(mixture.covariances_)

    # Its matrices are small: with more threads each they wait for each other fifty times as long.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        pool = Parallel(n_jobs=-1, prefer="threads", return_as="generator")
        fitted: list[tuple[np.ndarray, ...]] = []
        with Progress("fitting the sampler, classes", len(classes)) as progress:
            for mixture in pool(delayed(fit)(points) for points in classes):
                fitted.append(mixture)
                progress.at(len(fitted))
    return fitted
