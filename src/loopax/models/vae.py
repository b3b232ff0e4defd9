"""A variational autoencoder for images, class-conditional or not (Kingma and Welling, 2013).

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


class ConvEncoder(nn.Module):
    """Convolutions that halve the image, one for each of `channels`, and a dense layer."""

    channels: Sequence[int]
    dense: int
    activation: Callable[[Array], Array]

    @nn.compact
    def __call__(
        self, image: Images, condition: Float[Array, "batch classes"] | None = None
    ) -> Float[Array, "batch dense"]:
        x = image
        for channels in self.channels:
            x = nn.Conv(channels, (3, 3), strides=2)(x)
            x = self.activation(_shifted(x, condition))
        x = nn.Dense(self.dense)(x.reshape(x.shape[0], -1))
        if condition is not None:
            x = x + nn.Dense(self.dense, use_bias=False)(condition)
        return self.activation(x)


class ConvDecoder(nn.Module):
    """The way back: each stage makes four times as many channels and folds them into pixels.

    That sub-pixel convolution (Shi et al., 2016) does its arithmetic at the small size, which
    a CPU thanks it for, and leaves no chequerboard of unequal overlaps.
    """

    image_shape: tuple[int, int, int]
    channels: Sequence[int]
    activation: Callable[[Array], Array]

    @nn.compact
    def __call__(
        self, latent: Latents, condition: Float[Array, "batch classes"] | None = None
    ) -> Images:
        sizes = [self.image_shape[:2]]
        for _ in self.channels:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        height, width = sizes.pop()
        channels = tuple(reversed(self.channels))
        if condition is not None:
            latent = jnp.concatenate([latent, condition], axis=-1)
        x = nn.Dense(height * width * channels[0])(latent)
        x = x.reshape(-1, height, width, channels[0])
        for wanted in (*channels[1:], channels[-1]):
            x = self.activation(_shifted(x, condition))
            x = _unfolded(nn.Conv(4 * wanted, (3, 3))(x))
            height, width = sizes.pop()
            x = x[:, :height, :width]
        return nn.Conv(self.image_shape[-1], (3, 3))(self.activation(x))


class VAE(nn.Module):
    """Encodes an image to a normal distribution over latents; decodes a latent and a class.

    A label below 0 says that the class is not known: it is the condition in which no class is on.
    It computes in the type of its parameters when it is given images or latents of that type.

    Attributes:
        image_shape: height, width and channels.
        classes: how many classes there are; a single one conditions nothing.
        latent: size of the latent vector.
        widths: layers of the encoder; the decoder has them in reverse. For `conv`, the channels
            of stages that halve the image each.
        network: `dense` layers on the flattened image, or `conv`olutions.
        activation: what follows each of these layers.
        conditioning: `sum` adds an image of the class to one of the latent, in the decoder only;
            `every_layer` gives the class to every layer of both halves; `none` to none.
        output: what keeps the pixels in range. A ReLU lets them exceed 1 and can leave a pixel
            dead for good; a sigmoid does neither.
        prior: the latents' distribution before an image is seen: `standard` normal, or a normal
            of its own for each `class`, which is learned.
        learned_sigma: whether there is a parameter for the standard deviation of the pixels.
    """

    image_shape: tuple[int, int, int] = (28, 28, 1)
    classes: int = 10
    latent: int = 32
    widths: Sequence[int] = (256, 128, 64)
    network: Literal["dense", "conv"] = "dense"
    activation: Literal["relu", "silu"] = "relu"
    conditioning: Literal["sum", "every_layer", "none"] = "sum"
    output: Literal["relu", "sigmoid"] = "relu"
    prior: Literal["standard", "class"] = "standard"
    learned_sigma: bool = False

    def setup(self) -> None:
        """Makes the layers."""
        activation = {"relu": nn.relu, "silu": nn.silu}[self.activation]
        self.encoder: nn.Module
        self.decoder: nn.Module
        narrow = self.widths[-1]
        inner = tuple(reversed(self.widths))
        if self._sums:
            self.from_latent, self.from_class = nn.Dense(narrow), nn.Dense(narrow)
            inner = inner[1:]
        if self.network == "conv":
            self.encoder = ConvEncoder(self.widths, 2 * narrow, activation)
            self.decoder = ConvDecoder(self.image_shape, self.widths, activation)
        else:
            pixels = math.prod(self.image_shape)
            self.encoder = FeedForward(self.widths, activation)
            self.decoder = FeedForward((*inner, pixels), activation, activate_last=False)
        self.posterior = nn.Dense(2 * self.latent)
        if self.prior == "class":
            zeros = nn.initializers.zeros_init()
            self.prior_of_class = nn.Dense(2 * self.latent, kernel_init=zeros)
        if self.learned_sigma:
            self.log_sigma = self.param("log_sigma", nn.initializers.zeros_init(), ())

    def __call__(self, image: Images, label: Labels) -> tuple[Images, Latents, Latents]:
        """Reconstruction, mean and log-variance; the sample is drawn from the stream `noise`."""
        mean, logvar = self.encode(image, label)
        noise = jax.random.normal(self.make_rng("noise"), mean.shape)
        self.prior_at(label)  # so that its parameters are made
        return self.decode(mean + jnp.exp(0.5 * logvar) * noise, label), mean, logvar

    def encode(self, image: Images, label: Labels) -> tuple[Latents, Latents]:
        """Mean and log-variance of the latent given the image (and its class, if conditioned)."""
        flat = image if self.network == "conv" else image.reshape(image.shape[0], -1)
        hidden = self.encoder(flat, self._condition(label, image.dtype))
        mean, logvar = jnp.split(self.posterior(hidden), 2, axis=-1)
        return mean, logvar

    def prior_at(self, label: Labels) -> tuple[Latents, Latents]:
        """Mean and log-variance of the latent of an image of this class that is yet to be seen."""
        if self.prior == "class":
            mean, logvar = jnp.split(self.prior_of_class(self._one_hot(label)), 2, axis=-1)
            return mean, logvar
        zeros = jnp.zeros((label.shape[0], self.latent))
        return zeros, zeros

    def decode(self, latent: Latents, label: Labels) -> Images:
        """The image that a latent means for a class."""
        pixels = self.decode_logits(latent, label)
        return nn.relu(pixels) if self.output == "relu" else nn.sigmoid(pixels)

    def decode_logits(self, latent: Latents, label: Labels) -> Images:
        """`decode` before the pixels are brought into range; of a sigmoid, the log-odds of ink."""
        hidden = latent
        if self._sums:
            hidden = self.from_latent(latent)
            hidden = hidden + self.from_class(self._one_hot(label).astype(latent.dtype))
        pixels = self.decoder(hidden, self._condition(label, latent.dtype))
        return pixels.reshape(-1, *self.image_shape)

    def sigma(self) -> Float[Array, ""]:
        """The learned standard deviation of a pixel around its decoded value."""
        return jnp.exp(self.log_sigma)

    @property
    def _sums(self) -> bool:
        return self.conditioning == "sum" and self.network == "dense"

    def _one_hot(self, label: Labels) -> Float[Array, "batch classes"]:
        return jax.nn.one_hot(label, self.classes)

    def _condition(self, label: Labels, dtype: jnp.dtype) -> Float[Array, "batch classes"] | None:
        everywhere = self.conditioning == "every_layer" and self.classes > 1
        return self._one_hot(label).astype(dtype) if everywhere else None


def _shifted(x: Images, condition: Float[Array, "batch classes"] | None) -> Images:
    """Channels moved by an amount that depends on the class; made inside a compact module."""
    if condition is None:
        return x
    shift = nn.Dense(x.shape[-1], use_bias=False)(condition)
    return x + shift[:, None, None]


def _unfolded(x: Images) -> Images:
    """Four channels become a square of four pixels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels // 4)
