"""What a classifier of images is made of. Importing this does not import JAX."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from loopax import Optimizer, Schedule
from loopax.recipe import check_fields

NAME = "images"
"""Of the recipe."""
Preset = Literal["standard", "judge"]


@dataclass(frozen=True)
class ImageSource:
    """Which images a recipe works on, and how they are split."""

    PLACES: ClassVar = ("data",)

    data: str = "mnist"
    """mnist (bundled), or a path: .npz, IDX of MNIST, a folder of folders, Parquet, ArrayRecord or
    WebDataset tars, of these also a folder or a pattern."""
    image_size: tuple[int, int] | None = None
    """Height and width to bring images to, in pixels; needed if theirs differ."""
    channels: Literal[1, 3] | None = None
    """1 to train on grey images, 3 on colour; as they are stored when left out."""
    background: str | None = None
    """The colour that transparent pixels are put on: white, black or '#rrggbb'; they are refused
    when left out."""
    image_column: str | None = None
    """The column of Parquet files that holds the images; found by its name when left out."""
    label_column: str | None = None
    """The column of Parquet files that holds the labels, '' for none; as above."""
    test_fraction: float = 0.1
    """The part of the images to test on, where the data does not say which."""
    validation: float = 0.1
    """The part of the training images that is held out to choose a checkpoint by, where the data
    gives none and there are enough; 0 holds none out, and nothing is chosen."""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Refuses a setting that cannot work."""
        check_fields(self, "test_fraction", lambda part: 0 < part < 1, "within 0 and 1")
        check_fields(self, "validation", lambda part: 0 <= part < 1, "at least 0 and below 1")


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
    compute_dtype: Literal["bfloat16"] | None = None
    """bfloat16: a step computes in it; parameters, their updates and what is measured at the end
    stay float32."""
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

    def check(self) -> None:
        super().check()
        check_fields(self, "batch_size features log_every", lambda n: n >= 1, "at least 1")
        check_fields(self, "epochs", lambda epochs: epochs > 0, "above 0")
        check_fields(self, "widths", lambda widths: min(widths, default=0) > 0, "positive numbers")
        check_fields(self, "shift seed", lambda number: number >= 0, "at least 0")
        check_fields(self, "dropout", lambda share: 0 <= share < 1, "at least 0 and below 1")


_STANDARD = ImagesConfig()
PRESETS: dict[Preset, ImagesConfig] = {
    "standard": _STANDARD,
    "judge": replace(_STANDARD, preset="judge", validation=0.0, shift=0),
}
