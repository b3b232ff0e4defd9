"""A linear probe: the head that is best for what the pretrained part makes of texts by itself.

A fine-tuning that begins with it moves the pretrained part less than one that begins with a random
head, whose first gradients point nowhere, and is better for it where texts are few (Kumar et al.,
"Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", 2022).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

DECAY = 0.03
"""L2 penalty on the weights of standardised features, half its square."""
UPDATES = 100
"""Of L-BFGS, which has converged by then."""


def fit_probe(
    features: Float[np.ndarray, "texts hidden"],
    labels: Int[np.ndarray, " texts"],
    weights: Float[np.ndarray, " classes"],
) -> dict[str, Array]:
    """`kernel [hidden, classes]` and `bias [classes]` of a logistic regression on features.

    Args:
        features: of the texts.
        labels: their classes, by number.
        weights: of the errors in each class, by which there are as many classes.
    """
    mean, spread = features.mean(0), features.std(0) + 1e-6
    head = _fitted((features - mean) / spread, jnp.asarray(labels), jnp.asarray(weights))
    kernel = head["kernel"] / spread[:, None]
    return {"kernel": kernel, "bias": head["bias"] - mean @ kernel}


@jax.jit
def _fitted(features: Any, labels: Any, weights: Any) -> dict[str, Array]:
    def loss(head: dict[str, Array]) -> Array:
        logits = features @ head["kernel"] + head["bias"][None]
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return (each * weights[labels]).mean() + DECAY / 2 * (head["kernel"] ** 2).sum()

    def update(_: int, carried: tuple[Any, Any]) -> tuple[Any, Any]:
        head, state = carried
        value, grad = value_and_grad(head, state=state)
        updates, state = tx.update(grad, state, head, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(head, updates), state

    tx, value_and_grad = optax.lbfgs(), optax.value_and_grad_from_state(loss)
    shape = features.shape[1], weights.shape[0]
    head = {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[1])}
    return jax.lax.fori_loop(0, UPDATES, update, (head, tx.init(head)))[0]
