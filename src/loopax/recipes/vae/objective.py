"""What a VAE is trained for, and how good it is as a density: bounds, estimates, all in nats.

Every objective is `-log p(image | latent, class) + weight * KL` in some form. Half the squared
error plus w times the KL divergence is w times that of a normal decoder of variance w, up to a
constant, so all of them can be compared as densities.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from loopax.models.vae import VAE
from loopax.recipes.vae.config import VAEConfig

PerImage = Float[Array, " batch"]
LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Objective:
    """The loss that `config` states for `model`, as `loopax.fit` takes it, and its measures.

    Attributes:
        model: the network.
        config: which likelihood, bound and weights.
        warmup_steps: steps over which the weight of the KL divergence grows from 0.
    """

    model: VAE
    config: VAEConfig
    warmup_steps: int = 0

    def loss(self, params: Any, batch: Any, rngs: Any) -> Any:
        """What is trained and measured: `(loss, parts)`, means over the batch.

        Measured it is as at the end of training, without the help of warm-up and free bits. `iwae`
        is the importance-weighted bound (Burda et al., 2016) and `dreg` the same with the doubly
        reparametrised gradient (Tucker et al., 2019).
        """
        weight: Any = self.kl_weight
        if rngs.training and self.warmup_steps:
            weight *= jnp.minimum(1.0, (rngs.step + 1) / self.warmup_steps)
        free = self.config.free_bits if rngs.training else 0.0
        image, label = self.observed(batch["image"], rngs), batch["label"]
        if self.config.bound != "elbo":
            return self._importance_weighted(params, image, label, rngs["noise"])
        mean, logvar = self._apply(params, "encode", image, label)
        latent = mean + jnp.exp(0.5 * logvar) * jax.random.normal(rngs["noise"], mean.shape)
        prior = self._apply(params, "prior_at", label)
        kls = kl_divergence((mean, logvar), prior)
        parts = {"kl_nats": kls.sum(axis=-1).mean()}
        kept = jnp.maximum(kls.mean(axis=0), free).sum() if free else parts["kl_nats"]
        if self.config.likelihood == "squared_error":
            decoded = self._apply(params, "decode", latent, label)
            sse_half = optax.l2_loss(decoded, image).sum(axis=(1, 2, 3)).mean()
            elbo = -self._as_density(sse_half) - parts["kl_nats"]
            return sse_half + weight * kept, {"sse_half": sse_half, **parts, "neg_elbo_nats": -elbo}
        fit = -self.log_likelihood(params, image, latent, label).mean()
        parts = {"reconstruction_nats": fit, **parts, "neg_elbo_nats": fit + parts["kl_nats"]}
        return fit + weight * kept, parts

    def _importance_weighted(self, params: Any, image: Any, label: Any, key: Any) -> Any:
        count = self.config.importance_samples
        mean, logvar = self._apply(params, "encode", image, label)
        noise = jax.random.normal(key, (count, *mean.shape))
        latent = mean[None] + jnp.exp(0.5 * logvar)[None] * noise
        if self.config.bound == "dreg":
            mean, logvar = jax.lax.stop_gradient((mean, logvar))
            weigh = functools.partial(self._log_weights, params, image, label, (mean, logvar))
            shares = jax.nn.softmax(jax.lax.stop_gradient(weigh(latent)), axis=0)
            log_weights = weigh(_gradient_times(latent, shares[..., None]))
            # Its value is the bound; its gradient weighs each sample's own by its share.
            surrogate = (shares * log_weights).sum(axis=0)
            bound = jax.nn.logsumexp(log_weights, axis=0) - math.log(count)
            bound = surrogate + jax.lax.stop_gradient(bound - surrogate)
        else:
            log_weights = self._log_weights(params, image, label, (mean, logvar), latent)
            bound = jax.nn.logsumexp(log_weights, axis=0) - math.log(count)
        loss = -bound.mean()
        return loss, {"neg_elbo_nats": -jax.lax.stop_gradient(log_weights).mean()}

    def _log_weights(
        self, params: Any, image: Any, label: Any, posterior: Any, latent: Any
    ) -> Float[Array, "samples batch"]:
        """log p(image, latent) - log q(latent), for latents `[samples, batch, latent]`."""
        fit = self.log_likelihood(params, image, latent, label)
        prior = self._apply(params, "prior_at", label)
        prior, posterior = ((mean[None], logvar[None]) for mean, logvar in (prior, posterior))
        return fit + log_normal(latent, *prior) - log_normal(latent, *posterior)

    def log_likelihood(
        self, params: Any, image: Any, latent: Any, label: Any
    ) -> Float[Array, "*samples batch"]:
        """log p(image | latent, class) in nats; of a density on [0, 1], but of bits for Bernoulli.

        Each image may have several latents, `[*samples, batch, latent]`. The optimal variance
        (Rybkin et al., 2021) is that of the batch's own residual.
        """
        config = self.config
        method = "decode_logits" if config.likelihood == "bernoulli" else "decode"
        samples = latent.shape[:-2]
        flat, labels = latent.reshape(-1, latent.shape[-1]), jnp.tile(label, math.prod(samples))
        # Pixels in a single axis: broadcast over more, their arithmetic takes four times as long.
        decoded = self._apply(params, method, flat, labels).reshape(*samples, len(image), -1)
        pixels = image.reshape(*(1 for _ in samples), len(image), -1)
        if config.likelihood == "bernoulli":
            # As `pixels * decoded - softplus(decoded)`, whose logaddexp takes three times as long.
            softplus = jnp.maximum(decoded, 0) + jnp.log1p(jnp.exp(-jnp.abs(decoded)))
            return (pixels * decoded - softplus).sum(axis=-1)
        errors = jnp.square(decoded - pixels)
        if config.likelihood == "squared_error":
            return -self._as_density(0.5 * errors.sum(axis=-1))
        optimal = config.sigma == "optimal"
        variance = jnp.maximum(errors.mean(), 1e-6) if optimal else self.variance(params)
        logs = LOG_2PI + jnp.log(variance)
        return -0.5 * (errors / variance + logs).sum(axis=-1)

    def negative_log_likelihood(self, samples: int, *, per_pass: int) -> Callable[..., Any]:
        """A compiled estimate of -log p(image | class) in nats, from above.

        `(params, image, label, key) -> nats`, one for each image, by importance sampling with
        `samples` draws from the posterior: the bound of Burda et al. (2016), which falls towards
        the truth as they grow. About `per_pass` latents are decoded at a time. Images are as the
        likelihood sees them: for Bernoulli, of zeros and ones.
        """

        def estimate(params: Any, image: Any, label: Any, key: Any) -> PerImage:
            mean, logvar = posterior = self._apply(params, "encode", image, label)
            at_once = max(1, min(samples, per_pass // len(image)))

            def one(index: Any, total: Any) -> Any:
                noise = jax.random.normal(jax.random.fold_in(key, index), (at_once, *mean.shape))
                latent = mean[None] + jnp.exp(0.5 * logvar)[None] * noise
                weights = self._log_weights(params, image, label, posterior, latent)
                # The last pass may have more draws than are wanted.
                wanted = index * at_once + jnp.arange(at_once) < samples
                weights = jnp.where(wanted[:, None], weights, -jnp.inf)
                return jnp.logaddexp(total, jax.nn.logsumexp(weights, axis=0))

            start = jnp.full(len(image), -jnp.inf)
            return math.log(samples) - jax.lax.fori_loop(0, -(-samples // at_once), one, start)

        return jax.jit(estimate)

    def costs(self, params: Any, image: Any, label: Any) -> PerImage:
        """What each image costs under its label, at the mean of its latent: the ELBO's terms.

        Images are in [0, 1]; for Bernoulli, the probability of ink. The label that costs least is
        the model's guess of an image's class.
        """
        mean, logvar = self._apply(params, "encode", image, label)
        prior = self._apply(params, "prior_at", label)
        kl_nats = kl_divergence((mean, logvar), prior).sum(axis=-1)
        if self.config.likelihood == "squared_error":
            decoded = self._apply(params, "decode", mean, label)
            fit = optax.l2_loss(decoded, image).sum(axis=(1, 2, 3))
        else:
            fit = -self.log_likelihood(params, image, mean, label)
        return fit + self.kl_weight * kl_nats

    def variance(self, params: Any) -> Float[Array, ""]:
        """Of a pixel around its decoded value, where the decoder is normal and this is no batch's.

        Beside half a squared error it is the weight of the KL divergence.
        """
        if self.config.likelihood == "squared_error":
            return jnp.float32(self.kl_weight)
        if self.config.sigma == "learned":
            return jnp.square(self._apply(params, "sigma"))
        return jnp.square(jnp.float32(self.config.sigma))

    def observed(self, image: Any, rngs: Any) -> Any:
        """The image as the likelihood sees it: for Bernoulli, ink drawn anew pixel by pixel."""
        if self.config.likelihood != "bernoulli":
            return image
        return jax.random.bernoulli(rngs["binarise"], image).astype(jnp.float32)

    @property
    def kl_weight(self) -> float:
        """Weight of the KL divergence."""
        assert self.config.kl_weight is not None, "a Problem knows it"
        return self.config.kl_weight

    @property
    def pixels(self) -> int:
        """Numbers in one image."""
        return math.prod(self.model.image_shape)

    def _as_density(self, sse_half: Any) -> Any:
        """-log p of a normal decoder whose variance is the weight of the KL divergence."""
        weight = self.kl_weight or math.nan
        return sse_half / weight + 0.5 * self.pixels * (LOG_2PI + math.log(weight))

    def _apply(self, params: Any, method: str, *args: Any) -> Any:
        """What the model computes in the type of its parameters, as float32."""
        dtype = jax.tree.leaves(params)[0].dtype
        given = (x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in args)
        found = self.model.apply(params, *given, method=method)
        return optax.tree.cast(found, jnp.float32)


def kl_divergence(posterior: Any, prior: Any) -> Float[Array, "batch latent"]:
    """KL divergence of normals, in nats, latent by latent; each is `(mean, log-variance)`."""
    (mean, logvar), (prior_mean, prior_logvar) = posterior, prior
    distance = jnp.square(mean - prior_mean) * jnp.exp(-prior_logvar)
    return 0.5 * (distance + jnp.exp(logvar - prior_logvar) - 1 - logvar + prior_logvar)


def log_normal(x: Any, mean: Any, logvar: Any) -> Float[Array, "... batch"]:
    """Log-density of independent normals, in nats, summed over the last axis."""
    return -0.5 * (jnp.square(x - mean) * jnp.exp(-logvar) + logvar + LOG_2PI).sum(axis=-1)


@jax.custom_vjp
def _gradient_times(x: Array, factor: Array) -> Array:
    """`x`, whose gradient is multiplied by a factor."""
    del factor
    return x


_gradient_times.defvjp(
    lambda x, factor: (x, factor),
    lambda factor, gradient: (gradient * factor, jnp.zeros_like(factor)),
)
