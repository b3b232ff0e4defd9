"""What the image classifier adds to the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loopax.recipe import Evaluate, Recipe
from loopax.recipes import images


@dataclass(frozen=True)
class EvaluateImages(Evaluate):
    """Measure a trained classifier on images that it was not trained on, class by class."""

    data: str | None = None
    """Where its images are by now, if not where they were."""

    def measured(self, recipe: Recipe) -> tuple[images.TrainedClassifier, Mapping[str, Any]]:
        trained = images.load(self.run, self.checkpoint, data=self.data)
        return trained, images.evaluate(trained)


COMMANDS = {"evaluate": EvaluateImages}
