"""A class-conditional variational autoencoder for images (Kingma and Welling, 2013).

With its defaults it is the network of the reference article; `conditioning="every_layer"` shows
the class to the encoder and to each layer of the decoder (Sohn, Lee and Yan, 2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Images = Float[Array, "batch height width channels"]
Latents = Float[Array, "batch latent"]
Labels = Int[Array, " batch"]


class FeedForward(nn.Module):
    """A stack of dense layers, each followed by the activation, the last one only if asked.

    A condition is appended to the input of every layer.
    """

    widths: Sequence[int]
    activation: Callable[[Array], Array] = nn.relu
    activate_last: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch in"], condition: Float[Array, "batch classes"] | None = None
    ) -> Float[Array, "batch out"]:
        for index, width in enumerate(self.widths):
            if condition is not None:
                x = jnp.concatenate([x, condition], axis=-1)
            x = nn.Dense(width)(x)
            if self.activate_last or index < len(self.widths) - 1:
                x = self.activation(x)
        return x


class VAE(nn.Module):
    """Encodes an image to a normal distribution over latents; decodes a latent and a class.

    Attributes:
        image_shape: height, width and channels.
        classes: how many classes there are.
        latent: size of the latent vector.
        widths: layers of the encoder; the decoder has them in reverse.
        activation: what follows each of these layers.
        conditioning: `sum` adds an image of the class to one of the latent, in the decoder only;
            `every_layer` appends the class to the input of every layer of both halves.
        output: what keeps the pixels in range. A ReLU lets them exceed 1 and can leave a pixel
            dead for good; a sigmoid does neither.
    """

    image_shape: tuple[int, int, int] = (28, 28, 1)
    classes: int = 10
    latent: int = 32
    widths: Sequence[int] = (256, 128, 64)
    activation: Literal["relu", "silu"] = "relu"
    conditioning: Literal["sum", "every_layer"] = "sum"
    output: Literal["relu", "sigmoid"] = "relu"

    def setup(self) -> None:
        """Makes the layers."""
        narrow = self.widths[-1]
        activation = {"relu": nn.relu, "silu": nn.silu}[self.activation]
        self.encoder = FeedForward(self.widths, activation)
        self.posterior = nn.Dense(2 * self.latent)
        if self.conditioning == "sum":
            self.from_latent, self.from_class = nn.Dense(narrow), nn.Dense(narrow)
            inner = tuple(reversed(self.widths))[1:]
        else:
            inner = tuple(reversed(self.widths))
        pixels = math.prod(self.image_shape)
        self.decoder = FeedForward((*inner, pixels), activation, activate_last=False)

    def __call__(self, image: Images, label: Labels) -> tuple[Images, Latents, Latents]:
        """Reconstruction, mean and log-variance; the sample is drawn from the stream `noise`."""
        mean, logvar = self.encode(image, label)
        noise = jax.random.normal(self.make_rng("noise"), mean.shape)
        return self.decode(mean + jnp.exp(0.5 * logvar) * noise, label), mean, logvar

    def encode(self, image: Images, label: Labels) -> tuple[Latents, Latents]:
        """Mean and log-variance of the latent given the image (and its class, if conditioned)."""
        flat = image.reshape(image.shape[0], -1)
        hidden = self.encoder(flat, self._condition(label))
        mean, logvar = jnp.split(self.posterior(hidden), 2, axis=-1)
        return mean, logvar

    def decode(self, latent: Latents, label: Labels) -> Images:
        """The image that a latent means for a class."""
        if self.conditioning == "sum":
            hidden = self.from_latent(latent) + self.from_class(self._one_hot(label))
        else:
            hidden = latent
        pixels = self.decoder(hidden, self._condition(label))
        pixels = nn.relu(pixels) if self.output == "relu" else nn.sigmoid(pixels)
        return pixels.reshape(-1, *self.image_shape)

    def _one_hot(self, label: Labels) -> Float[Array, "batch classes"]:
        return jax.nn.one_hot(label, self.classes)

    def _condition(self, label: Labels) -> Float[Array, "batch classes"] | None:
        return self._one_hot(label) if self.conditioning == "every_layer" else None
