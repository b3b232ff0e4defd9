"""A small convolutional classifier whose last hidden layer makes features to compare images by."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

Images = Float[Array, "batch height width channels"]
LARGE = 32
"""Side, in pixels, down to which a large image is averaged first, by a whole factor."""
SMALLEST = 4
"""Side, in pixels, down to which the stages halve the image."""


class Classifier(nn.Module):
    """Stages of convolution, ReLU and max-pooling; a dense layer of features; the logits.

    Attributes:
        classes: how many classes there are.
        channels: of the stages; the last number serves all further ones that a large image needs.
        features: size of the last hidden layer.
        dropout: share of the features left out in training.
    """

    classes: int
    channels: Sequence[int] = (24, 48, 64)
    features: int = 128
    dropout: float = 0.2

    @nn.compact
    def __call__(
        self, image: Images, *, train: bool = False
    ) -> tuple[Float[Array, "batch classes"], Float[Array, "batch features"]]:
        """Logits and features; in training the stream `dropout` is drawn from."""
        factor = max(1, min(image.shape[1:3]) // LARGE)
        x, stage = nn.avg_pool(image, (factor, factor), (factor, factor)), 0
        while stage == 0 or max(x.shape[1:3]) > SMALLEST:
            x = nn.Conv(self.channels[min(stage, len(self.channels) - 1)], (3, 3))(x)
            x = nn.max_pool(nn.relu(x), (2, 2), (2, 2), padding="SAME")
            stage += 1
        features = nn.relu(nn.Dense(self.features)(x.reshape(x.shape[0], -1)))
        hidden = nn.Dropout(self.dropout, deterministic=not train)(features)
        return nn.Dense(self.classes)(hidden), features
