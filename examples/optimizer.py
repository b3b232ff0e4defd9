"""An optimiser as a description that can be saved, compared and set from a command line, and the
same by hand in Optax: warm-up, cosine decay, clipping, and layers with a rate of their own."""

import flax.linen as nn
import optax

import loopax
from loopax import Group, Optimizer, Schedule

STEPS = 600


class Classifier(nn.Module):
    """A body, and a head on top of it."""

    def setup(self):
        self.body = nn.Dense(128)
        self.head = nn.Dense(10)

    def __call__(self, image):
        return self.head(nn.relu(self.body(image.reshape(len(image), -1))))


def loss_fn(params, batch, rngs):
    logits = model.apply(params, batch["image"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


described = Optimizer(
    "adamw",
    learning_rate=1e-3,
    schedule=Schedule("cosine", warmup_steps=60),
    weight_decay=0.01,
    clip_norm=1.0,
    groups=(Group(("head",), Optimizer("sgd", learning_rate=0.1, arguments={"momentum": 0.9})),),
)

rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, warmup_steps=60, decay_steps=STEPS)
by_hand = optax.multi_transform(
    {
        "body": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01)),
        "head": optax.sgd(0.1, momentum=0.9),
    },
    {"params": {"body": "body", "head": "head"}},
)

model, data = Classifier(), loopax.data.mnist()
for name, tx in {"described": described.build(STEPS), "by hand": by_hand}.items():
    state = loopax.TrainState.create(model, data.train, tx)
    run = loopax.fit(state, loss_fn, data.train.batches(100), steps=STEPS, progress=False)
    rates = {key: rate for key, rate in run.history[0].items() if "learning_rate" in key}
    print(f"{name}: loss {run.latest('train')['loss']:.6f}, logged rates {rates}")
