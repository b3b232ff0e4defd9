"""What a VAE run is made of. Importing this does not import JAX: the command line reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from loopax import Optimizer, Schedule
from loopax.errors import ConfigError


@dataclass(frozen=True)
class VAEConfig:
    """A class-conditional VAE and how it is trained."""

    preset: Literal["wide", "article"] = "wide"
    """wide: the best model for about the article's compute; article: the article to the letter."""
    data: str = "mnist"
    """mnist (bundled), or a path: IDX files, an .npz file, or a folder with a folder per class."""
    image_size: tuple[int, int] | None = None
    """Height and width to bring a folder's images to, in pixels; needed if theirs differ."""
    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 128
    """Images in a step."""
    seed: int = 0xFFFF
    """Of the initial parameters, the noise and the order of the images."""
    latent: int = 32
    """Numbers in a latent vector."""
    widths: tuple[int, ...] = (512, 512)
    """Dense layers of the encoder; the decoder has them in reverse."""
    activation: Literal["relu", "silu"] = "silu"
    """What follows each of these layers."""
    conditioning: Literal["sum", "every_layer"] = "every_layer"
    """Where the class goes in: once in the decoder, or into every layer of both halves."""
    output: Literal["relu", "sigmoid"] = "sigmoid"
    """What keeps pixels in range."""
    kl_weight: float = 0.5
    """Weight of the KL divergence beside half the squared error: a decoder variance."""
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(learning_rate=3e-3, schedule=Schedule("cosine"))
    )
    """How the parameters are updated."""
    weights: str | None = None
    """Begin with the weights of a run (its directory) or of a .safetensors file."""
    nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """When a number is NaN or infinite: stop, skip the update, or go back to a checkpoint."""
    log_every: int = 100
    """Steps between logged rows."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "latent", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(f"widths is {self.widths}; it must be one or more positive numbers")
        if not self.kl_weight >= 0:
            raise ConfigError(f"kl_weight is {self.kl_weight}; it must be at least 0")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; it must be at least 0")

    def to_json(self) -> dict[str, Any]:
        """The configuration as the run directory keeps it."""
        return {"recipe": "vae", **asdict(self)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> VAEConfig:
        """The configuration of a run directory.

        Raises:
            ConfigError: it is not one of a VAE.
        """
        import pydantic

        fields = {name: value for name, value in stored.items() if name != "recipe"}
        try:
            return pydantic.TypeAdapter(cls).validate_python(fields)
        except pydantic.ValidationError as error:
            wrong = error.errors()[0]
            where = ".".join(map(str, ["config.json", *wrong["loc"]]))
            raise ConfigError(f"{where}: {wrong['msg']}") from error


PRESETS = {
    "wide": VAEConfig(),
    "article": VAEConfig(
        preset="article",
        batch_size=16,
        widths=(256, 128, 64),
        activation="relu",
        conditioning="sum",
        output="relu",
        optimizer=Optimizer(learning_rate=1e-4),
    ),
}
