"""What a VAE run is made of. Importing this does not import JAX: the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from loopax import Optimizer, Schedule
from loopax.errors import ConfigError
from loopax.recipe import check_fields
from loopax.recipes.images import ImageSource

NAME = "vae"
"""Of the recipe."""
Preset = Literal["sharp", "wide", "article", "bernoulli", "record", "conv"]


@dataclass(frozen=True)
class VAEConfig(ImageSource):
    """A variational autoencoder and how it is trained."""

    preset: Preset = "sharp"
    """sharp: the best samples in about a minute; wide: the article's loss, lower; article: the
    article to the letter; bernoulli: likelihood of binarised images; record: the same, twenty
    minutes long; conv: convolutions, for larger images."""
    epochs: int | None = None
    """Passes over the training images; when left out 24, and as many as make 4,000 steps of fewer
    images, unless the validation images tell to stop."""
    batch_size: int | None = None
    """Images in a step; when left out 128, and fewer where a pass would have but a few steps."""
    seed: int = 0xFFFF
    """Of the initial parameters, the noise and the order of the images."""
    network: Literal["dense", "conv"] = "dense"
    """Dense layers on the flattened image, or convolutions."""
    latent: int = 32
    """Numbers in a latent vector."""
    widths: tuple[int, ...] = (512, 512)
    """Layers of the encoder, and in reverse of the decoder; of convolutions, their channels."""
    activation: Literal["relu", "silu"] = "silu"
    """What follows each of these layers."""
    conditioning: Literal["sum", "every_layer", "none"] = "every_layer"
    """Where the class goes in: once in the decoder, into every layer of both halves, or nowhere."""
    output: Literal["relu", "sigmoid"] = "sigmoid"
    """What keeps pixels in range."""
    prior: Literal["standard", "class"] = "standard"
    """Of the latents: a standard normal, or a normal for each class, which is learned."""
    likelihood: Literal["squared_error", "bernoulli", "gaussian"] = "squared_error"
    """Half the squared error, as in the article; ink drawn anew each time; a normal density."""
    sigma: float | Literal["learned", "optimal"] = "optimal"
    """Of a gaussian: the standard deviation of a pixel."""
    kl_weight: float | None = None
    """Weight of the KL divergence; beside half the squared error it is a decoder variance. When
    left out 1 of a likelihood, and of the squared error 0.005, which is sharp, or 0.2 of fewer than
    1,000 images, which would be memorised."""
    kl_warmup_epochs: float = 0.0
    """Passes over the data in which that weight grows from 0."""
    free_bits: float = 0.0
    """Nats of each latent, on average over a batch, whose KL divergence costs nothing."""
    bound: Literal["elbo", "iwae", "dreg"] = "elbo"
    """The evidence lower bound, or importance-weighted ones, with the plain or DReG gradient."""
    importance_samples: int = 1
    """Draws for each image, in importance-weighted bounds."""
    sampler: Literal["mixture", "prior"] = "mixture"
    """Where samples come from: a mixture per class fitted after training, or the prior."""
    judge: Literal["auto", "none"] = "auto"
    """auto: samples are measured by a classifier, which own images need one of their own for; none
    leaves out what needs it."""
    mixture_components: int = 100
    """Normals in the mixture of a class, at most."""
    compute_dtype: Literal["bfloat16"] | None = None
    """bfloat16: the network of a step computes in it; parameters, their updates, the objective and
    what is measured at the end stay float32."""
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(
            learning_rate=3e-3, schedule=Schedule("cosine"), clip_norm=10.0
        )
    )
    """How the parameters are updated."""
    weights: str | None = None
    """Begin with the weights of a run (its directory) or of a .safetensors file."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """When a number is NaN or infinite: stop, or skip the update."""
    log_every: int = 100
    """Steps between logged rows."""

    def check(self) -> None:
        super().check()
        counts = "epochs batch_size latent log_every importance_samples mixture_components"
        check_fields(self, counts, lambda count: count >= 1, "at least 1")
        check_fields(self, "widths", lambda widths: min(widths, default=0) > 0, "positive numbers")
        amounts = "seed kl_weight kl_warmup_epochs free_bits"
        check_fields(self, amounts, lambda amount: amount >= 0, "at least 0")
        if isinstance(self.sigma, float | int) and not self.sigma > 0:
            raise ConfigError(f"sigma is {self.sigma}; it must be above 0, learned or optimal")
        if self.bound == "elbo" and self.importance_samples > 1:
            raise ConfigError("importance_samples needs bound iwae or dreg, and it is elbo")
        if self.bound != "elbo" and (
            self.kl_weight != 1 or self.free_bits or self.kl_warmup_epochs
        ):
            raise ConfigError(
                f"bound {self.bound} has no KL term: kl_weight must be 1, and free_bits and "
                "kl_warmup_epochs 0"
            )
        if self.likelihood == "bernoulli" and self.output != "sigmoid":
            raise ConfigError("likelihood bernoulli needs output sigmoid, and it is relu")
        if self.network == "conv" and self.conditioning == "sum":
            raise ConfigError("network conv has conditioning every_layer or none, not sum")


# Presets beside published figures, or the article's, train on every image and choose nothing.
_UNCLIPPED = Optimizer(learning_rate=3e-3, schedule=Schedule("cosine"))
_BERNOULLI = VAEConfig(
    preset="bernoulli",
    validation=0.0,
    epochs=10,
    batch_size=128,
    optimizer=_UNCLIPPED,
    likelihood="bernoulli",
    kl_weight=1.0,
)
PRESETS: dict[Preset, VAEConfig] = {
    "sharp": VAEConfig(),
    "wide": VAEConfig(
        preset="wide",
        validation=0.0,
        epochs=6,
        batch_size=128,
        kl_weight=0.5,
        sampler="prior",
        optimizer=_UNCLIPPED,
    ),
    "article": VAEConfig(
        preset="article",
        validation=0.0,
        epochs=10,
        batch_size=16,
        widths=(256, 128, 64),
        activation="relu",
        conditioning="sum",
        output="relu",
        kl_weight=0.5,
        sampler="prior",
        optimizer=Optimizer(learning_rate=1e-4),
    ),
    "bernoulli": _BERNOULLI,
    "record": replace(
        _BERNOULLI,
        preset="record",
        epochs=65,
        latent=50,
        prior="class",
        bound="dreg",
        importance_samples=4,
        optimizer=replace(_UNCLIPPED, weight_decay=0.03, params_ema=0.999),
    ),
    "conv": VAEConfig(preset="conv", network="conv", widths=(32, 64, 128)),
}
