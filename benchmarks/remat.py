"""What `remat` saves: in a scan over layers, and in a BERT of MiniLM's sizes, whose layers are not.

    python benchmarks/remat.py

Kept is what JAX's derivative keeps of the forward pass, beside its arguments. Temporaries are those
of the program that XLA compiles for the loss and its gradient. Nothing is run; it takes about a
minute on two CPU cores.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax._src.ad_checkpoint import saved_residuals  # What `print_saved_residuals` prints.

import loopax
from loopax.compute.remat import rematerialised
from loopax.models.bert import BertConfig, BertForSequenceClassification

LAYERS, WIDTH, WIDE, BATCH = 16, 64, 256, 256
TEXTS, LENGTH = 32, 128


def scan():
    """Parameters, loss and data of layers in a scan."""
    random = np.random.default_rng(0)
    params = {
        "wide": np.float32(random.normal(size=(LAYERS, WIDTH, WIDE)) / WIDTH),
        "narrow": np.float32(random.normal(size=(LAYERS, WIDE, WIDTH)) / WIDE),
    }

    def loss_fn(params, batch, rngs):
        def layer(x, weights):
            return x + jax.nn.gelu(x @ weights["wide"]) @ weights["narrow"], None

        return jnp.square(jax.lax.scan(layer, batch["x"], params)[0]).mean()

    return params, loss_fn, {"x": random.normal(size=(BATCH, WIDTH)).astype(np.float32)}


def bert():
    """Parameters, loss and data of a classifier with dropout."""
    config = BertConfig(30522, 384, 6, 12, 1536, max_position_embeddings=512)
    model = BertForSequenceClassification(config, 2, "mean")
    ids = np.random.default_rng(0).integers(1000, 20_000, (TEXTS, LENGTH)).astype(np.int32)

    def loss_fn(params, batch, rngs):
        streams = {"dropout": rngs["dropout"]}
        logits = model.apply(params, batch["ids"], deterministic=False, rngs=streams)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    return model.init(jax.random.key(0), ids), loss_fn, {"ids": ids, "label": np.arange(TEXTS) % 2}


def main() -> None:
    print("| network | `remat` | kept | temporaries |\n|---|---|---|---|")
    for network in (scan, bert):
        params, loss_fn, batch = network()
        given = params, batch, loopax.TrainState.create(params=params, tx=optax.sgd(1.0)).rngs
        for remat in (None, "dots", "dots_with_no_batch_dims", "nothing"):
            loss = rematerialised(loss_fn, remat)
            residuals = saved_residuals(loss, *given)
            kept = [each for each, why in residuals if "argument" not in why]
            program = jax.jit(jax.value_and_grad(loss)).lower(*given).compile()
            figures = (
                sum(each.size * each.dtype.itemsize for each in kept),
                program.memory_analysis().temp_size_in_bytes,
            )
            shown = " | ".join(f"{count / 2**20:,.1f} MiB" for count in figures)
            print(f"| {network.__name__} | {remat} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
