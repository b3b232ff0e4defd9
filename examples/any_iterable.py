"""Batches from anywhere: any iterable that can be begun again, or a Grain dataset.

A batch is any PyTree of arrays, and the loss sees it as it is.
"""

import jax.numpy as jnp
import numpy as np
import optax

import loopax


def loss_fn(params, batch, rngs):
    prediction = batch["x"] @ params["slope"] + params["offset"]
    return jnp.square(prediction - batch["y"]).mean()


def train(name, batches):
    params = {"slope": jnp.zeros(3), "offset": jnp.zeros(1)}
    state = loopax.TrainState.create(params=params, tx=optax.adam(0.05))
    run = loopax.fit(state, loss_fn, batches, steps=600, progress=False)
    print(f"{name}: slope {np.round(run.state.params['slope'], 2)}")
    return run


SLOPE = np.array([1.0, -2.0, 0.5], np.float32)


class Measurements:
    """Makes its batches as it goes. A class and not a bare generator, so that it can be begun
    again: that is what a second epoch needs, and a resumed run."""

    def __iter__(self):
        rng = np.random.default_rng(0)
        for _ in range(200):
            x = rng.normal(size=(32, 3)).astype(np.float32)
            yield {"x": x, "y": x @ SLOPE + 1}


from_iterable = train("a class with __iter__", Measurements())

try:
    import grain
except ModuleNotFoundError:
    print("Grain is not installed; it comes with: pip install 'loopax[grain]'")
else:
    points = np.random.default_rng(0).normal(size=(6400, 3)).astype(np.float32)
    dataset = (
        grain.MapDataset.source(points)
        .shuffle(seed=0)
        .map(lambda x: {"x": x, "y": x @ SLOPE + 1})
        .batch(32, drop_remainder=True)
    )
    # It can be indexed, so a resumed run starts with the very batch it needs.
    from_grain = train("a Grain dataset", dataset)
