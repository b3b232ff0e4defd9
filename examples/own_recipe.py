"""A recipe of one's own, with presets and options: `loopax train own_recipe:Digits --width 64`.

`loopax resume`, `evaluate`, `runs`, `replay`, `rewind`, `export` and `verify` work on its runs.
"""

from dataclasses import dataclass

import flax.linen as nn
import optax

import loopax
from loopax.recipe import Recipe, SimpleProblem


@dataclass(frozen=True)
class Config:
    """A classifier of digits with one hidden layer."""

    preset: str = "small"
    """small: seconds; wide: more accurate."""
    width: int = 32
    """Units of the hidden layer."""
    epochs: int = 3
    """Passes over the training images."""
    learning_rate: float = 3e-3
    """Of Adam."""
    seed: int = 0
    """Of the initial parameters and the order of the images."""


class Classifier(nn.Module):
    """A digit to the scores of the ten classes."""

    width: int

    @nn.compact
    def __call__(self, image):
        hidden = nn.relu(nn.Dense(self.width)(image.reshape(len(image), -1)))
        return nn.Dense(10)(hidden)


class Digits(Recipe):
    """Tell handwritten digits apart."""

    presets = {"small": Config(), "wide": Config(preset="wide", width=512, epochs=10)}

    def problem(self, config, say=print):
        """What a configuration says is to be trained, in the terms of `loopax.fit`."""
        data, model = loopax.data.mnist().with_validation(0.1), Classifier(config.width)
        batches = data.train.batches(100)
        steps = config.epochs * batches.steps_per_epoch

        def loss_fn(params, batch, rngs):
            logits = model.apply(params, batch["image"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return losses.mean(), {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}

        def initial():
            tx = optax.adam(config.learning_rate)
            return loopax.TrainState.create(model, data.train, tx, seed=config.seed)

        return SimpleProblem(
            config=config,
            initial=initial,
            loss_fn=loss_fn,
            batches=batches,
            steps=steps,
            evaluation=loopax.Evaluation({"validation": data.validation.batches(500)}),
            ranking=("validation/accuracy", "max"),
            description=data.description,
        )


if __name__ == "__main__":
    trained = loopax.recipe.train(Digits(), Digits.presets["small"], "runs/digits")
    print(Digits().evaluate(trained))
