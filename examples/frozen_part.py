"""Train a part of a model and keep the rest: by path patterns, which makes the frozen part free,
or by labels for `optax.multi_transform`; and no weight decay where it does not belong."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import loopax


class Classifier(nn.Module):
    """A backbone, and a head on top of it."""

    def setup(self):
        self.backbone = nn.Dense(128)
        self.head = nn.Dense(10)

    def __call__(self, image):
        return self.head(nn.relu(self.backbone(image.reshape(len(image), -1))))


def loss_fn(params, batch, rngs):
    logits = model.apply(params, batch["image"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def moved(before, after):
    """How far the parameters of each part went in all."""
    distance = jax.tree.map(lambda old, new: jnp.abs(new - old).sum(), before, after)["params"]
    return {part: float(jax.tree.reduce(jnp.add, tree)) for part, tree in distance.items()}


def train(name, tx, **options):
    state = loopax.TrainState.create(model, data.train, tx, **options)
    run = loopax.fit(state, loss_fn, data.train.batches(100), steps=200, progress=False)
    print(f"{name}: moved {moved(state.params, run.state.params)}")
    return run


model, data = Classifier(), loopax.data.mnist()

# By path pattern: no gradient of the backbone is formed, and Adam keeps no state for it, whatever
# is chained in front.
clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
by_pattern = train("frozen by pattern", clipped, frozen=("backbone",))

# By labels: a prefix of the parameter tree, or a function that makes the labels from the tree.
transforms = {"train": optax.adam(1e-3), "freeze": optax.set_to_zero()}
labels = {"params": {"backbone": "freeze", "head": "train"}}
by_prefix = train("frozen by a tree of labels", optax.multi_transform(transforms, labels))


def label(params):
    def of(path, leaf):
        return "freeze" if path[1].key == "backbone" else "train"

    return jax.tree_util.tree_map_with_path(of, params)


by_function = train("frozen by a function", optax.multi_transform(transforms, label))

# The same mechanism gives parts an optimiser of their own: here the head has no weight decay.
plain = loopax.Optimizer("adamw", learning_rate=1e-3, weight_decay=0.0)
decayed = loopax.Optimizer(
    "adamw", learning_rate=1e-3, weight_decay=0.1, groups=(loopax.Group(("head",), plain),)
)
no_decay_on_the_head = train("no decay on the head", decayed.build())
