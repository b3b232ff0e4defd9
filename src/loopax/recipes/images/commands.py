"""What the image classifier adds to the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from loopax.errors import ConfigError
from loopax.recipe import Evaluate, OfRun, Recipe
from loopax.recipes import images


@dataclass(frozen=True)
class EvaluateImages(Evaluate):
    """Measure a trained classifier on images that it was not trained on, class by class."""

    data: str | None = None
    """Where its images are by now, if not where they were."""

    def measured(self, recipe: Recipe) -> tuple[images.TrainedClassifier, Mapping[str, Any]]:
        trained = images.load(self.run, self.checkpoint, data=self.data)
        return trained, images.evaluate(trained)


@dataclass(frozen=True)
class PredictImages(OfRun):
    """Tell the class of image files."""

    images: Positional[tuple[Path, ...]] = ()
    """The files, each answered in a line: class, probability and file, with tabs between."""

    def __call__(self, recipe: Recipe) -> None:
        if not self.images:
            raise ConfigError("give image files (loopax predict RUN photo.jpg)")
        from loopax.data import read_images

        trained = images.load(self.run, self.checkpoint)
        height, width, channels = trained.image_shape
        pixels = read_images(
            self.images,
            size=(height, width),
            channels=channels,
            background=trained.config.background,
        )
        for file, found in zip(self.images, trained.probabilities(pixels), strict=True):
            best = int(found.argmax())
            print(trained.class_names[best], f"{found[best]:.4f}", file, sep="\t")


COMMANDS = {"evaluate": EvaluateImages, "predict": PredictImages}
