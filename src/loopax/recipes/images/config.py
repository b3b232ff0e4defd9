"""What a classifier of images is made of. Importing this does not import JAX."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from loopax import Optimizer, Schedule
from loopax.errors import ConfigError

Preset = Literal["standard", "judge"]


@dataclass(frozen=True)
class ImageSource:
    """Which images a recipe works on, and how they are split."""

    PLACES: ClassVar = ("data",)

    data: str = "mnist"
    """mnist (bundled), or a path: IDX, .npz or Parquet files, or a folder with one per class."""
    image_size: tuple[int, int] | None = None
    """Height and width to bring images to, in pixels; needed if theirs differ."""
    channels: Literal[1, 3] | None = None
    """1 to train on grey images, 3 on colour; as they are stored when left out."""
    background: str | None = None
    """The colour that transparent pixels are put on: white, black or '#rrggbb'; they are refused
    when left out."""
    test_fraction: float = 0.1
    """The part of the images to test on, where the data does not say which."""
    validation: float = 0.1
    """The part of the training images that is held out to choose a checkpoint by, where the data
    gives none and there are enough; 0 holds none out, and nothing is chosen."""

    def __post_init__(self) -> None:
        self._check_split()

    def _check_split(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise ConfigError(f"test_fraction is {self.test_fraction}; it must be within 0 and 1")
        if not 0 <= self.validation < 1:
            raise ConfigError(f"validation is {self.validation}; it must be at least 0 and below 1")


@dataclass(frozen=True)
class ImagesConfig(ImageSource):
    """A convolutional classifier of images and how it is trained."""

    preset: Preset = "standard"
    """standard: the best checkpoint of several passes; judge: every training image, in at most
    1,800 steps, as samples of a VAE are judged by."""
    epochs: float | None = None
    """Passes over the training images; when left out 8, and as many as make 2,000 steps of fewer
    images."""
    batch_size: int | None = None
    """Images in a step; when left out 64, and fewer where a pass would have but a few steps."""
    shift: int | None = None
    """Pixels by which training images are moved, at most, in each direction; when left out, a
    fourteenth of the shorter side."""
    seed: int = 0
    """Of the initial parameters, the dropout, the shifts and the order of the images."""
    widths: tuple[int, ...] = (24, 48, 64)
    """Channels of the stages of convolution; the last number serves all further ones that a large
    image needs."""
    features: int = 128
    """Size of the last hidden layer."""
    dropout: float = 0.2
    """The share of these features that is left out in training."""
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(
            learning_rate=3e-3,
            schedule=Schedule("cosine"),
            weight_decay=0.02,
            decay_vectors=False,
        )
    )
    """How the parameters are updated; without a warm-up of its own it has one of 100 steps."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """When a number is NaN or infinite: stop, or skip the update."""
    log_every: int = 50
    """Steps between logged rows."""

    def __post_init__(self) -> None:
        self._check_split()
        for name in ("batch_size", "features", "log_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.epochs is not None and not self.epochs > 0:
            raise ConfigError(f"epochs is {self.epochs}; it must be above 0")
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(f"widths is {self.widths}; it must be one or more positive numbers")
        for name in ("shift", "seed"):
            if getattr(self, name) is not None and getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; it must be at least 0 and below 1")


_STANDARD = ImagesConfig()
PRESETS: dict[Preset, ImagesConfig] = {
    "standard": _STANDARD,
    "judge": replace(_STANDARD, preset="judge", validation=0.0, shift=0),
}
